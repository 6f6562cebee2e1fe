"""The balance of roles over the steps: updates relative to weights, and the largest singular value.

Drawn where a race measured spectra, with --log-spectra. It shows whether training only the hidden
matrices with Muon lets them move much faster, or grow larger, than under AdamW.
"""

from matplotlib.figure import Figure

from analysis import spectra
from analysis.charts import _spectra, _style
from analysis.charts._inputs import Inputs

OF_RACE = True


def draw(inputs: Inputs) -> Figure:
    """Two panels for each role, a line for each entrant. Raises MissingDataError."""
    entrants, rows = _spectra.measured(inputs)
    updates = rows[rows["tensor"] == spectra.UPDATE]
    weights = rows[rows["tensor"] == spectra.WEIGHT]
    blocks = [
        _spectra.Block("update over\nweight", updates, "relative"),
        _spectra.Block("largest\nsingular value", weights, "largest"),
    ]
    caption = (
        "Upper panel of each role: root mean square of a step's update over the weight's. Lower "
        "panel: the weight's largest singular value; of a vector, its norm. The hidden matrices "
        f"and the other roles have axes of their own. {_spectra.means(rows)}"
    )
    moved = _spectra.extremes(
        _spectra.middle_updates(rows), entrants, "relative", lambda v: f"{_style.number(100 * v)}%"
    )
    title = f"In the middle of training a step changes the hidden matrices by {moved}"
    matrices = rows["role"] == spectra.MATRIX
    families = [found for part in (matrices, ~matrices) if (found := spectra.groups(rows[part]))]
    return _spectra.over_steps(inputs, entrants, blocks, families, title, caption)
