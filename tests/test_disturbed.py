"""The benches of races beside other work: what they burn, what they race, and what they write."""

import csv
from pathlib import Path

import pytest

from analysis.price import read_prices
from bench import disturbed, turns
from speedrun import Options, Track, Trainer
from tests.rows import in_turns, make_run
from tracking import store

RECORD = Path(__file__).parents[1] / "results" / "records" / "disturbed"


def test_a_burner_is_busy_for_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves in sleeps, and by a millisecond at each look."""
    now, slept = [0.0], [0.0]

    class OverError(Exception):
        pass

    def look() -> float:
        now[0] += 0.001
        if now[0] > 2000:
            raise OverError
        return now[0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        slept[0] += seconds

    monkeypatch.setattr(disturbed.time, "time", look)
    monkeypatch.setattr(disturbed.time, "sleep", sleep)
    with pytest.raises(OverError):
        disturbed.burn(seed=0, begun=0.0)
    assert slept[0] / now[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_burners_end_with_the_race_and_not_before() -> None:
    with disturbed.burners(2, seed=0) as processes:
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match="ended before"), disturbed.burners(2, seed=0) as pair:
        pair[0].kill()
        pair[0].join()
    assert not any(process.is_alive() for process in pair)


def test_a_row_says_how_wide_the_interval_is() -> None:
    runs = [
        make_run(
            label=label, seed=seed, run=f"{label}-{seed}", train_seconds=100 * step_seconds,
            steps_to_target=steps + seed, seconds_to_target=(steps + seed) * step_seconds,
        )
        for label, steps, step_seconds in (("adamw", 70.0, 0.1), ("muon", 50.0, 0.12))
        for seed in range(3)
    ]  # fmt: skip
    runs, prices = in_turns(runs)
    row = disturbed.row_of(runs, prices, "lockstep", busy=True)
    assert float(row["ratio in steps"]) == pytest.approx(71 / 51, rel=0.01)
    assert float(row["ratio in seconds"]) == pytest.approx(71 / 51 / 1.2, rel=0.01)
    low, high = map(float, str(row["95% interval"]).split(" to "))
    value = float(row["ratio in seconds"])
    wide = max(high / value, value / low) - 1
    assert float(str(row["to either side"]).strip("%")) / 100 == pytest.approx(wide, abs=0.002)


def test_the_committed_table_follows_from_the_committed_races() -> None:
    with (RECORD / "disturbed.csv").open(newline="") as file:
        table = {(row["order"], row["machine"]): row for row in csv.DictReader(file)}
    runs = store.read_runs(RECORD)
    races = dict.fromkeys(run.race for run in runs)
    assert len(races) == len(table) == 4
    for race in races:
        of_race = [run for run in runs if run.race == race]
        order, _, state = race.replace("-", " ").rpartition(" ")
        row = disturbed.row_of(of_race, read_prices(RECORD, of_race), order, state == "disturbed")
        assert row.items() <= table[order, state].items()


@pytest.mark.parametrize("turn_steps", [0, 2])
def test_turns_are_measured_without_the_first_and_the_last(
    turn_steps: int, micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "STEPS", 8)
    trainer = Trainer(micro_track, micro_options)
    steps, between = turns.measure(trainer, turn_steps)
    runs, each = (2, 4) if turn_steps else (1, 8)  # turns of a run
    assert len(steps) == runs * (each - 2)
    assert len(between) == runs * (each - 1)
    assert min(*steps, *between) > 0


def test_the_default_length_of_a_turn_is_one_that_is_measured() -> None:
    assert Options.turn_steps in turns.LENGTHS
