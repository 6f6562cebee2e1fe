"""One gloo world of forked processes: what is imported is imported once.

A fork copies the thread that calls it alone. A lock that another thread holds at that moment stays
locked in the copy, which then waits for ever. So nothing here starts a thread before the last fork:
the store of the rendezvous, which has threads, gets a process of its own, and a program that calls
this is started with `ONE_THREAD` in its environment, because numpy and torch start threads when
they are imported.
"""

import faulthandler
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TASKS = Path("/proc/self/task")  # a folder for each thread, on Linux
FORKS_WELL = "jemalloc"  # pyarrow's allocator, which takes its locks before a fork


def work_in_world(processes: int, work: Callable[[int], None], limit: float = 300.0) -> None:
    """Call work(rank) in so many processes that talk over gloo, with a thread each.

    Raises RuntimeError if one of them fails, or takes longer than `limit` seconds. What it printed,
    or where each of its threads stood, is in the error output. The other processes are ended.
    """
    threads = [path.read_text("utf-8").strip() for path in TASKS.glob("[0-9]*/comm")]
    others = [name for name in threads if not name.startswith(FORKS_WELL)]
    assert len(others) <= 1, f"{len(others)} threads before a fork; start with OMP_NUM_THREADS=1"
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = _fork(lambda: _serve(door, processes))
        port = door.getsockname()[1]
        ranks = [_fork(lambda r=rank: _join(r, port, processes, work, limit))  # type: ignore[misc]
                 for rank in range(processes)]  # fmt: skip
    left = {server, *ranks}
    try:
        while left > {server}:
            child, status = os.waitpid(-1, 0)
            left.discard(child)
            if status:
                raise RuntimeError(f"process {child} failed, see above")
    finally:
        for child in left:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork(task: Callable[[], None]) -> int:
    """The number of a process that does a task and ends; 1 is its exit code if the task fails."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        task()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(door: socket.socket, processes: int) -> None:
    """Be the store of the rendezvous until the end of the world."""
    host, port = door.getsockname()
    _held = dist.TCPStore(  # it serves while it is held
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=door.fileno()
    )
    signal.pause()


def _join(rank: int, port: int, processes: int, work: Callable[[int], None], limit: float) -> None:
    faulthandler.dump_traceback_later(limit, exit=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    store = dist.PrefixStore("group", dist.TCPStore("127.0.0.1", port))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    work(rank)
    faulthandler.cancel_dump_traceback_later()
