"""Draws charts from the CSVs alone: a PNG and an SVG each.

    python -m analysis.charts                                    # the newest race in results/
    python -m analysis.charts --race ID --root results --out plots
    python -m analysis.charts --race ID --race ID                # the first; final_losses: both
    python -m analysis.charts --figures                          # every committed chart

Claims: the same CSVs and the same version of matplotlib give the same bytes, so that committed
charts only change with their numbers. Needs neither torch nor a display.
"""

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.charts._inputs import Inputs, MissingDataError, load
from analysis.charts._style import drawing, freeze_layout
from analysis.published import Data
from analysis.published import load as load_published
from errors import UserError
from host import entry, paths
from host.paths import PLOTS, RESULTS, from_here
from tracking.files import check_writable

FOLDER = Path(__file__).parent
RECORDS = RESULTS / "records"
PUBLISHED = "published"  # the folder of charts/ and of plots/ of what others published


@dataclass(frozen=True)
class Chart:
    """One chart: its file name, the function that draws it, and whether it is of one race."""

    name: str
    draw: Callable[[Inputs], Figure]
    of_race: bool  # else of trials, or of many races


@cache
def charts() -> tuple[Chart, ...]:
    """A chart for each file of this folder whose name does not begin with "_"."""
    modules = _modules(FOLDER, "analysis.charts")
    return tuple(Chart(name, module.draw, module.OF_RACE) for name, module in modules.items())


def published_charts() -> dict[str, Callable[[Data], Figure]]:
    """The function of each chart of results/published, by its name."""
    modules = _modules(FOLDER / PUBLISHED, f"analysis.charts.{PUBLISHED}")
    return {name: module.draw for name, module in modules.items()}


def _modules(folder: Path, package: str) -> dict[str, Any]:
    """The files of a folder whose names do not begin with "_"."""
    found = [m.name for m in pkgutil.iter_modules([str(folder)]) if not m.ispkg]
    names = sorted(name for name in found if name[0] != "_")
    return {name: importlib.import_module(f"{package}.{name}") for name in names}


@dataclass(frozen=True)
class Figures:
    """The charts that are committed of one record, and the races that they show."""

    charts: Sequence[str]
    races: Sequence[str] = ()  # as in `load`: none is the newest


DUEL = ("iso_loss", "loss_curves", "memory", "speedup", "step_time", "time_to_target")
LEAGUE = (*DUEL, "loss_by_seconds", "loss_by_steps", "pareto", "significance")
MUON_SPLIT = ("20261127T212205-tiny-mla-5525", "20261127T212150-tiny-gqa-0d65")
FIGURES = {
    "2026-11-27_tiny_duel-tuned": Figures(DUEL),
    "2026-11-27_tiny_league": Figures(LEAGUE),
    "tiny-search": Figures(("lr_sensitivity", "tuning_curves")),
    "tiny-sweep": Figures(("lr_sweep",)),
    "tiny-scale": Figures(("scale",)),
    "engines": Figures(("engine_costs", "engine_losses")),
    "planned": Figures(("planned",)),
    "qk-clip": Figures(("attention_logits",), ("20261127T212014-tiny-mla-0630",)),
    "muon-split": Figures(("final_losses",), MUON_SPLIT),
    "why": Figures(("balance", "spectra", "stable_rank")),
    "why-gpt2": Figures(("spectra",)),
}


def draw(chart: Chart, inputs: Inputs) -> Figure:
    """The chart as a figure. Raises MissingDataError, which names the next command."""
    if chart.of_race and not inputs.entrants:
        raise MissingDataError("no race in runs.csv; run: make speedrun")
    with drawing():
        figure = chart.draw(inputs)
        freeze_layout(figure)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.svg without dates or versions; returns their paths."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with drawing():
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def make(
    root: Path, out: Path, races: Sequence[str] = (), chosen: Sequence[Chart] | None = None
) -> list[str]:
    """Draws the charts that can be drawn; returns a line for each: its files, or what is missing.

    chosen: the charts to draw; None: all. The old files of a chart that is skipped are removed from
    `out`, so that no chart of another race stays beside the new ones. Raises UserError for CSVs
    that cannot be read and for `out` that cannot be written.
    """
    inputs = load(root, races)
    lines = []
    try:
        check_writable(out, otherwise="use --out")
        out.mkdir(parents=True, exist_ok=True)
        for chart in charts() if chosen is None else chosen:
            stem = out / chart.name
            try:
                paths = save(draw(chart, inputs), stem)
                lines.append(f"{chart.name}: {' '.join(map(str, paths))}")
            except MissingDataError as reason:
                for suffix in (".png", ".svg"):
                    stem.with_suffix(suffix).unlink(missing_ok=True)
                lines.append(f"{chart.name}: skipped, {reason}")
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as fault:
                # The rows are written, and the other charts can be drawn.
                lines.append(f"{chart.name}: FAILED, {type(fault).__name__}: {fault}")
    except OSError as error:
        raise UserError(f"cannot write charts to {out}: {error.strerror}; use --out") from error
    return lines


def make_figures(records: Path, plots: Path) -> list[str]:
    """Draws every chart of FIGURES into plots/<record>/; returns a line for each.

    Raises UserError as `make` does.
    """
    lines = []
    for record, figures in FIGURES.items():
        chosen = [chart for chart in charts() if chart.name in figures.charts]
        lines += make(records / record, plots / record, figures.races, chosen)
    return lines


def make_published(out: Path) -> list[str]:
    """Draws every chart of results/published into `out`; returns a line for each.

    Raises UserError for data that cannot be read and for `out` that cannot be written.
    """
    data, lines = load_published(), []
    check_writable(out, otherwise="make room there")
    out.mkdir(parents=True, exist_ok=True)
    for name, draw_one in published_charts().items():
        with drawing():
            figure = draw_one(data)
            freeze_layout(figure)
        lines.append(f"{name}: {' '.join(map(str, save(figure, out / name)))}")
    return lines


def command(options: argparse.Namespace) -> int:
    """Draw the charts, and print a line for each; the exit code. Raises UserError."""
    if options.figures and (options.root, options.out, options.race) != (RESULTS, PLOTS, []):
        raise UserError("--figures: takes no other option; leave the others out")
    if options.figures:
        lines = [*make_figures(RECORDS, PLOTS), *make_published(PLOTS / PUBLISHED)]
    else:
        lines = make(options.root, options.out, options.race)
    print(*map(from_here, lines), sep="\n")
    return entry.FAILED if any(": FAILED, " in line for line in lines) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, or 2 for a UserError."""
    parser = entry.parser("analysis.charts", __doc__)
    parser.add_argument(
        "--root", type=paths.typed, default=RESULTS, help="folder of runs.csv; default: results"
    )
    parser.add_argument(
        "--out", type=paths.typed, default=PLOTS, help="folder for the charts; default: plots"
    )
    parser.add_argument(
        "--race", action="append", default=[], metavar="ID",
        help="the race to draw; default: the newest; chart final_losses also shows further ones",
    )  # fmt: skip
    parser.add_argument(
        "--figures",
        action="store_true",
        help="draw the committed charts into plots/<record>/ and plots/published/; no other option",
    )
    return entry.run(parser, argv, command)
