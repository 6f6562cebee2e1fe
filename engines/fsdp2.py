"""Fully sharded: every process holds a part of each parameter, of its gradient and of its state.

    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=8 speedrun.py --engine fsdp2

torch's FSDP2 (`fully_shard`) cuts every parameter along its rows. It gathers the parameters of a
block for the passes of that block, and reduce-scatters its gradients in every backward pass. A rule
that works on each element alone updates the shards where they are. Every other rule, such as Muon,
gets whole tensors: each goes to one owner, and comes back as shards (engines/_exchange.py). Owners
are chosen so that the cost of Newton-Schulz is balanced. An owner keeps a whole copy of the weights
that it owns, so that only gradients go there and only weights come back.

Over NCCL on GPUs, over gloo on CPUs. torch.compile leaves the model's own forward pass to Python,
because FSDP2's hooks interrupt it between blocks: so this engine is not compiled. On a CPU no
computation hides what FSDP2 sends; on a GPU its waiting is not told from its computation, and only
the exchange with the owners counts as communication. A rule that couples its parameters is refused
(`_coupled.py`). One that fails, fails on the owner alone; the others then lose contact. Agrees with
`single` up to the rounding of the average.

In a step no process has more than a block, the rest and what it owns whole. Where the weights are
drawn or saved, and where optimizers are built, each process has all of them for a moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)
from torch.distributed.tensor import DTensor

from engines import Flat, Owned, PlannedGroup, _coupled, _rules, ddp
from engines._bytes import held_bytes
from engines._exchange import Cut, Exchange, Transfer
from engines._shards import rows_of
from errors import UserError
from host.owners import orthogonal_cost, owners

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of what travels


class Part(NamedTuple):
    """A row of a group: a tensor that its rule updates here, and the parameter that it is from."""

    param: nn.Parameter
    cut: Cut


@dataclass
class Share:
    """What this process updates of a planned group."""

    rule: type[torch.optim.Optimizer]
    params: tuple[Any, ...]  # of Part
    options: dict[str, Any]


@dataclass
class Ruled:
    """All that a rule updates, on this process and on others.

    Every process has the optimizer with all its groups, also where it updates nothing of them: so
    processes number optimizers and groups alike, as checkpoints do.
    """

    rule: type[torch.optim.Optimizer]
    optimizer: torch.optim.Optimizer
    shares: list[Share]
    exchanges: list[Exchange]  # none: the rule works on shards


class Gather(DefaultAllGather):
    """FSDP2's all-gather, which notes when it began and ended."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.engine.noting():
            return super().__call__(*args, **kwargs)


class Scatter(DefaultReduceScatter):
    """FSDP2's reduce-scatter, which notes when it began and ended."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.engine.noting():
            return super().__call__(*args, **kwargs)


class Engine(ddp.Engine):
    """See `engines.Engine`.

    comm_dtype: the type of gradients and weights that travel, float32 or bfloat16. Parameters
    outside of the blocks, such as the embedding and the head, are gathered as they are: so the
    activations keep their type. What is updated is never rounded.
    """

    name = "fsdp2"
    compiles = False
    _failed = False  # the last backward pass

    def __init__(
        self,
        device: torch.device,
        timeout: float,
        zero_stage: int = 1,
        group: Any = None,
        comm_dtype: str = "float32",
    ) -> None:
        if comm_dtype not in DTYPES:
            known = " or ".join(DTYPES)
            raise UserError(f"--comm-dtype {comm_dtype}: must be {known}; leave it out")
        self.comm_dtype = DTYPES[comm_dtype]
        if comm_dtype != "float32":
            self.name = f"{self.name}-{comm_dtype}"  # so that the rows say it
        self.cuts: dict[str, Cut] = {}  # by the names of the parameters
        self._noted: list[tuple[Any, Any]] = []  # communication of the passes under way
        super().__init__(device, timeout, zero_stage, group)

    def another(self) -> Self:
        other = copy(self)
        other.exposed_communication, other.mark = [], None
        other.cuts, other._noted, other._failed = {}, [], False
        other.build(())
        return other

    # ---- Layout ----------------------------------------------------------------------------------

    def wrap(self, model: nn.Module) -> nn.Module:
        self.place_alike(model)
        mesh = DeviceMesh.from_group(self.group, self.device.type)  # type: ignore[arg-type]
        low = self.comm_dtype if self.comm_dtype != torch.float32 else None
        whole = MixedPrecisionPolicy(reduce_dtype=low, cast_forward_inputs=False)
        block = MixedPrecisionPolicy(low, reduce_dtype=low, cast_forward_inputs=False)
        lists = [m for m in reversed([*model.modules()]) if isinstance(m, nn.ModuleList)]
        for child in (child for each in lists for child in each):
            fully_shard(child, mesh=mesh, mp_policy=block)
        for modules in self._of_other_types():
            fully_shard(modules, mesh=mesh, mp_policy=whole)
        fully_shard(self.model, mesh=mesh, mp_policy=whole)
        self.model.register_forward_hook(self._after_pass)
        for module in self._sharded() if self.device.type == "cpu" else ():
            module.set_custom_all_gather(Gather(self))
            module.set_custom_reduce_scatter(Scatter(self))
        self.cuts = {}
        for name, p in self.model.named_parameters():
            assert isinstance(p, DTensor)
            rows = rows_of(p.size(0), self.world_size)
            self.cuts[name] = Cut(name, p, p.to_local().detach(), rows)
        return self.model

    def _of_other_types(self) -> list[list[nn.Module]]:
        """Modules outside of the blocks whose parameters have another type than most there.

        FSDP2 takes parameters of one type together.
        """
        held: dict[torch.dtype, list[nn.Module]] = {}
        for module in self.model.modules():
            for p in module.parameters(recurse=False):
                if not isinstance(p, DTensor) and module not in held.setdefault(p.dtype, []):
                    held[p.dtype].append(module)
        most = max(held, key=lambda dtype: len(held[dtype]), default=None)
        return [modules for dtype, modules in held.items() if dtype != most]

    def _after_pass(self, *_: object) -> None:
        """Undo what FSDP2 does for a backward pass, where there is none: keep the root whole."""
        if not torch.is_grad_enabled():
            self._reshard()
            self._noted.clear()  # only what belongs to a step is on the clock

    def _sharded(self) -> list[FSDPModule]:
        return [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    def _reshard(self) -> None:
        for module in self._sharded():
            module.reshard()

    def _count_noted(self) -> None:
        self.exposed_communication += self._noted
        self._noted.clear()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note that no computation hides what is within."""
        begin = self.mark() if self.mark else None
        yield
        if self.mark:
            self._noted.append((begin, self.mark()))

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        """Passes need the other processes, which have the rest of the parameters.

        So if a pass fails in one process alone, the others wait for it until the watch ends the
        run. What fails in all processes alike, such as a microbatch that is too large, is handled
        as elsewhere.
        """
        return nullcontext()

    def _forget_pass(self) -> None:
        """Let FSDP2 begin anew after a backward pass that failed; else gradients would be missing.

        Raises UserError with a torch that cannot.
        """
        reset = getattr(self.model, "reset_iter_state", None)
        if reset is None:
            raise UserError(
                f"--engine {self.name}: a backward pass failed, most likely for lack of memory, "
                f"and torch {torch.__version__} cannot go on; run with a smaller --microbatch"
            )
        reset()
        for module in self._sharded():  # which have kept gradients of whole parameters
            module.unshard()
            self.model.zero_grad(set_to_none=True)
            module.reshard()
        self._failed = False

    @contextmanager
    def weights(self) -> Iterator[None]:
        self._watch.beat()
        self._reshard()
        whole = self._whole()
        places = [
            (module, key, p)
            for module in self.model.modules()
            for key, p in module._parameters.items()
            if p is not None
        ]
        names = {id(cut.param): name for name, cut in self.cuts.items()}
        for module, key, p in places:
            module._parameters[key] = whole[names[id(p)]]
        try:
            yield
        finally:
            for module, key, p in places:
                module._parameters[key] = p
        with torch.no_grad():
            for name, cut in self.cuts.items():
                self._cut(cut, whole[name])
                if cut.whole is not None:
                    cut.whole.copy_(whole[name])

    @torch.no_grad()
    def _cut(self, cut: Cut, whole: Tensor) -> None:
        """Put a part of a whole parameter into the shard, as it would come from an owner."""
        start, stop = cut.range(self.rank)
        mine = whole.flatten()[start:stop].view(cut.local.shape)
        cut.local.copy_(mine if cut.owner is None else mine.to(self._wire(mine.dtype)))

    def _wire(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which numbers of this type travel between shards and owners."""
        return self.comm_dtype if dtype == torch.float32 else dtype

    @torch.no_grad()
    def _whole(self) -> dict[str, nn.Parameter]:
        """Every parameter, whole: from its owner, or from the shards if it has none.

        Each process sends all that it has to all others.
        """
        whole = {name: cut.local.new_empty(cut.param.shape) for name, cut in self.cuts.items()}
        for source in range(self.world_size):
            for dtype in dict.fromkeys(cut.local.dtype for cut in self.cuts.values()):
                places, held = [], []
                for name, cut in self.cuts.items():
                    if cut.local.dtype != dtype or cut.owner not in (None, source):
                        continue
                    start, stop = cut.range(source) if cut.owner is None else (0, None)
                    places.append(whole[name].view(-1)[start:stop])
                    held.append(cut.local if cut.whole is None else cut.whole)
                if not places:
                    continue  # this process has nothing of the type, as all know
                if source == self.rank:
                    torch._foreach_copy_(places, [each.flatten() for each in held])
                flat = torch.cat(places)
                dist.broadcast(flat, group=self.group, group_src=source)
                torch._foreach_copy_(places, flat.split([each.numel() for each in places]))
        return {
            name: nn.Parameter(each, self.cuts[name].param.requires_grad)
            for name, each in whole.items()
        }

    # ---- Updates ---------------------------------------------------------------------------------

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        self.plan, self.stepped = plan, False
        self.optimizers: list[torch.optim.Optimizer] = []  # frees the earlier ones first
        self.ruled: list[Ruled] = []
        if self.world_size > 1:
            _coupled.refuse(plan, self.name)
        whole = self._whole() if plan else {}
        for cut in self.cuts.values():
            cut.owner = cut.whole = None
        self._choose_owners(plan, whole)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # So that every process refuses what one would.
            _rules.build([self._share(group, whole) for group in plan])
        rules = dict.fromkeys(group.rule for group in plan)
        self.ruled = [self._ruled(rule, [g for g in plan if g.rule is rule]) for rule in rules]
        self.optimizers = [ruled.optimizer for ruled in self.ruled]

    def _share(self, group: PlannedGroup, whole: dict[str, nn.Parameter]) -> Share:
        """A group with all of its parameters, whole."""
        parts = [Part(whole[row.name], self.cuts[row.name]) for row in group.params]
        return Share(group.rule, tuple(parts), group.options)

    def _choose_owners(self, plan: Sequence[PlannedGroup], whole: dict[str, nn.Parameter]) -> None:
        """Choose who updates which parameter whole, and give the owners their copies."""
        owned = [
            (self.cuts[row.name], orthogonal_cost(row.param.shape, group.options.get("splits")))
            for group in plan
            if not _rules.is_elementwise(group.rule)
            for row in group.params
        ]
        chosen = owners([[cost] for _, cost in owned], self.world_size)  # no two make a stack
        for (cut, _), (owner,) in zip(owned, chosen, strict=True):
            cut.owner = owner
            self._cut(cut, whole[cut.name])
            if owner == self.rank:
                cut.whole = whole[cut.name]

    def _ruled(self, rule: type[torch.optim.Optimizer], groups: Sequence[PlannedGroup]) -> Ruled:
        cuts = [self.cuts[row.name] for group in groups for row in group.params]
        owned = [cut for cut in cuts if cut.owner is not None]
        exchanges = []
        for dtype in dict.fromkeys(cut.local.dtype for cut in owned):
            alike, wire = [cut for cut in owned if cut.local.dtype == dtype], self._wire(dtype)
            exchanges.append(Exchange(alike, self.rank, self.world_size, self.group, wire))
        shares = [Share(rule, self._parts(group), group.options) for group in groups]
        return Ruled(rule, _rules.construct(rule, shares), shares, exchanges)

    def _parts(self, group: PlannedGroup) -> tuple[Part, ...]:
        """What this process updates of a group: shards that are not empty, or all that it owns."""
        cuts = [self.cuts[row.name] for row in group.params]
        parts = []
        for cut in cuts:
            if cut.owner is None and cut.local.numel():
                parts.append(Part(nn.Parameter(cut.local), cut))
            elif cut.whole is not None:
                parts.append(Part(cut.whole, cut))
        return tuple(parts)

    @property
    def owned(self) -> list[Owned]:
        parts = {id(p.param): p.cut for r in self.ruled for share in r.shares for p in share.params}
        found = []
        for number, optimizer in enumerate(self.optimizers):
            for param in (p for group in optimizer.param_groups for p in group["params"]):
                cut = parts[id(param)]
                span = cut.range(self.rank) if cut.owner is None else (0, param.numel())
                found.append(Owned(number, cut.name, span[0], span[1], param))
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        self._watch.beat()
        self._failed = True  # until it has not
        loss.backward()
        self._failed = False
        self._count_noted()

    def step(self) -> None:
        """The exchange of a rule's gradients goes on while other rules update the shards."""
        self._watch.beat()
        self.stepped, self.broke = True, None
        whole = [each for each in self.ruled if each.exchanges]
        arriving = [
            (ruled, exchange, exchange.to_owners([_gradient(cut) for cut in exchange.cuts]))
            for ruled in whole
            for exchange in ruled.exchanges
        ]
        for ruled in self.ruled:
            if not ruled.exchanges:
                for share in ruled.shares:
                    for part in share.params:
                        part.param.grad = local_gradient(part.cut)
                self._update(ruled)
        leaving = []
        for ruled in whole:
            for exchange, transfer in ((e, t) for r, e, t in arriving if r is ruled):
                self._wait(transfer)
                for cut, gradient in zip(exchange.mine, exchange.join(transfer), strict=True):
                    assert cut.whole is not None
                    cut.whole.grad = None if cut.param.grad is None else gradient
            self._update(ruled)
            leaving += self._send_back(ruled)
        self._spread(leaving)
        self.model.zero_grad(set_to_none=True)
        self._count_noted()

    def _update(self, ruled: Ruled) -> None:
        """Take a step of a rule, and free the gradients that it has seen."""
        if any(share.params for share in ruled.shares):
            self.broke = _rules.step([ruled.optimizer]) or self.broke
            _rules.clear([ruled.optimizer])
        for share in ruled.shares:
            for part in share.params:
                part.param.grad = None

    def _send_back(self, ruled: Ruled) -> list[tuple[Exchange, Transfer]]:
        return [(exchange, exchange.to_shards()) for exchange in ruled.exchanges]

    @torch.no_grad()
    def _spread(self, leaving: Sequence[tuple[Exchange, Transfer]]) -> None:
        for exchange, transfer in leaving:
            self._wait(transfer)
            exchange.spread(transfer)

    def _wait(self, transfer: Transfer) -> None:
        with self.noting():
            transfer.work.wait()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        switched = [each for each in self.ruled if each.exchanges and _rules.has_modes(each.rule)]
        with super().evaluation():
            for each in switched:
                self._spread(self._send_back(each))
            yield
        for each in switched:
            self._spread(self._send_back(each))
        self._noted.clear()  # only what belongs to a step is on the clock

    # ---- What this process holds -----------------------------------------------------------------

    def grad_norm(self) -> float:
        grads = [g for cut in self.cuts.values() if (g := local_gradient(cut)) is not None]
        square = torch.nn.utils.get_total_norm(grads).to(self.device, torch.float64).square()
        dist.all_reduce(square, group=self.group)
        return square.sqrt().item()

    def gradients(self) -> list[Flat]:
        held = [(cut, local_gradient(cut)) for cut in self.cuts.values()]
        return [
            Flat(cut.name, cut.range(self.rank)[0], grad.flatten())
            for cut, grad in held
            if grad is not None
        ]

    def state_bytes(self) -> dict[str, int]:
        """Bytes of this process's shards; the owners' whole copies count as parameters."""
        cuts, counted = self.cuts.values(), set[int]()
        held = {
            "params": [[cut.local, cut.whole] for cut in cuts],
            "grads": [local_gradient(cut) for cut in cuts],
            "state": self.optimizers,
        }
        return {kind: held_bytes(each, counted) for kind, each in held.items()}

    def save(self) -> dict[str, Any]:
        states = [each.state_dict() for each in self.optimizers] if self.stepped else None
        weights = {name: (cut.local, cut.whole) for name, cut in self.cuts.items()}
        return deepcopy({"weights": weights, "optimizers": states})

    def load(self, saved: dict[str, Any]) -> None:
        if self._failed:
            self._forget_pass()
        self._reshard()
        with torch.no_grad():
            for name, (local, _) in saved["weights"].items():
                self.cuts[name].local.copy_(local)
        for cut in self.cuts.values():
            cut.owner = cut.whole = None  # the shards have what was saved
        self.build(self.plan)  # not all that a rule remembers is in its state dict
        with torch.no_grad():
            for name, (_, whole) in saved["weights"].items():
                copy = self.cuts[name].whole
                if whole is not None and copy is not None:
                    copy.copy_(whole)
        if saved["optimizers"] is not None:
            self.stepped = True
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                _rules.restore(optimizer, deepcopy(state))  # which keeps the tensors
        self.model.zero_grad(set_to_none=True)


def local_gradient(cut: Cut) -> Tensor | None:
    """The gradient of this process's rows."""
    grad: Any = cut.param.grad
    return None if grad is None else grad.to_local()


def _gradient(cut: Cut) -> Tensor:
    """What travels as the gradient: zeros if there is none, on all processes alike."""
    grad = local_gradient(cut)
    return torch.zeros_like(cut.local) if grad is None else grad
