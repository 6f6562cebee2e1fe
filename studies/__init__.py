"""Experiments above the trainer: the tuner, and races at other scales."""

import host.interpreter  # noqa: F401  # isort: skip
