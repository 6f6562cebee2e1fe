"""Arithmetic and simulation beyond this machine: memory, FLOPs, traffic, time and price.

    python -m planner race adamw muon --track gpt2        # what a race here would take
    python -m planner verdict deepseek-v4 --cluster h800  # will Muon pay on a cluster?
    python -m planner -h                                  # all subcommands

It needs neither data nor a GPU. tracks.py, dry_run.py, assignment.py, own_models.py and traced.py
count on the trainer's own model and rules; the other files compute from plain numbers and import
neither torch nor the trainer.
"""

import host.interpreter  # noqa: F401  # isort: skip
