"""Draws every chart of a race from the CSVs alone: a PNG and an SVG each.

    python -m analysis.charts                                    # the newest race in results/
    python -m analysis.charts --race ID --root results --out plots
    python -m analysis.charts --race ID --race ID                # the first; and both in final_losses

Claims: the same CSVs and the same version of matplotlib give the same bytes, so that committed
charts only change with their numbers. Needs neither torch nor a display.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from analysis.charts._inputs import Inputs, MissingDataError, load
from analysis.charts._style import SETTINGS, settle
from analysis.charts.attention_logits import attention_logits
from analysis.charts.final_losses import final_losses
from analysis.charts.iso_loss import iso_loss
from analysis.charts.loss_curves import loss_curves
from analysis.charts.lr_sensitivity import lr_sensitivity, lr_sweep
from analysis.charts.memory import memory, step_time
from analysis.charts.pareto import loss_by, pareto, significance
from analysis.charts.scale import scale
from analysis.charts.speedup import speedup, time_to_target
from errors import UserError


@dataclass(frozen=True)
class Chart:
    """One chart: its file name, the function that draws it, and what that needs."""

    name: str
    draw: Callable[[Inputs], Figure]
    of_race: bool = True  # else of trials, or of many races


CHARTS = (
    Chart("loss_curves", loss_curves),
    Chart("time_to_target", time_to_target),
    Chart("speedup", speedup),
    Chart("memory", memory),
    Chart("step_time", step_time),
    Chart("loss_by_steps", partial(loss_by, unit="steps")),
    Chart("loss_by_seconds", partial(loss_by, unit="seconds")),
    Chart("iso_loss", iso_loss),
    Chart("pareto", pareto),
    Chart("significance", significance),
    Chart("attention_logits", attention_logits),
    Chart("final_losses", final_losses),
    Chart("lr_sensitivity", lr_sensitivity, of_race=False),
    Chart("lr_sweep", lr_sweep, of_race=False),
    Chart("scale", scale, of_race=False),
)


def draw(chart: Chart, inputs: Inputs) -> Figure:
    """The chart as a figure. Raises MissingDataError, which names the next command."""
    if chart.of_race and not inputs.entrants:
        raise MissingDataError("no race in runs.csv; run: make speedrun")
    with matplotlib.rc_context(SETTINGS):
        figure = chart.draw(inputs)
        settle(figure)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.svg without dates or versions; returns their paths."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def make(root: Path, out: Path, races: Sequence[str] = ()) -> list[str]:
    """Draws all charts that can be drawn; returns a line for each, of its files or of why not.

    A chart that is skipped is also removed from `out`, so that no chart of another race stays
    beside the new ones. Raises UserError for CSVs that cannot be read and for `out` that cannot be
    written.
    """
    inputs = load(root, races)
    lines = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in CHARTS:
            stem = out / chart.name
            try:
                paths = save(draw(chart, inputs), stem)
                lines.append(f"{chart.name}: {' '.join(map(str, paths))}")
            except MissingDataError as reason:
                for suffix in (".png", ".svg"):
                    stem.with_suffix(suffix).unlink(missing_ok=True)
                lines.append(f"{chart.name}: skipped, {reason}")
    except OSError as error:
        raise UserError(f"cannot write charts to {out}: {error.strerror}; use --out") from error
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, or 2 for a UserError."""
    parser = argparse.ArgumentParser(prog="python -m analysis.charts")
    parser.add_argument("--root", type=Path, default=Path("results"), help="where runs.csv is")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="where the charts go")
    parser.add_argument(
        "--race",
        action="append",
        default=[],
        help="id of the race; default: the newest; further ones are compared with it",
    )
    options = parser.parse_args(arguments)
    try:
        print(*make(options.root, options.out, options.race), sep="\n")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
