"""Rows for tests: runs that follow from their curves, and tuning trials."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.price import Prices
from tracking import store
from tracking.crossing import crossing
from tracking.schema import Logit, Run, Spectrum, Trial, Turn, Validation
from tracking.spectra import TENSORS, spread

SOURCE = store.source_text({"speedrun.py": "print('fast')\n", "muon.py": "# five steps\n"})
PROVENANCE: dict[str, Any] = dict(
    started="2026-08-01T12:00:00+00:00",
    track="tiny",
    track_hash="1f2e",
    label="muon",
    entrant="muon:lr=0.02,momentum=0.95",
    seed=0,
    engine="single",
    world_size=1,
    device="A processor, 2 cores",
    threads=2,
    dtype="bfloat16",
    attention="fused",
    compiled=True,
    compile_note="",
    torch="2.9.0",
    python="3.11.7",
    commit="0123456789abcdef",
    clean=True,
    source_hash=store.source_hash(SOURCE),
    data_hash="abcd",
)


def make_points(
    steps: int = 100, step_seconds: float = 0.1, floor: float = 3.0
) -> list[Validation]:
    """A validation every 20 steps; the loss falls linearly from 5 to `floor` in 100 steps."""
    return [
        Validation(
            step=step,
            tokens=4096 * step,
            train_seconds=step_seconds * step,
            train_loss=4.0 if step else None,
            val_loss=5.0 - (5.0 - floor) * step / 100,
            lr=0.02,
            grad_norm=1.0 if step else None,
            step_ms=1000 * step_seconds if step else None,
            optimizer_ms=5.0 if step else None,
            peak_memory_bytes=800_000_000,
        )
        for step in range(0, steps + 1, 20)
    ]


def make_logits(
    points: list[Validation], grows: float = 2.0, tau: float | None = None
) -> list[Logit]:
    """Two layers of two heads at each point; the last head is largest, `grows` times in 10 steps.

    With `tau`, the logits are clipped: they exceed it by at most a tenth.
    """
    return [
        Logit(
            step=point.step,
            layer=layer,
            head=head,
            max_logit=min(
                (1 + layer) * (1 + head) * grows ** (point.step / 10), 1.1 * (tau or float("inf"))
            ),
        )
        for point in points
        if point.step
        for layer in range(2)
        for head in range(2)
    ]


PARTS = (  # parameter, role, kind, part, rows, columns
    ("embed.weight", "embed", "embed", 0, 64, 16),
    ("blocks.0.attn.qkv.weight", "matrix", "query", 0, 16, 16),
    ("blocks.0.attn.qkv.weight", "matrix", "key", 1, 16, 16),
    ("blocks.0.attn.qkv.weight", "matrix", "value", 2, 16, 16),
    ("blocks.0.mlp.fc.weight", "matrix", "mlp.fc", 0, 64, 16),
    ("blocks.0.norm1.weight", "vector", "norm1", 0, 16, 1),
    ("head.weight", "head", "head", 0, 64, 16),
)


def make_spectra(points: Sequence[Validation], spread_of: dict[str, float]) -> list[Spectrum]:
    """A model's spectra; those of a tensor fall evenly on a log scale, from 1 to 1 / spread_of it.

    Tensors that spread_of lacks have no rows.
    """
    rows = []
    for step in spread([point.step for point in points if point.step]):
        for name, role, kind, part, height, width in PARTS:
            for tensor in (tensor for tensor in TENSORS if tensor in spread_of):
                s = np.geomspace(1.0, 1 / spread_of[tensor], width)
                rms = math.sqrt((s @ s) / (height * width))
                quantiles = np.quantile(s, [1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0]).tolist()
                p, most = s / s.sum(), float(s[: -(-width // 10)] @ s[: -(-width // 10)])
                ratios = [1 / quantiles[3], 1 / quantiles[6], s @ s, np.exp(-(p @ np.log(p)))]
                figures = [*quantiles, *map(float, ratios), most / float(s @ s)]
                cells = figures if width > 1 else [None] * len(figures)
                about = (name, role, kind, part, tensor, height, width)
                rows.append(Spectrum(step, *about, rms, *cells))
    return rows


def make_run(points: list[Validation] | None = None, **changes: Any) -> Run:
    """A run that follows from its points: 100 steps with a target of 3.5."""
    points = make_points() if points is None else points
    met = crossing(points, 3.5)
    seconds = points[-1].train_seconds
    values = PROVENANCE | dict(
        race="tiny-1",
        run="muon-0",
        heat="",
        turn_steps=0,
        status="reached" if met else "missed",
        target=3.5,
        steps_planned=100,
        steps=points[-1].step,
        tokens=points[-1].tokens,
        final_loss=points[-1].val_loss,
        final_bits_per_byte=0.4 * points[-1].val_loss,
        steps_to_target=met.step if met else None,
        tokens_to_target=met.tokens if met else None,
        seconds_to_target=met.seconds if met else None,
        train_seconds=seconds,
        data_seconds=0.01 * seconds,
        forward_backward_seconds=0.9 * seconds,
        optimizer_seconds=0.05 * seconds,
        communication_seconds=0.0,
        communication_bytes=0,
        compile_seconds=17.0,
        val_seconds=2.0,
        param_count=1_000_000,
        param_bytes=4_000_000,
        grad_bytes=4_000_000,
        state_bytes=5_000_000,
        peak_memory_bytes=800_000_000,
        flops_per_step=2e10,
        matmul_peak_flops=4e11,
        mfu=2e10 * points[-1].step / seconds / 4e11,
    )
    return Run(**(values | changes))


def make_trial(**changes: Any) -> Trial:
    """A finished trial of the search stage."""
    values = PROVENANCE | dict(
        recipe="muon",
        stage="search",
        trial=0,
        steps=200,
        status="finished",
        target=None,
        final_loss=3.4,
        train_seconds=20.0,
    )
    return Trial(**(values | changes))


def entrant(label: str, to_target: list[float | None], step_seconds: float = 0.1) -> list[Run]:
    """Runs of one entrant, by the step at which each reached the target; None is a miss."""
    return [
        make_run(
            label=label,
            entrant=label,
            seed=seed,
            run=f"{label}-{seed}",
            status="missed" if step is None else "reached",
            steps_to_target=step,
            tokens_to_target=None if step is None else 4096 * step,
            seconds_to_target=None if step is None else step_seconds * step,
            train_seconds=100 * step_seconds,
            optimizer_seconds=5 * step_seconds,
        )
        for seed, step in enumerate(to_target)
    ]


def make_turns(run: Run, jitter: float = 0.01) -> list[Turn]:
    """The turns of a run on a machine that is slow in some rounds; they add up to the run's time.

    The slow rounds are the same for all runs of a seed.
    """
    ends = [*range(0, run.steps, run.turn_steps), run.steps]
    steps = [after - before for before, after in pairwise(ends)]
    slow = np.random.default_rng(run.seed).choice([1.0, 1.0, 3.0], 10_000)[: len(steps)]
    own = np.random.default_rng([run.seed, *run.run.encode()])
    shares = np.array(steps) * slow * np.exp(jitter * own.standard_normal(len(steps)))
    seconds = (run.train_seconds * shares / shares.sum()).tolist()
    return [Turn(*row) for row in zip(range(len(steps)), steps, seconds, strict=True)]


def on_the_clock(turns: Sequence[Turn], points: Sequence[Validation]) -> list[Turn]:
    """The turns, stretched so that they end at a validation when the clock of the curve says."""
    clock = {point.step: point.train_seconds for point in points}
    timed: list[Turn] = []
    waiting: list[Turn] = []
    step, start = 0, 0.0
    for turn in turns:
        waiting.append(turn)
        step += turn.steps
        if step in clock:
            scale = (clock[step] - start) / sum(each.train_seconds for each in waiting)
            timed += [replace(each, train_seconds=scale * each.train_seconds) for each in waiting]
            waiting, start = [], clock[step]
    return timed + waiting


def in_turns(
    runs: Sequence[Run], turn_steps: int = 2, jitter: float = 0.01
) -> tuple[list[Run], Prices]:
    """A race as if the runs of each seed had taken turns, and the prices of its steps."""
    heats = [replace(run, heat=f"{run.race}-s{run.seed}", turn_steps=turn_steps) for run in runs]
    return heats, Prices(heats, {run.run: make_turns(run, jitter) for run in heats})


def three_races() -> list[Run]:
    race = entrant("adamw", [70.0, 70.0]) + entrant("muon", [50.0, 50.0])
    older = [replace(run, race="tiny-0", started="2026-07-01T12:00:00+00:00") for run in race]
    newer = [
        replace(run, race="c", track="custom", started="2026-09-01T12:00:00+00:00") for run in race
    ]
    older = [replace(run, compiled=False, compile_note="no g++") for run in older]
    return older + newer + race


def spectrum_columns(values: np.ndarray, rows: int, columns: int) -> dict[str, Any]:
    """The columns of a `Spectrum` that follow from the singular values of a matrix."""
    quantiles = np.quantile(values, (1, 0.9, 0.75, 0.5, 0.25, 0.1, 0)).tolist()
    names = ("largest", "q90", "q75", "median", "q25", "q10", "smallest")
    ordered, shares = np.sort(values)[::-1], values / values.sum()
    squares = ordered**2
    tenth = squares[: -(-len(values) // 10)].sum() / squares.sum()
    return dict(zip(names, quantiles, strict=True)) | dict(
        rms=float(np.sqrt(squares.sum() / (rows * columns))),
        over_median=quantiles[0] / quantiles[3],
        over_smallest=quantiles[0] / quantiles[-1],
        stable_rank=float(squares.sum() / squares[0]),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        top_tenth=float(tenth),
    )


FEW_PARTS = (  # parameter, role, kind, part, rows, columns
    *(("qkv.weight", "matrix", kind, i, 16, 16) for i, kind in enumerate(("query", "key"))),
    ("mlp.fc.weight", "matrix", "mlp.fc", 0, 64, 16),
    ("embed.weight", "embed", "embed", 0, 100, 16),
    ("norm.gain", "vector", "norm.gain", 0, 16, 1),
)


def decaying_spectra(
    steps: Sequence[int], momentum: float = 1.5, update: float = 1.5, size: float = 1e-3
) -> list[Spectrum]:
    """The spectra of a small model in which the i-th singular value is i to the power of -decay.

    momentum, update: their decays; the gradient's is the momentum's, the weight's is 0.3. The decay
    of queries is larger by 0.2. size: of the largest singular value of an update; a weight's is 1.
    """
    decays = {"gradient": momentum, "momentum": momentum, "update": update, "weight": 0.3}
    found = []
    for step in steps:
        for parameter, role, kind, part, rows, columns in FEW_PARTS:
            for tensor, decay in decays.items():
                named = dict(
                    step=step, parameter=parameter, role=role, kind=kind, part=part,
                    tensor=tensor, rows=rows, columns=columns,
                )  # fmt: skip
                scale = size if tensor == "update" else 1.0
                if columns == 1:
                    empty = dict.fromkeys(spectrum_columns(np.ones(1), 1, 1))
                    found.append(Spectrum(**named | empty | {"rms": scale}))
                    continue
                steep = decay + (0.2 if kind == "query" else 0.0)
                values = scale * np.arange(1, min(rows, columns) + 1) ** -steep
                found.append(Spectrum(**named | spectrum_columns(values, rows, columns)))
    return found
