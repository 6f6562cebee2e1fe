"""Synthetic races for the tests of charts, and what a figure says and where."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.charts import _make, _style
from tests.on_engines import write_engines
from tests.rows import SOURCE, decaying_spectra, make_logits, make_run, make_trial, make_turns
from tests.scales import write_scale, write_sweeps
from tracking.crossing import crossing
from tracking.schema import DIVERGED, MISSED, REACHED, Run, Validation
from tracking.store import append, record

TARGET = 3.91
TOKENS_PER_STEP = 4096
MB = 10**6


@dataclass(frozen=True)
class Plan:
    """One entrant of a synthetic race."""

    label: str
    horizon: int = 130
    final: float = 3.90  # mean validation loss at the horizon
    optimizer_ms: float = 2.0
    state_bytes: int = 8 * MB
    seeds: int = 5
    diverged: int = 0  # how many of its seeds, the last ones
    forward_backward_ms: float = 225.0


ADAMW = Plan("adamw", final=3.897)
MUON = Plan("muon", horizon=95, final=3.888, optimizer_ms=11.0, state_bytes=5 * MB)
CROWD = [
    ADAMW,
    MUON,
    Plan("normuon:beta2=0.9", horizon=92, final=3.885, optimizer_ms=12),
    Plan("lion", horizon=140, final=3.95, optimizer_ms=1.5, state_bytes=4 * MB),
    Plan("soap", horizon=100, final=3.88, optimizer_ms=150, state_bytes=30 * MB),
    Plan("adamw:lr=0.01,weight_decay=0.0,warmup=10", horizon=130, final=3.94, diverged=2),
    Plan("muon:momentum=0.9,nesterov=false,ns_steps=3,lr=0.04", horizon=105, final=3.90),
    Plan("muon:momentum=0.9,nesterov=false,ns_steps=4", horizon=100, final=3.89),
    Plan("sgd", horizon=150, final=4.4, state_bytes=0, optimizer_ms=1),
    Plan("shampoo", horizon=110, diverged=3, seeds=3),
]

FIELD = [
    replace(ADAMW, horizon=110),
    replace(MUON, horizon=80),
    Plan("sgd", 150, 4.25, 1.0, 4 * MB),
    Plan("signum", 120, 3.93, 1.2, 4 * MB),
    Plan("lion", 112, 3.895, 1.5, 4 * MB),
    Plan("adafactor", 118, 3.9, 3.0, 1 * MB),
    Plan("soap", 84, 3.888, 150, 15 * MB),
    Plan("shampoo", 95, 3.894, 90, 11 * MB),
    Plan("moonlight", 82, 3.889, 11, 5 * MB),
    Plan("polar_express", 80, 3.889, 11, 5 * MB),
    Plan("normuon", 79, 3.888, 12, 5 * MB + 2**14),
    Plan("adamuon", 81, 3.887, 13, 8 * MB),
    Plan("muonh", 83, 3.89, 11, 5 * MB),
    Plan("muon_split", 80, 3.888, 12, 5 * MB),
    Plan("ademamix", 105, 3.896, 4, 12 * MB, diverged=2),  # one of three
    Plan("kron", 90, 3.89, 120, 10 * MB, diverged=3),
    Plan("schedule_free", 125, 3.9, 3.0, 8 * MB, diverged=1),
]


def curve(plan: Plan, seed: int, rng: np.random.Generator) -> list[Validation]:
    """Losses that fall as real ones do, noise of 0.01, validations dense near the end."""
    diverges = seed >= plan.seeds - plan.diverged
    dense = range(int(0.8 * plan.horizon), plan.horizon, 4)
    steps = [0, *range(30, int(0.8 * plan.horizon), 30), *dense, plan.horizon]
    step_ms = (plan.forward_backward_ms + plan.optimizer_ms + 1) * rng.normal(1, 0.015)
    level, end = rng.normal(0, 0.009), 1 / (1 + plan.horizon / 12)
    points = []
    for step in steps[:4] if diverges else steps:
        fall = (1 / (1 + step / 12) - end) / (1 - end)
        loss = plan.final + (6.93 - plan.final) * fall + level + rng.normal(0, 0.003)
        if diverges and step == steps[3]:
            loss = 5.5
        points.append(
            Validation(
                step=step,
                tokens=step * TOKENS_PER_STEP,
                train_seconds=step * step_ms / 1000,
                train_loss=loss - 0.02 if step else None,
                val_loss=float(loss) if step else 6.93,
                lr=0.01,
                grad_norm=1.0,
                step_ms=float(step_ms),
                optimizer_ms=plan.optimizer_ms,
                peak_memory_bytes=900 * MB,
            )
        )
    return points


def run_of(plan: Plan, seed: int, points: Sequence[Validation], race: str, started: str) -> Run:
    met = None if seed >= plan.seeds - plan.diverged else crossing(points, TARGET)
    last = points[-1]
    optimizer = last.step * plan.optimizer_ms / 1000
    return make_run(
        list(points),
        started=started,
        label=plan.label,
        seed=seed,
        device="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        race=race,
        run=f"{race}-{plan.label.replace(':', '-')}-s{seed}",
        status=REACHED if met else MISSED if last.step == plan.horizon else DIVERGED,
        target=TARGET,
        steps_planned=plan.horizon,
        steps_to_target=met.step if met else None,
        tokens_to_target=met.tokens if met else None,
        seconds_to_target=met.seconds if met else None,
        data_seconds=last.step * 0.8 / 1000,
        forward_backward_seconds=last.train_seconds - optimizer - last.step * 0.9 / 1000,
        optimizer_seconds=optimizer,
        param_bytes=4 * MB,
        grad_bytes=4 * MB,
        state_bytes=plan.state_bytes,
        peak_memory_bytes=(900 + seed) * MB,
    )


def write_race(
    root: Path,
    plans: Sequence[Plan],
    race: str = "r1",
    started: str = "2025-11-24T04:00:00",
    turn_steps: int = 0,
) -> None:
    """Writes the rows, curves and turns of one race, as `speedrun.py` does."""
    rng = np.random.default_rng(7)
    for seed in range(max(plan.seeds for plan in plans)):
        for plan in plans:
            if seed < plan.seeds:
                points = curve(plan, seed, rng)
                run = run_of(plan, seed, points, race, started)
                turns = []
                if turn_steps:
                    run = replace(run, heat=f"{race}-s{seed}", turn_steps=turn_steps)
                    turns = make_turns(run)
                logits = make_logits(points, grows=1.5 + 0.1 * seed)
                spectra = decaying_spectra([point.step for point in points if point.step][::3])
                record(root, run, points, SOURCE, logits, turns, spectra)


def write_trials(root: Path, recipes: Sequence[str] = ("adamw", "muon"), trials: int = 32) -> None:
    """Writes search trials whose loss is a bowl in log lr, each recipe with its own optimum."""
    rng = np.random.default_rng(3)
    for index, recipe in enumerate(recipes):
        low, high = (-3.5, -1.5) if index == 0 else (-2.5, -0.5)
        for trial in range(trials):
            x = low + (high - low) * ((trial * 0.618) % 1)
            away = x - (low + high) / 2
            loss = 3.9 - 0.02 * index + 0.35 * away**2 + abs(rng.normal(0, 0.08))
            diverged = away > 0.8
            lr, decay = 10**x, rng.uniform(0, 0.2)
            append(
                root / "tuning.csv",
                make_trial(
                    recipe=recipe,
                    entrant=f"{recipe}:lr={lr:.4g},weight_decay={decay:.3g},embed_lr=0.01",
                    trial=trial,
                    status="diverged" if diverged else "finished",
                    final_loss=None if diverged else float(loss),
                ),
            )


# What users have in their matplotlibrc.
HOSTILE = """
text.usetex: True
savefig.dpi: 33
figure.dpi: 50
font.family: serif
axes.facecolor: black
axes.formatter.use_locale: True
lines.linewidth: 9
savefig.bbox: tight
"""


def chart(name: str) -> _make.Chart:
    return next(chart for chart in _make.charts() if chart.name == name)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def title(figure: Figure) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


def caption(figure: Figure) -> str:
    return figure.texts[1].get_text().replace("\n", " ")


def drawn_boxes(figure: Figure, patch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """Every text that is really drawn, and where, in pixels."""
    seen: list[Text] = []
    draw = Text.draw

    def record_and_draw(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        draw(self, renderer)

    with matplotlib.rc_context(_style.SETTINGS), patch.context() as patched:
        patched.setattr(Text, "draw", record_and_draw)
        figure.draw_without_rendering()
    # Of an annotation, the words without their arrow.
    return [(text.get_text(), Text.get_window_extent(text)) for text in seen]


def write_field(root: Path) -> None:
    """A race of seventeen, the search and the sweep of each, and the studies."""
    write_race(root, [replace(plan, seeds=3) for plan in FIELD])
    names = [plan.label for plan in FIELD]
    write_trials(root, names, trials=8)
    write_sweeps(root, names)
    write_scale(root)
    write_engines(root)


def assert_legible(figure: Figure, patch: pytest.MonkeyPatch) -> None:
    """No text of the figure overlaps another one or leaves the page."""
    boxes = drawn_boxes(figure, patch)
    assert len(boxes) > 8
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        both = Bbox.intersection(box_a, box_b)
        overlap = both is not None and both.width > 1 and both.height > 1
        assert not overlap, f"{a!r} overlaps {b!r}"
    page = figure.bbox
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{text!r} leaves the page"
