"""From the spectra that runs measured to figures: ranks, condition numbers, the balance of roles.

A run measures them with --log-spectra (`schema.Spectrum`). The charts `spectra`, `stable_rank` and
`balance` and the verdicts of `analysis.why` are made of what is here.

Claims: every figure of a run is a geometric mean over matrices, because ranks and condition
numbers spread over decades. The mean of several runs and its interval are of the logarithms of the
runs' figures (Student's t, n = seeds). A matrix of zeros has no figures and is left out. A singular
value that is rounding alone stands as 0; a ratio over it counts as 1 / FLOOR, which is the least
that it can be.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from analysis.stats import Estimate, mean
from tracking.schema import DIVERGED, Run, Spectrum
from tracking.spectra import FLOOR

MATRIX = "matrix"  # the role of the hidden matrices
GRADIENT, MOMENTUM, UPDATE, WEIGHT = "gradient", "momentum", "update", "weight"
BEGINNING, MIDDLE, END = "beginning", "middle", "end"
MOMENTS = (BEGINNING, MIDDLE, END)
# The singular values of a row and the part of all values that lies above each.
QUANTILES = {
    "largest": 0.0, "q90": 0.1, "q75": 0.25, "median": 0.5, "q25": 0.75, "q10": 0.9,
    "smallest": 1.0,
}  # fmt: skip
SAME = ["run", "step", "parameter", "part"]  # what an update and its weight have in common


def measured(runs: Iterable[tuple[Run, Sequence[Spectrum]]]) -> pd.DataFrame:
    """The rows of all runs that did not diverge, with the columns of `Spectrum` and these:

    run, label, seed and planned (steps) of the run; group: the kind of a hidden matrix, else the
    role; full: the full rank, min(rows, columns); noise: the stable rank of random numbers in this
    shape, if it is large (Marchenko and Pastur 1967); norm: the Frobenius norm; relative: of an
    update, its root mean square over the weight's. `largest` of a vector is its norm, which is its
    only singular value. Empty if nothing was measured.
    """
    parts = []
    for run, logged in runs:
        if logged and run.status != DIVERGED:
            part = pd.DataFrame([vars(row) for row in logged], columns=_COLUMNS)
            parts.append(
                part.assign(run=run.run, label=run.label, seed=run.seed, planned=run.steps_planned)
            )
    if not parts:
        return pd.DataFrame(columns=[*_COLUMNS, "run", "label", "seed", "planned"])
    rows = pd.concat(parts, ignore_index=True)
    rows["group"] = rows["kind"].where(rows["role"] == MATRIX, rows["role"])
    rows["full"] = np.minimum(rows["rows"], rows["columns"])
    entries, edge = rows["rows"] * rows["columns"], np.sqrt(rows["rows"]) + np.sqrt(rows["columns"])
    rows["noise"] = entries / edge**2
    rows["norm"] = rows["rms"] * np.sqrt(entries)
    for ratio, below in (("over_median", "median"), ("over_smallest", "smallest")):
        singular = (rows[below] == 0) & (rows["largest"] > 0)
        rows[ratio] = rows[ratio].astype(float).mask(singular, 1 / FLOOR)
    rows["largest"] = rows["largest"].where(rows["columns"] > 1, rows["norm"])
    weights = rows[rows["tensor"] == WEIGHT].set_index(SAME)["rms"]
    of_update = rows["tensor"] == UPDATE
    own = weights.reindex(pd.MultiIndex.from_frame(rows[SAME])).to_numpy()
    rows["relative"] = (rows["rms"] / np.where(own > 0, own, np.nan)).where(of_update)
    return rows


_COLUMNS = [field.name for field in fields(Spectrum)]


def hidden(rows: pd.DataFrame, tensor: str) -> pd.DataFrame:
    """The rows of one tensor of the hidden matrices."""
    return rows[(rows["role"] == MATRIX) & (rows["tensor"] == tensor)]


def at(rows: pd.DataFrame, moment: str) -> pd.DataFrame:
    """The rows at the beginning, the middle or the end of training.

    That is the first measured step of each run, the one closest to half of its horizon (the later
    of two), the last.
    """
    chosen: list[pd.DataFrame] = []
    for _, own in rows.groupby("run", sort=False):
        steps, half = own["step"], own["planned"].iloc[0] / 2
        step = {
            BEGINNING: steps.min(),
            MIDDLE: min(steps, key=lambda step: (abs(step - half), -step)),
            END: steps.max(),
        }[moment]
        chosen.append(own[steps == step])
    return pd.concat(chosen) if chosen else rows


def geometric(rows: pd.DataFrame, column: str, by: Sequence[str]) -> pd.Series:
    """The geometric mean of a column in each group of rows; values that are not above 0 are left
    out.
    """
    kept = rows[rows[column] > 0]
    logs = kept[column].astype(float).map(math.log)
    return logs.groupby([kept[name] for name in by], sort=False).mean().map(math.exp)


def by_seed(rows: pd.DataFrame, column: str) -> pd.Series:
    """The figure of each run: the geometric mean over its rows, by seed."""
    return geometric(rows, column, ["seed"])


def over_seeds(values: pd.Series) -> Estimate | None:
    """The geometric mean of the figures of several runs and its interval; None without a run."""
    logs = [math.log(value) for value in values]
    if not logs:
        return None
    found = mean(logs)
    low, high = (None if x is None else math.exp(x) for x in (found.low, found.high))
    return Estimate(math.exp(found.value), low, high, found.n)


def figure(rows: pd.DataFrame, column: str) -> Estimate | None:
    """A column of one entrant's rows: over matrices, then over seeds; None without values."""
    return over_seeds(by_seed(rows, column))


@dataclass(frozen=True)
class Line:
    """A figure of one entrant over the steps: geometric means over its matrices and seeds."""

    steps: np.ndarray  # (steps,)
    values: np.ndarray  # (steps,)


def line(rows: pd.DataFrame, column: str) -> Line:
    """A column of one entrant's rows over the steps; the steps with values alone."""
    means = geometric(rows, column, ["step", "seed"]).groupby("step").agg(_geometric_mean)
    means = means.sort_index()
    return Line(means.index.to_numpy(), means.to_numpy())


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def profile(rows: pd.DataFrame) -> Line:
    """The singular values of one entrant's rows over their largest, each matrix by itself.

    `steps` is the part of the values that lies above each, from 0 (the largest) to 1 (the
    smallest). What is rounding alone counts as FLOOR, the most that it can be.
    """
    scaled = rows[["seed", *QUANTILES]].copy()
    for name in QUANTILES:
        parts = rows[name] / rows["largest"].where(rows["largest"] > 0)
        scaled[name] = parts.mask(parts == 0, FLOOR)
    found = {name: figure(scaled, name) for name in QUANTILES}
    kept = {QUANTILES[name]: value.value for name, value in found.items() if value is not None}
    return Line(np.array(list(kept)), np.array(list(kept.values())))


def groups(rows: pd.DataFrame) -> list[str]:
    """The kinds of hidden matrices and then the other roles, each in the order of the model."""
    matrices = rows["role"] == MATRIX
    found = [*rows[matrices]["group"], *rows[~matrices]["group"]]
    return list(dict.fromkeys(found))
