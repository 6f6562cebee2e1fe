"""How a command ends when it is told to, and how its processes end with it.

    with ending.stoppable():              # SIGTERM and SIGHUP raise Stopped, as Ctrl-C would
        ...
    except KeyboardInterrupt as stop:     # Stopped is one, so one `except` is for all of them
        return ending.told(stop, "stopped; what is finished is kept")   # 130, 143 or 129

    with ending.noticed() as asked:       # within a loop that can stop between two rounds
        if asked(): ...

    ending.end_with_parent()              # first call of a process that a command starts

A signal is turned into an exception because an exception cleans up on its way: files are removed,
worker processes are ended, the terminal is put back. A process that is killed cannot clean up, so
the processes that it started watch it, and the next command removes what it left.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGHUP)  # a supervisor, a terminal that closes
AGAIN = 0.05  # seconds until a stop that was lost in a finalizer is sent again


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stoppable(once: bool = False) -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise Stopped in the main thread.

    once: signals after the first are ignored, Ctrl-C too, until the block is left. This is for a
    command that cleans up in a moment, which a second signal must not interrupt.

    Python drops an exception that is raised in a finalizer or a weak reference's callback. A stop
    that falls into one, Ctrl-C too, is sent again.

    A signal that is ignored already stays ignored, as `nohup` wants it. Under torchrun nothing
    changes: a rank that waits for another rank would never see the exception.
    """
    if threading.current_thread() is not threading.main_thread() or "TORCHELASTIC_RUN_ID" in (
        os.environ
    ):
        yield
        return
    ours = {signal.SIGINT, *ASKING} if once else set(ASKING)
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {each: signal.getsignal(each) for each in ours}
    before = {each: handler for each, handler in before.items() if handler in defaults}

    def stop(number: int, _: FrameType | None) -> None:
        if once:
            for each in before:
                signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:  # of typeshed alone
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            usual(dropped)
            return
        number = getattr(dropped.exc_value, "number", signal.SIGINT)
        for each in before:  # after a first stop they may be ignored
            signal.signal(each, stop)
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    for each in before:
        signal.signal(each, stop)
    usual, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = usual
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], int]]:
    """Within it, SIGTERM and SIGHUP are noted, and the call tells the number of the last; or 0.

    For work that must come to a point where it can stop, also under torchrun, which sends SIGTERM
    to all of its processes and waits 30 seconds. A signal that is ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    numbers = [0]
    before = {each: signal.getsignal(each) for each in ASKING}
    before = {each: handler for each, handler in before.items() if handler != signal.SIG_IGN}
    for each in before:
        signal.signal(each, lambda number, _: numbers.append(number))
    try:
        yield lambda: numbers[-1]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def told(stop: KeyboardInterrupt, message: str) -> int:
    """Print the message to stderr; the exit code that a shell gives: 130 for Ctrl-C, 143, 129."""
    with contextlib.suppress(OSError):  # of a terminal that is gone
        print(message, file=sys.stderr, flush=True)
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def end_with_parent(end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """End this process when the process that started it is gone, however that one ended.

    For processes of `multiprocessing`. A thread waits for the parent's end of a pipe to close. end:
    what is done then.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not started by multiprocessing"

    def watch() -> None:
        connection.wait([parent.sentinel])
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def begin_worker() -> None:
    """The first call of a worker: Ctrl-C is its parent's to handle, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
