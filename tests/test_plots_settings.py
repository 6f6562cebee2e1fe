"""The user's own settings of matplotlib change no chart and stop none."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from analysis.charts import _make
from analysis.charts._inputs import Inputs
from analysis.charts._style import drawing
from tests.races import ADAMW, MUON, chart, write_race


@pytest.mark.parametrize(
    "given",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "no-such-backend"},
        {"MATPLOTLIBRC": "matplotlibrc"},
    ],
)
def test_settings_that_matplotlib_cannot_read_are_no_fault(
    given: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\xfe\n")
    code = (
        "import os, analysis.charts, matplotlib; from analysis.charts._style import drawing\n"
        "with drawing(): assert matplotlib.rcParams['font.family'] == ['DejaVu Sans']\n"
        f"assert os.environ.get('MPLBACKEND') == {given.get('MPLBACKEND')!r}\n"
        "assert os.path.exists('matplotlibrc')\n"
    )
    root = str(Path(_make.__file__).parents[2])
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment |= {"PYTHONPATH": root} | given
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_a_notebooks_own_settings_stay_as_they_were() -> None:
    hostile = {"figure.dpi": 50, "savefig.dpi": 33, "text.usetex": True, "axes.facecolor": "black"}
    with matplotlib.rc_context(hostile):
        before = dict(matplotlib.rcParams)
        with drawing():
            assert matplotlib.rcParams["text.usetex"] is False
            assert matplotlib.rcParams["savefig.dpi"] == "figure"
        assert dict(matplotlib.rcParams) == before


def test_a_chart_that_fails_is_told_in_a_line_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Inputs) -> Figure:
        raise RuntimeError("no latex")

    write_race(tmp_path / "duel", [replace(ADAMW, seeds=1), replace(MUON, seeds=1)])
    chosen = (replace(chart("speedup"), draw=fail), chart("memory"))
    monkeypatch.setattr(_make, "charts", lambda: chosen)
    folders = [f"--root={tmp_path / 'duel'}", f"--out={tmp_path / 'out'}"]
    assert _make.main(folders) == 1
    out = capsys.readouterr().out
    assert "speedup: FAILED, RuntimeError: no latex\n" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "memory.png",
        "memory.svg",
    ]
