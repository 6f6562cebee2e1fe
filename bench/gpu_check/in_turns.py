"""Checks of runs that take turns: they have the losses and the peak memory that they have alone.

Measured: the time of a step in turns over the time of a step alone.
"""

from collections.abc import Mapping

from bench.gpu_check.config import Config
from bench.gpu_check.runner import Recorder
from speedrun import Options, Outcome, Trainer

# Limit of the difference of losses on a GPU, in nats: some kernels add in any order there.
NEAR = 0.05
NEAR_PEAK = 0.01  # relative


def compare(
    config: Config, recorder: Recorder, trainer: Trainer, alone: Mapping[str, tuple[Outcome, int]]
) -> None:
    """Run again, in turns, what ran alone. alone: of each entrant, the outcome and the peak."""
    heat = []
    for (name, (before, _)), by in zip(alone.items(), trainer.crew(len(alone)), strict=True):
        entrant = config.entrant(name, before.steps)
        turns = by.run_in_turns(entrant, 0, Options.turn_steps, only_last=True)
        next(turns)  # warms up
        heat.append((name, by, turns))
    ended: dict[str, tuple[Outcome, int]] = {}
    while len(ended) < len(heat):
        for name, by, turns in heat:
            if name in ended:
                continue
            out = next(turns)
            if out.status:
                ended[name] = out, by.memory.read()
    for name, (out, peak) in ended.items():
        before, peak_before = alone[name]
        case = f"{name}, in turns"
        off = abs(out.points[-1].val_loss - before.points[-1].val_loss)
        most = 0 if config.device.type == "cpu" else NEAR
        recorder.check(f"{case}: loss off the loss alone", off, most)
        if config.device.type == "cuda":
            off = abs(peak / peak_before - 1)
            recorder.check(f"{case}: peak memory off the peak alone", off, NEAR_PEAK)
        ms, ms_before = (1e3 * each.clock.seconds / each.steps for each in (out, before))
        recorder.measure(case, "step", ms, "ms")
        recorder.measure(case, "step, over a step alone", ms / ms_before, "")
