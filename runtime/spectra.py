"""The singular values of gradients, momenta, updates and weights, at a few validated steps.

    spectra = Spectra(engine, gpt, plan, steps)
    spectra.before(step)                  # gradients are averaged, and no weight has changed
    engine.step()
    rows += spectra.after(step)           # of tracking.schema.Spectrum

The update is what the weights did in the step, so it is comparable between all optimizers: it
includes the learning rate, weight decay and QK-Clip. Where several processes have
parts of a tensor, it is put together on all of them, one tensor at a time; each process decomposes
some of the parameters. A run has the same losses, to the bit, whether it is measured or not.

Singular values are the roots of the eigenvalues of the Gram matrix in float64. Squares halve its 16
digits; what is left resolves 1e-8 of the largest value, which float32 entries do not. Values below
FLOOR times the largest are rounding, and count as 0.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines import Engine, Flat, PlannedGroup, showing
from errors import UserError
from host.owners import orthogonal_cost, owners
from model import GPT
from tracking.schema import Spectrum
from tracking.spectra import FLOOR, TENSORS

QUANTILES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0)
FUSED = ("query", "key", "value")  # of a fused projection, from top to bottom
BATCH = 64  # Gram matrices that are decomposed together
FIGURES = ("rms", "largest", "q90", "q75", "median", "q25", "q10", "smallest", "over_median",
           "over_smallest", "stable_rank", "effective_rank", "top_tenth")  # fmt: skip
NONE = -torch.inf  # an empty cell, in a table of which each process fills in a part


class Part(NamedTuple):
    """What is orthogonalised on its own: some rows of a parameter, or all."""

    parameter: str
    role: str
    kind: str
    number: int  # within the parameter
    start: int  # its first row
    rows: int
    columns: int  # 1: a vector


def require_shown(engine: Engine) -> None:
    """Raise UserError for an engine that has no whole gradients and momenta to show."""
    if not engine.shows:
        raise UserError(
            f"--log-spectra: the engine {engine.name} shows no whole gradients and momenta; leave "
            f"it out, or take --engine {' or '.join(showing())}"
        )


def parts_of(roles: Sequence[Any], plan: Sequence[PlannedGroup]) -> list[Part]:
    """The parts of all parameters, in the order of the table of roles (`model.RoleRow`).

    A rule that takes matrices apart says so by its option `splits`. For other rules the parts are
    the table's, so that the same matrices are compared.
    """
    planned = {row.name: group.options.get("splits") for group in plan for row in group.params}
    found = []
    for row in roles:
        height, columns = row.param.size(0), row.param[:1].numel()
        splits = (planned.get(row.name) or row.splits or (height,)) if columns > 1 else (height,)
        starts = accumulate(splits[:-1], initial=0)
        for number, (start, rows) in enumerate(zip(starts, splits, strict=True)):
            kind = kind_of(row.name, start, rows, row.splits)
            found.append(Part(row.name, row.role, kind, number, start, rows, columns))
    return found


def kind_of(name: str, start: int, rows: int, stacked: Sequence[int]) -> str:
    """What some rows of a parameter are called in every layer.

    stacked: rows of the matrices stacked in the parameter; three are query, key and value.
    """
    if len(stacked) == len(FUSED):
        for kind, height, end in zip(FUSED, stacked, accumulate(stacked), strict=True):
            if end - height <= start and start + rows <= end:
                return kind
    return re.sub(r"^\w+\.\d+\.", "", name).removesuffix(".weight")


def root_mean_square(X: Tensor) -> float:
    """Of all entries."""
    return float(torch.linalg.vector_norm(X, dtype=torch.float64)) / X.numel() ** 0.5


def gram(X: Tensor) -> Tensor:
    """X X^T or X^T X of X (m n), the smaller one, in float64."""
    X = X.double()
    return X @ X.mT if X.size(0) <= X.size(1) else X.mT @ X


def singular_values(grams: Tensor) -> np.ndarray:
    """Of the matrices whose Gram matrices these are (K m m): (K m), descending."""
    values = torch.linalg.eigvalsh(grams).clamp(min=0).sqrt().flip(-1)
    values = torch.where(values < FLOOR * values[:, :1], 0.0, values)
    return values.cpu().numpy()


def figures(values: np.ndarray) -> np.ndarray:
    """The columns of FIGURES from `largest` on, of singular values (K m), descending: (K 12).

    Effective rank: Roy and Vetterli 2007, definition 1. Stable rank: Rudelson and Vershynin 2007,
    section 1. The largest tenth are at least one value. NONE where a figure does not exist: a ratio
    over 0, and every ratio of a matrix of zeros.
    """
    quantiles = np.quantile(values, QUANTILES, axis=1)  # linear between two values
    largest, median, smallest = (quantiles[QUANTILES.index(q)] for q in (1.0, 0.5, 0.0))
    squares, tenth = values**2, -(-values.shape[1] // 10)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = values / values.sum(1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(1)
        ratios = [
            np.where(median > 0, largest / median, NONE),
            np.where(smallest > 0, largest / smallest, NONE),
            np.where(largest > 0, squares.sum(1) / largest**2, NONE),
            np.where(largest > 0, np.exp(entropy), NONE),
            np.where(largest > 0, squares[:, :tenth].sum(1) / squares.sum(1), NONE),
        ]
    return np.stack([*quantiles, *ratios], axis=1)


class Spectra:
    """Measures one run; `steps` says when, and in any other step nothing is done.

    All processes call the methods in the same steps.
    """

    def __init__(
        self, engine: Engine, gpt: GPT, plan: Sequence[PlannedGroup], steps: Collection[int]
    ) -> None:
        self._engine, self._gpt, self._steps = engine, gpt, steps
        self.parts = parts_of(engine.roles(), plan)
        self._rows = {row.name: row.param for row in engine.roles()}
        costs = {name: 0.0 for name in self._rows}
        for part in self.parts:
            costs[part.parameter] += orthogonal_cost((part.rows, part.columns))
        chosen = owners([[cost] for cost in costs.values()], engine.world_size)
        self._mine = {
            name for name, (owner,) in zip(costs, chosen, strict=True) if owner == engine.rank
        }

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Measure gradients and weights, and keep a copy of the weights in the host's memory."""
        if step not in self._steps:
            return
        shape = len(self.parts), len(TENSORS), len(FIGURES)
        self._table = np.full(shape, NONE)
        self._waiting: dict[int, list[tuple[int, int, Tensor]]] = {}
        self._weights: dict[str, Tensor] = {}
        for name, whole in self._whole(self._engine.gradients()):
            self._measure("gradient", name, torch.where(whole == NONE, 0.0, whole))
        with self._engine.weights():
            for name, p in self._gpt.named_parameters():
                if name in self._mine:
                    self._weights[name] = p.detach().to("cpu", copy=True)
                    self._measure("weight", name, p.detach())
        self._flush()

    @torch.no_grad()
    def after(self, step: int) -> list[Spectrum]:
        """The rows of a step, on every process; none if it is not measured, or has diverged."""
        if step not in self._steps:
            return []
        for name, whole in self._whole(self._engine.momenta()):
            if (whole != NONE).all():
                self._measure("momentum", name, whole)
        with self._engine.weights():
            for name, p in self._gpt.named_parameters():
                if name in self._mine:
                    wide = torch.promote_types(p.dtype, torch.float32)
                    before = self._weights.pop(name).to(p.device, wide)
                    self._measure("update", name, p.detach().to(wide) - before)
        self._flush()
        table = self._engine.all_reduce_max(torch.from_numpy(self._table)).cpu().numpy()
        return self._rows_of(step, table)

    def _whole(self, flats: Iterable[Flat]) -> Iterable[tuple[str, Tensor]]:
        """Every parameter's name and tensor, from what the processes have of it.

        Entries that no process has are NONE; those that are not finite are inf.
        """
        held: dict[str, list[Flat]] = {}
        for flat in flats:
            held.setdefault(flat.name, []).append(flat)
        for name, p in self._rows.items():
            wide = torch.promote_types(p.dtype, torch.float32)
            whole = torch.full((p.numel(),), NONE, dtype=wide, device=self._engine.device)
            for flat in held.get(name, ()):
                values = flat.values.to(wide)
                part = whole[flat.start : flat.start + len(values)]
                part.copy_(torch.where(values.isfinite(), values, torch.inf))
            yield name, self._engine.all_reduce_max(whole).view(p.shape)

    def _measure(self, tensor: str, name: str, whole: Tensor) -> None:
        """Fill in a tensor's root mean squares; what has singular values waits for `_flush`."""
        if name not in self._mine:
            return
        column = TENSORS.index(tensor)
        for place, part in enumerate(self.parts):
            if part.parameter != name:
                continue
            X = whole.view(-1, part.columns)[part.start : part.start + part.rows]
            rms = root_mean_square(X)
            if not np.isfinite(rms):
                self._table[place, column] = np.inf
                continue
            self._table[place, column, 0] = rms
            if part.columns > 1:
                G = gram(X)
                same = self._waiting.setdefault(len(G), [])
                same.append((place, column, G))
                if len(same) == BATCH:
                    self._flush(len(G))

    def _flush(self, *sides: int) -> None:
        """Decompose the Gram matrices that wait, with these sides or all."""
        for side in sides or [*self._waiting]:
            places, columns, grams = zip(*self._waiting.pop(side), strict=True)
            self._table[[*places], [*columns], 1:] = figures(singular_values(torch.stack(grams)))

    def _rows_of(self, step: int, table: np.ndarray) -> list[Spectrum]:
        """To six digits; no rows if anything is not finite."""
        if (table == np.inf).any():
            return []
        rows = []
        for part, tensors in zip(self.parts, table.tolist(), strict=True):
            about = part.parameter, part.role, part.kind, part.number
            for tensor, values in zip(TENSORS, tensors, strict=True):
                rms, *more = (None if v == NONE else float(f"{v:.6g}") for v in values)
                if rms is not None:
                    rows.append(Spectrum(step, *about, tensor, part.rows, part.columns, rms, *more))
        return rows
