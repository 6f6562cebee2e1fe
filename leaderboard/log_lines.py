"""The lines of public training logs: what one line says of a run.

    parse("step:125/6200 val_loss:5.0 train_time:24000ms step_avg:208.1ms")

Three eras of modded-nanogpt are known. llm.c writes `s:128 tel:6.0344`. Then the clock was in ms,
with or without a loss on the line. In track 3 it is in s, and further `name:value` fields may
follow. A line counts only if it begins with its step, so what a program prints with an f-string is
never taken for a result: its braces are no numbers. `step_avg` is not read, because logs divide the
clock by different numbers of steps.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LLM_C, MS, S, NO_CLOCK = "llm.c", "ms", "s", "no clock"  # eras
CLOCK_UNITS = {"ms": 1000, "s": 1}  # in a second

STEP = re.compile(r"(?:step:(\d{1,9})(?:/(\d{1,9}))?|s:(\d{1,9})) ", re.ASCII)
NAME = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
NUMBER = re.compile(
    r"([-+]?(?:\d{1,20}(?:\.\d{0,20})?(?:[eE][-+]?\d{1,3})?|nan|inf))(ms|s|%|)", re.I
)
MEMORY = re.compile(
    r"peak memory (?:consumption: (\d{1,9}) MiB|allocated: (\d{1,9}) MiB reserved: (\d{1,9}) MiB)",
    re.ASCII,
)
# Names of llm.c for the losses; its lr and norm are no read-outs of a validation.
VAL, TRAIN, CLOCK = ("val_loss", "tel"), ("train_loss", "trl"), "train_time"
MOST_READOUTS = 16  # of a line; further ones are left out
LEFT_OUT = ("step_avg", "lr", "norm")


@dataclass(frozen=True)
class Result:
    """What a line says of one step. A loss may be infinite or not a number."""

    era: str
    step: int
    planned_steps: int | None
    val_loss: float | None = None
    train_loss: float | None = None
    train_seconds: float | None = None
    readouts: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # others, with units
    odd: str = ""  # what could not be understood


@dataclass(frozen=True)
class Memory:
    """What a line says of the memory of a run."""

    peak_bytes: int
    reserved_bytes: int | None = None


def parse(line: str) -> Result | Memory | None:
    """What a line says; None if it is no line of results."""
    if memory := MEMORY.match(line):
        consumed, allocated, reserved = memory.groups()
        peak = int(consumed or allocated) << 20
        return Memory(peak, int(reserved) << 20 if reserved else None)
    head = STEP.match(line)
    return _result(head, line[head.end() :]) if head else None


def _result(head: re.Match[str], rest: str) -> Result | None:
    step, planned, short = head.groups()
    values: dict[str, tuple[float, str]] = {}
    for word in rest.split():
        name, _, text = word.partition(":")
        number = NUMBER.fullmatch(text)
        if NAME.fullmatch(name) and number:
            values.setdefault(name, (float(number[1]), number[2].lower()))
    val_loss, train_loss = (_first(values, names) for names in (VAL, TRAIN))
    seconds, odd, era = None, "", LLM_C if short else NO_CLOCK
    if CLOCK in values:
        time, unit = values[CLOCK]
        era = unit if unit in CLOCK_UNITS else NO_CLOCK
        if unit in CLOCK_UNITS and math.isfinite(time) and time >= 0:
            seconds = time / CLOCK_UNITS[unit]
        else:
            odd = "train_time is no time with a unit"
    skipped = (*VAL, *TRAIN, CLOCK, *LEFT_OUT)
    others = [(name, value) for name, value in values.items() if name not in skipped]
    readouts = dict(others[:MOST_READOUTS])
    if val_loss is None and train_loss is None and CLOCK not in values and not readouts:
        return None
    return Result(
        era, int(step or short), int(planned) if planned else None, val_loss, train_loss, seconds,
        readouts, odd,
    )  # fmt: skip


def _first(values: Mapping[str, tuple[float, str]], names: tuple[str, ...]) -> float | None:
    """The first of some values; a loss has no unit."""
    return next((values[name][0] for name in names if name in values and not values[name][1]), None)
