"""The guide of the tuner's search: it finds more than even points, and always the same."""

import math
from collections.abc import Sequence

from optim import Linear, Option
from studies import guide
from studies.points import points


def bowl(place: Sequence[float]) -> float:
    """A loss over four options, of which the last matters little."""
    x, y, z, w = place
    return 3.6 + 2 * (x - 0.31) ** 2 + (y - 0.72) ** 2 + (z - x) ** 2 + 0.05 * (w - 0.5) ** 2


FOUR = {name: Option(float, 0.5, Linear(0.0, 1.0)) for name in "xyzw"}


def test_the_guide_finds_more_than_evenly_spread_points_in_fewer_trials() -> None:
    spread = [list(point.values()) for point in points(FOUR, 128)]
    known = spread[:16]
    for seed in range(3):
        losses = [bowl(place) for place in known]
        known = known + guide.propose(known, losses, [[(0.0, 1.0)] * 4] * 4, seed)
    assert len(known) == 28
    assert min(map(bowl, known)) < min(map(bowl, spread)) - 0.005


def test_the_same_trials_give_the_same_proposals_within_each_box() -> None:
    places = [list(point.values()) for point in points(FOUR, 12)]
    losses = [bowl(place) for place in places]
    boxes = [[(0.6, 0.9)] * 4, [(0.0, 0.1), (0.2, 0.2), (-0.1, 0.0), (1.0, 1.1)]]
    found = guide.propose(places, losses, boxes, seed=5)
    assert found == guide.propose(places, losses, boxes, seed=5)
    for place, box in zip(found, boxes, strict=True):
        assert all(low <= u <= high for u, (low, high) in zip(place, box, strict=True))


def test_the_guide_keeps_away_from_what_diverged() -> None:
    places = [[u / 8, v / 8] for u in range(9) for v in (0, 4, 8)]
    losses = [math.inf if u > 0.5 else 3 + (u - 0.4) ** 2 for u, _ in places]
    found = guide.propose(places, losses, [[(0.0, 1.0)] * 2] * 4, seed=0)
    assert all(0.2 < u < 0.6 for u, _ in found)
    assert len(guide.propose(places, [math.inf] * 27, [[(0.0, 1.0)] * 2], seed=0)) == 1


def test_the_most_promising_of_a_pool_is_near_the_best() -> None:
    places = [[u / 8] for u in range(9)]
    losses = [3 + (u - 0.55) ** 2 for (u,) in places]
    assert guide.most_promising(places, losses, [[0.05], [0.56], [0.95]]) == 1
