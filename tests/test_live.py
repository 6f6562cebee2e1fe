"""The display of a race: its table in a terminal, its lines in a log, and the time left.

python -m pytest tests/test_live.py
"""

import io
import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.rows import make_run
from tracking import lanes, live
from tracking.crossing import crossing
from tracking.live import Lane, Live, Progress
from tracking.live_table import shorten
from tracking.schema import DIVERGED, MISSED, REACHED, Run

WIDTHS = (40, 60, 80, 100, 140)
TARGET = 3.5
MANY = [f"optimizer-{number}" for number in range(15)] + ["muon:lr=0.0725,momentum=0.9,beta2=0.99"]


@dataclass
class Clock:
    """The wall clock, in the hands of a test."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lanes, "time", clock)
    monkeypatch.setattr(live, "time", clock)
    return clock


class Terminal(io.StringIO):
    """A terminal that understands what rich writes, and knows how many lines were ever used."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row, self.most = [""], 0, 1

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
                self.most = max(self.most, len(self.lines))
            elif part == "\x1b[1A":
                self.row -= 1
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part != "\r" and part[0] != "\x1b":
                self.lines[self.row] += part
        return len(text)

    @property
    def screen(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


def entrants(horizons: dict[str, int]) -> list[Any]:
    return [SimpleNamespace(label=key, settings={"steps": n}) for key, n in horizons.items()]


def lines(display: Live, width: int = 100) -> list[str]:
    """The table as it would be drawn now, line by line."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(display)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def row(display: Live, label: str, width: int = 100) -> list[str]:
    (line,) = [line for line in lines(display, width) if line.split()[0] == label]
    return re.split(r" {2,}", line)


def report(lane: Lane, step: int, val_loss: float | None = None, pace: float = 0.1) -> None:
    lane.watch(Progress(step, lane.steps, pace * step, 4.0, val_loss))


def finish(lane: Lane, losses: dict[int, float], status: str = REACHED, **changes: Any) -> Run:
    """End a lane with the row that its validations make."""
    points = [
        SimpleNamespace(step=s, val_loss=v, tokens=0, train_seconds=s) for s, v in losses.items()
    ]
    met = crossing(points, TARGET) if status == REACHED else None  # type: ignore[arg-type]
    facts = dict(
        label=lane.label, seed=lane.seed, status=status, steps_planned=lane.steps, steps=lane.steps,
        steps_to_target=met and met.step, seconds_to_target=met and met.seconds,
        final_loss=list(losses.values())[-1] if losses else None, train_seconds=0.1 * lane.steps,
        compile_seconds=0.0, val_seconds=0.0,
    )  # fmt: skip
    run = make_run(**(facts | changes))
    lane.finish(run)
    return run


def race_in_turns(display: Live, labels: list[str], seeds: int, clock: Clock) -> None:
    """Heats of runs of 40 steps, in turns of 10, with a validation after each turn."""
    for seed in range(seeds):
        heat = [display.enter(label, seed, 40) for label in labels]
        for step in (10, 20, 30, 40):
            for lane in heat:
                clock.seconds += 1.0
                report(lane, step, 4.5 - step / 38)
        for lane in heat:
            finish(lane, {step: 4.5 - step / 38 for step in (10, 20, 30, 40)})


# ---- The table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_sixteen_entrants_and_ten_seeds_fit_a_terminal_of_any_width(
    width: int, clock: Clock
) -> None:
    display = Live(TARGET, 160, silent=True, entrants=entrants(dict.fromkeys(MANY, 40)))
    heights = {len(lines(display, width))}
    for seed in range(10):
        for label in MANY:
            lane = display.enter(label, seed, 40)
            report(lane, 10, 4.123)
            heights.add(len(lines(display, width)))
            report(lane, 40, 3.456)
            finish(lane, {10: 4.123, 40: 3.456})
            shown = lines(display, width)
            heights.add(len(shown))
            assert max(map(len, shown)) <= width
    assert heights == {2 + len(MANY)}  # the header, the headings, and a row an entrant


def test_the_display_is_drawn_in_place_and_nothing_scrolls(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with Live(TARGET, 48, entrants=entrants(dict.fromkeys(MANY, 40))) as display:
        race_in_turns(display, MANY, 3, clock)
    assert terminal.most <= 2 + len(MANY) + 1  # the cursor is below the table at the end
    assert terminal.screen == [line for line in lines(display, 80) if line]
    assert "48 of 48 runs finished" in terminal.screen[0]


def test_columns_are_aligned_and_wider_terminals_show_more(clock: Clock) -> None:
    display = Live(TARGET, 4, silent=True, entrants=entrants({"adamw": 100, "muon": 56}))
    for lane in [display.enter("adamw", 0, 100), display.enter("muon", 0, 56)]:
        report(lane, 20, 4.25)
        report(lane, 40, 3.75)
    headings = []
    for width in WIDTHS:
        shown = lines(display, width)
        headings.append(re.split(r" {2,}", shown[1]))
        for number in ("40/100", "40/56", "+0.250"):
            heading = "step" if "/" in number else "to target"
            end = shown[1].index(heading) + len(heading)
            assert any(line[:end].endswith(number) for line in shown)
    assert headings[0] == ["entrant", "step", "to target"]
    assert {"val", "curve", "seconds", "left", "reached"} <= set(headings[2])
    assert "train" not in headings[2] and {"train", "validation loss"} <= set(headings[3])
    assert {"mean step", "mean seconds"} <= set(headings[4])
    assert [len(heading) for heading in headings] == sorted(len(heading) for heading in headings)


def test_a_run_is_shown_from_its_warm_up_to_its_end(clock: Clock) -> None:
    display = Live(TARGET, 4, silent=True, entrants=entrants({"adamw": 40, "muon": 40}))
    assert row(display, "muon")[1:] == ["0/40", "waiting"]
    lane = display.enter("muon", 0, 40)
    assert "warming up" in row(display, "muon")
    report(lane, 3)
    assert row(display, "muon")[1:3] == ["3/40", "4.0000"] and "3.7" not in row(display, "muon")
    report(lane, 10, 3.7)
    assert {"10/40", "3.7000", "+0.200", "1.0"} <= set(row(display, "muon"))
    report(lane, 20, 3.3)
    assert "at 15.0" in row(display, "muon")
    assert "reached at step 15.0" in row(display, "muon", 140)
    report(lane, 30, 3.6)  # above it again: it was met
    assert {"3.6000", "at 15.0"} <= set(row(display, "muon"))
    finish(lane, {10: 3.7, 20: 3.3, 30: 3.6, 40: 3.4})
    assert row(display, "muon")[-3:] == ["4.0", "done", "1/1 at 15.0"]


def test_the_step_of_the_target_is_that_of_the_row(clock: Clock) -> None:
    display = Live(TARGET, 1, silent=True)
    lane, losses = display.enter("muon", 0, 40), {10: 4.4, 20: 3.9, 33: 3.51, 40: 3.47}
    for step, loss in losses.items():
        report(lane, step, loss)
    before = lane.met_at
    assert before == pytest.approx(finish(lane, losses).steps_to_target)


def test_a_diverged_run_says_so_and_the_others_go_on(clock: Clock) -> None:
    display = Live(TARGET, 2, silent=True, entrants=entrants({"adamw": 40, "sgd": 40}))
    adamw, sgd = display.enter("adamw", 0, 40), display.enter("sgd", 0, 40)
    for lane in (adamw, sgd):
        report(lane, 10, 4.5)
        report(lane, 20, 4.0)
    finish(sgd, {20: 4.0}, DIVERGED, steps=23, train_seconds=2.3)
    report(adamw, 30, 3.8)
    assert {"23/40", "diverged", "2.3", "done", "0/1"} <= set(row(display, "sgd"))
    assert "·" not in "".join(row(display, "sgd"))  # nothing is to come
    assert "diverged at step 23" in row(display, "sgd", 140)
    assert {"30/40", "+0.300"} <= set(row(display, "adamw"))


def test_a_run_that_diverges_before_its_first_validation_is_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Live(TARGET, 1) as display:
        lane = display.enter("sgd", 0, 40)
        finish(lane, {}, DIVERGED, steps=2)
        assert "diverged" in row(display, "sgd")
    assert "sgd seed 0  diverged at step 2  no loss" in capsys.readouterr().out


def test_a_missed_target_is_said_with_its_distance(clock: Clock) -> None:
    display = Live(TARGET, 2, silent=True)
    lane = display.enter("sgd", 0, 40)
    report(lane, 40, 3.512)
    finish(lane, {40: 3.512}, MISSED)
    assert {"+0.012", "done", "0/1"} <= set(row(display, "sgd"))
    assert "missed by 0.0120" in row(display, "sgd", 140)


def test_a_new_seed_clears_the_lanes_and_keeps_the_results(clock: Clock) -> None:
    display = Live(TARGET, 6, silent=True, entrants=entrants({"adamw": 40, "muon": 40}))
    race_in_turns(display, ["adamw", "muon"], 2, clock)
    assert lines(display)[0].startswith("seed 1 (2 of 3)   4 of 6 runs finished   about ")
    display.enter("muon", 2, 40)
    assert lines(display)[0].startswith("seed 2 (3 of 3)   4 of 6 runs finished   about ")
    assert row(display, "adamw")[1:] == ["0/40", "waiting", "2/2 at 38.0"]
    assert {"0/40", "warming up", "2/2 at 38.0"} <= set(row(display, "muon"))


def test_one_run_at_a_time_keeps_the_results_of_its_seed_in_the_table(clock: Clock) -> None:
    display = Live(TARGET, 4, silent=True, entrants=entrants({"adamw": 40, "muon": 40}))
    first = display.enter("adamw", 0, 40)
    report(first, 40, 3.4)
    finish(first, {40: 3.4})
    second = display.enter("muon", 0, 40)
    report(second, 10, 4.1)
    assert {"40/40", "at 40.0", "done"} <= set(row(display, "adamw"))
    assert {"10/40", "+0.600"} <= set(row(display, "muon"))


def test_a_resumed_race_goes_on_from_what_is_done(clock: Clock) -> None:
    done = [
        make_run(label=label, seed=seed, steps_to_target=30.0, steps=40, steps_planned=40)
        for label, seed in (("adamw", 0), ("muon", 0), ("adamw", 1))
    ]
    display = Live(TARGET, 6, done, True, entrants({"adamw": 40, "muon": 40}))
    assert lines(display)[0].startswith("3 of 6 runs finished")
    display.enter("muon", 1, 40)  # the heat of seed 1 was stopped in its midst
    assert {"40/40", "at 30.0", "done", "2/2 at 30.0"} <= set(row(display, "adamw"))
    assert {"0/40", "warming up", "1/1 at 30.0"} <= set(row(display, "muon"))


def curves(display: Live, labels: list[str]) -> list[str]:
    shown = lines(display, 140)
    start = shown[1].index("validation loss")
    return [line[start : start + 40] for label in labels for line in shown if label in line]


def test_curves_have_one_scale_of_loss_and_of_steps(clock: Clock) -> None:
    display = Live(
        TARGET, 3, silent=True, entrants=entrants({"a-one": 80, "b-two": 80, "short": 40})
    )
    losses = {10: 4.5, 20: 4.0, 40: 3.5}
    for label, steps in (("a-one", 80), ("b-two", 80), ("short", 40)):
        lane = display.enter(label, 0, steps)
        for step, loss in losses.items():
            report(lane, step, loss + 0.2 * (label == "b-two"))
    first, above, short = curves(display, ["a-one", "b-two", "short"])
    end = first.index("·")
    assert short[:end] == first[:end] and short[end:].strip().isdigit() is False
    assert "·" not in short  # the schedule ends here, in the middle of the others'
    assert first[end - 1] == "▁" and "▁" not in above  # the lowest block: the target is met
    drawn = [cell for cell in first[:end] if cell != "─"]
    assert drawn == sorted(drawn, reverse=True) and len(set(drawn)) >= 5
    assert all(high >= low for high, low in zip(above[:end], first[:end], strict=True))


def test_a_loss_that_explodes_does_not_flatten_the_other_curves(clock: Clock) -> None:
    display = Live(TARGET, 3, silent=True)
    heat = [display.enter(label, 0, 40) for label in ("adamw", "muon", "sgd")]
    for lane in heat[:2]:
        report(lane, 10, 4.5)
        report(lane, 40, 3.5)
    before = curves(display, ["adamw"])
    report(heat[2], 10, 900.0)
    assert curves(display, ["adamw"]) == before


def test_long_labels_are_cut_so_that_they_differ() -> None:
    start, end = "muon:momentum=0.95,", ",weight_decay=0.1,warmup=0.003"
    for labels in (
        [start + "lr=0.05" + end, start + "lr=0.05" + end + "1"],
        ["adamw:lr=0.01" + end, "muon:lr=0.01" + end],
        ["lr=0.01" + start + end, "lr=0.02" + start + end],
    ):
        short = shorten(labels, 13)
        assert len(set(short)) == 2 and all(len(name) == 13 and "…" in name for name in short)
    assert shorten(["adamw", "polar-express"], 13) == ["adamw", "polar-express"]


# ---- The time left -------------------------------------------------------------------------------


def test_runs_that_take_turns_share_the_time_left(clock: Clock) -> None:
    display = Live(TARGET, 4, silent=True)
    short, long = display.enter("short", 0, 20), display.enter("long", 0, 40)
    clock.seconds += 30  # warm-up: not part of the pace
    for step in (5, 10):
        for lane, pace in ((short, 0.1), (long, 0.3)):
            clock.seconds += 2 * 5 * pace  # half of the time is not on the clocks
            report(lane, step, pace=pace)
    # Until the short one ends, both make 10 steps more, of 0.2 and 0.6 s; then the long one 20.
    assert display._board.seconds_left(short) == pytest.approx(10 * 0.8)
    assert display._board.seconds_left(long) == pytest.approx(10 * 0.8 + 20 * 0.6)
    assert display._board.race_seconds_left() == pytest.approx(20 + 20 * 0.2 + 40 * 0.6)


def test_the_time_left_of_a_race_counts_validations_and_warm_ups_of_runs_to_come(
    clock: Clock,
) -> None:
    display = Live(TARGET, 3, silent=True)
    assert display._board.race_seconds_left() is None  # nothing is known
    for seed, compiled in ((0, 40.0), (1, 2.0)):
        lane = display.enter("muon", seed, 40)
        report(lane, 40, 3.4)
        finish(lane, {40: 3.4}, compile_seconds=compiled, val_seconds=1.0)
    assert display._board.race_seconds_left() == pytest.approx(4.0 + 1.0 + 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.6, "1 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (9000, "2.5 h")],
)
def test_a_time_left_is_rounded(seconds: float, text: str) -> None:
    assert lanes.duration(seconds) == text


# ---- In a log file -------------------------------------------------------------------------------


def test_a_log_has_a_line_a_validation_and_one_at_each_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Live(TARGET, 4, entrants=entrants({"adamw": 56, "muon": 56})) as display:
        lane = display.enter("muon", 0, 56)
        for step, loss in ((10, 4.0512), (15, None), (28, 3.7), (42, 3.3), (56, 3.2)):
            clock.seconds += 2.0
            report(lane, step, loss)
        finish(lane, {10: 4.0512, 28: 3.7, 42: 3.3, 56: 3.2})
    assert capsys.readouterr().out.splitlines() == [
        "muon  seed 0  56 steps, warming up  0/4 runs finished",
        "muon  seed 0  step  10/56  train 4.0000  val 4.0512  +0.551    1.0 s  about 5 s left",
        "muon  seed 0  step  28/56  train 4.0000  val 3.7000  +0.200    2.8 s  about 6 s left",
        "muon  seed 0  step  42/56  train 4.0000  val 3.3000  -0.200    4.2 s  about 3 s left"
        "  reached at step 35.0",
        "muon  seed 0  step  56/56  train 4.0000  val 3.2000  -0.300    5.6 s"
        "  reached at step 35.0",
        "muon  seed 0  reached at step 35.0, 35.0 s  final loss 3.2000  100 ms/step"
        "  1/4 runs finished, about 17 s left",
    ]


def test_a_race_is_shown_in_lines_where_rich_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)
    with Live(TARGET, total=1) as display:
        report(display.enter("muon", 0, 10), 5, 3.9)
    assert "step   5/10  train 4.0000  val 3.9000" in capsys.readouterr().out


def test_a_terminal_that_cannot_draw_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Live(TARGET, total=1) as display:
        report(display.enter("muon", 0, 10), 5, 3.9)
    assert "step   5/10  train 4.0000  val 3.9000" in capsys.readouterr().out


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Live(TARGET, total=1, silent=True) as display:
        lane = display.enter("muon", 0, 10)
        report(lane, 10, 3.4)
        finish(lane, {10: 3.4})
    assert capsys.readouterr().out == ""
