"""A watch over the processes of a run: it names the rank that hangs.

A collective waits for a rank that hangs, and then reports only that it waited. Here every rank
counts the operations that it begins and publishes the count. When its own count has not risen for
too long, it finds the ranks with the lowest count, prints them and ends its process; torchrun ends
or restarts the other ranks.
"""

import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist


def store(name: str, timeout: timedelta, hosts: bool = False) -> dist.Store:
    """A connection to the rendezvous, with keys of this attempt alone.

    torchrun's store outlives a restart of the ranks. With the keys of the attempt before, a rank
    might connect to the address of a process that has ended. hosts: this process is the server,
    where torchrun does not run one.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = hosts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    client = dist.TCPStore(address, port, is_master=hosts, timeout=timeout)
    return dist.PrefixStore(f"{name}/{attempt}", client)


class Watch:
    """The counts of all ranks, in the store of the process group's rendezvous."""

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        """timeout: seconds without progress after which the run is given up."""
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.count = 0
        self._moved = time.monotonic()
        # A connection of its own: a wait on the process group's would hold up the watch too.
        self._store = store("watch", timeout=timedelta(seconds=30))
        self._done = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def beat(self) -> None:
        """Count an operation that begins."""
        self.count += 1
        self._moved = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._done.set()

    def behind(self) -> list[int]:
        """The ranks with the lowest count; empty if no rank is behind this one."""
        counts = {}
        for rank in range(self.world_size):
            key = str(rank)
            counts[rank] = int(self._store.get(key)) if self._store.check([key]) else -1
        counts[self.rank] = self.count
        least = min(counts.values())
        return [r for r, n in counts.items() if n == least] if least < self.count else []

    def _run(self) -> None:
        while not self._done.wait(min(2.0, self.timeout / 4)):
            try:
                self._store.set(str(self.rank), str(self.count))
                still = time.monotonic() - self._moved
                # A rank that is itself behind waits twice as long, so that the ranks that it
                # blocks report first.
                patience = self.timeout if self.behind() else 2 * self.timeout
            except RuntimeError:  # the rendezvous is gone, and with it the run
                return
            if still > patience:
                self._give_up(still)

    def _give_up(self, still: float) -> None:
        names = ", ".join(map(str, self.behind()))
        blame = f"rank {names} is behind the others" if names else f"rank {self.rank} stands still"
        print(
            f"speedrun.py: rank {self.rank}: nothing has moved for {still:.0f} s: {blame}; "
            "what is finished is recorded: go on with --resume, wait longer with --timeout",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
