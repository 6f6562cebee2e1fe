"""Finds the module of a subcommand: `python -m planner SUBCOMMAND`."""

import importlib
import sys
from collections.abc import Sequence

import planner  # noqa: F401  # its first import prepares the interpreter
from host import entry

# name: (module of the package, its function, what it does). A module is imported when its
# subcommand is called, so that arithmetic starts without torch.
COMMANDS = {
    "race": ("race.tracks", "race", "what a race of a track here would take"),
    "assignment": ("race.tracks", "assign", "the rule of every parameter"),
    "tokens": ("race.tracks", "tokens", "training tokens of the longest run of a track"),
    "model": ("models.describe", "main", "a model's weights, their sums and sources"),
    "shares": (
        "models.shares",
        "main",
        "what Muon may take of a model, and what its design changes",
    ),
    "memory": ("memory.memory_plan", "main", "what a rank holds by kind, and which GPUs it fits"),
    "time": ("time.step_time", "main", "FLOPs and seconds of orthogonalisation in a step"),
    "step": (
        "step.step_command",
        "main",
        "a step simulated: what is hidden, who is idle, the timeline",
    ),
    "verdict": ("words", "main", "will Muon pay on your cluster?"),
    "docs": ("pages", "main", "write docs/scale/ and its charts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand; its exit code, or 2 where there is no such subcommand."""
    word, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if word in COMMANDS:
        module, function, _ = COMMANDS[word]
        return int(getattr(importlib.import_module(f"planner.{module}"), function)(rest))
    entry.prepare_streams()
    commands = "\n".join(f"    {name:11} {what}" for name, (*_, what) in COMMANDS.items())
    listed = f"python -m planner SUBCOMMAND, which is one of (-h explains each):\n\n{commands}"
    if word in ("-h", "--help"):
        print(f"usage: {listed}")
        return 0
    what = f"no subcommand {word!r}" if word else "a subcommand is missing"
    print(f"planner: {what}; run: {listed}", file=sys.stderr)
    return entry.MISTAKE


if __name__ == "__main__":
    sys.exit(main())
