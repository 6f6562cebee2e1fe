"""Processes that share a work whose pieces are large, and that never outlive it.

    for result in workers.unordered(encode, pieces, count=8): ...

Each worker has a pipe of its own and at most one task. `ProcessPoolExecutor` has one pipe for all
results: where a worker is killed in the middle of a large one, it waits for the rest for ever.
"""

import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from host import ending

Task = TypeVar("Task")
Result = TypeVar("Result")

SIGNAL_SECONDS = 1.0  # a signal to all processes of a group reaches this one within them


class WorkerDiedError(Exception):
    """A worker ended without a result. The message says how."""


def unordered(
    call: Callable[[Task], Result], tasks: Iterable[Task], count: int
) -> Generator[Result, None, None]:
    """Yield call(task) for each task, as they are finished, by at most `count` processes.

    call: a function of a module, because it is sent to them. Raises what it raised; WorkerDiedError
    if a worker was killed. When this generator ends or is closed, the workers are gone.
    """
    processes: dict[Connection, BaseProcess] = {}
    idle: list[Connection] = []

    def answers() -> Iterator[Result]:
        busy = [pipe for pipe in processes if pipe not in idle]
        for pipe in connection.wait(busy):
            assert isinstance(pipe, Connection)
            done, answer = _talk(processes[pipe], pipe.recv)
            if not done:
                raise answer
            idle.append(pipe)
            yield answer

    try:
        for task in tasks:
            if not idle and len(processes) < count:
                pipe, process = _start(call)
                processes[pipe] = process
                idle.append(pipe)
            while not idle:
                yield from answers()
            pipe = idle.pop()
            _talk(processes[pipe], lambda: pipe.send(task))  # noqa: B023
        while len(idle) < len(processes):
            yield from answers()
    finally:
        for process in processes.values():
            process.kill()
        for pipe, process in processes.items():
            pipe.close()
            process.join()


def _start(call: Callable[[Any], Any]) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(call, theirs), daemon=True)
    process.start()
    theirs.close()  # so that ours ends when the worker does
    return ours, process


def _talk(process: BaseProcess, say: Callable[[], Any]) -> Any:
    """What `say` returns, which sends to a worker or receives from it. Raises WorkerDiedError."""
    try:
        return say()
    except (EOFError, OSError) as error:
        process.join(SIGNAL_SECONDS)
        code = process.exitcode
        if code in (-signal.SIGTERM, -signal.SIGHUP):
            time.sleep(SIGNAL_SECONDS)  # if it went to all of us, this raises Stopped
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        raise WorkerDiedError(f"a worker process ended with {how}") from error


def _work(call: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker: answer each task until there are no more."""
    ending.begin_worker()
    with suppress(EOFError):
        while True:
            task = pipe.recv()
            try:
                answer = (True, call(task))
            except BaseException as error:
                error.add_note("".join(traceback.format_exception(error)))
                answer = (False, error)
            try:
                pipe.send(answer)
            except (TypeError, AttributeError, ValueError):  # an exception that cannot be sent
                pipe.send((False, RuntimeError("".join(map(repr, answer)))))
