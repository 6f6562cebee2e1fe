"""Which update rule has which parameter of a trainer, yours included, and whether Muon has its own.

    python -m studies.audit train.py:make            # a function: () -> (model, optimizer)
    python -m studies.audit my.package:make

    from studies.audit import audit, show, verdict   # or in the trainer, after all is wrapped
    rows = audit(model, optimizer)
    print(show(rows), verdict(rows))

The optimizer is one of torch's kind, a list of them, or DeepSpeed's engine. The model is a plain
one, one that FSDP has wrapped (either version of it), or the one in DeepSpeed's engine. The exit
code is 1, with a sentence for the first fault, if Muon has an embedding, a head, a vector or a
flattened shard, if a parameter marked for Muon is stepped without it, or if Muon has nothing.

How parameters are told apart, as the model is somebody's own:

embedding: the weight of an nn.Embedding, or a name with `embed`, `wte` or `wpe` in it.
head: what has `lm_head` in its name; if nothing has, the weight of the last layer that has as many
    rows as the largest embedding. A table that is both, by tied weights, is an embedding.
vector: what has fewer than two dimensions before it is sharded.
matrix: all else. Rows and columns are those of the whole parameter.

An optimizer is Muon if a class of its has `muon` or `dion` in its name. Where its groups say
`use_muon`, or an `algorithm`, they decide.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.distributed.fsdp import FlatParameter, FullyShardedDataParallel

from errors import UserError
from host import entry, launcher

FAMILY = ("muon", "dion")
EMBEDDINGS, HEADS = ("embed", "wte", "wpe"), ("lm_head",)
WRAPPINGS = ("_fsdp_wrapped_module.", "_orig_mod.", "module.")  # prefixes of names
STEPPED = "0.19.8"  # the first DeepSpeed that steps Muon as it should at every stage


class Row(NamedTuple):
    """One parameter, and what is done with it."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    kind: str  # embedding, head, vector or matrix; shard: several parameters in one
    rule: str  # a class's name, or Muon or Adam within one that has both; none
    lr: float | None
    fault: str = ""  # what is wrong with it, to come after its name


def audit(model: nn.Module, optimizer: Any) -> list[Row]:
    """A row for each parameter of the model, in its order; see the top of this file."""
    shapes, flat = _shapes(model), _flattened(model)
    kinds = _kinds(model, shapes)
    owners = dict(_owners(optimizer))
    rows = []
    for name, p in model.named_parameters():
        rule, lr, fault = owners.get(id(p), ("none", None, ""))
        kind = "shard" if isinstance(p, FlatParameter) else kinds[id(p)]
        if rule == "Muon" and id(p) in flat:
            fault = "is a flattened shard, without rows and columns"
        elif rule == "Muon" and kind != "matrix":
            fault = f"is {'an' if kind == 'embedding' else 'a'} {kind}"
        rows.append(Row(_clean(name), shapes[id(p)], kind, rule, lr, fault))
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """The first fault, in a sentence; empty if there is none."""
    for row in rows:
        if row.fault and row.rule == "Muon":
            return f"Muon owns {row.name}, which {row.fault}; give it to another rule"
        if row.fault:
            return f"{row.name} {row.fault}"
    if not any(row.rule == "Muon" for row in rows):
        return (
            "Muon owns no parameter of this model; give it the hidden matrices, and make the "
            "optimizer after the model is wrapped"
        )
    return ""


def show(rows: Sequence[Row]) -> str:
    """The table as text."""
    cells = [("parameter", "shape", "kind", "rule", "lr")]
    for row in rows:
        lr = "" if row.lr is None else f"{row.lr:.6g}"
        cells.append((row.name, " x ".join(map(str, row.shape)), row.kind, row.rule, lr))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


# ---- The model ---------------------------------------------------------------------------------


def _shapes(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """The shape of each parameter before it was flattened or emptied by what wraps the model."""
    shapes = {id(p): tuple(getattr(p, "ds_shape", p.shape)) for p in model.parameters()}
    for flat in _flat_parameters(model):
        for p, shape in zip(flat._params or (), flat._shapes, strict=False):
            shapes[id(p)] = tuple(shape)
    return shapes


def _flattened(model: nn.Module) -> set[int]:
    """The parameters that are flattened shards, of one parameter or of several."""
    flat = {id(p) for each in _flat_parameters(model) for p in (each, *(each._params or ()))}
    return {id(p) for p in model.parameters() if id(p) in flat and p.ndim < 2}


def _flat_parameters(model: nn.Module) -> Iterator[Any]:
    """The flat parameters of FSDP's first version."""
    for module in model.modules():
        handle = getattr(module, "_handle", None)
        if isinstance(module, FullyShardedDataParallel) and handle:
            yield handle.flat_param


def _kinds(model: nn.Module, shapes: dict[int, tuple[int, ...]]) -> dict[int, str]:
    kinds = {}
    for name, p in model.named_parameters():
        words = name.lower()
        if len(shapes[id(p)]) < 2:
            kinds[id(p)] = "vector"
        elif any(word in words for word in HEADS):
            kinds[id(p)] = "head"
        elif any(word in words for word in EMBEDDINGS):
            kinds[id(p)] = "embedding"
        else:
            kinds[id(p)] = "matrix"
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    for table in tables:
        if id(table) in kinds:
            kinds[id(table)] = "embedding"
    vocabulary = max((shapes[id(w)][0] for w in tables if id(w) in shapes), default=0)
    layers = [m for m in model.modules() if not isinstance(m, nn.Embedding)]
    weights = [id(getattr(layer, "weight", None)) for layer in layers]
    last = [key for key in weights if kinds.get(key, "vector") != "vector"]
    last = [key for key in last if shapes[key][0] == vocabulary][-1:]
    if last and kinds[last[0]] == "matrix" and "head" not in kinds.values():
        kinds[last[0]] = "head"
    return kinds


def _clean(name: str) -> str:
    """A parameter's name without the words of what wraps the model."""
    for word in WRAPPINGS[:2]:
        name = name.replace(word, "")
    return name.removeprefix(WRAPPINGS[2])


# ---- The optimizer -----------------------------------------------------------------------------

Owner = tuple[int, tuple[str, float | None, str]]  # id of a parameter; its rule, lr and fault


def _owners(optimizer: Any) -> Iterator[Owner]:
    """The rule of each parameter that an optimizer has."""
    if isinstance(optimizer, list | tuple):
        for each in optimizer:
            yield from _owners(each)
    elif hasattr(optimizer, "zero_optimization_stage"):
        yield from _owners_in_deepspeed(optimizer)
    elif hasattr(optimizer, "param_groups"):
        for group in optimizer.param_groups:
            rule = _rule(optimizer, group)
            for p in group["params"]:
                yield id(p), (rule, float(group["lr"]) if "lr" in group else None, "")
    else:
        raise UserError(
            f"{type(optimizer).__name__}: is neither an optimizer nor DeepSpeed's engine; give one "
            "that has param_groups, or a list of such"
        )


def _rule(optimizer: Any, group: dict[str, Any]) -> str:
    """Muon, or the name of another rule."""
    kind = type(optimizer)
    if not any(word in base.__name__.lower() for base in kind.__mro__ for word in FAMILY):
        return kind.__name__
    if "use_muon" in group:
        return "Muon" if group["use_muon"] else "Adam"
    algorithm = str(group.get("algorithm", "muon"))
    return "Muon" if any(word in algorithm for word in FAMILY) else algorithm


def _owners_in_deepspeed(engine: Any) -> Iterator[Owner]:
    """The same for DeepSpeed's engine, whose optimizer has flat copies of the parameters.

    From stage 1 on, Muon runs in ZeRO before the optimizer, on what has the attribute `use_muon`.
    Its optimizer only subtracts what ZeRO leaves: the gradient, where the attribute is missing.
    """
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    inner = zero.optimizer if stage else zero
    if stage == 0:
        lists = [group["params"] for group in inner.param_groups]
    elif stage < 3:
        lists = zero.bit16_groups
    else:
        lists = [[] for _ in inner.param_groups]
        for number, params in enumerate(zero.fp16_groups):
            lists[zero.sub_group_to_group_id[number]] += params
    for group, params in zip(inner.param_groups, lists, strict=True):
        rule = _rule(inner, group)
        for p in params:
            tagged = bool(getattr(p if stage < 3 else params[0], "use_muon", False))
            if rule == "Muon" and stage and not tagged:
                what = "is marked for Muon in its group alone, so that ZeRO steps it as plain SGD"
                yield id(p), ("SGD", group["lr"], f"{what}; set its attribute use_muon, too")
            else:
                yield id(p), (rule, group["lr"], "")


def notes(optimizer: Any) -> list[str]:
    """What an engine of DeepSpeed does to Muon beside the assignment, a sentence each."""
    if not hasattr(optimizer, "zero_optimization_stage"):
        return []
    said = []
    clip, version = optimizer.gradient_clipping(), import_module("deepspeed").__version__
    if clip and optimizer.zero_optimization_stage():
        said.append(
            f"gradient_clipping {clip:g} clips what Muon has orthogonalised, with Adam's gradients "
            "(DeepSpeed issues 8439 and 7776): set it to 0"
        )
    if tuple(map(int, version.split("+")[0].split(".")[:3])) < tuple(map(int, STEPPED.split("."))):
        said.append(f"DeepSpeed {version} steps Muon wrongly at some stages: install {STEPPED}")
    return said


# ---- The command -------------------------------------------------------------------------------


def _function(spelled: str) -> Any:
    """The function that FILE.py:FUNCTION or MODULE:FUNCTION names. Raises UserError."""
    place, _, name = spelled.rpartition(":")
    if not place or not name:
        raise UserError(f"{spelled}: must be FILE.py:FUNCTION or MODULE:FUNCTION")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise UserError(f"{spelled}: there is no file {place}; name another")
            sys.path.insert(0, str(path.parent))
            spec = util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            module = util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, "")
            module = import_module(place)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's file may raise anything, or call sys.exit()
        what = f"{spelled}: importing it fails: {type(error).__name__}: {error}"
        raise UserError(f"{what}; mend it, or name another") from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"{spelled}: {place} has no function {name}; name one of its functions")
    return getattr(module, name)


def run(given: argparse.Namespace) -> int:
    """Print the table; 1 if there is a fault."""
    function = _function(given.function)
    try:
        made = function()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        what = f"{given.function}: calling it fails: {type(error).__name__}: {error}"
        raise UserError(
            f"{what}; mend it: it takes nothing and returns (model, optimizer)"
        ) from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise UserError(
            f"{given.function}: returned {type(made).__name__}; it must return (model, optimizer)"
        )
    rows = audit(*made)
    fault = verdict(rows)
    if launcher.number("RANK", 0) == 0:
        print(show(rows))
        for note in notes(made[1]):
            print(f"note: {note}")
        if fault:
            print(fault, file=sys.stderr)
    return int(bool(fault))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 1 with a fault, 2 after a user's mistake."""
    parser = entry.parser("studies.audit", __doc__)
    note = "takes nothing and returns (model, optimizer)"
    parser.add_argument("function", metavar="FILE.py:FUNCTION", help=note)
    return entry.run(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
