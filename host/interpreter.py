"""Says in a sentence that this Python is too old, or that it lacks the project's packages.

    python host/interpreter.py    # can this Python make .venv? The Makefile asks before it does

Imported by a command, it ends the command with such a sentence in place of a traceback. It is the
first import of speedrun.py and of every package with commands. An old Python must be able to read
this file: it has no annotations and no f-strings.
"""

import os
import sys

OLDEST = (3, 11)
OTHER = "name a newer one: make setup PYTHON=python3.12"


def end(sentence):  # type: (str) -> None
    """Print the sentence and end the program as after a user's mistake."""
    sys.stderr.write(sentence + "\n")
    sys.exit(2)


def check_version():  # type: () -> None
    """End the program if this Python is too old."""
    if sys.version_info[:2] < OLDEST:
        here = "{}.{}".format(*sys.version_info)
        needed = "{}.{}".format(*OLDEST)
        end("{} is Python {}: needs {} or newer; {}".format(sys.executable, here, needed, OTHER))


def check_venv():  # type: () -> None
    """End the program if this Python cannot make a virtual environment."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        package = "python{}.{}-venv".format(*sys.version_info)
        end(
            "{} cannot make .venv: {}; install it (Debian, Ubuntu: apt install {}), or {}".format(
                sys.executable, error, package, OTHER.replace("a newer one", "another Python")
            )
        )


def say_missing(kind, error, trace):  # type: (type, BaseException, object) -> None
    """For `sys.excepthook`: a package that is missing is named, with the command to install it."""
    if issubclass(kind, ImportError) and getattr(error, "name", None):
        end(
            "{}: {}; run: make setup, then: source .venv/bin/activate".format(sys.executable, error)
        )
    sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]


check_version()
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "speedrun.py":
    sys.excepthook = say_missing  # until `host.entry.run`, which has its own way
if __name__ == "__main__":
    check_venv()
