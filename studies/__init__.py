"""Experiments above the trainer: the tuner, and races at other scales."""
