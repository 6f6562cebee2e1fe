"""What a run did and what it cost so far: its rows are made of it, and a checkpoint keeps it.

`Trainer.run_in_turns` in speedrun.py fills it, step by step.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from torch import Tensor

from runtime import provenance
from runtime.clock import Clock
from tracking.schema import Spectrum, Turn, Validation

ROWS = {"turns": Turn, "points": Validation, "spectra": Spectrum}
AS_IT_IS = ("entrant", "seed", "clock", *ROWS)  # not copied as they are by `state`


@dataclass
class Outcome:
    """What a run did and what it cost."""

    entrant: Any  # optim.entrants.Entrant
    seed: int
    clock: Clock
    started: str = field(default_factory=provenance.now)
    eager_reason: str = ""  # why passes were not compiled; empty if all were
    compile_seconds: float = 0.0  # the warm-ups, compilation included; off the clock
    status: str = ""  # reached, missed or diverged; empty while it runs
    steps: int = 0
    turns: list[Turn] = field(default_factory=list)
    points: list[Validation] = field(default_factory=list)  # its validations
    val_seconds: float = 0.0
    grad_norm: float = 0.0  # when last measured
    logits: list[tuple[int, Tensor]] = field(default_factory=list)  # step, maxima (n_layer H)
    spectra: list[Spectrum] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)  # bytes of params, grads and state
    sent_bytes: int = 0  # to other processes, in training steps
    unread: list[Tensor] = field(default_factory=list)  # losses that are still on the device
    losses: list[float] = field(default_factory=list)  # since the last validation
    random: list[Any] = field(default_factory=list)  # machine.random_state between two turns

    def end_turn(self) -> None:
        """Stop the clock and note the turn."""
        self.clock.stop()
        steps = self.steps - sum(turn.steps for turn in self.turns)
        seconds = self.clock.seconds - sum(turn.train_seconds for turn in self.turns)
        if steps:
            self.turns.append(Turn(len(self.turns), steps, seconds))

    def state(self) -> dict[str, Any]:
        """All of it but entrant and seed, as plain values and tensors, between two turns."""
        copied = {name: value for name, value in vars(self).items() if name not in AS_IT_IS}
        rows = {name: list(map(astuple, getattr(self, name))) for name in ROWS}
        return copied | rows | {"clock": self.clock.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the new warm-up counts too."""
        warmed = self.compile_seconds
        vars(self).update({name: value for name, value in state.items() if name not in AS_IT_IS})
        for name, cls in ROWS.items():
            setattr(self, name, [cls(*row) for row in state[name]])
        self.clock.restore(state["clock"])
        self.compile_seconds += warmed
