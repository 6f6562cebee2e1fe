"""A watch over the processes of a run: it names the rank that hangs.

A collective waits for a rank that hangs, and then reports only that it waited. Here every rank
counts the operations that it begins and publishes the count. When its own count has not risen for
too long, it finds the ranks with the lowest count, prints them and ends its process; torchrun ends
or restarts the other ranks.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from errors import UserError
from host import launcher

MISSED_SECONDS = 5.0  # in which all that are left notice that a rank is gone


@contextmanager
def patience(seconds: float, rank: int) -> Iterator[None]:
    """End this process, with a reason, if what is done within takes longer: the others are away."""
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"

    def give_up() -> None:
        print(
            f"speedrun.py: rank {rank}: the processes have not found each other for {seconds:.0f} "
            f"s at {address}; is each of them running? On one machine run: {launcher.COMMAND}; "
            "wait longer with --timeout",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stay_local() -> None:
    """Let gloo talk over the loopback, where all processes are on this machine.

    Otherwise it looks for an address of the host's name. Nothing if the user has chosen.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    names = [name for _, name in socket.if_nameindex()]
    if here and "lo" in names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def store(name: str, timeout: timedelta, hosts: bool = False) -> dist.Store:
    """A connection to the rendezvous, with keys of this attempt alone.

    torchrun's store outlives a restart of the ranks. With the keys of the attempt before, a rank
    might connect to the address of a process that has ended. hosts: this process is the server,
    where torchrun does not run one. Raises UserError if there is no such host.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), launcher.number("MASTER_PORT")
    hosts = hosts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        if not address:
            raise OSError("is not set")
        if not address.replace(".", "").isdigit():
            socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR={address}: {error.strerror or error}; on one machine run: "
            f"{launcher.COMMAND}, on several name an address that all of them reach"
        ) from None
    client = dist.TCPStore(address, port, is_master=hosts, timeout=timeout)
    return dist.PrefixStore(f"{name}/{attempt}", client)


class Watch:
    """The counts of all ranks, in the store of the process group's rendezvous."""

    newest: "Watch | None" = None  # of this process

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        """timeout: seconds without progress after which the run is given up."""
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        Watch.newest = self
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

    def missing(self) -> list[int]:
        """The ranks that are gone, after a collective has failed in this one.

        Ranks that are left say that they have lost contact. The others are missing: they are known
        when only one has not spoken, or after some seconds.
        """
        until = time.monotonic() + MISSED_SECONDS
        try:
            self._store.set(f"lost{self.rank}", "1")
            silent = list(range(self.world_size))
            while len(silent) > 1 and time.monotonic() < until:
                silent = [each for each in silent if not self._store.check([f"lost{each}"])]
                time.sleep(0.05)
        except RuntimeError:  # the store is gone, which the first rank may host
            return []
        return silent

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
