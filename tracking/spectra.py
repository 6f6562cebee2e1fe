"""Which validations of a run have their spectra measured, and of which tensors."""

from collections.abc import Sequence

MOST = 8  # measured steps of a run
FLOOR = 2.0**-23  # of the largest singular value: below it float32 has rounding alone, written as 0
TENSORS = ("gradient", "momentum", "update", "weight")  # in the order of the rows of a part


def spread(steps: Sequence[int], most: int = MOST) -> list[int]:
    """At most so many of the validated steps, evenly from the first to the last, both included.

    steps: in order. With as many or fewer, all of them; `most` is at least 2.
    """
    if len(steps) <= most:
        return [*steps]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
