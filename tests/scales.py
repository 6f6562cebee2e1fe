"""Synthetic sweeps of lr and races at other scales, as tune and studies.scale write them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.scale import SCALE
from tests.rows import SOURCE, make_points, make_run, make_trial
from tracking.schema import ScalePoint
from tracking.store import append, record

LRS = [0.01 * 10 ** (k / 3) for k in range(-3, 4)]


def write_sweeps(root: Path, recipes: Sequence[str], noise: float = 0.01) -> None:
    """Parabolas in log lr whose curvature grows from recipe to recipe; the highest lr diverges."""
    rng = np.random.default_rng(4)
    for number, recipe in enumerate(recipes):
        for index, lr in enumerate(LRS):
            away = math.log2(lr / 0.01)
            loss = 3.9 + 0.005 * (number + 1) * away**2 + noise * rng.normal()
            diverged = index == len(LRS) - 1 and number % 3 == 1
            append(
                root / "tuning.csv",
                make_trial(
                    recipe=recipe, stage="sweep", trial=index, steps=70, seed=1000,
                    entrant=f"{recipe}:lr={lr:.3g},embed_lr=0.3,weight_decay=0.1",
                    status="diverged" if diverged else "finished",
                    final_loss=None if diverged else loss,
                ),
            )  # fmt: skip


def write_point(
    root: Path,
    point: ScalePoint,
    losses: Mapping[int, Sequence[float]],
    muon: Sequence[float],
    params: int = 1_000_000,
) -> None:
    """A race of studies.scale: AdamW's final losses by horizon, Muon's; its trials and row."""
    track = f"{point.width:04x}{point.batch_tokens:08x}"
    jobs = [("adamw", steps, values) for steps, values in losses.items()]
    for recipe, steps, values in [*jobs, ("muon", point.steps, muon)]:
        for seed, loss in enumerate(values):
            last = make_points()[-1]
            ending = [
                type(last)(
                    step=steps, tokens=steps * point.batch_tokens, train_seconds=0.1 * steps,
                    train_loss=loss, val_loss=loss, lr=0.0, grad_norm=1.0,
                    step_ms=100.0, optimizer_ms=5.0, peak_memory_bytes=1,
                )
            ]  # fmt: skip
            entrant = f"{recipe}:lr=0.01,steps={steps}"
            run = make_run(
                ending, track="custom", track_hash=track, label=entrant, entrant=entrant,
                seed=seed, race=point.race, run=f"{point.race}-{recipe}-{steps}-s{seed}",
                steps_planned=steps, param_count=params,
            )  # fmt: skip
            record(root / SCALE, run, ending, SOURCE)
    for recipe in ("adamw", "muon"):
        for index in range(5):
            trial = make_trial(
                recipe=recipe, stage="transfer", trial=index, track="custom", track_hash=track,
                entrant=f"{recipe}:lr=0.0{index + 1}", seed=1000,
            )  # fmt: skip
            append(root / SCALE / "tuning.csv", trial)
    append(root / SCALE / "points.csv", point)


def write_scale(root: Path) -> None:
    """Five points: three batch sizes, three widths."""
    rng = np.random.default_rng(8)
    sizes = {64: 330_000, 128: 1_055_488, 256: 3_700_000}
    for width, batch, gain in (
        (128, 3072, 1.25), (128, 6144, 1.32), (128, 12288, 1.45), (64, 6144, 1.3), (256, 6144, 2.5)
    ):  # fmt: skip
        horizon = round(60 * 6144 / batch)
        at = {round(horizon * h): 4.2 - 0.5 * math.log(h) for h in (0.75, 1.0, 1.4, 2.0)}
        losses = {
            steps: [mean + 0.006 * rng.normal() for _ in range(3)] for steps, mean in at.items()
        }
        muon = [4.2 - 0.5 * math.log(gain) + 0.004 * rng.normal() for _ in range(3)]
        point = ScalePoint(f"scale-w{width}-b{batch}-abc", width, batch, horizon)
        write_point(root, point, losses, muon, params=sizes[width])
