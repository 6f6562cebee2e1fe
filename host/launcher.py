"""What torchrun tells a process, in variables of the environment: its number and its meeting place.

    rank = launcher.number("RANK", 0)

Queues and other launchers set variables of the same names, not always all of them. What is missing
or no number is refused by its name.
"""

import os

from errors import UserError

# On one machine the processes meet at an address that needs no name: a host's own name is often
# one that nothing resolves, and torchrun then waits for minutes without a word.
COMMAND = "torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2 speedrun.py ..."
LEAST = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1}  # the others count from 0


def number(name: str, default: int | None = None) -> int:
    """The whole number in a variable; `default` where it is not set. Raises UserError."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    least = LEAST.get(name, 0)
    if text is None or not text.isascii() or not text.isdigit() or int(text) < least:
        shown, culprit = ("not set", "WORLD_SIZE") if text is None else (f"{text!r}", name)
        raise UserError(
            f"{name}: is {shown}, and must be a whole number from {least}, as torchrun sets it; "
            f"for one process run: unset {culprit}, for several run: {COMMAND}"
        )
    return int(text)
