"""How a model is laid out over processes.

An engine promises one thing to the update rules: each sees whole, local, plain tensors, and only
the tensors that this process owns. `single`, one process and one device, is the reference that
every other engine must agree with.
"""

import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from errors import UserError
from host import launcher


class PlannedGroup(Protocol):
    """A group of parameters that share a rule; see `optim.Group`."""

    rule: type[torch.optim.Optimizer]
    params: tuple[Any, ...]
    options: dict[str, Any]


class Engine(Protocol):
    """What the trainer may ask of a layout.

    Losses and norms are computed over the global batch.
    """

    name: str
    device: torch.device
    rank: int
    world_size: int
    mark: Callable[[], Any] | None
    """Records a moment on the trainer's clock; None: no clock runs."""
    keep_grads: bool
    """Gradients are set to zero in place, as CUDA graphs need it, and not freed."""
    broke: "RuleError | None"
    """The last step failed in a decomposition, on finite gradients; the run has diverged."""
    exposed_communication: list[tuple[Any, Any]]
    """Begin and end of communication that no computation hid, in the backward pass or in a step;
    the trainer empties it after each of them."""
    sent_bytes: int
    """Bytes that this process has sent so far, as `engines._traffic` counts them."""
    together: bool
    """Several models can be alive and take turns; else a race takes a run at a time."""
    compiles: bool
    """What `wrap` returns can be compiled by torch.compile; else the model runs uncompiled."""
    shows: bool
    """It has the methods `gradients` and `momenta`; see `showing`."""
    owned: list["Owned"]
    """The parameters of the optimizers, in the order of the optimizers and their groups."""

    def another(self) -> "Engine":
        """An engine on the same processes for one more model. Runs of the two models take turns."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Place the model; the returned module is called with inputs and targets."""

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        """A context in which passes of what `wrap` returned need no other process.

        So a pass can fail in one process: nothing waits for it, and the next passes agree again.
        An engine whose passes need the others anyway says so.
        """

    def weights(self) -> AbstractContextManager[None]:
        """A context in which the model's parameters are whole, plain tensors on every process.

        They may be changed, by all processes alike. No pass may run within it.
        """

    def roles(self) -> list[Any]:
        """The model's table of roles; each parameter in it has the shape of the whole parameter."""

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        """Build the optimizers of a plan, one per rule, in place of the earlier ones.

        Raises the ValueError or ArithmeticError of a constructor. Whatever else a rule raises, here
        or later, becomes a RuleError that says what the rule was doing.
        """

    def set_lr(self, factor: float) -> None:
        """Set every learning rate to `factor` times the plan's."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients; `last` marks the last microbatch of a step."""

    def wait(self) -> None:
        """Wait until the gradients of the last backward pass are averaged, as `step` does."""

    def step(self) -> None:
        """Update the parameters and clear the gradients."""

    def evaluation(self) -> AbstractContextManager[None]:
        """A context in which the weights are the ones to validate.

        Some rules train other weights than they evaluate, such as schedule-free ones, and have the
        methods `eval` and `train`. Afterwards the weights are as before, to the bit.
        """

    def all_reduce_mean(self, value: Tensor) -> float:
        """A scalar averaged over processes."""

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """The largest of each number over processes, on the engine's device."""

    def largest(self, **counts: int) -> dict[str, int]:
        """The largest of each count over processes."""

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on every process."""

    def grad_norm(self) -> float:
        """L2 norm of the whole gradient."""

    def gradients(self) -> list["Flat"]:
        """What this process has of the averaged gradients, between `wait` and `step`.

        Every entry is on one process at least, but for parameters that have no gradient.
        """

    def momenta(self) -> list["Flat"]:
        """What this process has of the first moments, after `step`; see `_rules.momentum`."""

    def state_bytes(self) -> dict[str, int]:
        """Bytes of memory that this process holds: `params`, `grads`, `state`.

        The state is all tensors that the optimizers hold and that are neither of the first two.
        """

    def save(self) -> dict[str, Any]:
        """A copy of parameters and optimizer state."""

    def load(self, saved: dict[str, Any]) -> None:
        """Restore what `save` returned, and clear the gradients.

        The optimizers are built anew, so that nothing is left of steps since the last `build`, if
        none had been taken by the time of `save`.
        """

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and JSON that says how they belong together, for `resume`.

        Names do not depend on the layout. A name that several processes have is one tensor. Raises
        `_state.UnsavableError`.
        """

    def resume(
        self, read: Callable[[str], Tensor], structures: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take over what `checkpoint` returned, also from another number of processes.

        The optimizers have just been built. read: a tensor by its name. structures: the JSON of
        each process. Raises UserError for state that only the layout that saved it can take.
        """

    def close(self) -> None:
        """Leave the process group."""


class Owned(NamedTuple):
    """A parameter of an optimizer: a part of a parameter of the model, or all of it."""

    optimizer: int  # index in the engine's list
    name: str  # of the model's parameter
    start: int  # first element of the part, of the flattened parameter
    stop: int
    param: Tensor  # what the optimizer updates


class Flat(NamedTuple):
    """Entries of a tensor that belongs to a parameter of the model."""

    name: str  # of the model's parameter
    start: int  # the first entry, of the flattened parameter
    values: Tensor  # one dimension


def names() -> list[str]:
    """The engines: the files of this folder."""
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]


def showing() -> list[str]:
    """The engines that have whole gradients and momenta to show."""
    return [name for name in names() if import_module(f"{__name__}.{name}").Engine.shows]


def make(
    name: str,
    device: torch.device,
    timeout: float = 300,
    zero_stage: int = 1,
    comm_dtype: str = "float32",
    group: Any = None,
) -> Engine:
    """The engine called `name`: the class `Engine` of the file of that name in this folder.

    "auto" is ddp where torchrun started several processes, single elsewhere. timeout: seconds
    without progress after which a run of several processes is given up. zero_stage: of DeepSpeed.
    comm_dtype: of the numbers that fsdp2 sends. group: the process group; None: all processes.
    Raises UserError.
    """
    if name == "auto":
        name = "ddp" if launcher.number("WORLD_SIZE", 1) > 1 else "single"
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"--engine {name}: must be one of auto, {known}; leave it out")
    engine = import_module(f"{__name__}.{name}").Engine
    chosen = {"comm_dtype": comm_dtype} if "comm_dtype" in signature(engine).parameters else {}
    if not chosen and comm_dtype != "float32":
        raise UserError(
            f"--comm-dtype {comm_dtype}: what --engine {name} sends is float32; leave it out, or "
            "take --engine fsdp2"
        )
    made: Engine = engine(device, timeout, zero_stage, group, **chosen)
    return made


class RuleError(UserError):
    """An update rule that cannot do what a race does with it; `what` says what it was doing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; mend it, or race without it")
        self.what = what


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, also where a library or a compiler says it its own way."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA, CPU, cuBLAS
    kinds = (torch.OutOfMemoryError, MemoryError)  # the second: Python's and numpy's
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class LostError(RuntimeError):
    """Another process is gone, and `tell_lost` has said so."""


def tell_lost(error: RuntimeError, rank: int, left: str) -> None:
    """Say which rank is gone, after `lost_contact`. left: what there is, and the next command."""
    from engines._watch import Watch  # here, because it is not needed by one process

    ranks = Watch.newest.missing() if Watch.newest else []
    names = f"rank {', '.join(map(str, ranks))}, which has ended" if ranks else "the others"
    print(
        f"speedrun.py: rank {rank} lost {names}; {left}\n    {error}", file=sys.stderr, flush=True
    )


def tell_if_lost(command: Callable[[], int], left: str) -> int:
    """The exit code of a command, or 1 after another process is gone; see `tell_lost`."""
    try:
        return command()
    except LostError:
        return 1
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        tell_lost(error, launcher.number("RANK", 0), left)
        return 1
