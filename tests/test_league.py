"""The league of a race of many: pairs, their correction, what seeds can show, and the table."""

import math
import random
from collections.abc import Callable

import pytest
from scipy.stats import t as student

from analysis import league, report
from analysis.pairs import Pairs, detectable_differences
from analysis.price import NO_TURNS
from analysis.stats import (
    Costs,
    differ,
    holm,
    iso_loss,
    min_detectable_difference,
    pooled_deviation,
    speedup,
)
from analysis.table import by_label
from tests.rows import entrant, make_run
from tracking.schema import Run

REACHED = [True] * 3


def test_holm_steps_down_and_never_decreases() -> None:
    # 4 * .005, 3 * .01, 2 * .03; then 1 * .04 is below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_holm_keeps_the_error_of_the_family() -> None:
    draw = random.Random(5).random
    wrong = sum(min(holm([draw() for _ in range(20)])) < 0.05 for _ in range(4000))
    assert wrong / 4000 == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("n", "power", "difference"),
    [
        (20, 0.8689528, 1.0),  # power.t.test(n = 20, delta = 1), in the manual of R
        (22.02110, 0.9, 1.0),  # power.t.test(power = .90, delta = 1), the same
        (64, 0.8014596, 0.5),  # Cohen's medium effect: 64 a group for 80%
    ],
)
def test_the_detectable_difference_is_nearly_that_of_published_power(
    n: int, power: float, difference: float
) -> None:
    # Those are of Student's test: Welch's finds a little less, the less the more values there are.
    assert 0 < min_detectable_difference(n, 1.0, 0.05, power) / difference - 1 < 0.04 / n
    assert min_detectable_difference(n, 0.02, 0.05, power) == pytest.approx(
        0.02 * min_detectable_difference(n, 1.0, 0.05, power)
    )


@pytest.mark.parametrize(("n", "alpha"), [(5, 0.05), (5, 0.05 / 120), (3, 0.05)])
def test_a_detectable_difference_is_detected_as_often_as_said(n: int, alpha: float) -> None:
    draw, found = random.Random(2), 0
    shift = min_detectable_difference(n, 1.0, alpha)
    for _ in range(3000):
        p = differ(*([draw.gauss(m, 1) for _ in range(n)] for m in (0, shift)))
        found += p is not None and p < alpha
    assert found / 3000 == pytest.approx(0.8, abs=0.025)


def test_deviation_is_pooled_within_groups() -> None:
    # Squares 2 and 8 around their own means, over 2 + 2 degrees of freedom; a single adds nothing.
    assert pooled_deviation([[1, 2, 3], [14, 16, 18], [99]]) == pytest.approx(math.sqrt(10 / 4))
    assert pooled_deviation([[1.0], []]) is None


def test_a_pair_is_tested_on_the_logarithm_of_its_costs() -> None:
    slow, fast = Costs([90, 100, 110], REACHED), Costs([48, 50, 52], REACHED)
    ratio = speedup(slow, fast)
    assert ratio is not None and not ratio.bound
    a, b = 0.1**2 / 3, 0.04**2 / 3
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    assert ratio.p == pytest.approx(2 * student.cdf(-math.log(2) / math.sqrt(a + b), df))
    back = speedup(fast, slow)
    assert back is not None and back.estimate.value == pytest.approx(0.5)
    assert back.p == pytest.approx(ratio.p) and not ratio.at_least
    single = speedup(slow, Costs([50], [True]))
    assert single is not None and single.p is None


def test_an_entrant_that_never_reaches_has_a_bound_with_the_others_spread() -> None:
    missed, fast = Costs([140.0] * 4, [False] * 4), Costs([90, 100, 110], REACHED)
    ratio = speedup(missed, fast)
    assert ratio is not None and ratio.bound and ratio.at_least and not ratio.at_most
    assert ratio.estimate.value == pytest.approx(1.4)
    error = 0.1 * math.sqrt(1 / 3 + 1 / 4)
    assert ratio.p == pytest.approx(2 * student.cdf(-math.log(1.4) / error, 2))
    back = speedup(fast, missed)
    assert back is not None and back.bound and back.at_most and back.p == pytest.approx(ratio.p)


def test_a_shorter_run_that_missed_decides_nothing() -> None:
    missed, fast = Costs([95.0] * 3, [False] * 3), Costs([90, 100, 110], REACHED)
    assert speedup(missed, fast) is None and speedup(fast, missed) is None
    assert speedup(missed, missed) is None


def test_iso_loss_interpolates_in_the_logarithm_of_the_horizon() -> None:
    losses = {50: [4.0, 4.2], 100: [3.8, 4.0], 200: [3.6, 3.6]}
    steps = iso_loss(losses, [3.7, 3.8])
    assert steps is not None and steps.n == 6
    assert steps.value == pytest.approx(100 * 2 ** ((3.9 - 3.75) / 0.3))  # half of an octave
    # Slope -.3 / ln 2; variances .01, .02 and 0 over 2 runs each, weights 1, 1/2 and 1/2
    v = [(k * math.log(2) / 0.3) ** 2 * s / 2 for k, s in ((1, 0.005), (0.5, 0.02), (0.5, 0.0))]
    df = sum(v) ** 2 / sum(x**2 for x in v)
    half = student.ppf(0.975, df) * math.sqrt(sum(v))
    assert steps.high == pytest.approx(steps.value * math.exp(half))
    assert iso_loss(losses, [4.1]).value == pytest.approx(50)  # type: ignore[union-attr]
    assert iso_loss(losses, [3.5]) is None and iso_loss(losses, [4.3]) is None


def crowd() -> list[Run]:
    """Muon is ahead of AdamW beyond doubt, Lion by less than the seeds carry; the rest fail."""
    runs = entrant("adamw", [69.0, 70.0, 71.0]) + entrant("lion", [66.0, 68.0, 70.0])
    runs += entrant("muon", [49.0, 50.0, 51.0]) + entrant("sgd", [None, None, None])
    broken = entrant("shampoo", [None, None, None])
    return runs + [
        make_run(
            label="shampoo", entrant="shampoo", run=run.run, seed=run.seed, status="diverged",
            steps=20, tokens=81920, final_loss=None, steps_to_target=None, tokens_to_target=None,
            seconds_to_target=None, train_seconds=2.0,
        )
        for run in broken
    ]  # fmt: skip


def test_every_pair_is_corrected_for_all_of_them() -> None:
    groups = by_label(crowd())
    pairs = Pairs(groups, "steps", NO_TURNS)
    assert pairs.family == 10  # pairs without a test too
    assert pairs.of("adamw", "shampoo").p is None and pairs.of("sgd", "shampoo").p is None
    won, lost = pairs.of("adamw", "muon"), pairs.of("muon", "adamw")
    assert won.distinct and won.p == lost.p
    assert won.ratio and lost.ratio
    assert won.ratio.estimate.value == pytest.approx(1 / lost.ratio.estimate.value)
    raw = speedup(*(Costs([r.steps_to_target or 0 for r in groups[k]], REACHED)
                    for k in ("adamw", "lion")))  # fmt: skip
    assert raw is not None and raw.p is not None
    bound = speedup(Costs([100.0] * 3, [False] * 3), Costs([49.0, 50.0, 51.0], REACHED))
    least = pairs.of("sgd", "muon")
    assert bound is not None and bound.p is not None and least.p is not None
    assert least.p >= 4 * bound.p  # at most six of ten have a smaller one
    alike = pairs.of("adamw", "lion")
    assert alike.p is not None and raw.p <= alike.p and not alike.distinct
    assert pairs.of("adamw", "sgd").distinct  # 100 steps were not enough, 70 are
    assert pairs.of("adamw", "shampoo").ratio is None


def test_the_verdicts_name_whom_the_tests_tell_apart_from_adamw_and_from_muon() -> None:
    table = league.verdicts(crowd(), NO_TURNS).splitlines()
    assert table[0].startswith("| target in | shown to need less | shown to need more | not dist")
    assert table[2:] == [
        "| steps, against AdamW | Muon | SGD | Lion, Shampoo |",
        "| seconds, against AdamW | Muon | SGD | Lion, Shampoo |",
        "| steps, against Muon | - | Lion, AdamW, SGD | Shampoo |",
        "| seconds, against Muon | - | Lion, AdamW, SGD | Shampoo |",
    ]


def test_a_gain_of_one_pair_does_not_survive_among_many() -> None:
    gain = entrant("adamw", [70.0, 71.0, 72.0, 70.5]) + entrant("lion", [67.5, 70.0, 68.5, 68.0])
    (alone,) = report.sentences(gain, NO_TURNS)
    assert "not distinguishable" not in alone
    crowded = gain + [r for i in range(6) for r in entrant(f"x{i}", [69.0 + i / 9, 70, 71, 72])]
    sentence = report.sentence(crowded, NO_TURNS, challenger="lion")
    assert sentence.count(": not distinguishable among 28 pairs (p = ") == 2


def test_the_table_keeps_entrants_that_missed_or_diverged() -> None:
    text = league.markdown(crowd(), NO_TURNS)
    table = [line for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [line[0] for line in lines[2:]] == ["muon", "lion", "adamw", "sgd", "shampoo"]
    cells = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert cells["adamw"]["AdamW's seconds over its own"] == "1"
    assert cells["muon"]["AdamW's seconds over its own"].startswith("1.40x [1.3")
    assert cells["lion"]["AdamW's steps over its own"].endswith("], not distinguishable")
    assert cells["sgd"]["reached/missed/diverged"] == "0/3/0 missed"
    assert cells["sgd"]["steps to target"] == "over 100.0"
    assert cells["sgd"]["AdamW's steps over its own"] == "under 0.70x"
    assert cells["shampoo"]["reached/missed/diverged"] == "0/0/3 diverged"
    assert cells["shampoo"]["AdamW's seconds over its own"] == "-"


def test_the_league_reads_as_reviewed(golden: Callable[[str, str], None]) -> None:
    duel = entrant("adamw", [90.0, 110.0]) + entrant("muon", [45.0, 55.0])
    texts = [league.text(crowd(), NO_TURNS), league.markdown(crowd(), NO_TURNS), *map(
        league.detectable_note, (crowd(), duel, entrant("adamw", [50.0]))
    )]  # fmt: skip
    golden("league", "\n\n".join(texts) + "\n")


def test_what_the_seeds_can_show_follows_from_their_spread() -> None:
    runs = entrant("adamw", [90.0, 110.0]) + entrant("muon", [45.0, 55.0])
    steps, _, loss = detectable_differences(by_label(runs))
    sd = math.log(110 / 90) / math.sqrt(2)
    assert steps.deviation == pytest.approx(sd)
    assert steps.single_pair == pytest.approx(math.expm1(min_detectable_difference(2, sd)))
    assert steps.among_all == pytest.approx(steps.single_pair)  # one pair
    assert loss.deviation == loss.single_pair == 0  # these rows share their loss
    strict = detectable_differences(by_label(runs + entrant("lion", [90.0, 110.0])))[0]
    assert strict.among_all == pytest.approx(math.expm1(min_detectable_difference(2, sd, 0.05 / 3)))
