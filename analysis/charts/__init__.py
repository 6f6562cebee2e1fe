"""Charts of a race from the CSVs alone: chart X is file X. Never imports torch.

    python -m analysis.charts               # your newest race, into plots/
    python -m analysis.charts --figures     # the committed charts of every record

A chart is a file `X.py` of this folder with two names: `draw(inputs)`, which returns the figure,
and `OF_RACE`, which is False where the chart shows tuning trials or many races. `_make` finds the
files, so a new chart is one new file. Files whose name begins with "_" are shared code.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path


def import_matplotlib() -> None:
    """Import matplotlib also where the user's settings for it cannot be read.

    That is a backend of a notebook in MPLBACKEND, or a matplotlibrc that is no text. Then the
    settings are those that matplotlib is shipped with; `_style.drawing` takes these in any case.
    """
    try:
        importlib.import_module("matplotlib")
    except ValueError:
        spec = importlib.util.find_spec("matplotlib")
        assert spec and spec.submodule_search_locations
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # of the import that failed half-way
        before = os.environ.pop("MPLBACKEND", None)
        # The file matplotlibrc of the working directory comes before all others.
        with contextlib.chdir(Path(spec.submodule_search_locations[0]) / "mpl-data"):
            importlib.import_module("matplotlib")
        if before is not None:
            os.environ["MPLBACKEND"] = before


import_matplotlib()
