"""Hours of a run in which GPUs fail: how often is drawn from an exponential distribution.

    run_hours(1000.0, cluster).expected

A failure of one GPU stops all. Then `restart_minutes` go by, with the work lost, in which a failure
begins the restart again. With r failures an hour and restarts of s hours, U useful hours take
U exp(r s) on average: each of the r U failures costs (exp(r s) - 1) / r.
"""

import math
from dataclasses import dataclass

import numpy as np

from errors import UserError
from planner.cluster.clusters import Cluster

MOST = 3.0  # restarts, in mean times between failures: beyond it a run hardly gets ahead


@dataclass(frozen=True)
class Hours:
    """Hours of a run with its failures."""

    expected: float
    low: float  # 5% of the runs take less
    median: float
    high: float  # 5% of the runs take more


def _rates(cluster: Cluster) -> tuple[float, float]:
    """Failures an hour, and hours of a restart. Raises UserError if the run never ends."""
    rate = cluster.ranks / cluster.gpu_hours_per_failure
    restart = cluster.restart_minutes / 60
    if rate * restart > MOST:
        raise UserError(
            f"--restart-minutes {cluster.restart_minutes:g}: {cluster.ranks:,} GPUs fail every "
            f"{60 / rate:.3g} minutes, so restarts must take at most {MOST * 60 / rate:.3g}; run "
            "with fewer --restart-minutes or more --gpu-hours-per-failure"
        )
    return rate, restart


def expected_hours(useful_hours: float, cluster: Cluster) -> float:
    """Hours that a run takes on average. Raises UserError if failures come too fast."""
    rate, restart = _rates(cluster)
    return useful_hours * math.exp(rate * restart)


def run_hours(useful_hours: float, cluster: Cluster, seed: int = 0, draws: int = 1000) -> Hours:
    """Draw runs. Raises UserError if failures come too fast."""
    rate, restart = _rates(cluster)
    random = np.random.default_rng(seed)
    failures = random.poisson(rate * useful_hours, draws)
    hours = np.full(draws, useful_hours) + failures * restart
    survives = math.exp(-rate * restart)
    # Restarts that a failure ends: geometric for each failure, so negative binomial for all of a
    # run. Each takes an exponential time, given that it is shorter than a restart.
    broken = np.zeros(draws, dtype=np.int64)
    some = failures > 0
    broken[some] = random.negative_binomial(failures[some], survives)
    uniform = random.random(int(broken.sum()))
    lost = -np.log1p(-uniform * (1 - survives)) / rate
    np.add.at(hours, np.repeat(np.arange(draws), broken), lost)
    low, median, high = (float(each) for each in np.quantile(hours, (0.05, 0.5, 0.95)))
    return Hours(expected_hours(useful_hours, cluster), low, median, high)
