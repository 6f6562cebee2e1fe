"""Finds the module of a subcommand: `python -m planner SUBCOMMAND`."""

import sys
from collections.abc import Sequence

import planner  # noqa: F401  # its first import prepares the interpreter
from host import entry

COMMANDS = {
    "race": ("race.tracks:race", "what a race of a track here would take"),
    "assignment": ("race.tracks:assign", "the rule of every parameter"),
    "tokens": ("race.tracks:tokens", "training tokens of the longest run of a track"),
    "model": ("models.describe", "a model's weights, their sums and sources"),
    "shares": ("models.shares", "what Muon may take of a model, and what its design changes"),
    "memory": ("memory.memory_plan", "what a rank holds by kind, and which GPUs it fits"),
    "time": ("time.step_time", "FLOPs and seconds of orthogonalisation in a step"),
    "step": ("step.step_command", "a step simulated: what is hidden, who is idle, the timeline"),
    "verdict": ("words", "will Muon pay on your cluster?"),
    "docs": ("pages", "write docs/scale/ and its charts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand; its exit code, or 2 where there is no such subcommand."""
    return entry.dispatch("planner", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
