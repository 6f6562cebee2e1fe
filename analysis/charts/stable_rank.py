"""The stable rank of momentum and update over the steps, for each kind of hidden matrix.

Drawn where a race measured spectra, with --log-spectra. The stable rank (Rudelson & Vershynin
math/0503442) is the sum of the squared singular values over the largest squared: 1 if one direction
has everything, the full rank if all singular values are the same.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis import spectra
from analysis.charts import _spectra
from analysis.charts._inputs import Inputs, Series

OF_RACE = True


def draw(inputs: Inputs) -> Figure:
    """A panel for each kind and tensor, a line for each entrant. Raises MissingDataError."""
    entrants, rows = _spectra.measured(inputs)
    blocks = [
        _spectra.Block(f"stable rank\nof the {tensor}", spectra.hidden(rows, tensor), "stable_rank")
        for tensor in (spectra.MOMENTUM, spectra.UPDATE)
    ]
    kinds = spectra.groups(rows[rows["role"] == spectra.MATRIX])
    caption = (
        "Stable rank: sum of the squared singular values over the largest squared. It is 1 if one "
        "direction has everything, and the full rank if all directions have the same. "
        f"{_spectra.means(rows)} The title's numbers are means over all panels and steps."
    )
    title = _title(blocks[1].rows, entrants)
    return _spectra.over_steps(inputs, entrants, blocks, [kinds], title, caption)


def _title(updates: pd.DataFrame, entrants: Sequence[Series]) -> str:
    ranks = _spectra.extremes(updates, entrants, "stable_rank", lambda value: f"{value:.1f}")
    full = updates["full"].unique()
    of = f", of {full[0]} possible" if len(full) == 1 else ""
    return f"The update of a hidden matrix has a stable rank of {ranks}{of}"
