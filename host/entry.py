"""The one way into every command: it parses, runs, and turns a user's mistake into one line.

    def main(argv: Sequence[str] | None = None) -> int:
        parser = entry.parser("data.corpus", __doc__)
        return entry.run(parser, argv, command)

No output ends a command: a terminal that knows no "±" is shown "+-", and a reader that has gone
away (`| head`) ends it without a traceback.
"""

import argparse
import codecs
import errno
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from errors import UserError
from host import ending
from host.paths import from_here

FAILED, MISTAKE, NO_READER = 1, 2, 141  # exit codes; 128 + the signal's number

# What a terminal is shown in place of a character that it does not know.
PLAIN = str.maketrans({"±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "≥": ">=", "≤": "<=",
                       "−": "-", "·": "-", "→": "->", "μ": "u", "≈": "~"})  # fmt: skip


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and help texts beside flags, 100 columns wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def parser(
    module: str, description: str | None, usage: str | None = None
) -> argparse.ArgumentParser:
    """The parser of the command `python -m MODULE`."""
    return argparse.ArgumentParser(
        prog=module if module.endswith(".py") else f"python -m {module}",
        description=description,
        formatter_class=HelpFormatter,
    )


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    command: Callable[[argparse.Namespace], int | None],
    stopped: str = "nothing was changed",
    once: bool = False,
) -> int:
    """Parse `argv`, run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C.

    It is 143 after SIGTERM and 129 after SIGHUP. command: may return another code. stopped: what a
    command that was stopped leaves, and the next command. once: see `ending.stoppable`.
    """
    name = parser.prog.removeprefix("python -m ")
    prepare_streams()
    sys.excepthook = sys.__excepthook__  # all is imported: see host/interpreter.py
    try:
        with ending.stoppable(once):
            code = command(parser.parse_args(argv)) or 0
        sys.stdout.flush()  # a reader that has gone away is noticed here at the latest
        return code
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)  # torchrun ends this rank once the first one has printed the same
        print(f"{name}: {from_here(str(error))}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as stop:
        return ending.told(stop, f"\nstopped; {stopped}")
    except BrokenPipeError:
        _forget_output()
        return NO_READER
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _forget_output()
        what = error.filename or "the output"
        print(f"{name}: cannot write {what}: {error.strerror}; make room for it", file=sys.stderr)
        return MISTAKE


def dispatch(
    package: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str] | None
) -> int:
    """Run the first word of `argv`, a subcommand; its exit code, or 2 where there is none such.

    commands: by name, "MODULE" or "MODULE:FUNCTION" within the package (else `main`), and what it
    does. A module is imported when its subcommand is called, so that the others cost no time.
    """
    word, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if word in commands:
        module, _, function = commands[word][0].partition(":")
        found = importlib.import_module(f"{package}.{module}")
        return int(getattr(found, function or "main")(rest))
    prepare_streams()
    width = max(map(len, commands))
    lines = "\n".join(f"    {name:{width}}  {what}" for name, (_, what) in commands.items())
    listed = f"python -m {package} SUBCOMMAND, which is one of (-h explains each):\n\n{lines}"
    if word in ("-h", "--help"):
        print(f"usage: {listed}")
        return 0
    what = f"no subcommand {word!r}" if word else "a subcommand is missing"
    print(f"{package}: {what}; run: {listed}", file=sys.stderr)
    return MISTAKE


def _forget_output() -> None:
    """Let what Python still has to print when it ends go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def prepare_streams() -> None:
    """Let no character end the program, and let no file take the number of a closed stream."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would be it
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "plain":
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """A handler for `codecs.register_error`: the nearest characters that are ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
