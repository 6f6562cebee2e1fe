"""The tuner: the same number of trials for every recipe, and every one of them kept.

    python -m studies.tune adamw muon --track tiny --trials 64
    python -m studies.tune adamw muon --stage sweep
    python -m studies.tune soap:precondition_frequency=1    # given options are not searched

Four stages, each a set of rows in results/tuning.csv:

search    points in the ranges of the recipe and of the schedule, with one seed, all at the track's
          common horizon: the first 16 of a Sobol sequence, then rounds of 4 that a guide proposes
          from the losses so far, see studies/guide.py
refine    a quarter as many, close to the best one, beyond the ranges if it lies at an edge
confirm   the best FINALISTS again, with fresh seeds; a finalist that is worse than the leader on
          the same seeds (one-sided paired t-test, p < 0.05) gets no further seed
horizon   for the remaining finalists, the shortest horizon at which every fresh seed meets the
          track's target and a further one would with a probability of 99% (Student's prediction
          bound), because a race has other seeds

The outcome goes to optim/tuned.toml, which names the trial that it came from, and whose settings
races take. With --results FOLDER it goes to FOLDER/tuned.toml, beside its trials, and nowhere else.

Two more stages are not part of that search. They run the tuned settings at the common horizon:

sweep     with their lr times SWEEP, over two decades; it shows how much a wrong lr costs
standing  with the fresh seeds; a wider search is compared with them, see analysis/moved.py

A trial that has its row is not run again, so an interrupted search goes on with the same command,
and a longer one with more --trials. Trials are compared by loss alone, so they may share the
machine: run one `--shard` on each core.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from host import entry
from optim.entrants import assigned, entrant_options
from runtime import command_line, machine
from speedrun import Options, Schedule, Track, Trainer, chosen_track, make_parser
from studies import guide
from studies.study import FRESH_SEEDS, OF_TUNED, STAGES, Budget, Incomplete, Study, read_shard
from tracking import resume, spelling, store, tuned
from tracking.files import check_writable
from tracking.schema import Provenance


def target_from(mean_loss: float) -> float:
    """The target of a track: the confirmed loss of its tuned AdamW, rounded up to 0.01."""
    return math.ceil(mean_loss * 100) / 100


def tune_recipe(study: Study, path: Path = tuned.TUNED) -> None:
    """Go through the stages that the budget allows; write the outcome of the last one to `path`.

    Raises Incomplete where it must wait for other shards.
    """
    recipe, track = study.recipe, study.trainer.track.name
    if study.budget.stage in OF_TUNED:
        found = tuned.find(track, recipe, path) or tuned.find(track, recipe)
        run_stage = {"sweep": study.sweep, "standing": study.standing}[study.budget.stage]
        run_stage(found.options if found else {})
        return
    searched = study.search()
    if searched[0].final_loss is None:
        raise UserError(f"{recipe}: every trial diverged; narrow its ranges in optim/")
    if study.budget.stage == "search":
        return
    finalists = study.refine()
    if study.budget.stage == "refine":
        return
    confirmed = study.confirm(finalists)
    for loss, index in confirmed:
        print(f"{recipe}: trial {index}: {loss:.4f} over {len(FRESH_SEEDS)} fresh seeds")
    for warning in study.at_edge(confirmed[0][1]):
        print(f"{recipe}: warning: {warning}; widen it in optim/ and tune again")
    print(f"{recipe} reaches {target_from(confirmed[0][0])} at {study.steps} steps")
    if study.budget.stage == "confirm":
        return
    if study.budget.shard.count > 1:  # each horizon depends on the one before
        raise Incomplete("the horizon stage is for one process")
    shortest = study.shorten(confirmed)
    steps, index = shortest or (study.longest, confirmed[0][1])  # an entrant that misses races too
    if shortest is None:
        print(f"{recipe}: no horizon up to {steps} steps meets the target")
    settings = study.points[index]
    if track == "custom":
        best = spelling.spell(recipe, settings | {"steps": steps})
        print(f"{recipe}: best on this custom track: {best}")
        return
    missed = shortest is None
    tuned.write(tuned.Tuned(track, recipe, settings, steps, (index,), missed=missed), path)
    print(f"{recipe}: {steps} steps with trial {index}, written to {path}")
    if path != tuned.TUNED:
        best = spelling.spell(recipe, settings | {"steps": steps})
        print(f"{recipe}: a race takes them as {best}")


def settled(track: Track, options: Options) -> Options:
    """The options, with what earlier rows of this track on this device say in place of "auto"."""
    root, here = options.results, machine.device_name(machine.local_device())
    rows: list[Provenance] = [*store.read_trials(root), *store.read_runs(root)]
    alike = [
        row
        for row in rows
        if (row.track_hash, row.device) == (track.hash(), here)
        and options.dtype in ("auto", row.dtype)  # what is fastest depends on it
    ]
    return resume.settled(options, alike)


def run(arguments: argparse.Namespace) -> None:
    """Tune each recipe, as far as --stage and the other shards allow. Raises UserError."""
    words = arguments.entrants or ["adamw", "muon"]
    budget = Budget(arguments.trials, read_shard(arguments.shard), arguments.stage)
    recipes = [spelling.recipe_of(word) for word in words]
    if len(set(recipes)) < len(recipes):
        raise UserError(f"{' '.join(words)}: a recipe is named twice; name each once")
    options = Options(**command_line.given(arguments, Options))
    track = chosen_track(arguments)
    if budget.stage not in OF_TUNED:
        guide.check()
    store.ready(options.results)
    check_writable(tuned.TUNED.parent)  # where the outcome goes
    for word, recipe in zip(words, recipes, strict=True):
        assigned(word, entrant_options(recipe, Schedule))  # refuse a mistake before any trial
    trainer = Trainer(track, settled(track, options))
    if trainer.engine.world_size > 1:
        raise UserError("the tuner runs in one process; share the trials with --shard instead")
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    flops *= track.search_steps * budget.trials * len(words)  # of the search alone
    if note := machine.patience_note(trainer.device, flops, trainer.matmul_peak):
        print(note)
    try:
        for word in words:
            path = tuned.of(options.results)
            tune_recipe(Study(trainer, arguments.track, word, budget), path)
    except Incomplete as left:
        print(f"{left}; run the command again without --shard when they are done")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = make_parser(__doc__, "studies.tune", race=False)
    parser.add_argument(
        "--trials",
        type=int,
        default=64,
        metavar="INT",
        help="search trials of each recipe (default: 64)",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="part I of N of the trials (default: 1/1)"
    )
    parser.add_argument(
        "--stage",
        default="horizon",
        metavar="STAGE",
        help=f"last stage to run: {', '.join(STAGES)}; or one of {', '.join(OF_TUNED)} "
        "(default: horizon)",
    )
    stopped = "finished trials are recorded: the same command goes on"
    return entry.run(parser, argv, run, stopped)


if __name__ == "__main__":
    sys.exit(main())
