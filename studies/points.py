"""Points of the tuner's search: evenly spread over the ranges, and by the guide's proposal.

A point has a value for each option with a range. Its place is the same in coordinates in which each
range is from 0 to 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.quasirandom import SobolEngine

from optim import Beta, Linear, Option
from studies import guide

REFINE_WIDTH = 0.25  # of each range: the width of the box that is refined
NEAR_WIDTH = 0.4  # of each range: the width of the box around the best point so far
FAR = 4  # every fourth proposal is anywhere in the ranges, the others are near the best point
REST = ("embed_lr", "head_lr", "vector_lr")  # of AdamW on embedding, head and vectors
LARGEST_BETA = 0.999  # with three digits the next one is 1, which is no momentum
EDGE = 0.05  # of a range: a value within it from an end lies at that end
LOW, HIGH = "low", "high"
BY_NATURE = {  # ends that no wider range moves
    ("warmup", LOW): "no warm-up is the least that there can be",
    ("cooldown", HIGH): "the whole run is the most that there can be",
}
SEQUENCE = ("lr", "weight_decay", *REST, "warmup", "cooldown")  # dimensions that recipes share

Settings = dict[str, Any]


def ranges_of(options: Mapping[str, Option]) -> dict[str, Linear]:
    """The ranges of the options that have one."""
    return {name: option.range for name, option in options.items() if option.range}


def value(bounds: Linear, place: float) -> float:
    """The option's value at a coordinate, with three significant digits."""
    found = float(f"{bounds.at(place):.3g}")
    return min(found, LARGEST_BETA) if isinstance(bounds, Beta) else found


def coordinate(bounds: Linear, value: float) -> float:
    """The place of a value, which may be outside of the range.

    A value that has no place on its scale, such as 0 on a logarithmic one, is at the nearer end.
    """
    try:
        return bounds.where(value)
    except (ValueError, ZeroDivisionError):
        return 0.0 if value < bounds.low else 1.0


def end_of(bounds: Linear, value: float) -> str:
    """The end of a range at which a value lies, or beyond which: LOW, HIGH, or empty."""
    place = coordinate(bounds, value)
    return LOW if place <= EDGE else HIGH if place >= 1 - EDGE else ""


def reason(option: str, bounds: Linear, value: float, steps: int) -> str:
    """Why a value lies at an end by nature; empty where a wider range might have moved it."""
    end = end_of(bounds, value)
    if isinstance(bounds, Beta) and end == HIGH and 1 / (1 - value) > steps:
        return f"it averages over more steps than the run has, {steps}"
    return BY_NATURE.get((option, end), "")


def points(
    options: Mapping[str, Option], count: int, around: Settings | None = None
) -> list[Settings]:
    """The first `count` points of a Sobol sequence over the options that have a range.

    With `around`, they fill a box of REFINE_WIDTH times the ranges around that point. Point i is
    the same for any count. Values have three significant digits. Without a range all points are
    empty.

    All recipes with AdamW on embedding, head and vectors share the dimensions of SEQUENCE, even
    those that lack one of these options. So point i has the same values there in every recipe, and
    no recipe is luckier than another.
    """
    ranges = ranges_of(options)
    if not ranges or not count:  # Sobol needs at least one dimension and one point
        return [{}] * count
    shared = SEQUENCE if ranges.keys() & set(REST) else ()
    own = tuple(name for name in ranges if name not in shared)
    unit: dict[str, list[float]] = {}
    for seed, names in enumerate(filter(None, (shared, own))):  # another count, other coordinates
        draws = SobolEngine(len(names), scramble=True, seed=seed).draw(count)
        unit |= dict(zip(names, draws.mT.tolist(), strict=True))
    found = []
    for i in range(count):
        point = {}
        for name, bounds in ranges.items():
            u = unit[name][i]
            if around is not None:
                u = coordinate(bounds, around[name]) + REFINE_WIDTH * (u - 0.5)
            point[name] = value(bounds, u)
        found.append(point)
    return found


def proposed(
    options: Mapping[str, Option],
    past: Sequence[tuple[Settings, float]],
    count: int,
    seed: int,
    around: Settings | None = None,
) -> list[Settings]:
    """The next `count` points by the guide, from the points so far with their losses.

    Three of four are near the best point, because too few points fill so many dimensions. With
    `around`, they are in a box of REFINE_WIDTH times the ranges around that point; only a range
    that `Linear` does not end may then be left.
    """
    ranges = ranges_of(options)
    if around is not None:
        boxes = [[_close(bounds, around[name]) for name, bounds in ranges.items()]] * count
    else:
        best, _ = min(past, key=lambda each: each[1])
        near = [_inside(bounds, best[name]) for name, bounds in ranges.items()]
        far = [(0.0, 1.0)] * len(ranges)
        boxes = [far if number % FAR == FAR - 1 else near for number in range(count)]
    places = [[coordinate(bounds, s[name]) for name, bounds in ranges.items()] for s, _ in past]
    found = guide.propose(places, [loss for _, loss in past], boxes, seed)
    return [
        {name: value(bounds, u) for (name, bounds), u in zip(ranges.items(), place, strict=True)}
        for place in found
    ]


def _close(bounds: Linear, centre: float) -> tuple[float, float]:
    """The coordinates of the box around a value."""
    place = coordinate(bounds, centre)
    low, high = (place + side * REFINE_WIDTH / 2 for side in (-1, 1))
    if type(bounds) is Linear:
        low, high = (min(max(end, 0.0), 1.0) for end in (low, high))
    return low, high


def _inside(bounds: Linear, centre: float) -> tuple[float, float]:
    """The coordinates of the box near a value, within its range."""
    place = min(max(coordinate(bounds, centre), 0.0), 1.0)
    return max(place - NEAR_WIDTH / 2, 0.0), min(place + NEAR_WIDTH / 2, 1.0)
