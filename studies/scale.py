"""AdamW against Muon at three batch sizes and three widths of the tiny track.

    python -m studies.scale                        # all places; an interrupted one goes on
    python -m studies.scale --seeds 3 --shard 1/2    # part 1 of 2 of the places

At every place `transfer` moves the tuned settings of `tiny` there. Trials of the matrices' learning
rate around the moved one re-check it at Muon's horizon (stage "transfer"). Then they race: Muon at
that horizon, AdamW at several horizons around it, each run to the end of its schedule.
`analysis.scale` computes the speed-up from the races. Losses alone count, so the runs may share the
machine.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from analysis import scale
from analysis.table import BASELINE, CHALLENGER
from errors import UserError
from host import entry, paths
from optim.entrants import Entrant
from speedrun import TRACKS, Options, Track, Trainer, enter, race
from studies.points import Settings
from studies.study import STAGES, Budget, Shard, Study, loss_of, read_shard
from studies.tune import settled
from tracking import resume, spelling, store, tuned
from tracking.schema import Run, ScalePoint

RECIPES = (BASELINE, CHALLENGER)
BASE_WIDTH, BASE_BATCH = 128, TRACKS["tiny"].batch_tokens  # where the settings were tuned
HORIZONS = (0.75, 1.0, 1.4, 2.0)  # AdamW's, times Muon's
FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)  # times the transferred learning rate of the matrices
NEVER = 1_000_000  # steps between validations: a run is validated at its end alone


class Place(NamedTuple):
    """Where a race is run."""

    width: int  # channels
    batch_tokens: int  # tokens of one step


PLACES = (
    Place(BASE_WIDTH, BASE_BATCH),
    Place(BASE_WIDTH, BASE_BATCH // 2),
    Place(BASE_WIDTH, BASE_BATCH * 2),
    Place(BASE_WIDTH // 2, BASE_BATCH),
    Place(BASE_WIDTH * 2, BASE_BATCH),
)


def transfer(recipe: str, settings: Mapping[str, Any], wider: float, larger: float) -> Settings:
    """Tuned settings at another width and batch size; the horizon keeps the tokens of a run.

    wider, larger: the width and the batch over the ones at which the settings were tuned.

    Batch: every learning rate grows with the square root of the batch, as for any rule whose
    updates are normalised (Malladi et al. 2205.10287), and so does weight decay, so that over the
    same tokens the weights are averaged over the same share of them (Wang & Aitchison 2405.13698).

    Width: AdamW's lr of hidden matrices and of the head goes with 1 / width (muP, Yang et al.
    2203.03466, table 8); Muon's lr is the spectral norm of its update (its scale depends on the
    shape's proportions alone), which does not depend on width (Yang et al. 2310.17813); embedding
    and vectors keep their lr. lr times weight decay of the matrices goes with 1 / width (Qiu et al.
    2512.05620): so AdamW's weight decay stays, and Muon's goes with 1 / width.
    """
    scaled = dict(settings)
    for name, value in settings.items():
        if name == "lr" or name.endswith("_lr") or name == "weight_decay":
            scaled[name] = value * math.sqrt(larger)
    scaled["head_lr"] /= wider
    scaled["lr" if recipe == BASELINE else "weight_decay"] /= wider
    scaled["steps"] = round(settings["steps"] / larger)
    return {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in scaled.items()
    }


def base_settings(recipe: str) -> Settings:
    """The settings of a recipe that was tuned on tiny. Raises UserError."""
    found = tuned.find("tiny", recipe)
    settings = found.options if found else {}
    missing = [name for name in ("lr", "head_lr", "weight_decay", "steps") if name not in settings]
    if missing:
        raise UserError(
            f"optim/tuned.toml: [tiny.{recipe}] has no {', '.join(missing)}; "
            f"run: python -m studies.tune {recipe}"
        )
    return settings


def recheck(trainer: Trainer, recipe: str, settings: Settings) -> Settings:
    """The transferred settings with the best of FACTORS times their lr, by one trial each."""
    around = {
        index: settings | {"lr": float(f"{settings['lr'] * factor:.3g}")}
        for index, factor in enumerate(FACTORS)
    }
    budget = Budget(len(around), Shard(), STAGES[-1])
    study = Study(trainer, "tiny", recipe, budget)
    best = min(study.at_horizon("transfer", around), key=loss_of)
    if best.final_loss is None:
        raise UserError(
            f"{recipe}: every trial at the transferred settings diverged; "
            "lower FACTORS in studies/scale.py"
        )
    if best.trial in (0, len(FACTORS) - 1):
        print(f"{recipe}: warning: the best lr is {FACTORS[best.trial]} times the transferred one")
    return around[best.trial]


def race_place(
    base: Track, place: Place, settings: Mapping[str, Settings], options: Options, seeds: int
) -> None:
    """Re-check and race one place, as far as it is not done; then write its row.

    base: the track whose batch and width are replaced. settings: the tuned ones, by
    recipe.
    """
    width = base.width or BASE_WIDTH
    wider, larger = place.width / width, place.batch_tokens / base.batch_tokens
    moved = {r: transfer(r, settings[r], wider, larger) for r in RECIPES}
    steps = moved[CHALLENGER]["steps"]
    track = replace(
        base, name="custom", width=place.width, batch_tokens=place.batch_tokens,
        val_every=NEVER, val_every_late=NEVER, search_steps=steps,
    )  # fmt: skip
    trainer, root = Trainer(track, settled(track, options)), options.results
    best = {recipe: recheck(trainer, recipe, moved[recipe]) for recipe in RECIPES}
    horizons = {BASELINE: [round(steps * h) for h in HORIZONS], CHALLENGER: [steps]}
    entrants = [
        enter(spelling.spell(recipe, best[recipe] | {"steps": horizon}), "tiny")
        for recipe in RECIPES
        for horizon in horizons[recipe]
    ]
    race_id, done = _begun(trainer, entrants, place, root)
    race(trainer, entrants, seeds, race_id, done)
    row = ScalePoint(race_id, place.width, place.batch_tokens, steps)
    if row not in store.read(root / "points.csv", ScalePoint):
        store.append(root / "points.csv", row)


def _begun(
    trainer: Trainer, entrants: Sequence[Entrant], place: Place, root: Path
) -> tuple[str, list[Run]]:
    """The race's id, which follows from the program, and its finished runs."""
    expected = trainer.conditions()
    race_id = f"scale-w{place.width}-b{place.batch_tokens}-{expected['source_hash'][:6]}"
    earlier, names = resume.to_go_on_with(root, race_id), [each.canonical for each in entrants]
    if earlier is None:
        return race_id, []
    resume.require_same(root, earlier, names, expected, vars(trainer.options))
    return race_id, list(earlier.done)


def run(given: argparse.Namespace) -> None:
    """Race this shard's places, then print what all finished ones amount to. Raises UserError."""
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds}: must be at least 1; run with --seeds 3")
    shard, options = read_shard(given.shard), Options(results=given.results)
    store.ready(given.results, {"points.csv": ScalePoint})
    settings = {recipe: base_settings(recipe) for recipe in RECIPES}
    for place in (place for i, place in enumerate(PLACES) if shard.has(i)):
        race_place(TRACKS["tiny"], place, settings, options, given.seeds)
    print(scale.markdown(scale.measured(given.results)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("studies.scale", __doc__)
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="INT", help="runs of each entrant (default: 3)"
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="part I of N of the places (default: 1/1)"
    )
    note = f"folder (default: results/{scale.SCALE})"
    default = paths.RESULTS / scale.SCALE
    parser.add_argument("--results", type=paths.typed, default=default, help=note)
    stopped = "what is finished is recorded: the same command goes on"
    return entry.run(parser, argv, run, stopped)


if __name__ == "__main__":
    sys.exit(main())
