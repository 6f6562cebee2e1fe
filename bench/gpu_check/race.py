"""The race of AdamW against Muon, on real text, for the time that is left.

It is the trainer's own race, `speedrun.race`, with its rows, curves and charts in the folder of
this check. The settings were published for a longer horizon and a larger batch, and they are not
tuned for this race. So it shows that the whole path works, not which optimizer is better.

The model has the vocabulary of the text, so it is compiled anew: on a GPU that takes most of the
time before the race. The log of the part shows when each of its stages began.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import speedrun
from analysis.charts._make import make
from bench.gpu_check.config import ENTRANTS, TRACK, Config
from bench.gpu_check.runner import Recorder
from data import Dataset, open_dataset, shards
from errors import UserError
from speedrun import Outcome, Trainer
from tracking import resume
from tracking.schema import DIVERGED

TARGET_BITS = 1.8  # per byte, for any vocabulary; the target of `tiny` is 1.81
EPOCHS = 4  # at most: with more, a model learns the text by heart
MOST_SEEDS = 3
SPARE_FRACTION = 0.1  # of the time, because runs differ
DRAWING = 10.0  # seconds for the charts of the race
VAL_EVERY, VAL_EVERY_LATE = 25, 5  # steps
VALIDATIONS = 1 / VAL_EVERY + 0.1 / VAL_EVERY_LATE  # per step, at most


def tokens(dataset: Dataset, paths: tuple[Path, ...]) -> int:
    """The tokens of all these shards."""
    return sum(len(shards.open_shard(path, dataset.vocab_size, scan=False)) for path in paths)


def track_of(config: Config, name: str) -> speedrun.Track:
    """The track's model on this text, in smaller steps. Raises UserError if it is too short."""
    dataset = open_dataset(name)
    sizes = config.sizes
    microbatch = (
        config.microbatch * sizes.seq_len
    )  # tokens; validation goes through microbatches too
    held = tokens(dataset, dataset.val) - 1
    val_tokens = min(sizes.race_val_tokens, held) // microbatch * microbatch
    if not val_tokens:
        raise UserError(
            f"{dataset.name}: {held} validation tokens, but {microbatch} are needed; "
            "name a longer text with --data text:FOLDER"
        )
    size = open_dataset(name, val_tokens=val_tokens).bytes_per_token
    if size is None:
        raise UserError(
            f"{dataset.name}: its vocabulary is not known, and the target is in bits per byte; "
            "name another text with --data text:FOLDER"
        )
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


def probe(config: Config, trainer: Trainer, name: str) -> tuple[float, float]:
    """Seconds of a step, validations included, and of the rest of a run, from a short run."""
    steps = config.sizes.probe_steps
    out: Outcome = trainer.run(config.entrant(name, steps), seed=0, only_last=True)
    step = out.clock.seconds / out.steps + VALIDATIONS * out.val_seconds
    begun = time.perf_counter()
    trainer.program.warm_up(tau=None)  # compiled by now, as it is for the runs of the race
    return step, time.perf_counter() - begun + 3  # for weights, rows and the last validation


def horizon(
    config: Config, costs: list[tuple[float, float]], seconds: float, epoch_steps: float
) -> tuple[int, int]:
    """Steps of every run, and seeds, that fill the seconds; (0, 0) if there are too few seconds.

    costs: of each entrant, as `probe` returns them. epoch_steps: steps that read the text once.
    """
    sizes = config.sizes
    of_steps, of_rest = (sum(cost[i] for cost in costs) for i in range(2))
    room = (1 - SPARE_FRACTION) * seconds
    most = min(sizes.most_steps, max(int(EPOCHS * epoch_steps), sizes.least_steps))
    steps = min(most, int((room - of_rest) / of_steps))
    if steps < sizes.least_steps:
        return 0, 0
    return steps, max(1, min(MOST_SEEDS, int(room / (of_rest + steps * of_steps))))


def run(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `race`."""
    begun = time.monotonic()

    def log(stage: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s: {stage}", flush=True)

    if config.data is None:
        recorder.skip("race", "no text is here: prepare some, and name it with --data")
        return
    log("open the text and build the model")
    try:
        track = track_of(config, config.data)
        trainer = Trainer(track, config.options(config.compile, config.out))
    except UserError as error:
        recorder.skip("race", str(error))
        return
    costs = []
    for name in ENTRANTS:
        log(f"compile, and time a short run of {name}")
        costs.append(probe(config, trainer, name))
        log("{:.3f} s a step, {:.1f} s for the rest of a run".format(*costs[-1]))
    epoch_steps = tokens(trainer.data, trainer.data.train) / track.batch_tokens
    spent = time.monotonic() - begun
    steps, seeds = horizon(config, costs, seconds - spent - DRAWING, epoch_steps)
    if not steps:
        recorder.skip(
            "race",
            f"{spent:.0f} of {seconds:.0f} s went to compiling and short runs, too few are left "
            f"for {config.sizes.least_steps} steps each; give more --minutes",
        )
        return
    entrants = [config.entrant(name, steps) for name in ENTRANTS]
    for entrant in entrants:
        trainer.check(entrant)
    log(f"race for {steps} steps, {seeds} {'seed' if seeds == 1 else 'seeds'} of each entrant")
    spellings, options = [entrant.canonical for entrant in entrants], vars(trainer.options)
    race_id, done = resume.open_race(config.out, spellings, None, trainer.conditions(), options)
    runs = speedrun.race(trainer, entrants, seeds, race_id, done)
    log("draw the charts")
    recorder.check("runs that diverged", sum(run.status == DIVERGED for run in runs), most=0)
    for run in runs:
        case = f"{run.label}, seed {run.seed}, {steps} steps"
        start = math.log(trainer.data.vocab_size)
        if run.final_loss is not None:
            recorder.measure(case, "final loss", run.final_loss, "nats per token")
            recorder.check(f"{case}: below a uniform guess", run.final_loss, most=start)
        recorder.measure(case, "training", run.train_seconds, "s")
        recorder.measure(case, "MFU", run.mfu, "of the measured peak")
    print(*make(config.out, config.out), sep="\n")
    log("done")
