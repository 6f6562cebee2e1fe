"""Writes the results of a check: three CSVs, a chart, and a page that says what they show."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._make import save
from analysis.price import read_prices
from analysis.report import sentences
from bench.gpu_check.runner import FAILED, PASSED, SKIPPED, Check, Measure, Result
from bench.gpu_check.training import GOAL, PARTS
from errors import UserError
from tracking.files import write_atomic
from tracking.store import read_runs

TOY = "Every part at toy size: no number below says anything about speed."
RACE = (
    "The settings were published for a longer horizon and a larger batch, and are not tuned for "
    "this race: it shows that the whole path works, not which optimizer is better."
)
COLORS = ("#4B5A6B", "#F2CF1D", "#B9D7EA", "#A9B6C3")  # of stacked bars
MAIN = "muon, compiled"  # the case that has a goal


def write(out: Path, results: Sequence[Result], facts: dict[str, str], done: bool) -> None:
    """Write the CSVs; if `done`, also the chart and the page."""
    checks = [check for result in results for check in result.checks]
    measures = [measure for result in results for measure in result.measures]
    _csv(out / "checks.csv", [field.name for field in fields(Check)], map(asdict, checks))
    _csv(out / "measures.csv", [field.name for field in fields(Measure)], map(asdict, measures))
    rows = [
        dict(part=r.part.name, status=r.status, seconds=round(r.seconds, 1),
             limit_seconds=round(r.limit, 1), reason=r.reason)
        for r in results
    ]  # fmt: skip
    _csv(out / "parts.csv", ["part", "status", "seconds", "limit_seconds", "reason"], rows)
    if done:
        if measures:
            with _style.drawing():
                figure = chart(measures, facts)
                _style.freeze_layout(figure)
            save(figure, out / "measures")
        write_atomic(out / "report.md", [page(out, results, measures, facts).encode()])


def _csv(path: Path, names: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def verdict(results: Sequence[Result]) -> str:
    """One line: how many checks passed, failed and were skipped."""
    found = [check.status for result in results for check in result.checks]
    counts = [f"{found.count(PASSED)} checks passed"]
    counts += [f"{found.count(status)} {status}" for status in (FAILED, SKIPPED)]
    return f"{'Failed' if FAILED in found else 'Passed'}: {', '.join(counts)}."


# ---------------------------------------------------------------------------------------------
# The page.


def page(
    out: Path, results: Sequence[Result], measures: Sequence[Measure], facts: dict[str, str]
) -> str:
    """The report as Markdown."""
    lines = [f"# GPU check: {facts['device']}", "", verdict(results)]
    if facts["size"] == "toy":
        lines.append(TOY)
    lines += ["", "; ".join(f"{key} {value}" for key, value in facts.items() if key != "size")]
    checks = [check for result in results for check in result.checks]
    for status in (FAILED, SKIPPED):
        rows = [check for check in checks if check.status == status]
        if rows:
            lines += ["", f"## {status.capitalize()}", ""]
            lines += [f"- {check.part}: {check.check}: {_why(check)}" for check in rows]
    ran = {result.part.name for result in results}
    if "step" in ran:
        lines += ["", "## The step", "", _goal(measures), ""]
        lines += table([m for m in measures if m.unit != "GB"], "step")
        lines += ["", "## Memory", ""]
        lines += memory_table(measures)
    lines += ["", "![Measurements](measures.png)"] if measures else []
    for part, title in (
        ("machine", "The machine"),
        ("optimizer_step", "An optimizer's step on the hidden matrices"),
        ("newton_schulz", "Newton-Schulz, five steps on a batch"),
        ("graphs and engines", "The step of the model `tiny`"),
        ("spectra", "Singular values of the hidden matrices"),
    ):
        lines += ["", f"## {title}", "", *table(measures, part)] if part in ran else []
    lines += ["", "## The race", "", *_race(out, measures)] if "race" in ran else []
    lines += ["", "## The parts", "", "| part | what | outcome | seconds | limit |"]
    lines += ["| :-- | :-- | :-- | --: | --: |"]
    lines += [
        f"| {r.part.name} | {r.part.what} | {r.status} | {r.seconds:.1f} | {r.limit:.0f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def _why(check: Check) -> str:
    if check.value is None:
        return check.note
    bounds = [
        f"{word} {_number(bound)}"
        for word, bound in (("at least", check.least), ("at most", check.most))
        if bound is not None
    ]
    return f"{_number(check.value)}, must be {' and '.join(bounds)}. {check.note}".strip()


def _goal(measures: Sequence[Measure]) -> str:
    """The MFU of the step, and whether the goal is met."""
    found = {m.quantity: m.value for m in measures if m.case == MAIN}
    mfu, sheet = found.get("MFU"), found.get("MFU, data sheet")
    if mfu is None:
        return "The compiled step was not measured."
    line = f"Muon's step, optimizer included, has an MFU of {mfu:.1%} of the measured peak"
    if sheet is None:
        return f"{line}."
    met = "met" if sheet >= GOAL else "missed"
    return f"{line} and {sheet:.1%} of the data sheet's; the goal of {GOAL:.0%} is {met} there."


def _race(out: Path, measures: Sequence[Measure]) -> list[str]:
    try:
        runs = read_runs(out)
    except UserError as error:
        return [str(error)]
    if not runs:
        return ["There was none."]
    lines = [RACE, "", *sentences(runs, read_prices(out, runs)), "", *table(measures, "race")]
    if (out / "loss_curves.png").exists():
        lines += ["", "![Losses](loss_curves.png)"]
    return lines


def table(measures: Sequence[Measure], part: str) -> list[str]:
    """The measurements of a part: a line per case, a column per quantity."""
    rows = [m for m in measures if m.part == part]
    if not rows:
        return ["Nothing was measured."]
    columns = list(dict.fromkeys((m.quantity, m.unit) for m in rows))
    cases: dict[str, dict[tuple[str, str], float]] = {}
    for m in rows:
        cases.setdefault(m.case, {})[m.quantity, m.unit] = m.value
    heads = [f"{quantity} ({unit})" if unit else quantity for quantity, unit in columns]
    lines = [f"|  | {' | '.join(heads)} |", f"| :-- |{' --: |' * len(heads)}"]
    for case, values in cases.items():
        cells = [_number(values[key]) if key in values else "-" for key in columns]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def memory_rows(
    measures: Sequence[Measure],
) -> list[tuple[str, str, float | None, float | None]]:
    """(case, kind, GB planned, GB measured) of the compiled step, or of the eager one."""
    held = [m for m in measures if m.part == "step" and m.unit == "GB" and ", " in m.quantity]
    compiled = [m for m in held if m.case.endswith(", compiled")]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for m in compiled or held:
        kind, _, how = m.quantity.partition(", ")
        found.setdefault((m.case, kind), {})[how] = m.value
    return [(*key, gb.get("planned"), gb.get("measured")) for key, gb in found.items()]


def memory_table(measures: Sequence[Measure]) -> list[str]:
    """Bytes planned and measured, as a table."""
    rows = memory_rows(measures)
    if not rows:
        return ["Nothing was measured."]
    lines = ["|  | kind | planned (GB) | measured (GB) |", "| :-- | :-- | --: | --: |"]
    for case, kind, *pair in rows:
        cells = ["-" if gb is None else _number(gb) for gb in pair]
        lines.append(f"| {case} | {kind} | {' | '.join(cells)} |")
    return lines


def _number(value: float) -> str:
    """Four significant digits, with commas between thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# ---------------------------------------------------------------------------------------------
# The chart.


def chart(measures: Sequence[Measure], facts: dict[str, str]) -> Figure:
    """Four panels: the step by part, memory by kind, an optimizer's step, Newton-Schulz."""
    values = {(m.case, m.quantity): m.value for m in measures if m.part == "step"}
    title = f"What a step takes on {facts['device']}"
    if facts["size"] == "toy":
        title += ", at toy size: it says nothing about speed"
    elif (MAIN, "MFU") in values:
        title = (
            f"{facts['device']} trains {values[MAIN, 'speed']:,.0f} tokens a second with Muon, "
            f"{values[MAIN, 'MFU']:.1%} of its matrix products' peak"
        )
    caption = (
        "Milliseconds of a whole training step, of an optimizer's step on the hidden matrices, and "
        "of Newton-Schulz on a batch; memory as planned and as measured."
    )
    footer = " · ".join(f"{key} {facts[key]}" for key in ("torch", "commit", "began"))
    split = {part.replace("_", " and "): _values(measures, "step", part) for part in PARTS}
    kinds = _memory_kinds(measures)
    small = max((gb for cases in kinds.values() for gb in cases.values()), default=1.0) < 0.1
    factor = 1e3 if small else 1.0
    memory = {kind: {c: factor * gb for c, gb in cases.items()} for kind, cases in kinds.items()}
    panels = (
        (split, "training step (ms)"),
        (memory, f"memory ({'MB' if small else 'GB'})"),
        ({"": _values(measures, "optimizer_step")}, "optimizer step (ms)"),
        ({"": _values(measures, "newton_schulz")}, "Newton-Schulz (ms)"),
    )
    rows = max(len(_cases(series)) for series, _ in panels)
    figure = _style.new_figure(title, caption, footer, 2 * (0.8 + 0.36 * rows))
    for axes, (series, label) in zip(figure.subplots(2, 2).flatten(), panels, strict=True):
        _bars(axes, series, label)
    return figure


Series = dict[str, dict[str, float]]  # segment -> case -> length


def _values(
    measures: Sequence[Measure], part: str, quantity: str | None = None
) -> dict[str, float]:
    """Case -> value of a part's quantity; None: of any."""
    chosen = (m for m in measures if m.part == part and quantity in (None, m.quantity))
    return {m.case: m.value for m in chosen}


def _memory_kinds(measures: Sequence[Measure]) -> Series:
    """Kind -> case -> GB; each entrant has two cases, planned and measured."""
    kinds: Series = {}
    for case, kind, planned, measured in memory_rows(measures):
        for how, gb in (("planned", planned), ("measured", measured)):
            if gb is not None:
                kinds.setdefault(kind, {})[f"{case.partition(',')[0]}, {how}"] = gb
    return kinds


def _cases(series: Series) -> list[str]:
    return list(dict.fromkeys(case for values in series.values() for case in values))


def _bars(axes: Axes, series: Series, label: str) -> None:
    """A bar per case, stacked from the series."""
    cases = _cases(series)
    axes.set_xlabel(label)
    if not cases:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    left = [0.0] * len(cases)
    for (name, values), color in zip(series.items(), COLORS, strict=False):
        widths = [values.get(case, 0.0) for case in cases]
        axes.barh(range(len(cases)), widths, left=left, color=color, label=name, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.annotate(
            _style.number(total), (total, row), (3, 0), textcoords="offset points",
            va="center", size=_style.SMALL_PT,
        )  # fmt: skip
    axes.set_yticks(range(len(cases)), [case.replace(", ", "\n", 1) for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(0, 1.18 * max([*left, 1e-9]))
    axes.xaxis.set_major_locator(_style.ticks(5))
    axes.grid(False, axis="y")
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.3, 1.0), ncols=2, handlelength=1)
