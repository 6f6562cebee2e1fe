"""Paths: those of the project, wherever a command is started, and those that a user types.

    parser.add_argument("--out", type=paths.typed, default=paths.PROJECT / "plots")

A folder of the project, such as data/tiny or results, is found by the project's own place. A path
that a user types belongs to the user's working directory.
"""

import os
import re
import shlex
from pathlib import Path

from errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
RESULTS, PLOTS, DATA = (PROJECT / name for name in ("results", "plots", "data"))

# Commands of the project in a message, and how they are written in another working directory.
_COMMAND = re.compile(r"(?<=\brun: )(?:make|torchrun)\b|\bpython (?:-m|speedrun\.py)(?= )")


def typed(text: str) -> Path:
    """The path that a user typed: `~` is the home folder, `$NAME` a variable of the environment.

    A shell expands them too, but not within a word such as `text:~/mine` or `--out=~/mine`. A path
    that exists as it is typed is taken so. Raises UserError for what cannot be a path.
    """
    if not text or "\0" in text:
        raise UserError(f"{text!r}: is no path; name a file or a folder")
    try:
        if os.path.lexists(text):
            return Path(text)
        path = Path(os.path.expandvars(text)).expanduser()
        path.exists()  # raises OSError for a name that is too long
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without a home
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{text[:80]}: is no path: {reason}; name a file or a folder") from error
    if "$" in str(path):
        raise UserError(f"{text}: there is no such file, and no such variable; name another path")
    return path


def from_here(message: str) -> str:
    """A message with paths and commands that can be used in the working directory.

    In the project's own folder its paths are short, as `data/tiny`. Elsewhere a command of the
    project says where the project is.
    """
    try:
        here = Path.cwd()
    except OSError:  # the folder was deleted
        here = Path("/")
    if here == PROJECT:
        return message.replace(f"{PROJECT}{os.sep}", "")
    place = shlex.quote(str(PROJECT))
    elsewhere = {
        "make": f"make -C {place}",
        "python -m": f"PYTHONPATH={place} python -m",
        "python speedrun.py": f"python {shlex.quote(str(PROJECT / 'speedrun.py'))}",
        "torchrun": f"cd {place} && torchrun",
    }
    return _COMMAND.sub(lambda found: elsewhere[found[0]], message)
