"""The table of a race that runs, for a terminal: a row an entrant, never more. Needs rich.

The table takes the columns that fit the terminal's width. All curves have one scale, so that they
compare: of steps, and of the validation loss. The lowest block means at or below the target. The
other blocks rise with the square root of the distance to the target, so that the end of a run,
which decides, is drawn large; the highest is the usual loss of a first validation, or above. A thin
line is steps without a validation around them, dots are the steps to come.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence

from rich.text import Text

from tracking.lanes import Lane, Scoreboard, duration

BLOCKS = "▁▂▃▄▅▆▇█"
LINE, DOT = "─", "·"
GAP = 2  # between columns
NAME = 24  # most characters of a name, as long as the curve is not at its widest
CURVE_LEAST, CURVE_MOST = 8, 40
NAME_LEAST = 13
# Headings, and least widths that no change of a number widens.
COLUMNS = {
    "name": ("entrant", 0),
    "step": ("step", 5),
    "train": ("train", 6),
    "val": ("val", 6),
    "curve": ("validation loss", 0),
    "standing": ("to target", 10),
    "outcome": ("to target", 21),
    "seconds": ("seconds", 7),
    "left": ("left", 6),
    "reached": ("reached", 7),
    "mean": ("reached", 11),
    "mean_step": ("mean step", 9),
    "mean_seconds": ("mean seconds", 12),
}
# The richest that fits is taken.
LAYOUTS = tuple(
    tuple(layout.split())
    for layout in (
        "name step train val curve outcome seconds left reached mean_step mean_seconds",
        "name step train val curve standing seconds left reached mean_step mean_seconds",
        "name step train val curve standing seconds left mean",
        "name step val curve standing seconds left mean",
        "name step val standing seconds left mean",
        "name step val standing left",
        "name step standing",
    )
)


def draw(board: Scoreboard, seeds: int | None, width: int) -> Text:
    """The header and the table, in `width` characters.

    Made of lines, as a table of rich takes several times as long to draw.
    """
    rows = [_cells(board, label) for label in board.horizons]
    widths = {
        column: max([least, len(heading), *(len(row.get(column, "")) for row in rows)])
        for column, (heading, least) in COLUMNS.items()
    }
    layout, widths["name"], widths["curve"] = _fit(widths, width)
    headings = {column: COLUMNS[column][0] for column in layout}
    if "curve" in layout and widths["curve"] < len(headings["curve"]):
        headings["curve"] = "curve"

    header = _header(board, seeds)
    text = Text(header if len(header) <= width else f"{header[: width - 1]}…", no_wrap=True)
    text.append("\n")
    text.append(_row(headings, layout, widths), style="dim")
    names = shorten(list(board.horizons), widths["name"])
    for (label, name), row in zip(zip(board.horizons, names, strict=True), rows, strict=True):
        lane = board.lanes.get(label)
        row |= {"name": name, "curve": _curve(board, lane, widths["curve"]) if lane else ""}
        text.append("\n")
        line = Text(_row(row, layout, widths))
        line.highlight_regex(f"[{LINE}{DOT}]+", "dim")
        line.highlight_regex(" diverged( at step \\d+)?", "red")
        line.highlight_regex(" (reached at step|at) [\\d.]+(?=  )", "green")
        text.append(line)
    return text


def _row(cells: dict[str, str], layout: Sequence[str], widths: dict[str, int]) -> str:
    """A line of the table: the name and the curve to the left of their columns, others right."""
    return (" " * GAP).join(
        f"{cells.get(column, ''):{'<' if column in ('name', 'curve') else '>'}{widths[column]}}"
        for column in layout
    )


def _header(board: Scoreboard, seeds: int | None) -> str:
    of = f" ({board.seed + 1} of {seeds})" if seeds and board.seed is not None else ""
    left = board.race_seconds_left()
    words = [f"seed {board.seed}{of}"] if board.seed is not None else []
    words.append(f"{len(board.runs)} of {board.total} runs finished")
    words += [f"about {duration(left)} left"] if left else []
    return "   ".join([*words, f"target {board.target:g}"])


def _cells(board: Scoreboard, label: str) -> dict[str, str]:
    """The texts of an entrant's row, by column."""
    cells = {"name": label, "step": f"0/{board.horizons[label]}"}
    if lane := board.lanes.get(label):
        left = board.seconds_left(lane)
        cells |= {
            "step": f"{lane.step}/{lane.steps}",
            "train": "" if lane.train_loss is None else f"{lane.train_loss:#.5g}",
            "val": f"{lane.validations[-1][1]:#.5g}" if lane.validations else "",
            "standing": lane.standing(short=True),
            "outcome": lane.standing(),
            "seconds": f"{lane.seconds:.{1 if lane.seconds < 1e4 else 0}f}" if lane.step else "",
            "left": "done" if lane.run else duration(left) if left else "",
        }
    if not lane or not lane.step:
        cells["standing"] = cells["outcome"] = "warming up" if lane else "waiting"
    if runs := board.finished(label):
        met = [run for run in runs if run.steps_to_target is not None]
        cells["reached"] = cells["mean"] = f"{len(met)}/{len(runs)}"
        if met:
            steps = statistics.fmean(run.steps_to_target or 0 for run in met)
            seconds = statistics.fmean(run.seconds_to_target or 0 for run in met)
            cells |= {"mean_step": f"{steps:.1f}", "mean_seconds": f"{seconds:.1f}"}
            cells["mean"] += f" at {steps:.1f}"
    return cells


def _fit(widths: dict[str, int], width: int) -> tuple[tuple[str, ...], int, int]:
    """The columns that fit into `width` characters, and the widths of the name and the curve."""
    name = widths["name"]
    for layout in LAYOUTS:
        fixed = sum(widths[key] for key in layout if key not in ("name", "curve"))
        spare = width - fixed - GAP * (len(layout) - 1)
        least = CURVE_LEAST if "curve" in layout else 0
        if spare >= min(name, NAME_LEAST) + least:
            break
    name = max(1, min(name, max(NAME, spare - CURVE_MOST), spare - least))
    return layout, name, min(CURVE_MOST, spare - name)


def _curve(board: Scoreboard, lane: Lane, width: int) -> str:
    """The validation losses of a lane, in blocks; see the docstring of the file."""
    firsts = [each.validations[0][1] for each in board.lanes.values() if each.validations]
    span = statistics.median(firsts) - board.target if firsts else 0.0
    horizon = max(board.horizons.values())
    steps = [step for step, _ in lane.validations]
    losses = [loss for _, loss in lane.validations]

    def block(loss: float) -> str:
        if loss <= board.target:
            return BLOCKS[0]
        height = math.sqrt((loss - board.target) / span) if span > 0 else 1.0
        return BLOCKS[min(len(BLOCKS) - 1, 1 + math.floor(height * (len(BLOCKS) - 1)))]

    def at(step: float) -> str:
        after = bisect_left(steps, step)
        if after < len(steps) and steps[after] == step:
            return block(losses[after])
        if not 0 < after < len(steps):
            return LINE
        fraction = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return block(losses[after - 1] + fraction * (losses[after] - losses[after - 1]))

    text = ""
    for cell in range(width):
        step = min((cell + 1) * horizon / width, lane.steps)  # the last of the cell
        if cell * horizon / width >= lane.steps:
            text += " "  # other entrants have more steps
        elif step > lane.step:
            text += " " if lane.run else DOT  # the run diverged, or is to come here
        else:
            text += at(step)
    return text


def shorten(labels: Sequence[str], width: int) -> list[str]:
    """Labels of at most `width` characters, cut so that they stay distinct, best in the middle."""

    def cut(label: str, head: int) -> str:
        tail = label[len(label) - (width - 1 - head) :]
        return label if len(label) <= width else f"{label[:head]}…{tail}"

    heads = sorted(range(width), key=lambda head: abs(head - width // 2))
    return max(
        ([cut(label, head) for label in labels] for head in heads),
        key=lambda names: len(set(names)),
    )
