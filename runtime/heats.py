"""The runs that are under way: saved between two rounds, and gone on with after a kill.

A heat is the runs of one seed that take turns, or one run that is alone. Between two rounds all of
its runs have taken the same number of turns, and nothing of any is unfinished: that is when a
checkpoint holds all of them. `speedrun.py` decides what a run is; `runtime/checkpoints.py` has the
files.

A heat that goes on with another engine or another number of processes is no longer one measurement:
its rows then name all layouts that it had, and are of no heat, so that no price of a step is made
from their turns.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import engines
from engines import Engine
from engines._state import Reader, UnsavableError, Writer
from host import ending
from model import GPT
from runtime import checkpoints, machine, provenance
from runtime.memory import Peak
from runtime.outcome import Outcome
from tracking.resume import LAYOUT
from tracking.schema import COMMON

LEFT = "what is finished is recorded: go on with --resume"
# Columns that must be as they were when a checkpoint was written.
SAME = tuple(name for name in COMMON if name not in LAYOUT)


class Maker(Protocol):
    """What of the trainer makes up the state of its run."""

    engine: Engine
    gpt: GPT
    memory: Peak


@dataclass(frozen=True)
class Heat:
    """Which runs take turns, and how far they are."""

    seed: int
    name: str  # in their rows; empty: their turns are not compared
    entrants: tuple[str, ...]  # canonical spellings, in the order of the first round
    turn_steps: int
    round: int = 0  # the next


class Heats:
    """Saves the heat of a race that is under way, and says which one to go on with."""

    def __init__(
        self, folder: Path, engine: Engine, save_every: int, conditions: Mapping[str, Any]
    ) -> None:
        """folder: of the race's checkpoints. save_every: steps; 0: never. conditions: the columns
        that the rows of this process have. Takes the newest checkpoint that is sound."""
        self._folder, self._engine, self._every = folder, engine, save_every
        self._same = {name: conditions[name] for name in SAME if name in conditions}
        self._asked: Callable[[], int] = lambda: 0
        self._held = 0  # steps of its runs in the newest checkpoint
        self._saved: checkpoints.Saved | None = None
        self.layouts = [[engine.name, engine.world_size]]  # of the heat, one after the other
        name = engine.broadcast(checkpoints.newest(folder) if engine.rank == 0 else "")
        if name:
            self._saved, self._name = checkpoints.Saved(folder / name), name
            different = [n for n, v in self._same.items() if self._about["same"].get(n) != v]
            if different and engine.rank == 0:
                what = f"{folder / name} was written with another {different[0]}"
                print(f"speedrun.py: checkpoint {what}; it is not used", file=sys.stderr)
            if different:
                self._saved = None

    @property
    def _about(self) -> Any:
        assert self._saved is not None
        return self._saved.abouts[min(self._engine.rank, self._saved.world_size - 1)]

    @property
    def layouts_column(self) -> str:
        """The column `engine` where a heat had several layouts, with their processes; or empty."""
        names = [f"{name}@{count}" for name, count in self.layouts]
        return "+".join(names) if len(names) > 1 else ""

    # ---- Going on ------------------------------------------------------------------------------

    def next(
        self, seed: int, left: Sequence[str], finished: Collection[str], turn_steps: int, alone: int
    ) -> Heat:
        """The heat of a seed that was under way, without the runs that have ended since; else one
        that begins.

        left: entrants that have no row with this seed. finished: those that have one. turn_steps:
        of the race; 0: a run at a time. alone: steps of a turn of a run that is alone.
        """
        self._held = 0
        heat = self._under_way(seed, left, finished)
        if heat is None:
            heat = Heat(seed, f"s{seed}-{provenance.now()}", tuple(left), turn_steps)
            heat = heat if len(left) > 1 else replace(heat, name="", turn_steps=alone)
        if not turn_steps:
            heat = replace(heat, name="", entrants=heat.entrants[:1], turn_steps=alone)
        return heat

    def _under_way(self, seed: int, left: Sequence[str], finished: Collection[str]) -> Heat | None:
        self.layouts = self.layouts[-1:]
        if self._saved is None or self._about["heat"]["seed"] != seed:
            return None
        heat = Heat(**self._about["heat"])
        here = tuple(each for each in heat.entrants if each in left)
        if not here:
            return None
        if self._engine.rank == 0:
            print(f"seed {seed} goes on from checkpoint {self._name}", flush=True)
        layouts = [*self._about["layouts"]]
        self.layouts = layouts + self.layouts * (layouts[-1] != self.layouts[0])
        # What has ended since took its last turns at another time than they will be taken again.
        broken = len(self.layouts) > 1 or any(each in finished for each in heat.entrants)
        return replace(heat, entrants=here, name="" if broken else heat.name)

    def restore(self, by: Maker, out: Outcome) -> None:
        """Let a run that is warmed up go on from the checkpoint, if it is in there."""
        runs = [] if self._saved is None else self._about["runs"]
        place = [[run["entrant"], run["seed"]] for run in runs]
        key = [out.entrant.canonical, out.seed]
        if self._saved is None or key not in place:
            return
        number = place.index(key)
        read = self._saved.reader(f"run{number}/")
        of_ranks = [about["runs"][number] for about in self._saved.abouts]
        state = Reader(read, self._engine.device).value(runs[number]["out"])
        if self._saved.world_size != self._engine.world_size and state["unread"]:
            # Losses that each process had of its own part: the mean of all parts.
            parts = [Reader(read, self._engine.device).value(r["out"]["unread"]) for r in of_ranks]
            state["unread"] = [torch.stack(part).mean(0) for part in zip(*parts, strict=True)]
        by.engine.resume(read, [run["engine"] for run in of_ranks])
        by.memory.bytes = max(by.memory.bytes, state.pop("peak"))
        by.gpt.eager_passes += state.pop("eager_passes")
        out.restore(state)
        machine.set_random_state(self._engine.device, out.random)
        self._held = max(self._held, out.steps)

    # ---- Saving --------------------------------------------------------------------------------

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within it, SIGTERM and SIGHUP end the race after the next round, with a checkpoint.

        Where another process is gone, it is named before torchrun's SIGTERM counts again.
        """
        with ending.noticed() as self._asked:
            try:
                yield
            except RuntimeError as error:
                if not engines.lost_contact(error):
                    raise
                engines.tell_lost(error, self._engine.rank, LEFT)
                raise engines.LostError from error

    def between_rounds(self, heat: Heat, runs: Sequence[tuple[Maker, Outcome]]) -> None:
        """Save the runs that are alive, if it is time to. Raises ending.Stopped if asked to end."""
        asked = int(self._engine.all_reduce_max(torch.tensor(float(self._asked()))).item())
        steps = max(out.steps for _, out in runs)
        due = steps >= self._every and steps % (self._every or 1) < heat.turn_steps
        if self._every and (due or asked) and steps != self._held:
            self._held = steps
            self._save(heat, runs)
        if asked:
            raise ending.Stopped(asked)

    def _save(self, heat: Heat, runs: Sequence[tuple[Maker, Outcome]]) -> None:
        rank, tensors, written = self._engine.rank, dict[str, Tensor](), []
        alive = tuple(out.entrant.canonical for _, out in runs)
        failure = ""
        try:
            for number, (by, out) in enumerate(runs):
                held, structure = by.engine.checkpoint()
                writer = Writer()
                more = {"peak": by.memory.bytes, "eager_passes": by.gpt.eager_passes}
                about = writer.write(out.state() | more, f"rank{rank}/out")["dict"]
                whose = {"entrant": out.entrant.canonical, "seed": out.seed}
                written.append({**whose, "out": {"dict": about}, "engine": structure})
                tensors |= {f"run{number}/{k}": v for k, v in {**held, **writer.tensors}.items()}
        except UnsavableError as error:
            failure = str(error)
            print(f"speedrun.py: the race has no checkpoints: {failure}", file=sys.stderr)
        if self._engine.all_reduce_max(torch.tensor(float(bool(failure)))).item():
            self._every = 0
            return
        about = {
            "same": self._same,
            "layouts": self.layouts,
            "heat": vars(replace(heat, entrants=alive)),
            "runs": written,
        }
        checkpoints.write(self._folder, tensors, about, self._engine)

    def end(self) -> None:
        """The runs of the heat are recorded: its checkpoints are removed."""
        self._saved, self._held = None, 0
        if self._engine.rank == 0:
            checkpoints.remove(self._folder)
