"""What a process holds of its optimizers' state, under names that no layout changes.

    tensors, structure = save(optimizers, owned, rank)    # for a checkpoint
    load(read, structures, rank, optimizers, owned)       # into a layout, perhaps another one

A piece (`engines.Owned`) is the part of a named parameter that a process updates: a range of its
flattened values. State with the shape of the piece is cut and joined as the parameter is. Other
state, such as a preconditioner, goes to the process that has the same range; a single number goes
to all. What a rule keeps under keys of its own, or as tensors in its attributes, goes to a process
that has the same pieces. A layout in which there is none is refused.

Tensors are saved as they are; all else becomes JSON. No object of another kind is ever stored, so
nothing that a checkpoint holds is executed when it is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from engines import Owned, _rules
from errors import UserError

PLAIN = (bool, int, float, str)
KINDS: dict[type, type] = {list: list, tuple: tuple, torch.Size: tuple, set: set}
BACK: dict[str, Any] = {each.__name__: each for each in KINDS.values()}
# Attributes of every optimizer, which are saved in another way or are no state.
KNOWN = ("state", "param_groups", "defaults")
Read = Callable[[str], Tensor]  # a tensor of the checkpoint by its name, on the CPU


class UnsavableError(Exception):
    """State that no checkpoint can hold; says which."""


class OtherLayoutError(UserError):
    """State that only the layout that saved it can take."""


def key_of(piece: Owned) -> str:
    """A piece in the names of tensors."""
    return f"{piece.name}/{piece.start}-{piece.stop}"


# ---- Values as JSON and tensors ----------------------------------------------------------------


class Writer:
    """Turns nested values into JSON; their tensors go to `tensors`, each once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # of tensors that are met again

    def write(self, value: Any, name: str) -> Any:
        """name: what its tensors are called in a checkpoint. Raises UnsavableError."""
        if value is None or type(value) in PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Mapping):
            items = [[self.write(k, name), self.write(v, f"{name}/{k}")] for k, v in value.items()]
            return {"dict": items}
        if type(value) in KINDS:
            items = [self.write(each, f"{name}/{n}") for n, each in enumerate(value)]
            return {KINDS[type(value)].__name__: items}
        raise UnsavableError(f"{name} is a {type(value).__name__}")

    def _tensor(self, tensor: Tensor, name: str) -> Any:
        if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
            raise UnsavableError(f"{name} is a {type(tensor).__name__} of layout {tensor.layout}")
        name = self._names.setdefault(id(tensor), name)
        self.tensors[name] = tensor.detach()
        described: dict[str, Any] = {"tensor": name}
        if not tensor.is_contiguous():  # products round by it
            described["stride"] = list(tensor.stride())
        if tensor.device.type != "cpu":
            described["device"] = tensor.device.type
        return described


class Reader:
    """Turns what a Writer wrote back into values."""

    def __init__(self, read: Read, device: torch.device) -> None:
        self._read, self._device = read, device
        self._met: dict[str, Tensor] = {}

    def value(self, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        ((kind, held),) = [(k, v) for k, v in written.items() if k not in ("stride", "device")]
        if kind == "tensor":
            if held not in self._met:
                self._met[held] = self._place(self._read(held), written)
            return self._met[held]
        if kind == "dtype":
            return getattr(torch, held)
        if kind == "dict":
            return {self.value(k): self.value(v) for k, v in held}
        return BACK[kind](map(self.value, held))

    def _place(self, tensor: Tensor, written: Mapping[str, Any]) -> Tensor:
        device = self._device if "device" in written else torch.device("cpu")
        if "stride" in written:
            strided = torch.empty_strided(tensor.shape, written["stride"], dtype=tensor.dtype)
            tensor = strided.copy_(tensor)
        return tensor.to(device)


# ---- Saving ------------------------------------------------------------------------------------


def save(
    optimizers: Sequence[torch.optim.Optimizer], owned: Sequence[Owned], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the JSON that says how they belong together.

    owned: what each parameter of the optimizers is. Tensors of a name are the same on all processes
    that have it. Raises UnsavableError.
    """
    writer = Writer()
    pieces = {id(piece.param): piece for piece in owned}
    rules = [
        _save_rule(writer, optimizer, pieces, f"rank{rank}/{number}")
        for number, optimizer in enumerate(optimizers)
    ]
    return writer.tensors, {"rules": rules}


def _save_rule(
    writer: Writer, optimizer: Any, pieces: Mapping[int, Owned], own: str
) -> dict[str, Any]:
    saved = optimizer.state_dict()
    params = _rules.parameters(optimizer)
    if not {"state", "param_groups"} <= saved.keys():  # a rule with a form of its own
        return {
            "params": [key_of(pieces[id(param)]) for param in params],
            "own": writer.write(saved, own),
            "attributes": _attributes(writer, optimizer, own),
        }
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    place = dict(zip(numbers, params, strict=True))
    state, others = [], []
    for key, held in saved["state"].items():
        if key in place:
            piece = pieces[id(place[key])]
            shape = list(piece.param.shape)
            written = writer.write(held, f"state/{key_of(piece)}")
            state.append([piece.name, piece.start, piece.stop, shape, written])
        else:
            others.append([key, writer.write(held, f"{own}/{key}")])
    extra = {key: value for key, value in saved.items() if key not in ("state", "param_groups")}
    groups = []
    for number, group in enumerate(saved["param_groups"]):
        options = {key: value for key, value in group.items() if key != "params"}
        names = [pieces[id(place[each])].name for each in group["params"]]
        groups.append([names, _savable(writer, options, f"{own}/group{number}")])
    return {
        "params": [key_of(pieces[id(param)]) for param in params],
        "state": state,
        "groups": groups,
        "others": writer.write(dict(others), f"{own}/others"),
        "extra": writer.write(extra, f"{own}/extra"),
        "attributes": _attributes(writer, optimizer, own),
    }


def _savable(writer: Writer, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those of some values that can be saved; the others stay as the constructor makes them."""
    written = {}
    for key, value in values.items():
        trial = Writer()
        try:
            trial.write(value, name)
        except UnsavableError:
            continue
        written[key] = writer.write(value, f"{name}/{key}")
    return written


def _attributes(writer: Writer, optimizer: Any, own: str) -> dict[str, Any]:
    """Attributes that may have changed since the constructor: numbers, tensors, lists of them."""
    params = {id(p) for p in _rules.parameters(optimizer)}
    kept = {}
    for name, value in vars(optimizer).items():
        if name in KNOWN or type(value) not in (bool, int, float, list, dict, Tensor):
            continue
        trial = Writer()
        try:
            trial.write(value, name)
        except UnsavableError:
            continue
        if not any(id(each) in params for each in _tensors(value)):
            kept[name] = value
    return _savable(writer, kept, f"{own}/attributes")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


# ---- Loading -----------------------------------------------------------------------------------


def load(
    read: Read,
    structures: Sequence[Mapping[str, Any]],
    rank: int,
    optimizers: Sequence[torch.optim.Optimizer],
    owned: Sequence[Owned],
) -> None:
    """Fill optimizers that have just been built with what `save` returned on each process.

    Raises OtherLayoutError where another layout saved state that this one cannot take.
    """
    pieces = {id(piece.param): piece for piece in owned}
    turned = [*structures[rank : rank + 1], *structures]  # what this rank saved is looked at first
    rules = [rule for structure in turned for rule in structure["rules"]]
    for optimizer in optimizers:
        names = {pieces[id(param)].name for param in _rules.parameters(optimizer)}
        # A layout may have several optimizers for one rule: parameters tell which is which.
        found = [
            rule for rule in rules if names & {key.rpartition("/")[0] for key in rule["params"]}
        ]
        if found:
            _load_rule(read, found, optimizer, pieces)


def _joined(
    read: Read, parts: Sequence[tuple[int, int, str]], piece: Owned, like: Tensor
) -> Tensor:
    """The values of a piece from the parts of the same parameter that were saved.

    parts: begin, end and name of each. Raises OtherLayoutError if they leave a gap.
    """
    same = [name for a, b, name in parts if (a, b) == (piece.start, piece.stop)]
    if same:
        return read(same[0]).reshape(like.shape)
    flat = torch.empty(piece.stop - piece.start, dtype=like.dtype)
    filled = 0
    for a, b, name in sorted(set(parts)):
        begin, end = max(a, piece.start + filled), min(b, piece.stop)
        if begin < end and begin == piece.start + filled:
            flat[filled : filled + end - begin] = read(name).flatten()[begin - a : end - a]
            filled += end - begin
    if filled < len(flat):
        raise OtherLayoutError(
            f"{key_of(piece)}: the checkpoint lacks values of it; start a new race"
        )
    return flat.reshape(like.shape)


def _load_rule(
    read: Read,
    rules: Sequence[Mapping[str, Any]],
    optimizer: Any,
    pieces: Mapping[int, Owned],
) -> None:
    """rules: what was saved of optimizers with some of these parameters, the likeliest first."""
    params = _rules.parameters(optimizer)
    device = params[0].device if params else torch.device("cpu")
    reader, name = Reader(read, device), type(optimizer).__name__
    keys = [key_of(pieces[id(param)]) for param in params]
    same = next((rule for rule in rules if rule["params"] == keys), None)
    mine = same or rules[0]
    of_its_own = [mine.get(kind) for kind in ("own", "others", "extra")]
    if same is None and (any(map(_holds, of_its_own)) or list(_names(mine["attributes"]))):
        raise OtherLayoutError(
            f"{name} keeps state in a form of its own; go on with the engine and the number of "
            "processes that the race had"
        )
    if "own" in mine:
        _rules.restore(optimizer, reader.value(mine["own"]))
    else:
        built = optimizer.state_dict()
        numbers = [number for group in built["param_groups"] for number in group["params"]]
        place = dict(zip(numbers, params, strict=True))
        saved = [group for rule in (mine, *rules) for group in rule["groups"]]
        groups = []
        for group in built["param_groups"]:
            names = {pieces[id(place[each])].name for each in group["params"]}
            options: Any = next((held for of, held in saved if names & {*of}), {})
            groups.append(group | {key: reader.value(value) for key, value in options.items()})
        state: dict[Any, Any] = reader.value(mine["others"])
        entries = [entry for rule in rules for entry in rule["state"]]
        for number, param in zip(numbers, params, strict=True):
            piece = pieces[id(param)]
            near = [entry for entry in entries if entry[0] == piece.name]
            if near:
                state[number] = _state_of(read, reader, near, piece, name)
        extra = reader.value(mine["extra"])
        _rules.restore(optimizer, {"state": state, "param_groups": groups, **extra})
    vars(optimizer).update({k: reader.value(v) for k, v in mine["attributes"].items()})


def _state_of(
    read: Read, reader: Reader, entries: Sequence[Sequence[Any]], piece: Owned, rule: str
) -> Any:
    """The state of a piece, from what was saved of its parameter."""
    for _, a, b, _, written in entries:
        if (a, b) == (piece.start, piece.stop):
            return reader.value(written)
    over = (e for e in entries if e[1] < piece.stop and e[2] > piece.start)
    _, start, stop, _, first = next(over, entries[0])  # an empty piece is over none
    device = piece.param.device

    def place(written: Any) -> Any:
        """The value of a leaf, cut and joined as the parameter is."""
        if not isinstance(written, dict) or "dtype" in written:
            return reader.value(written)
        if "tensor" in written:
            found = read(written["tensor"])
            if found.numel() == 1 and stop - start > 1:
                return reader.value(written)
            shape = next(e[3] for e in entries if (e[1], e[2]) == (start, stop))
            if list(found.shape) != shape:
                raise OtherLayoutError(
                    f"{rule} keeps state of {piece.name} that only the whole parameter has; go on "
                    "with the engine and the number of processes that the race had"
                )
            tail = written["tensor"].removeprefix(f"state/{piece.name}/{start}-{stop}")
            parts = [(e[1], e[2], f"state/{piece.name}/{e[1]}-{e[2]}{tail}") for e in entries]
            like = torch.empty(piece.param.shape, dtype=found.dtype)
            return _joined(read, parts, piece, like).to(device if "device" in written else "cpu")
        ((kind, held),) = written.items()
        if kind == "dict":
            return {reader.value(k): place(v) for k, v in held}
        return BACK[kind](map(place, held))

    return place(first)


def _holds(written: Any) -> bool:
    return bool(written) and written != {"dict": []}


def _names(written: Any) -> Iterator[str]:
    """The names of all tensors in written values."""
    if isinstance(written, dict):
        if "tensor" in written:
            yield written["tensor"]
        else:
            for each in written.values():
                yield from _names(each)
    elif isinstance(written, list):
        for each in written:
            yield from _names(each)
