"""Finds the module of a subcommand: `python -m leaderboard SUBCOMMAND`."""

import importlib
import sys
from collections.abc import Sequence

from host import entry

# name: (module of the package, what it does). A module is imported when its subcommand is called.
COMMANDS = {
    "verify": ("verify", "recompute every number, committed and yours, from its files"),
    "submit": ("submit", "make a record from a race of yours"),
    "rerun": ("rerun", "run a record again with its own program, and compare"),
    "seal": ("seal", "list what a folder of evidence consists of"),
    "page": ("page", "write the page of the boards, one HTML file"),
    "changed": ("changed", "verify the records that a branch or a pull request adds"),
    "import": ("public_logs", "read logs of modded-nanogpt into tables"),
    "published": ("published", "recompute what others published"),
    "docs": ("pages", "write the generated parts of README.md and docs/"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand; its exit code, or 2 where there is no such subcommand."""
    word, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if word in COMMANDS:
        module = importlib.import_module(f"leaderboard.{COMMANDS[word][0]}")
        return int(module.main(rest))
    entry.prepare_streams()
    commands = "\n".join(f"    {name:10} {what}" for name, (_, what) in COMMANDS.items())
    listed = f"python -m leaderboard SUBCOMMAND, which is one of (-h explains each):\n\n{commands}"
    if word in ("-h", "--help"):
        print(f"usage: {listed}")
        return 0
    what = f"no subcommand {word!r}" if word else "a subcommand is missing"
    print(f"leaderboard: {what}; run: {listed}", file=sys.stderr)
    return entry.MISTAKE


if __name__ == "__main__":
    sys.exit(main())
