"""How often the intervals of a step's price and of a ratio in seconds hold the true one: simulated.

    make bench-coverage        # about ten minutes on one core

Two entrants whose steps cost a known number of seconds take turns on a machine whose speed drifts,
and which something else disturbs for a random half of the time. `analysis.price` sees their turns
only. The steps that each run takes to the target are drawn too; the ratio in seconds follows from
both. Goal: 95% intervals that hold the truth in 93 to 97% of the races, whether the machine is
quiet or not. A second table is of the ratio in steps where runs miss the target. Nothing is timed
here, so the machine may be busy, and every computer gives the same tables. docs/rules.md shows
them, from coverage.csv and censored.csv in results/records/coverage.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from analysis.price import Duel, price
from analysis.stats import Costs, Estimate, Ratio, speedup
from bench import Row, run, write
from tracking.schema import Turn

STEP_SECONDS = 0.15
TURN_STEPS = 2
LONGER = 1.04  # the challenger's step over the baseline's, without work that returns
PERIOD = 10  # steps, of the work that returns
# Steps to the target of the baseline and of the challenger: the mean of a seed, and the deviation
# of its logarithm between seeds. About as in record 2026-11-26_tiny_duel.
TO_TARGET = (70.0, 0.042), (53.0, 0.017)


@dataclass(frozen=True)
class Machine:
    """What time does to a step on one machine."""

    name: str
    jitter: float = 0.015  # deviation of the logarithm of single steps
    drift: float = 0.01  # of a random walk of the logarithm of the speed, in one second
    disturbed: bool = False  # for a random half of the time, in bursts
    burst_seconds: tuple[float, float] = (1.0, 20.0)  # of a burst, and of a pause; log-uniform
    slower: float = 10.0  # most, in a burst; each step by its own factor, log-uniform from 1


QUIET = Machine("quiet")
DISTURBED = Machine("disturbed", disturbed=True)
STORMY = Machine("disturbed, drift of 5% a second", drift=0.05, disturbed=True)


@dataclass(frozen=True)
class Work:
    """What returns in an entrant's steps: nothing, or work every PERIOD steps."""

    name: str
    longer: float = 1.0  # a step with the work over a step without it
    with_first: bool = False  # in step 1, PERIOD + 1, ...; else in PERIOD, 2 PERIOD, ...
    all_first: bool = False  # also in each of the first PERIOD steps

    @property
    def periods(self) -> list[int]:
        """As `analysis.price.periods` finds them in the spelling of an entrant."""
        return [PERIOD] if self.longer > 1 else []

    def costs(self, steps: int) -> np.ndarray:
        """The cost of each step."""
        number = np.arange(1, steps + 1)
        has = number % PERIOD == (1 if self.with_first else 0)
        if self.all_first:
            has |= number <= PERIOD
        return np.where(has, self.longer, 1.0)


EVEN = Work("none")
LIKE_SOAP = Work("as SOAP's", 1.5, with_first=True)
LIKE_SHAMPOO = Work("as Shampoo's", 2.0, all_first=True)


@dataclass(frozen=True)
class Case:
    """Races that are simulated alike."""

    machine: Machine
    seeds: int
    rounds: int
    races: int
    baseline: Work = EVEN
    challenger: Work = EVEN


CASES = (
    *(Case(m, seeds, 27, 2000) for m in (QUIET, DISTURBED, STORMY) for seeds in (3, 5)),
    *(Case(m, 3, rounds, 1000) for m in (QUIET, DISTURBED) for rounds in (10, 250)),
    *(Case(m, 3, 2500, 200) for m in (QUIET, DISTURBED)),
    *(Case(m, 1, 27, 1000) for m in (QUIET, DISTURBED)),
    *(
        Case(m, 3, 27, 1000, challenger=work)
        for m in (QUIET, DISTURBED)
        for work in (LIKE_SOAP, LIKE_SHAMPOO)
    ),
    *(
        Case(m, 3, rounds, races, LIKE_SOAP, LIKE_SHAMPOO)
        for m in (QUIET, DISTURBED)
        for rounds, races in ((27, 1000), (250, 200))
    ),
)


def turn_seconds(
    machine: Machine, costs: Sequence[np.ndarray], races: int, rng: np.random.Generator
) -> np.ndarray:
    """Seconds of each turn of two entrants, in many races at once: (entrant, race, round).

    costs: of each step of each entrant. The order of the two is reversed in every other round.
    """
    rounds = len(costs[0]) // TURN_STEPS
    seconds = np.zeros((2, races, rounds))
    log_speed, in_burst = np.zeros(races), rng.random(races) < 0.5

    def spans() -> np.ndarray:
        shortest, longest = machine.burst_seconds
        return np.exp(rng.uniform(math.log(shortest), math.log(longest), races))

    left = spans() * rng.random(races)  # seconds of the burst or of the pause
    for number in range(rounds):
        for entrant in (0, 1) if number % 2 == 0 else (1, 0):
            for step in range(number * TURN_STEPS, (number + 1) * TURN_STEPS):
                logs = log_speed + machine.jitter * rng.standard_normal(races)
                if machine.disturbed:
                    logs += in_burst * rng.uniform(0, math.log(machine.slower), races)
                time = STEP_SECONDS * costs[entrant][step] * np.exp(logs)
                seconds[entrant, :, number] += time
                log_speed += machine.drift * np.sqrt(time) * rng.standard_normal(races)
                left -= time
                in_burst ^= left <= 0
                left = np.where(left <= 0, spans(), left)
    return seconds


@dataclass(frozen=True)
class Outcome:
    """What was found in the races of a case, with the true price."""

    true: float
    found: Sequence[Estimate]
    true_ratio: float  # in seconds, the baseline's over the challenger's
    ratios: Sequence[Estimate]
    mean_of_pairs: np.ndarray  # instead of the median: the exponential of the mean logarithm
    of_clocks: np.ndarray  # the ratio of all seconds

    @property
    def coverage(self) -> float:
        """The share of the intervals that hold the true price."""
        return _coverage(self.found, self.true)

    @property
    def coverage_of_ratio(self) -> float | None:
        """The share of the intervals that hold the true ratio in seconds; None for one seed."""
        has_intervals = self.ratios[0].low is not None
        return _coverage(self.ratios, self.true_ratio) if has_intervals else None

    def error(self, found: np.ndarray) -> float:
        """The root of the mean square of an estimate's relative error."""
        return float(np.sqrt(np.mean((found / self.true - 1) ** 2)))


def _coverage(found: Sequence[Estimate], true: float) -> float:
    inside = [e.low is not None and e.high is not None and e.low <= true <= e.high for e in found]
    return float(np.mean(inside))


def simulate(case: Case, seed: int = 0) -> Outcome:
    """The races of a case."""
    rng, steps = np.random.default_rng(seed), case.rounds * TURN_STEPS
    costs = case.baseline.costs(steps), LONGER * case.challenger.costs(steps)
    by_seed = [turn_seconds(case.machine, costs, case.races, rng) for _ in range(case.seeds)]
    # Numbers of their own, so that the turns do not depend on them.
    normal = np.random.default_rng((seed, 1)).standard_normal((case.races, 2, case.seeds))
    found, ratios = [], []
    for race in range(case.races):
        duels = [Duel(TURN_STEPS, *map(_turns, seconds[:, race])) for seconds in by_seed]
        estimate = price(duels, case.baseline.periods, case.challenger.periods)
        assert estimate is not None
        found.append(estimate)
        baseline, challenger = (
            Costs((mean * np.exp(deviation * each)).tolist(), [True] * case.seeds)
            for (mean, deviation), each in zip(TO_TARGET, normal[race], strict=True)
        )
        ratio = speedup(baseline, challenger, estimate)
        assert ratio is not None
        ratios.append(ratio.estimate)
    whole = np.concatenate(by_seed, axis=2)
    true = float(costs[1].mean() / costs[0].mean())
    # `speedup` compares mean steps; the mean of such a distribution is above its median.
    means = [mean * math.exp(deviation**2 / 2) for mean, deviation in TO_TARGET]
    return Outcome(
        true=true,
        found=found,
        true_ratio=means[0] / means[1] / true,
        ratios=ratios,
        mean_of_pairs=np.exp((np.log(whole[1]) - np.log(whole[0])).mean(axis=1)),
        of_clocks=whole[1].sum(axis=1) / whole[0].sum(axis=1),
    )


def _turns(seconds: np.ndarray) -> list[Turn]:
    return [Turn(number, TURN_STEPS, each) for number, each in enumerate(seconds.tolist())]


def row(case: Case, outcome: Outcome) -> Row:
    """A line of the table."""
    of_ratio = outcome.coverage_of_ratio
    widths = [e.high / e.low for e in outcome.found if e.low is not None and e.high is not None]
    return {
        "machine": case.machine.name,
        "returning work": f"{case.baseline.name} / {case.challenger.name}",
        "seeds": case.seeds,
        "rounds": case.rounds,
        "races": case.races,
        "coverage": f"{outcome.coverage:.1%}",
        "coverage, ratio in seconds": "" if of_ratio is None else f"{of_ratio:.1%}",
        "half an interval": f"{math.sqrt(float(np.median(widths))) - 1:.2%}",
        "error": f"{outcome.error(np.array([e.value for e in outcome.found])):.2%}",
        "error of the mean of pairs": f"{outcome.error(outcome.mean_of_pairs):.2%}",
        "error of the clocks' ratio": f"{outcome.error(outcome.of_clocks):.2%}",
    }


@dataclass(frozen=True)
class Misses:
    """Races in which some runs of one entrant or of both end before they reach the target."""

    seeds: int
    baseline: float = 0.0  # share of the baseline's runs that miss
    challenger: float = 0.0
    races: int = 4000


MISSES = tuple(
    Misses(seeds, *shares)
    for seeds in (5, 20)
    for shares in ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.1), (0.0, 0.3), (0.3, 0.3))
)


def censored_row(case: Misses, seed: int = 0) -> Row:
    """How often the ratio in steps says the truth where runs miss.

    The horizon of an entrant is such that its share of runs misses. There are two truths: the ratio
    of the steps that the target takes on average if no schedule ends, and the ratio of the expected
    costs, which charges the runs that miss. A bound is only wrong on one side.
    """
    rng = np.random.default_rng((seed, 2))
    needed, expected, drawn = [], [], []
    for (mean, sd), missing in zip(TO_TARGET, (case.baseline, case.challenger), strict=True):
        late = float(norm.isf(missing))  # infinite if no run misses
        horizon = mean * math.exp(sd * late)
        steps = mean * np.exp(sd * rng.standard_normal((case.races, case.seeds)))
        needed.append(mean * math.exp(sd**2 / 2))
        # The mean of a log-normal number where it is below the horizon; the horizon elsewhere.
        spent = needed[-1] * float(norm.cdf(late - sd)) + (missing * horizon if missing else 0)
        expected.append(spent / (1 - missing))
        drawn.append((np.minimum(steps, horizon), steps <= horizon))
    ratios = []
    for race in range(case.races):
        a, b = (Costs(spent[race].tolist(), met[race].tolist()) for spent, met in drawn)
        ratio = speedup(a, b)
        if ratio is not None and ratio.estimate.low is not None:
            ratios.append(ratio)

    def share(flags: list[bool]) -> str:
        return f"{sum(flags) / len(ratios):.1%}"

    true, of_costs = needed[0] / needed[1], expected[0] / expected[1]
    return {
        "seeds": case.seeds,
        "AdamW's misses": f"{case.baseline:.0%}",
        "Muon's misses": f"{case.challenger:.0%}",
        "races": case.races,
        "bounds": share([ratio.bound for ratio in ratios]),
        "no interval": f"{1 - len(ratios) / case.races:.1%}",
        "too high": share([_above(ratio, true) for ratio in ratios]),
        "too low": share([_above(ratio.inverse(), 1 / true) for ratio in ratios]),
        "too high for expected costs": share([_above(ratio, of_costs) for ratio in ratios]),
        "too low for expected costs": share(
            [_above(ratio.inverse(), 1 / of_costs) for ratio in ratios]
        ),
    }


def _above(ratio: Ratio, true: float) -> bool:
    """Whether all of an interval is above the truth. An upper bound never claims that."""
    return not ratio.at_most and ratio.estimate.low is not None and ratio.estimate.low > true


def measure_all() -> None:
    """Measure, and write the rows."""
    write("censored", [censored_row(case) for case in MISSES], {})
    write("coverage", [row(case, simulate(case)) for case in CASES], {"turn_steps": TURN_STEPS})


def main() -> int:
    """Run the command; its exit code."""
    return run("coverage", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
