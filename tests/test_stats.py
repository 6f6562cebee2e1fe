"""The statistics, against values worked out by hand, tables, and simulation with fixed seeds."""

import math
import random

import numpy as np
import pytest
from scipy.stats import t as student

from analysis.stats import (
    TRACK3_MARGIN,
    TRACK3_SIGMA,
    Costs,
    Estimate,
    costs,
    counts_in_track3,
    deviation,
    expected_cost,
    mean,
    mean_below_target,
    next_below_target,
    one_sample,
    paired_worse,
    speedup,
    track3_statistic,
)
from errors import UserError
from tests.rows import make_run
from tracking.crossing import Crossing, crossing
from tracking.schema import Validation


def curve(*losses: float) -> list[Validation]:
    """Validations every 10 steps of 4 tokens and a second and a half each."""
    return [
        Validation(10 * i, 40 * i, 15.0 * i, None, loss, 0.1, None, None, None, 0)
        for i, loss in enumerate(losses)
    ]


def test_crossing_is_interpolated_in_the_loss():
    # A quarter of the way from 4.0 down to 3.0, between steps 20 and 30.
    assert crossing(curve(6.0, 5.0, 4.0, 3.0), 3.75) == Crossing(22.5, 90.0, 33.75)


@pytest.mark.parametrize(
    ("losses", "target", "expected"),
    [
        ((5.0, 4.0), 3.9, None),
        ((), 3.9, None),
        ((3.0, 2.0), 3.5, Crossing(0, 0, 0)),  # met before the first step
        ((5.0, 4.0), 4.0, Crossing(10, 40, 15)),  # exactly at a validation
        ((5.0, 3.0, 5.0, 3.0), 4.0, Crossing(5, 20, 7.5)),  # the first time counts
    ],
)
def test_crossing_at_the_edges(losses, target, expected):
    assert crossing(curve(*losses), target) == expected


def test_crossing_uses_the_clock_of_its_own_interval():
    points = curve(5.0, 4.0, 3.0)
    points[2] = Validation(20, 80, 115.0, None, 3.0, 0.1, None, None, None, 0)  # a slow stretch
    assert crossing(points, 3.5) == Crossing(15, 60, 65)


def test_expected_cost_is_the_mean_when_all_reached():
    estimate = expected_cost(Costs([90, 100, 110], [True] * 3))
    assert estimate is not None and estimate.value == pytest.approx(100)
    half = 4.302653 * 0.1 / math.sqrt(3)  # sd of cost / mean is 0.1
    assert estimate.low == pytest.approx(100 * math.exp(-half), rel=1e-6)
    assert estimate.high == pytest.approx(100 * math.exp(half), rel=1e-6)
    assert estimate.n == 3


def test_expected_cost_charges_what_missed_runs_spent():
    estimate = expected_cost(Costs([100, 120, 200], [True, True, False]))
    assert estimate == Estimate(pytest.approx((100 + 120 + 200) / 2), None, None, 3)


def test_a_slower_entrant_that_missed_makes_the_ratio_a_bound():
    fast = Costs([50, 51, 52], [True] * 3)
    at_its_end, missed = (Costs([60, 63, 66], [True, True, last]) for last in (True, False))
    ratio, plain = speedup(missed, fast), speedup(at_its_end, fast)
    assert ratio is not None and plain is not None
    assert ratio.at_least and not ratio.at_most and not plain.bound
    assert ratio.estimate == plain.estimate and ratio.p == plain.p  # as if the miss had reached
    back = speedup(fast, missed)
    assert back is not None and back.at_most and not back.at_least and back.p == ratio.p
    assert back.estimate.value == pytest.approx(1 / ratio.estimate.value)
    assert back.estimate.low == pytest.approx(1 / ratio.estimate.high)


def test_a_single_run_that_never_reached_is_a_bound_too():
    ratio = speedup(Costs([140], [False]), Costs([90, 100, 110], [True] * 3))
    error = 0.1 * math.sqrt(1 / 3 + 1)
    assert ratio is not None and ratio.at_least and ratio.estimate.value == pytest.approx(1.4)
    assert ratio.p == pytest.approx(2 * student.cdf(-math.log(1.4) / error, 2))


def test_a_miss_at_the_end_of_a_shorter_horizon_bounds_nothing():
    fast = Costs([50, 51, 49], [True] * 3)
    ratio = speedup(Costs([40, 41, 46], [True, True, False]), fast)
    assert ratio is not None and not ratio.bound  # its runs spent 42.3, less than the other's
    assert ratio.estimate.value == pytest.approx(127 / 2 / 50)


def test_a_faster_entrant_that_missed_is_at_its_expected_cost():
    slow, fast = Costs([90, 100, 110], [True] * 3), Costs([48, 50, 52], [True, True, False])
    ratio = speedup(slow, fast)
    assert ratio is not None and not ratio.bound
    assert ratio.estimate.value == pytest.approx(100 / 75)  # it took 150 to reach twice
    # z = (48 / 50 - 3 / 2, 1 - 3 / 2, 52 / 50): sum 0, variance .8108
    a, b = 0.1**2 / 3, (0.54**2 + 0.5**2 + 1.04**2) / 2 / 3
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    assert ratio.p == pytest.approx(2 * student.cdf(-math.log(100 / 75) / math.sqrt(a + b), df))


def test_the_more_runs_miss_the_smaller_the_bound_on_the_slower_entrant():
    fast, reached = Costs([66, 68, 69, 71, 72], [True] * 5), [96, 97, 98, 99, 100]
    found = []
    for n in range(6):
        slow = Costs(reached[:n] + [104] * (5 - n), [True] * n + [False] * (5 - n))
        ratio = speedup(slow, fast)
        assert ratio is not None and ratio.p is not None and ratio.p < 0.001
        assert ratio.at_least == (n < 5)
        found.append(ratio.estimate.value)
    assert found == sorted(found, reverse=True)


def test_expected_cost_without_an_answer():
    assert expected_cost(Costs([100, 120], [False, False])) is None
    assert expected_cost(Costs([0, 0], [True, True])) is None  # met before the first step
    assert expected_cost(Costs([100], [True])) == Estimate(pytest.approx(100), None, None, 1)


def test_speedup_is_a_ratio_with_welch_satterthwaite_freedom():
    ratio = speedup(Costs([90, 100, 110], [True] * 3), Costs([48, 50, 52], [True] * 3))
    a, b = 0.1**2 / 3, 0.04**2 / 3  # squared standard errors of the two logarithms
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    half = student.ppf(0.975, df) * math.sqrt(a + b)
    assert ratio is not None
    low, high = 2 * math.exp(-half), 2 * math.exp(half)
    assert ratio.estimate == Estimate(*map(pytest.approx, (2, low, high)), 6)


def test_speedup_of_single_runs_and_of_seeds_that_never_differ():
    single = speedup(Costs([90, 100], [True] * 2), Costs([50], [True]))
    assert single is not None and single.p is None
    assert single.estimate == Estimate(pytest.approx(1.9), None, None, 3)
    same = speedup(Costs([100, 100], [True] * 2), Costs([50, 50], [True] * 2))
    assert same is not None and same.p == 0
    assert same.estimate == Estimate(*[pytest.approx(2)] * 3, 4)


def test_speedup_where_no_run_spent_anything():
    met_at_once, some = Costs([0, 0], [True] * 2), Costs([90, 100], [True] * 2)
    assert speedup(met_at_once, some) is None and speedup(some, met_at_once) is None


def coverage(trials: int, interval, truth: float) -> float:
    hits = 0
    for _ in range(trials):
        estimate = interval()
        hits += estimate.low <= truth <= estimate.high
    return hits / trials


def test_the_interval_of_a_cost_covers_its_truth():
    random = np.random.default_rng(1)

    def interval():
        return expected_cost(Costs(list(random.normal(100, 8, 5)), [True] * 5))

    assert 0.92 <= coverage(2000, interval, 100) <= 0.98


def test_the_interval_of_a_speedup_covers_its_truth():
    random = np.random.default_rng(2)

    def interval():
        slow, fast = random.normal(140, 10, 5), random.normal(100, 4, 5)
        return speedup(Costs(list(slow), [True] * 5), Costs(list(fast), [True] * 5)).estimate

    assert 0.92 <= coverage(2000, interval, 1.4) <= 0.98


def test_a_bound_is_seldom_above_the_truth_and_equals_seldom_differ():
    random = np.random.default_rng(3)
    wrong, bounds = 0, 0
    for _ in range(1500):
        slow, fast = random.normal(100, 5, 5), random.normal(100, 5, 5)
        missed = Costs(list(np.minimum(slow, 108)), list(slow <= 108))
        ratio = speedup(missed, Costs(list(fast), [True] * 5))
        assert ratio is not None and ratio.p is not None
        wrong += ratio.bound and ratio.p < 0.05
        bounds += ratio.bound
    assert bounds > 200 and wrong / 1500 < 0.03


def test_costs_are_what_was_spent():
    runs = [
        make_run(),
        make_run(status="missed", steps_to_target=None, seconds_to_target=None),
        make_run(status="diverged", steps=30, train_seconds=3.0, steps_to_target=None),
    ]
    assert costs(runs, "steps") == Costs([runs[0].steps_to_target, 100, 30], [True, False, False])
    assert costs(runs, "seconds").spent[1:] == [runs[1].train_seconds, 3.0]
    with pytest.raises(UserError, match="run muon-0 reached .* no tokens_to_target; run:"):
        costs([make_run(tokens_to_target=None)], "tokens")


def test_mean_and_deviation():
    estimate = mean([1.0, 2.0, 3.0])
    assert estimate == Estimate(
        2.0,
        pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6),
        pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6),
        3,
    )
    assert mean([7.0]) == Estimate(7.0, None, None, 1)
    assert deviation([1.0, 2.0, 3.0]) == 1.0
    assert deviation([7.0]) is None


def test_a_paired_test_says_which_losses_are_worse():
    # Differences .01, .02, .03: t = .02 / (.01 / sqrt(3)), p = .0371; without .03: t = 3, p = .102
    assert paired_worse([3.11, 3.52, 3.33], [3.1, 3.5, 3.3])
    assert not paired_worse([3.11, 3.52], [3.1, 3.5])
    assert not paired_worse([3.1, 3.5, 3.3], [3.11, 3.52, 3.33])
    assert not paired_worse([3.1, 3.5], [3.1, 3.5]) and not paired_worse([3.2], [3.1])
    assert paired_worse([math.inf], [3.1]) and paired_worse([3.0, math.inf], [3.1, 3.1])
    assert not paired_worse([math.inf, 3.0], [math.inf, 3.0]) and not paired_worse(
        [math.inf], [math.inf]
    )
    assert not paired_worse([3.0, 3.0], [math.inf, 3.1])


def test_one_sample():
    # t = (2 - 3) / (1 / sqrt(3)); the cdf for df = 2 is 1/2 + t / (2 sqrt(2 + t^2))
    t = -math.sqrt(3)
    assert one_sample([1.0, 2.0, 3.0], 3.0) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
    assert one_sample([1.0, 2.0, 3.0], 1.0) == pytest.approx(
        1 - one_sample([1.0, 2.0, 3.0], 3.0)  # as far above as below
    )
    assert one_sample([1.0], 3.0) is None


def test_a_mean_is_below_a_target_by_more_than_chance():
    # t = -.02 / (.01 / sqrt(3)) = -3.46, p = .0371; of -.05: t = -8.66, p = .0065
    assert mean_below_target([3.44, 3.45, 3.46], 3.5)
    assert not mean_below_target([3.47, 3.48, 3.49], 3.5)
    assert not mean_below_target([3.0], 3.5)  # a single run


def test_a_further_run_is_below_a_target_with_99_percent():
    # t(2) = 6.965 for one side of 1%; the room is 6.965 * .01 * sqrt(4 / 3) = .0804
    assert next_below_target([3.44, 3.45, 3.46], 3.531)
    assert not next_below_target([3.44, 3.45, 3.46], 3.530)
    assert not next_below_target([3.0], 3.5)  # a single run
    draw = random.Random(3).gauss
    samples = (([draw(0, 1) for _ in range(5)], draw(0, 1)) for _ in range(20_000))
    above = sum(next_below_target(values, further) for values, further in samples)
    assert above / 20_000 == pytest.approx(0.01, abs=0.003)  # how often a further one is too high


@pytest.mark.parametrize(
    ("losses", "expected", "passes"),
    [
        ([3.276], 0.004, True),  # a single run may count: exactly 0.004 below
        ([3.2761], 0.0039, False),
        ([3.277, 3.279, 3.276, 3.28], 0.004, True),  # mean 3.278: .002 * 2
        ([3.279] * 9, 0.003, False),  # .001 * 3
        ([3.279] * 16, 0.004, True),  # .001 * 4
        ([3.25, 3.3], 0.005 * math.sqrt(2), True),  # their own spread does not matter
        ([3.282] * 4, -0.004, False),  # as far above
        ([3.2, math.inf], -math.inf, False),  # one diverged
    ],
)
def test_the_rule_of_track_3(losses, expected, passes):
    assert track3_statistic(losses, 3.28) == pytest.approx(expected)
    assert counts_in_track3(losses, 3.28) is passes


def test_the_rule_of_track_3_on_the_losses_of_its_pull_request_312():
    digits = "765 965 675 978 961 999 696 746 929 910 1025 1060 822 837 969 966"
    losses = [3.27 + int(digit) / 1e5 for digit in digits.split()]
    assert track3_statistic(losses, 3.28) == pytest.approx(0.0042425) and counts_in_track3(
        losses, 3.28
    )
    assert not counts_in_track3(losses[:12], 3.28)  # 0.00373: more seeds decided it


def test_the_margin_of_track_3_is_a_p_of_a_thousandth():
    tail = math.erfc(TRACK3_MARGIN / TRACK3_SIGMA / math.sqrt(2)) / 2
    assert tail == pytest.approx(0.001, rel=0.05)
