"""Writes docs/scale/, a page for each named model with its charts, and the parts of docs/scale.md.

    python -m planner docs                      # all pages and charts: some minutes
    python -m planner docs gpt2-124m            # one model's page
    python -m planner docs --check gpt2-124m    # exits with 1 if its page would change

A page is a plan of planner/scale.toml, computed anew: nothing on it is typed. Charts are drawn into
plots/scale/. In docs/scale.md a generated part is between markers, as in leaderboard/pages.py:

    answer/MODEL    the verdict in short
    models          a line for each named model
    checks          published figures beside what the planner gives
    aware/MODEL     what another architecture would change
"""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

from analysis.charts._style import drawing, freeze_layout
from analysis.table import markdown_grid
from errors import UserError
from host import entry, paths
from leaderboard import pages
from planner import assumptions, models, plans, published_checks, verdict, words
from planner.charts import break_even, memory_by_kind, optimizer_share, step_by_ranks, timeline
from planner.memory import update_rules
from planner.memory.footprint import footprint
from planner.models import describe, shares
from planner.models.shares import Question
from planner.plans import Plan
from planner.step import steps
from planner.step.strategies import STRATEGIES
from planner.tables import short, size
from planner.time.optimizer_time import Timing
from planner.verdict import BASELINE, Verdict
from tracking.files import write_atomic

FOLDER = paths.PROJECT / "docs" / "scale"
CHARTS = paths.PLOTS / "scale"
HOME = paths.PROJECT / "docs" / "scale.md"
SHOWN = ("adamw", "lion", "muon", "normuon", "soap")  # optimizers whose memory a page shows
ENGINES = ("ddp", "sharded", "zero1", "zero2", "zero3", "fsdp2")
DRAWN = ("sharded", "fsdp2", "zero3")  # strategies whose timeline a page shows


@cache
def plan_of(name: str) -> Plan:
    """The plan of a preset in scale.toml."""
    return plans.make(models.find(name), {})


@cache
def verdict_of(name: str) -> Verdict:
    return verdict.judge(plan_of(name))


@cache
def moved_of(name: str) -> Sequence[assumptions.Moved]:
    return assumptions.sensitivity(plan_of(name))


# ---- A model's page ----------------------------------------------------------------------------


def page(name: str) -> str:
    """The page of a model as Markdown."""
    plan, found = plan_of(name), verdict_of(name)
    model = plan.model
    command = f"python -m planner verdict {name}"
    notes = [f"- {note.rstrip('.')}." for note in (*plan.assumed, *model.assumed)]
    parts = [
        f"# {model.title}: will Muon pay?",
        f"Made by `python -m planner docs {name}`. `{command}` prints the verdict for other "
        "numbers: each is a flag. [The planner](../scale.md) says how they are computed.",
        *words.sentences(found),
        f"Where the plan is from: {plan.source or 'nothing is published'}.",
        "## What it rests on",
        words.ranges(moved_of(name)),
        markdown_grid(*_split(words.sensitivity_rows(found, moved_of(name)))),
        *(["What no source gives:", "\n".join(notes)] if notes else []),
        "## What the gains give",
        markdown_grid(*_split(words.gain_rows(found))),
        "[What others found](../comparison.md#published-figures) has their references.",
        "## Strategies",
        _picture(name, "step_by_ranks", "The optimizer's price against the number of ranks"),
        strategy_table(plan),
        _picture(name, "timeline", "The timeline of a step"),
        "## Newton-Schulz and the size of a step",
        _picture(name, "optimizer_share", "Newton-Schulz's share of a step"),
        _picture(name, "break_even", "The break-even map"),
        "## Memory",
        _picture(name, "memory", "Memory of a rank by kind"),
        "## What Muon may take",
        *shares.markdown(model, _question(plan)).split("\n\n"),
        "## The model",
        markdown_grid(["", "published", "summed", "difference"], describe.published_rows(model)),
        markdown_grid(describe.HEADINGS, describe.weight_rows(model)),
        f"Source: {' '.join(model.source.split())}",
        "\n".join(f"- `{w.name}`: {w.source}" for w in model.weights if w.source),
    ]
    return "\n\n".join(wrapped(part) for part in parts if part) + "\n"


def wrapped(part: str) -> str:
    """A paragraph or a list in lines of 100 columns; a table or a picture as it is."""
    if part.startswith(("|", "!", "#")):
        return part
    lines = part.splitlines() if part.startswith("- ") else [part]
    return "\n".join(
        textwrap.fill(
            line, 100, subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False, break_on_hyphens=False,
        )
        for line in lines
    )  # fmt: skip


def _question(plan: Plan) -> Question:
    return Question(update_rules.find(plan.rule), plan.setting, plan.iteration)


def _split(rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return rows[0], rows[1:]


def _picture(name: str, chart: str, what: str) -> str:
    return f"![{what}](../../plots/scale/{name}-{chart}.svg)"


def strategy_table(plan: Plan) -> str:
    """A step of each optimizer in each strategy, and whether a rank has the memory."""
    room = plan.cluster.kind.memory_bytes
    pairs = [(strategy, rule) for strategy in STRATEGIES for rule in (BASELINE, plan.rule)]
    costs = [
        steps.step_cost(
            plan.model, rule, strategy, plan.cluster, plan.setting, plan.iteration, draws=plan.draws
        )
        for strategy, rule in pairs
    ]
    headings, *rows = steps.table(costs)
    for row, (strategy, rule) in zip(rows, pairs, strict=True):
        found = verdict.held(plan, rule, strategy)
        row.append(size(found.total_bytes) + ("" if found.fits(room) else ", too much"))
    return markdown_grid([*headings, "memory of a rank"], rows)


# ---- Its charts --------------------------------------------------------------------------------


def memory_chart(plan: Plan) -> Figure:
    """Memory of the rank that holds most, by optimizer and engine."""
    rows = [
        footprint(
            plan.model, update_rules.find(rule), engine, plan.setting, plan.cluster.ranks, plan.kept
        )
        for engine in ENGINES
        for rule in SHOWN
    ]
    caption = (
        f"{plan.cluster.ranks:,} ranks, stages {plan.setting.pipeline}, experts over "
        f"{plan.setting.expert_parallel} ranks, {plan.setting.dtype} with float32 master copies"
    )
    return memory_by_kind.draw(rows, f"Memory of a rank: {plan.model.title}", caption)


def timing_of(plan: Plan) -> Timing:
    """What the arithmetic of Newton-Schulz's time takes from a plan."""
    cluster = plan.cluster
    return Timing(cluster.gpu, cluster.ranks, cluster.mfu, cluster.curve, cluster.launch_us)


def figures(name: str) -> dict[str, Callable[[], Figure]]:
    """What draws each chart of a model's page."""
    plan = plan_of(name)
    return {
        "memory": lambda: memory_chart(plan),
        "optimizer_share": lambda: optimizer_share.draw(
            plan.model, plan.iteration, timing_of(plan), plan.setting
        ),
        "step_by_ranks": lambda: step_by_ranks.draw(plan),
        "timeline": lambda: timeline.draw(plan, DRAWN),
        "break_even": lambda: break_even.draw(break_even.compute(plan)),
    }


def draw(name: str, out: Path = CHARTS) -> list[Path]:
    """Draw the charts of a model's page."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for chart, make in figures(name).items():
        with drawing():
            figure = make()
            freeze_layout(figure)
        with drawing():
            path = out / f"{name}-{chart}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
        written.append(path)
    return written


# ---- Parts of docs/scale.md --------------------------------------------------------------------


def answer(name: str) -> str:
    """The verdict in short, as a list."""
    found = verdict_of(name)
    moved = sorted(moved_of(name), key=lambda each: -abs(each.price - found.price))[:3]
    movers = "; ".join(f"`{each.change.option}` to {each.price:.3f}x" for each in moved)
    smaller = ", all shown with smaller models" if found.gains.extrapolated else ""
    lines = [
        f"**State.** {words.memory_sentence(found)}",
        f"**Time.** {words.orthogonalisation(found)}",
        f"**Traffic.** {words.exposed(found)}",
        f"**Break-even** is at {1 - 1 / found.price:.1%} fewer steps, a gain of "
        f"{found.price:.3f}x. {words.ranges(moved_of(name))} Published gains that count reach from "
        f"{found.gains.low:.2f}x to {found.gains.high:.2f}x{smaller}. They save "
        f"{words.ends(found.saved_hours)} of {words.rounded(found.adamw_hours)} hours.",
        f"**It rests on** {len({each.change.what for each in moved_of(name)})} choices that its "
        f"page changes one by one. The three that move the break-even gain most: {movers}.",
    ]
    return wrapped("\n".join(f"- {line}" for line in lines))


def all_models() -> str:
    """A line for each named model."""
    headings = [
        "model", "parameters", "in hidden matrices", "GPUs", "step, AdamW", "step, Muon",
        "break-even", "gains that count", "hours saved", "state of a rank", "all of its memory",
    ]  # fmt: skip
    rows = []
    for name in plans.named():
        found, plan = verdict_of(name), plan_of(name)
        before, after = found.memory(BASELINE), found.memory(plan.rule)
        rows.append(
            [
                f"[{plan.model.title}](scale/{name}.md)",
                short(plan.model.params),
                f"{plan.model.hidden_params / plan.model.params:.1%}",
                f"{plan.cluster.ranks:,} {plan.cluster.kind.name}",
                words.seconds(found.adamw.seconds),
                words.seconds(found.muon.seconds),
                f"{found.price:.3f}x",
                f"{found.gains.low:.2f}x to {found.gains.high:.2f}x"
                + ("\\*" if found.gains.extrapolated else ""),
                words.ends(found.saved_hours),
                f"{size(before.state_bytes)} to {size(after.state_bytes)}",
                f"{size(before.total_bytes)} to {size(after.total_bytes)}",
            ]
        )
    note = "\\* No gain was published within a factor of three of its active parameters."
    return f"{markdown_grid(headings, rows)}\n\n{note}"


def published_table() -> str:
    """What others published beside what the planner gives, as Markdown."""
    rows = [
        [
            check.name,
            f"{check.published:.4g} {check.unit}",
            f"{check.ours:.4g} {check.unit}",
            "yes" if check.agrees else f"no, {check.ours / check.published - 1:+.1%}",
            check.source,
            check.note,
        ]
        for check in published_checks.all_checks()
    ]
    headings = ["what", "published, or by hand", "planner", "agrees", "source", "note"]
    return markdown_grid(headings, rows)


def design_table(plan: Plan) -> str:
    """What other architectures would change, as Markdown."""
    question = _question(plan)
    found = shares.designs(plan.model, question)
    grid = markdown_grid(shares.design_headings(question), shares.design_cells(found))
    return f"{plan.model.title}, {plan.tokens:,} tokens a step:\n\n{grid}\n\n{shares.NOTE}"


def plan_part(argument: str, _: Path) -> str:
    """A part of docs/scale.md."""
    what, model = [*argument.split("/", 1), ""][:2]
    made: dict[str, Callable[[], str]] = {
        "answer": lambda: answer(model),
        "models": all_models,
        "checks": published_table,
        "aware": lambda: design_table(plan_of(model)),
    }
    if what not in made:
        raise UserError(f"plan {argument!r}: must be one of {', '.join(made)}; mend the marker")
    return made[what]()


# ---- The command -------------------------------------------------------------------------------


def out_of_date(names: Sequence[str], write: bool) -> list[Path]:
    """The pages that differ from what the planner gives; writes them anew if `write`."""
    changed = []
    for name in names:
        path, text = FOLDER / f"{name}.md", page(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(path)
            if write:
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, [text.encode()])
    return changed


def command(options: argparse.Namespace) -> int:
    """Write the pages and draw their charts, or check the pages; the exit code."""
    known = list(plans.named())
    for model in options.models:
        plan_of(model)  # raises UserError for an unknown one
    names = options.models or known
    changed = out_of_date(names, write=not options.check)
    if not options.models:
        changed += pages.update_pages(
            write=not options.check, markers={"plan": plan_part}, chosen=[HOME]
        )
    for model in () if options.check else names:
        draw(model)
    listed = ", ".join(str(path.relative_to(paths.PROJECT)) for path in changed)
    if changed and options.check:
        print(f"out of date: {listed}; run: python -m planner docs")
        return entry.FAILED
    print(f"written: {listed}" if changed else "all pages are up to date")
    return 0


def main(argv: Sequence[str]) -> int:
    """The subcommand `docs`; its exit code."""
    parser = entry.parser("planner docs", __doc__)
    note = "presets of planner/scale.toml; default: all, and docs/scale.md"
    parser.add_argument("models", nargs="*", metavar="MODEL", help=note)
    parser.add_argument("--check", action="store_true", help="write nothing, only check the pages")
    return entry.run(parser, argv, command)
