"""The columns of every CSV that a race or a study writes, with types and units.

`tracking.store` reads and writes them. An optional column has an empty cell if it does not apply:
a run that did not reach its target has no `steps_to_target`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

REACHED, MISSED, DIVERGED = "reached", "missed", "diverged"
STATUSES = (REACHED, MISSED, DIVERGED)
FINISHED = "finished"  # the status of a trial without a target
SEARCHED = ("search", "refine")  # stages of the tuner whose trials are points of a search
SWEEP = tuple(10 ** (k / 3) for k in range(-3, 4))  # the trials of a sweep: factors on the tuned lr
# Columns with one value in all runs of a race; otherwise its runs could not be compared.
COMMON = (
    "track_hash", "data_hash", "source_hash", "target", "engine", "world_size",
    "device", "threads", "dtype", "attention", "compiled", "torch",
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """The columns that are needed to repeat a run of a race or a tuning trial."""

    started: str  # UTC, ISO 8601 with seconds
    track: str  # name; "custom" when any of the track's values was overridden
    track_hash: str  # hash of every value that the track freezes
    label: str  # the entrant as it was typed: legend label
    entrant: str  # the entrant with every option spelled out: name:key=value,...
    seed: int
    engine: str
    world_size: int  # processes
    device: str  # processor or GPU name
    threads: int  # CPU threads of each process
    dtype: str  # of activations and matrix products: float32, bfloat16
    attention: str  # how it is computed: fused, plain
    compiled: bool  # every pass of the model ran in compiled code, as counted
    compile_note: str  # why not; else empty
    torch: str  # version
    python: str  # version
    commit: str  # git commit of the program that was loaded; empty: no checkout, or unreadable
    clean: bool | None  # no uncommitted change, but for results and charts; empty: unknown
    source_hash: str  # hash of the program's own files; the text is sources/<source_hash>.txt
    data_hash: str  # hash of the manifest of the data


@dataclass(frozen=True)
class Run(Provenance):
    """One row of runs.csv: one training run of a race."""

    race: str  # the race it belongs to
    run: str  # unique; the curve is curves/<run>.csv
    heat: str  # its runs took turns on one machine; empty: a run that had the machine to itself
    turn_steps: int  # steps of a turn; 0: it ran alone
    status: str  # reached, missed or diverged
    target: float  # validation loss, nats per token
    steps_planned: int
    steps: int  # done; fewer than planned only when diverged
    tokens: int  # trained on
    final_loss: float | None  # last validation loss, nats per token; empty if there was none
    final_bits_per_byte: float | None
    steps_to_target: float | None  # linear interpolation between the two validations around it
    tokens_to_target: float | None
    seconds_to_target: float | None  # on the training clock
    train_seconds: float  # the training clock: every step, nothing else
    data_seconds: float  # part of train_seconds: waiting for batches
    forward_backward_seconds: float  # part of train_seconds
    optimizer_seconds: float  # part of train_seconds
    communication_seconds: float  # part of train_seconds that no computation hid
    communication_bytes: int  # sent by a process in training steps, see engines/_traffic.py
    compile_seconds: float  # off the clock: compilation and warm-up
    val_seconds: float  # off the clock: validation
    param_count: int
    param_bytes: int  # this and the next three: of the process that holds most
    grad_bytes: int
    state_bytes: int  # optimizer state, by walking it
    peak_memory_bytes: int  # of the GPU, or of the process where there is none
    flops_per_step: float  # model FLOPs of one step, forward and backward
    matmul_peak_flops: float  # FLOP/s of one large matrix product, measured in this process
    mfu: float  # flops_per_step / step seconds / (world_size * matmul_peak_flops)


@dataclass(frozen=True)
class Validation:
    """One row of curves/<run>.csv: one validation.

    Rates and means cover the steps since the previous row; `grad_norm` is of the last step.
    """

    step: int
    tokens: int
    train_seconds: float
    train_loss: float | None  # nats per token; empty before the first step
    val_loss: float  # nats per token
    lr: float  # of the hidden matrices, at the last step
    grad_norm: float | None
    step_ms: float | None
    optimizer_ms: float | None
    peak_memory_bytes: int


@dataclass(frozen=True)
class Turn:
    """One row of turns/<run>.csv: one turn of a run that takes turns with the others of its heat.

    Turns of one round are neighbours in time. The order of the runs is reversed from each round to
    the next.
    """

    round: int  # from 0
    steps: int  # of this turn
    train_seconds: float  # of this turn, on the training clock


@dataclass(frozen=True)
class Logit:
    """One row of logits/<run>.csv: the largest attention logit of one head in one training step.

    It is taken before the softmax, over the whole batch, with the weights before the step's update.
    With QK-Clip every step has rows; without it, only the validated steps have.
    """

    step: int
    layer: int  # from 0
    head: int  # from 0
    max_logit: float


def logit_rows(measured: Iterable[tuple[int, Any]]) -> list[Logit]:
    """The rows of what was measured, to six digits; none for a step that diverged.

    measured: steps, and their maxima as tensors or arrays (n_layer H).
    """
    return [
        Logit(step, layer, head, float(f"{value:.6g}"))
        for step, largest in measured
        if all(map(math.isfinite, chain.from_iterable(largest.tolist())))
        for layer, heads in enumerate(largest.tolist())
        for head, value in enumerate(heads)
    ]


@dataclass(frozen=True)
class Spectrum:
    """One row of spectra/<run>.csv: a part of a parameter at one validated step, and its spectrum.

    A part is what is orthogonalised on its own: the query, the key or the value matrix of a fused
    projection, or one head of it with Muon Split; else the whole parameter. A vector has no
    singular values: its columns from `largest` on are empty. A ratio over 0 is empty, and so is
    every ratio of a matrix of zeros. Values below float32's rounding of the largest one are 0.
    """

    step: int  # whose gradient and update these are
    parameter: str  # its name in the model
    role: str  # embed, head, matrix or vector
    kind: str  # the same in all layers, such as "query" or "mlp.fc"
    part: int  # of the parameter, from 0, top to bottom
    tensor: str  # gradient, momentum (after the step), update (after minus before), weight (before)
    rows: int
    columns: int  # 1: a vector
    rms: float  # root mean square of the entries
    largest: float | None  # singular value; this and the next six are quantiles
    q90: float | None
    q75: float | None
    median: float | None
    q25: float | None
    q10: float | None
    smallest: float | None
    over_median: float | None  # largest / median: a condition number that no tiny value decides
    over_smallest: float | None  # largest / smallest: the condition number; empty for singular ones
    stable_rank: float | None  # sum of squares / largest^2
    effective_rank: float | None  # exp of the entropy of the singular values over their sum
    top_tenth: (
        float | None
    )  # part of the sum of squares in the largest tenth of the values, 1 or more


@dataclass(frozen=True)
class Trial(Provenance):
    """One row of tuning.csv: one training run of the tuner."""

    recipe: str  # name in the registry
    stage: str  # search, refine, confirm, horizon or sweep, see tune; transfer, see studies.scale
    trial: int  # index of the point
    steps: int  # horizon of this run
    status: str  # horizon: reached, missed or diverged; else finished or diverged
    target: float | None  # of the horizon stage
    final_loss: float | None  # nats per token; empty when diverged
    train_seconds: float  # not comparable between trials: they may share the machine


@dataclass(frozen=True)
class ScalePoint:
    """One row of points.csv: one finished race of AdamW against Muon at another scale.

    Its runs are in runs.csv beside it, the trials of its settings in tuning.csv.
    """

    race: str
    width: int  # channels
    batch_tokens: int  # tokens of one step
    steps: int  # Muon's horizon, and one of AdamW's


@dataclass(frozen=True)
class Planned:
    """One row of planned.csv: what formulas say of a run, see planner/memory/layouts.py.

    The run is in runs.csv beside it, with what was measured. All are bytes of one process.
    """

    run: str
    param_bytes: int
    grad_bytes: int
    state_bytes: int
    communication_bytes: int  # of all steps


@dataclass(frozen=True)
class LinkTime:
    """One row of links.csv: a collective over gloo, as bench.links measured it."""

    collective: str  # all-reduce, reduce-scatter, all-gather or all-to-all
    processes: int
    size_bytes: int  # of all that is reduced, scattered or gathered; of an all-to-all, of a process
    seconds: float  # median over rounds, of the process that was last
    threads: int  # of a process
    device: str
    torch: str  # version


@dataclass(frozen=True)
class Calibrated:
    """One row of calibration.csv: what the predicted times start from. No run of several processes
    is in it, but for the collectives of links.csv."""

    name: str  # forward, passes, update, beside or cores; studies.planned says how each is measured
    of: str  # sequences of the pass, or optimizer and rule of the update; else empty
    value: float
    unit: str  # s; empty for a factor and a count


@dataclass(frozen=True)
class StepTime:
    """One row of times.csv: the time of a step, predicted and measured."""

    run: str  # of runs.csv
    engine: str
    recipe: str
    processes: int
    predicted_ms: float
    measured_ms: float  # median over the turns of the run
    passes_ms: float  # part of predicted_ms: computation of forward and backward
    update_ms: float  # part of predicted_ms: computation of the optimizer
    exposed_ms: float  # part of predicted_ms: communication that nothing hides, and waiting


@dataclass(frozen=True)
class Published:
    """One row of published/speedups.csv: a speed-up of Muon over AdamW that others report."""

    source: str
    reference: str
    basis: str  # steps, tokens, FLOPs or seconds
    params_low: int  # the range of model sizes that it is reported for
    params_high: int
    batch_tokens: int | None  # tokens of one step; empty where several or none are given
    speedup_low: float
    speedup_high: float
    how: str  # stated, or "from its logs"
    tuned: bool  # each of the two optimizers had a search of its own for hyperparameters


@dataclass(frozen=True)
class Listed:
    """One row of a record's manifest.csv: a file of the record, or of the program behind it."""

    program: str  # source_hash; empty for a file of the record itself
    name: str  # path in the record or in the program; empty for the program's whole text
    bytes: int
    sha256: str


# ---- What others published, in results/published -------------------------------------------------


@dataclass(frozen=True)
class SpeedrunRecord:
    """One row of published/speedrun_records.csv: a record of modded-nanogpt's track 1 or 2."""

    track: int  # 1: GPT-2 124M to 3.28; 2: 350M to 2.92
    record: int  # the list's own number; a record that was timed again has it twice
    minutes: float  # of training on 8 H100
    date: str  # ISO 8601


@dataclass(frozen=True)
class Track1Point:
    """One row of published/track1_curves.csv: one validation in a log of 2024."""

    setting: str  # size and date of the log
    optimizer: str
    step: int
    planned_steps: int
    tokens: int
    val_loss: float  # nats per token
    train_time_s: float | None  # empty where the log has no clock


@dataclass(frozen=True)
class Track3Claim:
    """One row of published/track3_claims.csv: one result of track 3, as it was claimed."""

    result: int
    date: str  # ISO 8601
    claimed_steps: int  # at which the loss is claimed; the runs may go on
    claimed_mean_loss: float  # nats per token
    claimed_n: int  # runs
    world_record: int  # 1: marked as the fewest steps of its day; else 0
    marked_valid: int  # 1: marked as statistically valid; else 0


@dataclass(frozen=True)
class Track3Point:
    """One row of published/track3_curves.csv: one validation of one run of a result."""

    result: int
    run: int  # from 1
    step: int
    planned_steps: int
    val_loss: float  # nats per token


@dataclass(frozen=True)
class Track3Optimizer:
    """One row of published/track3_optimizers.csv: the optimizer of a result, where it is known."""

    result: int
    optimizer: str
    source: str


@dataclass(frozen=True)
class Stated:
    """One row of published/stated.csv: a figure that was stated and that no curve here shows."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class PublicRun:
    """One row of runs.csv of `leaderboard import`: one training run in a public log."""

    name: str  # unique; the curve is curves/<name>.csv
    file: str  # as it was found
    line: int  # of the run's first result, from 1
    era: str  # of the lines: llm.c, ms or s
    planned_steps: int | None  # empty where the lines do not say
    steps: int  # the last step of any line
    final_val_loss: float | None  # nats per token, at `steps`; empty without one that is finite
    readouts: str  # other values of that validation: name=value, with spaces between
    train_seconds: float | None  # the last time of the training clock
    step_ms: float | None  # by the clock between two validations after step 10, else two lines
    peak_memory_bytes: int | None  # allocated
    reserved_memory_bytes: int | None
    sha256: str  # of the file
    duplicate_of: str  # name of the first run that it is a copy of; else empty
    notes: str  # what is odd about it


@dataclass(frozen=True)
class PublicPoint:
    """One row of curves/<name>.csv of `leaderboard import`: one validation.

    A run without validations has one row, of its last training loss.
    """

    step: int
    val_loss: float | None  # nats per token
    train_loss: float | None  # nats per token, the last that was logged until then
    train_seconds: float | None  # on the training clock; empty where the log has none
    readouts: str  # other values of the validation: name=value, with spaces between
