"""Words and numbers that several charts share."""

from collections.abc import Callable, Iterable

from analysis.charts._inputs import Inputs, Series
from analysis.report import in_turns
from analysis.stats import Estimate
from tracking.schema import Run, Trial


def interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    """The interval as text, such as 1.31 to 1.42; empty when a single run gives none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{form(estimate.low)} to {form(estimate.high)}"


def significance_note(inputs: Inputs, baseline: Series, challenger: Series, *units: str) -> str:
    """What a title adds when the race cannot tell two entrants apart in some of these units.

    The test is corrected by Holm's method for all pairs of the race. Empty where it tells them
    apart in every unit.
    """
    pairs = {unit: inputs.pairs(unit).of(baseline.label, challenger.label) for unit in units}
    doubtful = [unit for unit, p in pairs.items() if p.p is not None and not p.distinct]
    if len(doubtful) == len(units):
        return ", which may be chance"
    words = {"steps": "steps", "seconds": "time"}
    return "".join(f"; the difference in {words[unit]} may be chance" for unit in doubtful)


def seeds(inputs: Inputs) -> str:
    """How many runs each entrant has: "5 seeds each", "3 to 5 seeds each"."""
    counts = sorted({len(entrant.runs) for entrant in inputs.entrants})
    if counts == [1]:
        return "1 seed each"
    return f"{' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))} seeds each"


def device(row: Run | Trial) -> str:
    """The machine of a row; older rows have it as "1 cores"."""
    return row.device.replace(", 1 cores", ", 1 core")


def footer(inputs: Inputs) -> str:
    """Where a race's numbers are from: track, seeds, machine and race."""
    runs = inputs.runs

    def each(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(map(str, values)))

    processes = each(run.world_size for run in runs)
    machine = ("" if processes == "1" else f"{processes} x ") + each(map(device, runs))
    threads = each(run.threads for run in runs)
    return (
        f"Track {each(run.track for run in runs)} · {seeds(inputs)}{in_turns(runs)} · {machine}, "
        f"{threads} {'thread' if threads == '1' else 'threads'}, "
        f"{each(run.dtype for run in runs)} · "
        f"race {each(run.race for run in runs)}"
    )
