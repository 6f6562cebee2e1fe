"""The evidence for "35%": every published ratio of AdamW to Muon, recomputed.

    for ratio in evidence.ratios(published.load()): ...

Claims: each ratio is a cost of AdamW over a cost of Muon, from results/published. A ratio with a
figure that no curve shows there is marked as stated. The column "matched?" says what differs
between the two runs beside the optimizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.published import TARGET, Curve, Data
from analysis.table import markdown_grid

JUNE, OCTOBER, PAIR, XL = (
    "124m-2024-06", "124m-2024-10", "124m-matched-2024-10-29", "1.5b-2024-10-20",
)  # fmt: skip
DATES = {  # of the logs
    (JUNE, "adamw"): "2024-06-06",
    (OCTOBER, "soap"): "2024-10-09",
    (OCTOBER, "muon"): "2024-10-10",
    **{(PAIR, name): "2024-10-29" for name in ("adam", "muon", "shampoo", "soap")},
    **{(XL, name): "2024-10-20" for name in ("adamw", "muon-15258", "muon-20344")},
}
# Schedules of the matched pair, as its logs have them: steps of warm-up and of warm-down.
PAIR_WARMUP, PAIR_WARMDOWN = 250, 1450
FASTER, LESS = 1.35, 1 / (1 - 0.35)  # the two claims that are known as "35%"

RECOMPUTED, PARTLY, STATED = "recomputed", "recomputed with a stated figure", "stated"

UNMATCHED = (
    "no: AdamW's log is of June, Muon's of October; warm-up, warm-down and the head's learning "
    "rate differ too, and nothing says that AdamW was tuned"
)
OTHER_MODEL = "no: the model changed as well (6 heads, QK-norm, ReLU², zero-init projections)"
MATCHED = (
    "yes: one program, model, data and date. What differs: Adam has 250 steps of warm-up and its "
    "matrices no weight decay; one run each"
)
XL_MATCHED = "nearly: one model and date, single runs; nothing says how they were tuned"
README = "no: records of one list; a record may change anything, the schedules among it"
TUNED = (
    "yes: one fixed setting, both tuned, 10 runs each. What differs: tuned by their authors, not "
    "with equal budgets; AdamW has warm-up"
)


@dataclass(frozen=True)
class Amount:
    """A ratio of two amounts, a low and a high one where it is a range along a curve."""

    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """One piece of evidence: what AdamW needs over what Muon needs."""

    group: str  # which runs
    what: str
    basis: str  # steps, tokens or seconds; "price" is of a step: Muon's seconds over AdamW's
    costs: str  # AdamW's over Muon's, with their unit
    value: Amount
    how: str  # RECOMPUTED, PARTLY or STATED
    source: str
    matched: str

    @property
    def times(self) -> str:
        """As a factor: 1.36x, or 1.57x to 1.65x."""
        low, high = self.value.low, self.value.high
        digits = 4 if self.basis == "price" else 3
        shown = [f"{value:.{digits}f}x" for value in dict.fromkeys((low, high))]
        return " to ".join(shown)

    @property
    def less(self) -> str:
        """As a saving: 26.6% less; empty for the price of a step."""
        if self.basis == "price":
            return ""
        saved = dict.fromkeys((1 - 1 / self.value.low, 1 - 1 / self.value.high))
        return " to ".join(f"{part:.1%}" for part in saved)

    @property
    def is_bound(self) -> bool:
        """Whether the true ratio is higher."""
        return "lower bound" in self.what or "too low" in self.matched

    @property
    def is_matched(self) -> bool:
        """Whether the two runs differ in little beside the optimizer: "yes" or "nearly"."""
        return self.matched.startswith(("yes", "nearly"))


def ratios(data: Data) -> list[Ratio]:
    """All evidence, from the claim of 2024 to the tuned pair of 2026."""
    return [*_claim_of_2024(data), *_pair(data), *_xl(data), *_today(data)]


def find(found: Sequence[Ratio], group: str, what: str, basis: str) -> Ratio:
    """The first ratio of a group that begins with these words and has this basis."""
    return next(
        r for r in found if (r.group, r.basis) == (group, basis) and r.what.startswith(what)
    )


def _row(
    group: str, what: str, basis: str, a: float, b: float, source: str, matched: str,
    how: str = RECOMPUTED,
) -> Ratio:  # fmt: skip
    """A ratio of two costs: a is AdamW's, b is Muon's, both in the unit of the basis."""
    unit = {"steps": "steps", "tokens": "tokens", "seconds": "s", "minutes": "min"}[basis]
    costs = f"{_number(a)} / {_number(b)} {unit}"
    basis = "seconds" if basis == "minutes" else basis
    return Ratio(group, what, basis, costs, Amount(a / b, a / b), how, source, matched)


def _number(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:.1f}B"
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _at(curve: Curve, loss: float) -> tuple[float, float]:
    """Steps to a loss: the first validation at or below it, and interpolated."""
    first, between = curve.first_at(loss), curve.step_at(loss)
    if first is None or between is None:
        raise ValueError(f"{curve.optimizer} in {curve.setting} never meets {loss}")
    return first.step, between


GROUP_2024 = "124M, June against October 2024"
GROUP_PAIR = "124M, the pair of 2024-10-29"
GROUP_XL = "1.5B, 2024-10-20"
GROUP_TODAY = "124M, track 3 of 2026"
CURVES = "track1_curves.csv"


def _claim_of_2024(data: Data) -> list[Ratio]:
    adamw, muon = data.curve(JUNE, "adamw"), data.curve(OCTOBER, "muon")
    later, group = data.curve(PAIR, "muon"), GROUP_2024
    (first, between), (muon_first, muon_between) = _at(adamw, TARGET), _at(muon, TARGET)
    later_first, later_between = _at(later, TARGET)
    second, third, fourth = (data.minutes(1, record) for record in (2, 3, 4))
    planned, records = "planned steps", "speedrun_records.csv"
    both, to = f"{CURVES}, stated.csv", f"to {TARGET:g}"
    stated = data.says("adamw-first-tokens"), data.says("muon-first-tokens")
    rows: list[tuple[str, str, float, float, str, str, str]] = [
        ("the announcement", "tokens", *stated, "stated.csv", UNMATCHED, STATED),
        (
            f"{planned}, Muon's first run", "steps", adamw.planned_steps,
            data.says("muon-first-steps"), both, UNMATCHED, PARTLY,
        ),
        (
            f"{planned}, Muon of 10-10", "steps", adamw.planned_steps, muon.planned_steps, CURVES,
            UNMATCHED, RECOMPUTED,
        ),
        (f"first {to}, 10-10", "steps", first, muon_first, CURVES, UNMATCHED, RECOMPUTED),
        (
            f"interpolated {to}, 10-10", "steps", between, muon_between, CURVES, UNMATCHED,
            RECOMPUTED,
        ),
        (f"first {to}, 10-29", "steps", first, later_first, CURVES, OTHER_MODEL, RECOMPUTED),
        (
            f"interpolated {to}, 10-29", "steps", between, later_between, CURVES, OTHER_MODEL,
            RECOMPUTED,
        ),
        ("records 2 and 3 of track 1", "minutes", second, third, records, README, RECOMPUTED),
        ("records 2 and 4 of track 1", "minutes", second, fourth, records, README, RECOMPUTED),
    ]  # fmt: skip
    return [_row(group, *row) for row in rows]


def iso_loss(baseline: Curve, challenger: Curve) -> list[tuple[int, float, float]]:
    """The ratio of steps for equal loss along two curves.

    A point for each validation of the baseline whose loss the challenger meets: the baseline's
    step, the loss and the ratio. The challenger's step is interpolated.
    """
    found = []
    for point in baseline.points:
        step = challenger.step_at(point.val_loss)
        if step and point.step:
            found.append((point.step, point.val_loss, point.step / step))
    return found


def constant_lr(data: Data) -> tuple[int, int]:
    """The first and the last step of the matched pair at which both learning rates are constant."""
    return PAIR_WARMUP, data.curve(PAIR, "adam").planned_steps - PAIR_WARMDOWN


def pair_range(data: Data, from_middle: bool) -> tuple[Amount, int, int]:
    """The lowest and highest ratio for equal loss while both learning rates are constant.

    With it, the steps of AdamW that it is taken over: all such steps, or those from their middle
    on. Muon's step is always earlier, so its learning rate is constant as well.
    """
    first, last = constant_lr(data)
    first = (first + last) // 2 if from_middle else first
    adam, muon = data.curve(PAIR, "adam"), data.curve(PAIR, "muon")
    found = [ratio for step, _, ratio in iso_loss(adam, muon) if first <= step <= last]
    return Amount(min(found), max(found)), first, last


def price(baseline: Curve, challenger: Curve) -> float:
    """Seconds of a challenger's step over seconds of a baseline's, over runs of equal steps."""
    assert baseline.seconds and challenger.seconds
    steps = baseline.points[-1].step, challenger.points[-1].step
    return (challenger.seconds / steps[1]) / (baseline.seconds / steps[0])


def _pair(data: Data) -> list[Ratio]:
    adam, muon, group = data.curve(PAIR, "adam"), data.curve(PAIR, "muon"), GROUP_PAIR
    dearer = price(adam, muon)
    rows = []
    for words, middle in (("its second half", True), ("all of it", False)):
        steps, first, last = pair_range(data, middle)
        where = f"equal loss while lr is constant, {words}"
        costs = f"AdamW's steps {first:,} to {last:,}"
        rows.append(Ratio(group, where, "steps", costs, steps, RECOMPUTED, CURVES, MATCHED))
        seconds = Amount(steps.low / dearer, steps.high / dearer)
        rows.append(Ratio(group, where, "seconds", costs, seconds, RECOMPUTED, CURVES, MATCHED))
    end, last = adam.final_loss, adam.planned_steps
    missed = f"to {TARGET:g}, which AdamW misses: a lower bound"
    early = f"{MATCHED}. Muon's schedule has not ended there, so the ratio is too low"
    costs = f"{muon.seconds:,.1f} / {adam.seconds:,.1f} s"
    step = Amount(dearer, dearer)
    return [
        *rows,
        _row(group, missed, "steps", last, _at(muon, TARGET)[1], CURVES, MATCHED),
        _row(group, f"to AdamW's final {end:g}", "steps", last, _at(muon, end)[1], CURVES, early),
        Ratio(group, "price of a step", "price", costs, step, RECOMPUTED, CURVES, MATCHED),
    ]


def _xl(data: Data) -> list[Ratio]:
    adamw, group = data.curve(XL, "adamw"), GROUP_XL
    short, long = data.curve(XL, "muon-15258"), data.curve(XL, "muon-20344")
    end = adamw.final_loss
    at, at_long = short.first_at(end), long.first_at(end)
    assert at and at_long and at.train_time_s and at_long.train_time_s
    assert adamw.seconds and short.seconds and long.seconds
    longer = f"{XL_MATCHED}. Muon's schedule has not ended there, so the ratio is too low"
    first, whole = f"first to AdamW's final {end:g}", "whole runs, Muon's ends lower"
    steps, seconds, dearer = adamw.planned_steps, adamw.seconds, price(adamw, long)
    rows: list[tuple[str, str, float, float, str, str]] = [
        (first, "seconds", seconds, at.train_time_s, CURVES, XL_MATCHED),
        (first, "steps", steps, at.step, CURVES, XL_MATCHED),
        (f"interpolated to {end:g}", "steps", steps, _at(short, end)[1], CURVES, XL_MATCHED),
        (whole, "steps", steps, short.planned_steps, CURVES, XL_MATCHED),
        (whole, "seconds", seconds, short.seconds, CURVES, XL_MATCHED),
        (f"{first}, long Muon run", "steps", steps, at_long.step, CURVES, longer),
        (f"{first}, long Muon run", "seconds", seconds, at_long.train_time_s, CURVES, longer),
    ]
    costs, step = f"{long.seconds:,.0f} / {seconds:,.0f} s", Amount(dearer, dearer)
    quoted = Amount(data.says("xl-hellaswag"), data.says("xl-hellaswag"))
    unknown = "unknown: no curve is here"
    return [
        *(_row(group, *row) for row in rows),
        Ratio(group, "price of a step", "price", costs, step, RECOMPUTED, CURVES, XL_MATCHED),
        Ratio(
            group, "equal HellaSwag, as quoted", "steps", "-", quoted, STATED, "stated.csv", unknown
        ),
    ]


def _today(data: Data) -> list[Ratio]:
    group, claims, tuned = GROUP_TODAY, "track3_claims.csv", data.says("adamw-tuned-steps")
    best = min((c for c in data.claims if c.world_record), key=lambda c: c.claimed_steps)
    first = (
        "no: AdamW was said to be undertuned, and each is a single run that does not meet the rule"
    )
    variant = "no: not Muon but the track's best result, which has much beside Muon"
    both = f"{claims}, stated.csv"
    two, one, tuned_muon = (data.claim(result).claimed_steps for result in (2, 1, 36))
    top = f"AdamW and the best result, #{best.result}"
    return [
        _row(group, "the first results, #2 and #1", "steps", two, one, claims, first),
        _row(group, "both tuned, AdamW and #36", "steps", tuned, tuned_muon, both, TUNED, PARTLY),
        _row(group, top, "steps", tuned, best.claimed_steps, both, variant, PARTLY),
    ]


# ---- As text -----------------------------------------------------------------------------------


def headline(data: Data) -> str:
    """The answer to "is it 35%?", in three sentences."""
    found = ratios(data)
    tuned = find(found, GROUP_TODAY, "both tuned", "steps")
    steps, _, _ = pair_range(data, from_middle=True)
    dearer = find(found, GROUP_PAIR, "price", "price").value.low
    first = find(found, GROUP_2024, "planned steps, Muon's first run", "steps")
    fastest = find(found, GROUP_XL, "first to", "seconds")
    whole = find(found, GROUP_XL, "whole runs", "steps")
    return (
        f"**In steps, nearly: at 124M parameters with both optimizers tuned, AdamW takes "
        f"{tuned.value.low:.2f}x the steps of Muon ({tuned.costs}), so Muon takes {tuned.less} "
        f"fewer; the claim of 2024 was less, {first.value.low:.2f}x or {first.less} fewer, from "
        f"two runs that differ in more than the optimizer.** "
        f"In the one matched pair of 2024, AdamW needs {steps.low:.2f}x to {steps.high:.2f}x the "
        f"steps for equal loss while the learning rates are constant, and a step of Muon costs "
        f"{dearer - 1:.2%} more, so the ratio in time is {steps.low / dearer:.2f}x to "
        f"{steps.high / dearer:.2f}x there. "
        f"In time to a final loss, the best log is of 1.5B parameters: {fastest.value.low:.3f}x "
        f"as fast, which is {fastest.less} less time and not 35% less (that would be {LESS:.2f}x); "
        f'its whole runs show {whole.less} fewer steps, the "25%" of that size.'
    )


def markdown(found: Sequence[Ratio]) -> str:
    """The evidence: a table for each group, and below it what is not matched."""
    groups: dict[str, list[Ratio]] = {}
    for ratio in found:
        groups.setdefault(ratio.group, []).append(ratio)
    return "\n\n".join(f"**{group}**\n\n{_table(rows)}" for group, rows in groups.items())


def _table(found: Sequence[Ratio]) -> str:
    notes = {text: i for i, text in enumerate(dict.fromkeys(r.matched for r in found), start=1)}
    headings = ["what", "in", "AdamW's / Muon's", "ratio", "saving", "how", "from", "matched?"]
    rows = [
        [
            r.what, r.basis, r.costs, r.times, r.less or "-", r.how, r.source,
            f"{r.matched.partition(':')[0]} ({notes[r.matched]})",
        ]
        for r in found
    ]  # fmt: skip
    return "\n".join(
        [
            markdown_grid(headings, rows),
            "",
            *(f"{i}. {text.partition(': ')[2]}." for text, i in notes.items()),
        ]
    )
