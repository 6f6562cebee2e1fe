"""Finds the module of a subcommand: `python -m leaderboard SUBCOMMAND`."""

import sys
from collections.abc import Sequence

from host import entry

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
    return entry.dispatch("leaderboard", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
