"""Arithmetic beyond this machine: memory, FLOPs, time and price, from plain numbers.

Imports neither torch nor the trainer. `python speedrun.py ... --dry-run` hands it what it counted
without a GPU.
"""
