"""Arithmetic beyond this machine: memory, FLOPs, time and price, from plain numbers.

Imports neither torch nor the trainer. `python speedrun.py ... --dry-run` hands it what it measured
on the meta device.
"""
