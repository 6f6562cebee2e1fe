"""The price of taking turns: how much longer a step takes after another run had the machine.

    python -m bench.turns

Two equal runs of AdamW on the track `tiny` take turns of 1, 2, 4 and 8 steps. Column "step": the
median of their steps, over the median of steps that had no turns between them, measured before and
after. Column "between": the time from the end of a turn to the begin of the next, over the time of
a turn; no clock counts it. The default of `--turn-steps` keeps it under 0.5%. On a shared machine a
difference of some per cent in "step" is noise.
"""

import statistics
import sys
import time
from collections.abc import Iterator

from bench import Row, environment, run, write
from speedrun import TRACKS, Options, Outcome, Trainer, enter

ROUNDS, STEPS = 3, 32  # of a run for each length of a turn
LENGTHS = (1, 2, 4, 8)


def measure(trainer: Trainer, turn_steps: int) -> tuple[list[float], list[float]]:
    """Two runs in turns: seconds of a step in each turn but the first, and seconds between turns.

    turn_steps: 0: one run alone, in turns of one step.
    """
    entrant = enter("adamw", "tiny", STEPS)
    crew = list(trainer.crew(2 if turn_steps else 1))
    heat: list[Iterator[Outcome]] = [
        by.run_in_turns(entrant, 0, turn_steps or 1, only_last=True) for by in crew
    ]
    for turns in heat:
        next(turns)  # warms up
    between: list[float] = []
    outs: list[Outcome] = []
    while heat:
        for turns in list(heat):
            begun = time.perf_counter()
            out = next(turns)
            took = time.perf_counter() - begun
            if out.status:  # its last turn has a validation
                heat.remove(turns)
                outs.append(out)
            else:
                between.append(took - out.turns[-1].train_seconds)
    steps = [turn.train_seconds / turn.steps for out in outs for turn in out.turns[1:-1]]
    return steps, between


def measure_all() -> None:
    """Measure, and write the rows."""
    trainer = Trainer(TRACKS["tiny"], Options(engine="single"))
    measure(trainer, 1)  # compiles
    found: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in (0, *LENGTHS)}
    for number in range(ROUNDS):
        for length in list(found) if number % 2 else reversed(list(found)):
            for kept, new in zip(found[length], measure(trainer, length), strict=True):
                kept += new
    alone = statistics.median(found[0][0])
    rows: list[Row] = [
        {
            "turn steps": length or "alone",
            "step ms": round(1e3 * statistics.median(steps), 2),
            "step": f"{statistics.median(steps) / alone - 1:+.2%}",
            "between": f"{statistics.median(between) / ((length or 1) * alone):.2%}",
        }
        for length, (steps, between) in found.items()
    ]
    dtype: Row = {"dtype": str(trainer.dtype).removeprefix("torch.")}
    write("turns", rows, dtype | environment(trainer.device))


def main() -> int:
    """Run the command; its exit code."""
    return run("turns", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
