"""Arithmetic beyond this machine: memory, FLOPs, time and price of a race.

    python -m planner race adamw muon --track gpt2        # what a race would take
    python -m planner assignment muon --track gpt2        # the rule of every parameter
    python -m planner tokens gpt2                         # training tokens of the longest run

It needs neither data nor a GPU. dry_run.py and assignment.py count on the trainer's own model and
rules; the other files compute from plain numbers and import neither torch nor the trainer.
"""

import host.interpreter  # noqa: F401  # isort: skip
