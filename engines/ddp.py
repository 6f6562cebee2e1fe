"""Data parallelism: every process holds the whole model and a part of each batch.

    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=8 speedrun.py adamw muon

Gradients are averaged by torch's DistributedDataParallel, in buckets, while the backward pass of
the last microbatch still runs; the update is then the same on every process. Over NCCL on GPUs,
over gloo on CPUs. Agrees with `single` up to the rounding of the average.
"""

import os
import warnings
import weakref
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engines import single
from engines._traffic import meter, sent_bytes
from engines._watch import Watch, patience, stay_local, store
from errors import UserError
from host import launcher

SLOWEST_START = 60.0  # seconds between the first process and the last, on a busy machine


class Engine(single.Engine):
    """See `engines.Engine`."""

    name = "ddp"

    def __init__(
        self, device: torch.device, timeout: float, zero_stage: int = 1, group: Any = None
    ) -> None:
        if "RANK" not in os.environ:
            raise UserError(
                f"--engine {self.name}: needs the processes that torchrun starts; run: "
                f"{launcher.COMMAND}"
            )
        self.device = device
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            # The watch reports first, because it can name the rank that hangs.
            limit, rank = timedelta(seconds=4 * timeout), launcher.number("RANK")
            stay_local()
            with patience(max(timeout, SLOWEST_START), rank):
                dist.init_process_group(
                    "nccl" if cuda else "gloo",
                    timeout=limit,
                    store=store("group", limit, hosts=rank == 0),
                    rank=rank,
                    world_size=launcher.number("WORLD_SIZE"),
                )
        meter()
        self.group = group or dist.group.WORLD
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._watch = Watch(dist.get_rank(), dist.get_world_size(), timeout)
        self.exposed_communication: list[tuple[Any, Any]] = []
        self.build(())
        self._last = True
        self._computed: Any = None

    @property
    def sent_bytes(self) -> int:
        return sent_bytes()

    def wrap(self, model: nn.Module) -> nn.Module:
        super().wrap(model)
        with warnings.catch_warnings():
            # torch 2.13 has a new name for broadcast_buffers, which torch 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                process_group=self.group,
            )
        wrapped.register_comm_hook(None, self._reduce)
        # Keep the process group alive longer than the reducer. Its last owner joins gloo's threads;
        # the reducer would do that while it holds the GIL, which one of those threads needs to free
        # a tensor: a deadlock.
        weakref.finalize(wrapped.reducer, lambda group: None, wrapped.process_group).atexit = False
        return wrapped

    def place_alike(self, model: nn.Module) -> None:
        """Place the model with the first process's weights, where DDP does not do it."""
        super().wrap(model)
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, group_src=0, group=self.group)

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        # Its first backward pass that counts decides on the buckets, which all ranks then compare.
        no_sync: AbstractContextManager[None] = wrapped.no_sync()
        return no_sync

    def backward(self, loss: Tensor, last: bool) -> None:
        self._watch.beat()
        self._last = last
        loss.backward()
        if last and self.mark:
            self.exposed_communication.append((self._computed, self.mark()))

    def _reduce(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients over the processes.

        It leaves the gradients of early microbatches as they are.
        """
        gradients = bucket.buffer()
        if not self._last:
            kept: torch.futures.Future[Tensor] = torch.futures.Future()
            kept.set_result(gradients)
            return kept
        if bucket.is_last() and self.mark:
            self._computed = self.mark()  # from here on, the backward pass only waits
        work = dist.all_reduce(gradients.div_(self.world_size), group=self.group, async_op=True)
        assert work is not None
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future.then(lambda done: done.value()[0])

    def step(self) -> None:
        self._watch.beat()
        super().step()

    def all_reduce_mean(self, value: Tensor) -> float:
        self._watch.beat()
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total.item() / self.world_size

    def all_reduce_max(self, value: Tensor) -> Tensor:
        self._watch.beat()
        largest = value.detach().to(self.device, copy=True)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest

    def broadcast(self, value: Any) -> Any:
        self._watch.beat()
        box = [value]
        dist.broadcast_object_list(box, group=self.group, group_src=0, device=self.device)
        return box[0]

    def close(self) -> None:
        self._watch.close()
        dist.destroy_process_group()
