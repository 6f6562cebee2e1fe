"""The table of agreement: every difference from a peer that is more than rounding has its reason.

    python -m pytest tests/test_agreement.py

Peers that are not installed are skipped. Each pair is run for fewer steps than the table has, with
and without the cause that its reason names.
"""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from bench import agreement
from bench.agreement import PAIRS, ROUNDING, Pair, Reason

RECORD = Path(__file__).parents[1] / "results" / "records" / "agreement" / "agreement.csv"
STEPS = 4


def shorter(pair: Pair) -> Pair:
    """The pair with few steps."""
    reasons = [
        replace(each, without=each.without.but(steps=min(each.without.steps, STEPS)))
        for each in pair.reasons
    ]
    return replace(pair, way=pair.way.but(steps=STEPS), reasons=reasons)


def named(pair: Pair) -> str:
    return f"{pair.ours} - {pair.peer}"


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_a_difference_has_a_reason_which_is_its_cause(pair: Pair, dtype: str) -> None:
    if pair not in agreement.installed():
        pytest.skip(f"{pair.peer} is not installed")
    few = shorter(pair)
    assert agreement.fault(few, agreement.row_of(few, dtype)) == ""


def test_a_missing_a_needless_and_a_wrong_reason_are_faults() -> None:
    muon = shorter(PAIRS[0])
    assert muon.peer == "torch.optim.Muon"

    def fault(pair: Pair) -> str:
        return agreement.fault(pair, agreement.row_of(pair, "float32"))

    assert "has no reason" in fault(replace(muon, reasons=()))
    wrong = Reason("It has another eps.", muon.way.but(ours={"eps": 1e-7}))
    assert "not the cause" in fault(replace(muon, reasons=[wrong]))
    same = replace(muon, way=muon.reasons[0].without)
    assert "not needed" in fault(same)


def test_the_committed_table_has_every_pair_and_the_reasons_of_now() -> None:
    with RECORD.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        (pair.ours, pair.peer, dtype, reason.text if (reason := pair.reason(dtype)) else "")
        for pair in PAIRS
        for dtype in ROUNDING
    ]
    found = [
        (row["ours"], row["peer"].partition(" (")[0], row["precision"], row["reason"])
        for row in rows
    ]
    assert found == expected, "run make agreement, and copy its CSV into the record"
    for row, (pair, _) in zip(rows, [(pair, d) for pair in PAIRS for d in ROUNDING], strict=True):
        assert agreement.fault(pair, dict(row)) == ""
