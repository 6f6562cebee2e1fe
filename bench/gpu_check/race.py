"""The race of AdamW against Muon, on real text that was brought along, for the time that is left.

It is the trainer's own race: `speedrun.race` with its rows, curves and charts, in the folder of
this check. The settings are those published for a longer horizon and a larger batch, and nobody has
tuned them for this one: it shows that the whole path works, not which optimizer is better.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import speedrun
from analysis.charts._make import make
from bench.gpu_check.config import ENTRANTS, TRACK, Setting
from bench.gpu_check.runner import Notes
from data import Dataset, open_dataset, shards
from errors import UserError
from runtime import provenance
from speedrun import Outcome, Trainer
from tracking.schema import DIVERGED

TARGET_BITS = 1.8  # per byte, whatever the vocabulary: the target of `tiny` is 1.81
EPOCHS = 4  # at most: then a text has been read often enough to be known by heart
MOST_SEEDS = 3
RESERVE = 0.1  # of the time: runs differ
VAL_EVERY, VAL_EVERY_LATE = 25, 5  # steps
VALIDATIONS = 1 / VAL_EVERY + 0.1 / VAL_EVERY_LATE  # a step, at most


def tokens(dataset: Dataset, paths: tuple[Path, ...]) -> int:
    """Of all these shards."""
    return sum(len(shards.open_shard(path, dataset.vocab_size, scan=False)) for path in paths)


def track_of(setting: Setting, name: str) -> speedrun.Track:
    """The track's model on this text, in smaller steps. Raises UserError if there is too little."""
    dataset = open_dataset(name)
    sizes = setting.sizes
    microbatch = setting.microbatch * sizes.seq_len  # tokens; validation has no other shape
    held = tokens(dataset, dataset.val) - 1
    val_tokens = min(sizes.race_val_tokens, held) // microbatch * microbatch
    if not val_tokens:
        raise UserError(f"{dataset.name}: {held} validation tokens, {microbatch} are needed")
    size = open_dataset(name, val_tokens=val_tokens).bytes_per_token
    return replace(
        speedrun.TRACKS[TRACK],
        name="custom",
        dataset=name,
        model=sizes.model,
        width=sizes.width,
        seq_len=sizes.seq_len,
        batch_tokens=sizes.race_seqs * sizes.seq_len,
        val_tokens=val_tokens,
        val_every=VAL_EVERY,
        val_every_late=VAL_EVERY_LATE,
        target=round(TARGET_BITS * math.log(2) * size, 2),
        shuffle=True,
    )


def probe(setting: Setting, trainer: Trainer, name: str) -> tuple[float, float]:
    """Seconds of a step and of what a run takes beside its steps, from a short run."""
    steps = setting.sizes.probe_steps
    out: Outcome = trainer.run(setting.entrant(name, steps), seed=0, only_last=True)
    step = out.clock.seconds / out.steps + VALIDATIONS * out.val_seconds
    begun = time.perf_counter()
    trainer.warm_up()  # what compiled is there now: this is what a further run pays
    return step, time.perf_counter() - begun + 3  # initial weights, rows, the last validation


def horizon(
    setting: Setting, costs: list[tuple[float, float]], seconds: float, epoch_steps: float
) -> tuple[int, int]:
    """Steps of every run, and seeds, that fill the seconds; 0 steps where they do not suffice."""
    sizes = setting.sizes
    a_step, a_start = (sum(cost[i] for cost in costs) for i in range(2))
    room = (1 - RESERVE) * seconds
    most = min(sizes.most_steps, max(int(EPOCHS * epoch_steps), sizes.least_steps))
    steps = min(most, int((room - a_start) / a_step))
    if steps < sizes.least_steps:
        return 0, 0
    return steps, max(1, min(MOST_SEEDS, int(room / (a_start + steps * a_step))))


def run(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part."""
    begun = time.monotonic()
    if setting.data is None:
        notes.skip("race", "no text is here: prepare some, and name it with --data")
        return
    try:
        track = track_of(setting, setting.data)
        trainer = Trainer(track, setting.options(setting.compile, str(setting.out)))
    except UserError as error:
        notes.skip("race", str(error))
        return
    costs = [probe(setting, trainer, name) for name in ENTRANTS]
    epoch_steps = tokens(trainer.data, trainer.data.train) / track.batch_tokens
    left = seconds - (time.monotonic() - begun)
    steps, seeds = horizon(setting, costs, left, epoch_steps)
    if not steps:
        what = f"{left:.0f} s are left, too few for {setting.sizes.least_steps} steps each"
        notes.skip("race", what)
        return
    entrants = [setting.entrant(name, steps) for name in ENTRANTS]
    for entrant in entrants:
        trainer.check(entrant)
    race_id, done = provenance.open_race(trainer, entrants, None)
    runs = speedrun.race(trainer, entrants, seeds, race_id, done)
    notes.check("runs that diverged", sum(run.status == DIVERGED for run in runs), most=0)
    for run in runs:
        case = f"{run.label}, seed {run.seed}, {steps} steps"
        start = math.log(trainer.data.vocab_size)
        if run.final_loss is not None:
            notes.measure(case, "final loss", run.final_loss, "nats per token")
            notes.check(f"{case}: below a uniform guess", run.final_loss, most=start)
        notes.measure(case, "training", run.train_seconds, "s")
        notes.measure(case, "MFU", run.mfu, "of the measured peak")
    print(*make(setting.out, setting.out), sep="\n")
