"""The rules of significance and the numbers of seeds, against scipy, statsmodels and track 3."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis import along, power
from analysis.along import Curve
from analysis.stats import (
    TRACK3_MARGIN,
    TRACK3_SLOPE,
    Costs,
    Mean,
    beats_in_track3,
    cheaper,
    counts_in_track3,
    deviation,
    differ,
    holm,
    lower,
    min_detectable_difference,
    one_sample,
    pairwise_track3,
    pooled_deviation,
    speedup,
    track3_statistic,
)
from tests.rows import entrant
from tracking import store

RANDOM = np.random.default_rng(11)
SAMPLES = [(RANDOM.normal(3.28, 0.01, n), RANDOM.normal(3.285, 0.02, m)) for n, m in
           ((2, 2), (3, 9), (10, 4), (40, 25))]  # fmt: skip


# ---- Against other libraries -------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), SAMPLES)
def test_the_tests_are_those_of_scipy(a, b):
    assert differ(a, b) == pytest.approx(scipy_stats.ttest_ind(a, b, equal_var=False).pvalue)
    one_sided = scipy_stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue
    assert lower(a, b) == pytest.approx(one_sided) and lower(b, a) == pytest.approx(1 - one_sided)
    below = scipy_stats.ttest_1samp(a, 3.29, alternative="less").pvalue
    assert one_sample(a, 3.29) == pytest.approx(below)


@pytest.mark.parametrize(("a", "b"), SAMPLES)
def test_the_interval_of_a_speedup_is_that_of_statsmodels(a, b):
    # The logarithms of costs that are alike: the delta method and the mean of logarithms agree.
    a, b = 70 * np.exp(1e-4 * a), 50 * np.exp(1e-4 * b)
    ratio = speedup(Costs(a, [True] * len(a)), Costs(b, [True] * len(b)))
    assert ratio is not None
    logs = CompareMeans(DescrStatsW(np.log(a)), DescrStatsW(np.log(b)))
    low, high = logs.tconfint_diff(usevar="unequal")
    wide = math.log(ratio.estimate.high / ratio.estimate.low)
    assert wide == pytest.approx(high - low, rel=1e-3)
    assert math.log(ratio.estimate.low) == pytest.approx(low, abs=1e-8)


def test_the_correction_for_many_tests_is_that_of_statsmodels():
    for n in (1, 2, 7, 40):
        p_values = RANDOM.uniform(0, 0.2, n).tolist()
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert holm([0.02, 0.02, 0.5]) == pytest.approx([0.06, 0.06, 0.5])


@pytest.mark.parametrize("sd", [0.002, 0.0168])
@pytest.mark.parametrize("difference", [0.01, 0.004])
def test_the_seeds_of_a_pair_are_those_of_statsmodels(sd, difference):
    for alpha, goal in ((0.05, 0.8), (0.01, 0.9)):
        n = power.seeds_needed(difference, sd, alpha, goal)
        assert n is not None and min_detectable_difference(n, sd, alpha, goal) <= difference
        assert n == 2 or min_detectable_difference(n - 1, sd, alpha, goal) > difference
        # Student's test knows that the deviations are equal. Welch's does not: a seed more at most.
        student = TTestIndPower().solve_power(difference / sd, alpha=alpha, power=goal)
        assert 0 <= n - float(np.ravel(student)[0]) < 2.1


@pytest.mark.parametrize(("margin", "sd"), [(0.01, 0.0168), (0.01, 0.008), (0.001, 0.0013)])
def test_the_seeds_below_a_target_are_those_of_statsmodels(margin, sd):
    for alpha, goal in ((0.01, 0.8), (0.05, 0.95)):
        n = power.seeds_below_target(margin, sd, alpha, goal)
        exact = TTestPower().solve_power(margin / sd, alpha=alpha, power=goal, alternative="larger")
        assert n == math.ceil(float(np.ravel(exact)[0]))


def test_the_seeds_at_the_edges():
    assert power.seeds_needed(0.01, 0.0) == power.seeds_below_target(0.01, 0.0) == 2
    assert power.seeds_needed(1e-9, 1.0) is power.seeds_below_target(1e-9, 1.0) is None
    assert power.seeds_needed(0.5, 1e-4) == 2  # Welch's test needs two
    assert power.seeds_needed(-0.01, 0.0168) == power.seeds_needed(0.01, 0.0168)
    large = power.seeds_needed(3e-4, 0.0168)  # by the normal distribution: 2 (2.8 sd / 3e-4)²
    assert large == pytest.approx(2 * (2.80159 * 0.0168 / 3e-4) ** 2, rel=1e-3)


def test_the_seeds_of_track_3_find_what_they_should():
    # One run is enough at 3.276 without noise. With noise of .0013, 3.2778 takes more than four.
    assert power.seeds_in_track3(0.004, 0.0) == 1 and power.seeds_in_track3(0.002, 0.0) == 4
    assert power.seeds_in_track3(1e-6, 0.0013) is None
    n = power.seeds_in_track3(0.0022, 0.0013)
    assert n is not None
    means = np.random.default_rng(4).normal(3.2778, 0.0013, (20_000, n)).mean(axis=1)
    assert 0.8 <= np.mean((3.28 - means) * math.sqrt(n) >= TRACK3_MARGIN) < 0.9


# ---- The rules of track 3 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "standing", "steps_fewer", "expected", "better"),
    [  # the examples of records/track_3_optimization/README.md
        ((3.2785, 10), (3.2785, 16), 15, 0.00167, False),  # 13 against 11
        ((3.2785, 10), (3.2785, 16), -40, -0.00447, False),
        ((3.2790, 20), (3.2788, 20), 50, 0.00648, True),  # 12 against 6
        ((3.2784, 8), (3.2790, 4), 0, 0.00098, False),  # 16 against 14, at the same step
        ((3.2785, 10), (3.2778, 16), 40, 0.0027, False),  # 13 against 8
    ],
)
def test_the_worked_examples_of_track_3(new, standing, steps_fewer, expected, better):
    found = pairwise_track3(Mean(*new), Mean(*standing), steps_fewer)
    assert found == pytest.approx(expected, abs=6e-5)
    assert beats_in_track3(Mean(*new), Mean(*standing), steps_fewer) is better
    back = pairwise_track3(Mean(*standing), Mean(*new), -steps_fewer)
    assert back == pytest.approx(-found)


def test_a_loss_is_worth_the_steps_that_track_3_says():
    assert pytest.approx(156, abs=0.5) == 0.0070 / TRACK3_SLOPE  # 3.2720 against 3.2790
    assert pytest.approx(31, abs=0.5) == 0.0014 / TRACK3_SLOPE  # result 11 against the prior record


def test_pull_request_340_is_better_than_the_baseline_at_the_same_step():
    assert pairwise_track3(Mean(3.27881, 8), Mean(3.28087, 10)) == pytest.approx(4.34e-3, abs=3e-5)
    assert beats_in_track3(Mean(3.27881, 8), Mean(3.28087, 10))


def test_means_and_values_give_the_same_statistic():
    losses = [3.277, 3.279, 3.276, 3.28]
    assert Mean.of(losses) == Mean(pytest.approx(3.278), 4)
    assert track3_statistic(Mean.of(losses), 3.28) == track3_statistic(losses, 3.28)
    assert counts_in_track3(Mean(3.276, 1), 3.28) and not counts_in_track3(Mean(3.279, 9), 3.28)
    assert beats_in_track3(Mean(3.274, 2), Mean(3.278, 2))  # exactly at the margin
    assert not beats_in_track3(Mean(math.inf, 2), Mean(3.278, 2))


# ---- Better than the standing record -----------------------------------------------------------


def test_a_diverged_run_is_never_better():
    assert lower([3.2, 3.2, math.inf], [3.3, 3.3]) == 1.0
    assert lower([3.2, 3.21], [3.3, math.inf]) is None and lower([3.2], [3.3, 3.4]) is None
    assert lower([3.2, 3.2], [3.3, 3.3]) == 0.0 and lower([3.3, 3.3], [3.3, 3.3]) == 0.5


def test_a_cheaper_entrant_is_found_by_the_test_of_its_ratio():
    new, old = Costs([50, 51, 53], [True] * 3), Costs([60, 61, 66], [True] * 3)
    both = speedup(old, new)
    assert both is not None and both.p is not None
    assert cheaper(new, old) == pytest.approx(both.p / 2) and both.p / 2 < 0.05
    assert cheaper(old, new) == pytest.approx(1 - both.p / 2)
    # What is censored is not dropped: a miss of the standing record is a bound on it.
    missed = Costs([60, 61, 66], [True, True, False])
    assert cheaper(new, missed) == pytest.approx(both.p / 2)
    assert cheaper(missed, old) is not None and cheaper(missed, old) > 0.5
    assert cheaper(Costs([40, 40], [False] * 2), Costs([50, 50], [False] * 2)) is None
    assert cheaper(Costs([50], [True]), old) is None


# ---- Along the curves --------------------------------------------------------------------------


def test_the_speedup_along_two_curves_is_the_ratio_of_their_steps():
    slow = Curve([0, 10, 20, 40], [6.0, 5.0, 4.5, 3.5])
    fast = Curve([0, 10, 20], [6.0, 4.0, 3.0])
    found = dict(along.speedups([slow], [fast], along.new_minima(fast)))
    assert {loss: r.estimate.value for loss, r in found.items()} == {
        4.0: pytest.approx(30 / 10),  # halfway from 4.5 down to 3.5
        3.0: pytest.approx(40 / 20),  # a bound: the slow one never met it
    }
    assert found[3.0].at_least and not found[4.0].bound and found[4.0].p is None
    assert along.speedups([slow], [fast], [6.0, 6.5]) == []  # there at the first validation


def test_a_noisy_curve_is_read_as_if_it_never_rose():
    random = np.random.default_rng(5)
    losses = (6 - 0.02 * np.arange(100) + random.normal(0, 0.1, 100)).tolist()
    curve = Curve(list(range(0, 1000, 10)), losses)
    minima = along.new_minima(curve)
    assert minima == sorted(set(np.minimum.accumulate(losses)), reverse=True)
    costs = [along.costs_of_loss([curve], loss) for loss in np.linspace(5.7, 4.2, 200)]
    spent = [cost.spent[0] for cost in costs if cost is not None]
    assert len(spent) == 200 and spent == sorted(spent)


def test_a_run_that_never_met_the_loss_is_kept():
    runs = [Curve([0, 10, 20], [6.0, 4.0, last]) for last in (3.0, 3.5)]
    assert along.costs_of_loss(runs, 3.2) == Costs([pytest.approx(18), 20], [True, False])
    assert along.costs_of_loss([*runs, Curve([], [])], 3.2) is None
    assert along.costs_of_loss([], 3.2) is None


def test_the_interval_along_curves_covers_its_truth():
    # A run is slower than the mean of its optimizer by a factor of its own, at every loss alike.
    random, steps, held = np.random.default_rng(6), np.arange(0, 201, 5), 0
    for _ in range(600):
        slow, fast = (
            [Curve((steps * f).tolist(), (6 - 1.5e-2 * steps).tolist()) for f in factors]
            for factors in (random.normal(1.3, 0.08, 5), random.normal(1.0, 0.03, 5))
        )
        ((_, ratio),) = along.speedups(slow, fast, [4.01])
        low, high = ratio.estimate.low, ratio.estimate.high
        assert low is not None and high is not None
        held += low <= 1.3 <= high
    assert 0.92 <= held / 600 <= 0.98


# ---- The command -------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with two records; the older one has the most seeds."""
    monkeypatch.setattr("host.paths.RESULTS", tmp_path)
    duel = entrant("adamw", [70.0, 72.0, 75.0]) + entrant("muon", [50.0, 51.0, 52.0])
    for i, run in enumerate(duel):
        loss = [3.40, 3.41, 3.43, 3.39, 3.395, 3.40][i]
        store.append(tmp_path / "records/duel/runs.csv", replace(run, final_loss=loss))
    for run in entrant("adamw", [70.0]) + entrant("lion", [50.0]):
        store.append(tmp_path / "records/alone/runs.csv", run)
    return tmp_path


def test_the_command_says_the_seeds_of_each_entrant(results, capsys):
    assert power.main(["--difference", "0.01", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "entrant"
    cells = [re.split(r"  +", line.strip()) for line in lines[1:7]]
    assert [(c[0], c[1]) for c in cells] == [
        (name, d) for name in ("adamw", "muon", "all, pooled") for d in ("0.01", "0.05")
    ]
    losses = [3.40, 3.41, 3.43], [3.39, 3.395, 3.40]
    sd = deviation(losses[0])
    assert sd is not None and cells[0][2] == f"{sd:.4f}"
    assert cells[0][3] == str(power.seeds_needed(0.01, sd))
    assert cells[0][4] == str(power.seeds_below_target(0.01, sd))
    of_steps = deviation([math.log(n) for n in (70, 72, 75)])
    assert of_steps is not None and cells[1][5] == f"{of_steps:.2%}"
    assert cells[1][6] == str(power.seeds_needed(math.log(1.05), of_steps))
    assert cells[4][2] == f"{pooled_deviation(losses):.4f}"
    assert "race tiny-1" in lines[-1] and "one-sided, p < 0.01" in lines[-1]


def test_the_command_takes_the_users_newest_race_first(results, capsys):
    for run in entrant("signum", [60.0, 61.0]):
        store.append(results / "runs.csv", replace(run, race="mine", track="gpt2"))
    assert power.main([]) == 0
    printed = capsys.readouterr().out
    assert "signum" in printed and "race mine" in printed and "the rule of track 3" in printed
    assert power.main(["--record", "duel", "--entrant", "muon"]) == 0
    printed = capsys.readouterr().out
    assert "muon" in printed and "adamw" not in printed and "pooled" not in printed
    assert power.main(["--sd", "0.0168"]) == 0
    assert f"  {power.seeds_needed(0.01, 0.0168)}  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--difference", "0"], "--difference 0: must be above 0; run with --difference 0.01"),
        (["--difference", "0.01", "nan"], "--difference nan: must be above 0"),
        (["--sd", "-1"], "--sd -1: must be above 0"),
        (["--sd", "inf"], "--sd inf: must be above 0"),
        (["--alpha", "1"], "--alpha 1: must be between 0 and 1; run with --alpha 0.05"),
        (["--power", "0.04"], "--power 0.04: must be above --alpha 0.05"),
        (["--sd", "1", "--record", "duel"], "--sd: is in place of a race; leave out --record"),
        (["--record", "due"], "no record 'due' in results/records; known records: alone, duel"),
        (["--record", "duel", "--entrant", "soap"], "race tiny-1 has adamw, muon; name one"),
        (["--record", "duel", "--race", "x"], "no race 'x' in runs.csv"),
        (["--record", "alone"], "race tiny-1 has one run of each entrant, so no deviation"),
    ],
)
def test_a_mistake_is_one_message(results, capsys, words, message):
    assert power.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_a_results_folder_without_a_race_is_one_message(results, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("host.paths.RESULTS", tmp_path / "none")
    assert power.main([]) == 2
    assert "has no race; run: make speedrun, or give --sd" in capsys.readouterr().err
