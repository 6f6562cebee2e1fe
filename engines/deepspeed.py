"""DeepSpeed: its own Muon and Adam inside ZeRO, stage 0, 1, 2 or 3 (Rajbhandari et al. 1910.02054).

    make setup EXTRAS=deepspeed
    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2 speedrun.py adamw \
        muon:blocks=fused --engine=deepspeed --zero-stage=2

The updates are not ours: a plan is translated into the options of DeepSpeed's `MuonWithAuxAdam`,
and a plan that those options cannot express is refused. Parameters are float32; where the trainer
asks for bfloat16, matrix products are in it, by torch's autocast. DeepSpeed has parameters of its
own, which take the place of the model's until the next `build`. Nothing is compiled.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from inspect import Parameter, signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engines import PlannedGroup, _deepspeed, ddp
from engines._bytes import held_bytes
from errors import UserError

MUON, ADAMW = "muon.Muon", "torch.optim.adamw.AdamW"
# What the options of a rule must be. Those that are not here are passed on, or change nothing.
FIXED: dict[str, dict[str, Any]] = {
    MUON: {
        "nesterov": True,
        "ns_coefficients": "jordan",
        "ns_steps": 5,
        "adjust_lr_fn": "original",
        "momentum_warmup": 0,
        "momentum_cooldown": 0,
        "sign": False,
        "second_moment": "none",
        "cautious": False,
        "ns_backend": "auto",
    },
    ADAMW: {"amsgrad": False, "maximize": False},
}
PASSED = {
    MUON: ("lr", "weight_decay", "momentum"),
    ADAMW: ("lr", "betas", "eps", "weight_decay"),
}
# Without effect as long as the options above are as they must be. DeepSpeed chooses the precision
# of its iteration itself: float16 where the device has it, float32 elsewhere.
IDLE = {
    MUON: ("momentum_start", "momentum_horizon", "beta2", "ns_dtype", "splits", "eps"),
    ADAMW: ("fused", "foreach", "capturable", "differentiable"),
}
CAN = (
    "DeepSpeed has AdamW (lr, betas, eps, weight_decay) and Muon (lr, weight_decay, momentum, with "
    "Nesterov, five steps of jordan's coefficients and the scale original)"
)


def translated(plan: Sequence[PlannedGroup], stage: int) -> list[dict[str, Any]]:
    """The options of DeepSpeed's parameter groups, in the order of the plan. Raises UserError.

    blocks: how many matrices of equal size are stacked in each parameter.
    """
    groups = [_options(group) for group in plan]
    for group, options in zip(plan, groups, strict=True):
        options["blocks"] = _blocks(group, stage)
    return groups


def _options(group: PlannedGroup) -> dict[str, Any]:
    name = f"{group.rule.__module__}.{group.rule.__qualname__}"
    if name not in FIXED:
        raise UserError(f"--engine deepspeed: has no {name}; {CAN}; take another engine")
    defaults = {p.name: p.default for p in signature(group.rule).parameters.values()}
    given = {name: value for name, value in defaults.items() if value is not Parameter.empty}
    given |= group.options
    for option, value in given.items():
        known = option in PASSED[name] or option in IDLE[name]
        if not known and value != FIXED[name].get(option):
            must = FIXED[name].get(option, "left out")
            raise UserError(
                f"--engine deepspeed: {option}={value} cannot be had, it must be {must}; {CAN}; "
                "change it, or take another engine"
            )
    options = {key: given[key] for key in PASSED[name]}
    return options | {"use_muon": name == MUON}


def _blocks(group: PlannedGroup, stage: int) -> int:
    """The matrices stacked in each parameter of a group."""
    splits = group.options.get("splits") or (0,)
    if len(splits) > 1 and (stage == 0 or len(set(splits)) > 1):
        raise UserError(
            f"--engine deepspeed: {group.params[0].name} is {len(splits)} matrices, of "
            f"{', '.join(map(str, splits))} rows; DeepSpeed takes matrices of equal size apart, "
            "and at stage 0 none; race muon:blocks=fused, or take another engine"
        )
    return len(splits)


class Engine(ddp.Engine):
    """See `engines.Engine`."""

    name = "deepspeed"
    compiles = shows = False  # its gradients and momenta are in buffers of its own, by the stage

    def __init__(
        self, device: torch.device, timeout: float, zero_stage: int = 1, group: Any = None
    ) -> None:
        if zero_stage not in range(4):
            raise UserError(f"--zero-stage {zero_stage}: must be 0, 1, 2 or 3; leave it out")
        if group is not None:
            raise UserError("--engine deepspeed: takes all processes, and no group of them")
        self.zero_stage = zero_stage
        self.ds: Any = None  # DeepSpeed's engine, from a build to the next
        super().__init__(device, timeout)
        self.name = f"deepspeed-zero{zero_stage}"  # so that the rows say it
        self.module = _deepspeed.load(device)

    def another(self) -> "Engine":
        other = copy(self)
        other.ds, other.mark, other.exposed_communication = None, None, []
        other.build(())
        return other

    # ---- The model -------------------------------------------------------------------------------

    def wrap(self, model: nn.Module) -> nn.Module:
        self.model = model.to(self.device)
        # Of the shapes alone: what is stored of a parameter changes with every build.
        self._rows = [
            row._replace(param=nn.Parameter(torch.empty_like(row.param, device="meta")))
            for row in self.model.roles()  # type: ignore[operator]
        ]
        return _Wrapped(self)

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        """An empty context: a step, and from stage 2 on a pass, needs the other processes."""
        return nullcontext()

    def roles(self) -> list[Any]:
        return self._rows

    @contextmanager
    def weights(self) -> Iterator[None]:
        if self.ds is None or self.zero_stage == 0:
            yield
            return
        if self.zero_stage == 3:
            self.ds.optimizer.empty_partition_cache()  # frees what a pass still holds
            with self.module.zero.GatheredParameters([*self.model.parameters()], modifier_rank=0):
                yield
        else:
            yield
        self.ds.optimizer.refresh_fp32_params()

    # ---- The optimizer ---------------------------------------------------------------------------

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        """Give the model's parameters to DeepSpeed, with an optimizer for this plan."""
        groups = translated(plan, self.zero_stage)
        if self.ds is not None:
            self._take_back()
        self.plan, self.stepped = plan, False
        self.optimizers = []  # none that sees whole tensors
        if not plan:
            return
        self._lend()
        params = dict(self.model.named_parameters())
        for group, options in zip(plan, groups, strict=True):
            options["params"] = [params[row.name] for row in group.params]
            blocks = options.pop("blocks")
            for p in options["params"]:  # ZeRO looks for both on the parameters
                p.use_muon = options["use_muon"]
                p.muon_num_heads = blocks if blocks > 1 else None
        self._lrs = [options["lr"] for options in groups]
        self._ns_dtype = next(
            (g.options["ns_dtype"] for g in plan if "ns_dtype" in g.options), None
        )
        optimizer = _deepspeed.optimizer_class()(groups)
        gc.freeze()  # stage 3 collects garbage here, for a second where torch is in memory
        try:
            self.ds, *_ = self.module.initialize(
                model=_Precise(self.model, self.device.type),
                optimizer=optimizer,
                config=self.config(),
                dist_init_required=False,
            )
        finally:
            gc.unfreeze()

    def config(self) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        return {
            "train_micro_batch_size_per_gpu": 1,  # of no effect: losses are divided by the trainer
            "gradient_accumulation_steps": 1,
            # A step ends when `step` is called. Before it, stages 0 and 1 send nothing.
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0,  # else it clips what Muon has orthogonalised, issue 8439
            "zero_optimization": {
                "stage": self.zero_stage,
                "overlap_comm": False,  # what is waited for can be timed
                "reduce_scatter": self.zero_stage < 3,  # Muon cannot have it at stage 3
                "stage3_param_persistence_threshold": 0,  # shard small parameters, too
            },
        }

    def _lend(self) -> None:
        """Put parameters in the place of the model's, with their values, for DeepSpeed to change.

        It fills parameters with methods, moves their memory and wraps the tables of the modules.
        """
        self._before = {m: dict(vars(m)) for m in self.model.modules()}
        tables = {m: m._parameters for m in self.model.modules()}
        self._own = [p for p in self.model.parameters()]  # each once, also if two modules have it
        new = {p: nn.Parameter(p.data, requires_grad=p.requires_grad) for p in self._own}
        for module, table in tables.items():
            module._parameters = {name: p if p is None else new[p] for name, p in table.items()}
        for p in self._own:
            p.data = p.data.new_empty(0)

    def _take_back(self) -> None:
        """End DeepSpeed's engine, and give its values to the model's own parameters."""
        values = self._whole()
        self.ds.destroy()
        _deepspeed.forget(self.ds.module)
        self.ds = None
        for module, before in self._before.items():
            module._parameters = before["_parameters"]
            # Stage 3 leaves parameters there, too, which it would gather in the next run's passes.
            for name in vars(module).keys() - before.keys():
                del vars(module)[name]
        for p, value in zip(self._own, values, strict=True):
            p.data = value

    def _whole(self) -> list[Tensor]:
        """Copies of all parameters, whole."""
        if self.zero_stage < 3:
            return [p.detach().clone() for p in self.model.parameters()]
        self.ds.optimizer.empty_partition_cache()  # frees what a pass still holds
        values = []
        for p in self.model.parameters():
            with self.module.zero.GatheredParameters([p]):
                values.append(p.detach().clone())
        return values

    def set_lr(self, factor: float) -> None:
        for group, lr in zip(self.ds.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * factor

    def backward(self, loss: Tensor, last: bool) -> None:
        self._watch.beat()
        with self.timed():
            self.ds.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        self._watch.beat()
        self.stepped = True
        with self.timed(), _deepspeed.iterating_in(self._ns_dtype):
            self.ds.step()
        if getattr(self.ds.optimizer, "overflow", False):
            # Gradients that are not finite. DeepSpeed skips the step; here the run has diverged.
            with self.weights(), torch.no_grad():
                for p in self.model.parameters():
                    p.fill_(torch.nan)

    def timed(self) -> AbstractContextManager[None]:
        """A context whose communication is counted apart, if a clock runs."""
        return _deepspeed.timed(self.mark, self.exposed_communication)

    def grad_norm(self) -> float:
        """L2 norm of the whole gradient, from what this process has of it.

        Stages 0 and 1 have not averaged it yet.
        """
        self._watch.beat()
        zero, total = self.ds.optimizer, torch.zeros((), device=self.device)
        if self.zero_stage < 2:
            for p in self.model.parameters():
                if p.grad is not None:
                    mean = p.grad / self.world_size
                    dist.all_reduce(mean)
                    total += mean.square().sum()
            return total.sqrt().item()
        if self.zero_stage == 2:
            for i, grads in zero.all_grad_tensors.items():
                start, left = zero.first_offset[i], int(zero.partition_size[i])
                for grad in grads or ():
                    part = grad.flatten()[start : start + left]
                    total += part.square().sum()
                    start, left = 0, left - part.numel()
        else:
            for parts in zero.averaged_gradients.values():
                total += sum(part.square().sum() for part in parts)
        dist.all_reduce(total)
        return total.sqrt().item()

    # ---- What it holds ---------------------------------------------------------------------------

    def _flat(self) -> list[Tensor]:
        """The tensors that DeepSpeed's optimizer updates in this process."""
        zero = self.ds.optimizer
        if self.zero_stage == 0:
            return [p for group in zero.param_groups for p in group["params"]]
        if self.zero_stage < 3:
            return list(zero.single_partition_of_fp32_groups)
        return list(zero.fp32_partitioned_groups_flat)

    @property
    def _states(self) -> dict[Tensor, dict[str, Any]]:
        """The state of each of these tensors."""
        zero = self.ds.optimizer
        states: dict[Tensor, dict[str, Any]] = (zero.optimizer if self.zero_stage else zero).state
        return states

    def state_bytes(self) -> dict[str, int]:
        # Without the attributes, through which DeepSpeed's parameters hold all else.
        params = [p.data for p in self.model.parameters()]
        grads: list[Any] = [p.grad for p in self.model.parameters()]
        state: list[Any] = []
        if self.ds is not None:
            zero = self.ds.optimizer
            shards = [getattr(p, "ds_tensor", None) for p in self.model.parameters()]
            params += [shard.data for shard in shards if shard is not None]
            kinds = ("all_grad_tensors", "averaged_gradients")
            grads += [getattr(zero, kind, None) for kind in kinds]
            state += [self._flat(), list(self._states.values())]
        held, counted = {"params": params, "grads": grads, "state": state}, set[int]()
        return {kind: held_bytes(each, counted) for kind, each in held.items()}

    def save(self) -> dict[str, Any]:
        tensors, structure = self.checkpoint()
        return {"tensors": tensors, "structure": structure}

    def load(self, saved: dict[str, Any]) -> None:
        self.build(self.plan)
        self.resume(saved["tensors"].__getitem__, [saved["structure"]] * self.world_size)

    @property
    def _layout(self) -> dict[str, int]:
        """What must be the same where a state goes back. At stage 0 all processes have all."""
        return {
            "zero_stage": self.zero_stage,
            "processes": self.world_size if self.zero_stage else 1,
        }

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that DeepSpeed's optimizer updates, and their states: this process's part."""
        tensors, numbers = {}, []
        place = f"zero{self.rank if self.zero_stage else 0}"
        for number, flat in enumerate(self._flat()):
            state = self._states.get(flat, {})
            held = {"weights": flat, **{k: v for k, v in state.items() if isinstance(v, Tensor)}}
            numbers.append({k: v for k, v in state.items() if not isinstance(v, Tensor)})
            for key, value in held.items():
                tensors[f"{place}/{number}/{key}"] = value.detach().to("cpu", copy=True)
        return tensors, {"layout": self._layout, "names": [*tensors], "numbers": numbers}

    @torch.no_grad()
    def resume(
        self, read: Callable[[str], Tensor], structures: Sequence[Mapping[str, Any]]
    ) -> None:
        mine = structures[min(self.rank, len(structures) - 1)]
        if mine.get("layout") != self._layout:
            raise UserError(
                f"--engine deepspeed: saved at {mine.get('layout')}, and this is {self._layout}; "
                "ZeRO's parts go back where they came from: take as many processes and the same "
                "--zero-stage, or start a new race without --resume"
            )
        flat = self._flat()
        self._states.clear()
        for tensor, numbers in zip(flat, mine["numbers"], strict=True):
            if numbers:
                self._states[tensor] = dict(numbers)
        for name in mine["names"]:
            _, number, key = name.split("/")
            tensor, value = flat[int(number)], read(name)
            if key == "weights":
                tensor.copy_(value)
            else:
                self._states[tensor][key] = value.to(tensor.device, copy=True)
        self._publish()

    def _publish(self) -> None:
        """Let the model have the weights that were put into the optimizer's tensors."""
        zero = self.ds.optimizer
        if self.zero_stage in (1, 2):
            zero.update_lp_params()
            for number in range(len(zero.bit16_groups)):
                zero._update_model_bit16_weights(number)
        elif self.zero_stage == 3:
            for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
                zero.fp16_partitioned_groups_flat[number].copy_(flat)
                zero._unflatten_partitioned_parameters(number)


class _Precise(nn.Module):
    """The model, in the precision that was asked for outside DeepSpeed, which switches it off."""

    def __init__(self, model: nn.Module, device_type: str) -> None:
        super().__init__()
        self.model, self.device_type = model, device_type
        self.dtype: torch.dtype | None = None

    def forward(self, *batch: Tensor) -> Any:
        low = self.dtype is not None
        with torch.autocast(self.device_type, dtype=self.dtype, enabled=low):
            return self.model(*batch)


class _Wrapped(nn.Module):
    """What the trainer calls: DeepSpeed's engine, or the model while there is none."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = (engine,)  # in a tuple, so that it is no part of the module

    def forward(self, *batch: Tensor) -> Any:
        (engine,) = self.engine
        if engine.ds is None:
            return engine.model(*batch)
        kind = engine.device.type
        low = torch.is_autocast_enabled(kind)
        engine.ds.module.dtype = torch.get_autocast_dtype(kind) if low else None
        training = torch.is_grad_enabled()  # else the clock is stopped
        with engine.timed() if training else nullcontext(), torch.autocast(kind, enabled=False):
            return engine.ds(*batch)
