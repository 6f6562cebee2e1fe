"""The results of track 3 (modded-nanogpt's optimization track), recomputed from their curves.

    for verdict in claims.verdicts(published.load()): ...

A claim is a mean validation loss of n runs at one step. Claims: the mean and n are recomputed from
the validations at that step, with exact decimals; a claim passes if n agrees and the mean rounds to
the claimed one. Track 3's rule, (3.28 - mean) sqrt(n) >= 0.004, is taken on the recomputed mean, or
on the claimed one where there are no curves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from analysis.published import TARGET, Data
from analysis.stats import TRACK3_MARGIN, TRACK3_SIGMA, deviation
from analysis.table import markdown_grid
from tracking.schema import Track3Claim

PASSED, DIFFERS, UNCHECKED = "passed", "differs", "cannot be checked"
# A claim has 4 decimals and a loss in a log has 5: half a unit of both.
ROUNDING = Fraction(5, 100_000) + Fraction(5, 1_000_000)

# What an earlier reading of the raw logs found, beyond the curves that are here.
AUDIT = {
    6: "in the raw logs the mean differs by rounding",
    8: "the raw logs give the same difference",
    16: "its folder holds more runs than claimed; the curves here are of as many as claimed",
    23: "its folder holds more runs than claimed; the curves here are of as many as claimed",
    32: "its folder holds more runs than claimed; the curves here are of as many as claimed",
    41: "a single log is public for 20 runs",
    44: "its folder holds more runs than claimed",
    46: "claimed on an averaged model's loss (val_ema_loss); its val_loss is above the target",
}


@dataclass(frozen=True)
class Verdict:
    """What the curves say of one claim."""

    claim: Track3Claim
    optimizer: str  # where known, else empty
    losses: Sequence[float]  # of its runs at the claimed step
    mean: float | None  # recomputed; None without curves
    state: str  # PASSED, DIFFERS or UNCHECKED
    why: str

    @property
    def n(self) -> int:
        """Runs behind the mean: those with curves, or else those that were claimed."""
        return len(self.losses) or self.claim.claimed_n

    @property
    def statistic(self) -> float:
        """(3.28 - mean) sqrt(n), of the recomputed mean or else of the claimed one."""
        mean = self.claim.claimed_mean_loss if self.mean is None else self.mean
        return round((TARGET - mean) * math.sqrt(self.n), 9)

    @property
    def holds(self) -> bool:
        """Whether track 3's rule holds."""
        return self.statistic >= TRACK3_MARGIN

    @property
    def sd(self) -> float | None:
        """Standard deviation between its runs."""
        return deviation(self.losses)


def verdicts(data: Data) -> list[Verdict]:
    """What the curves say of each claim."""
    return [_verdict(data, claim) for claim in data.claims]


def _verdict(data: Data, claim: Track3Claim) -> Verdict:
    name, note = data.optimizers.get(claim.result, ""), AUDIT.get(claim.result, "")
    rows = data.points.get(claim.result, [])
    if not rows:
        return Verdict(
            claim, name, [], None, UNCHECKED, "; ".join(filter(None, ["no curves", note]))
        )
    runs = {row.run for row in rows}
    losses = [row.val_loss for row in rows if row.step == claim.claimed_steps]
    if not losses:
        why = f"no validation at step {claim.claimed_steps}"
        return Verdict(claim, name, [], None, DIFFERS, why)
    exact = sum((Fraction(str(loss)) for loss in losses), Fraction(0)) / len(losses)
    away = exact - Fraction(str(claim.claimed_mean_loss))
    found = []
    if len(losses) < len(runs):
        found.append(f"{len(losses)} of {len(runs)} runs have the claimed step")
    if len(losses) != claim.claimed_n:
        found.append(f"{len(losses)} runs, claimed {claim.claimed_n}")
    if abs(away) > ROUNDING:
        found.append(f"the mean is {float(away):+.5f} off the claimed one")
    state = DIFFERS if found else PASSED
    last = max(row.step for row in rows)
    if last > claim.claimed_steps:
        found.append(f"the runs go on to step {last}")
    why = "; ".join(filter(None, [*found, note]))
    return Verdict(claim, name, losses, float(exact), state, why)


def pooled_sd(found: Sequence[Verdict]) -> tuple[float, int]:
    """Standard deviation within results, and its degrees of freedom."""
    groups = [v for v in found if v.sd is not None]
    df = sum(len(v.losses) - 1 for v in groups)
    squares = sum((len(v.losses) - 1) * (v.sd or 0.0) ** 2 for v in groups)
    return (math.sqrt(squares / df) if df else math.nan), df


def counts(found: Sequence[Verdict]) -> dict[str, int]:
    """The number of claims in each state."""
    return {s: sum(v.state == s for v in found) for s in (PASSED, DIFFERS, UNCHECKED)}


def summary(data: Data) -> str:
    """What came out, in sentences."""
    found = verdicts(data)
    number, (sd, df) = counts(found), pooled_sd(found)
    checked = [v for v in found if v.losses]
    names = ", ".join(f"#{v.claim.result}" for v in found if v.state == DIFFERS) or "none"
    fails = ", ".join(f"#{v.claim.result}" for v in found if not v.holds) or "none"
    marked = [v for v in found if v.holds != bool(v.claim.marked_valid)]
    agree = "exactly those" if not marked else f"not those ({len(marked)} marks differ)"
    return (
        f"Of {len(found)} claims, {number[PASSED]} pass, {number[DIFFERS]} differs ({names}), and "
        f"{number[UNCHECKED]} cannot be checked, because their curves are not in the data. "
        f"The rule does not hold for {fails}: {agree} that the track's own list leaves unmarked. "
        f"The standard deviation between runs, pooled over the {len(checked)} results with curves, "
        f"is {sd:.5f} ({df} degrees of freedom); the rule takes it as {TRACK3_SIGMA:g}. "
        f"An earlier reading of all raw logs (mean to four decimals, and n) found "
        f"{data.says('audit-exact'):g} exact: all but "
        f"{', '.join(f'#{result}' for result in AUDIT)}."
    )


def markdown(found: Sequence[Verdict]) -> str:
    """The claims as a table."""
    headings = [
        "result", "date", "optimizer", "steps", "n", "claimed mean", "recomputed", "sd",
        "(3.28 - mean) √n", "rule", "state", "remarks",
    ]  # fmt: skip
    rows = [
        [
            f"#{v.claim.result}",
            v.claim.date,
            v.optimizer or "-",
            f"{v.claim.claimed_steps}{' WR' if v.claim.world_record else ''}",
            str(v.n),
            f"{v.claim.claimed_mean_loss:.4f}",
            "-" if v.mean is None else f"{v.mean:.5f}",
            "-" if v.sd is None else f"{v.sd:.4f}",
            f"{v.statistic:.5f}",
            "holds" if v.holds else "does not hold",
            v.state,
            v.why or "-",
        ]
        for v in found
    ]
    return markdown_grid(headings, rows)
