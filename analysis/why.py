"""Checks what is claimed of Muon's updates against the spectra that a race measured.

    python -m analysis.why                             # the newest race in results/
    python -m analysis.why --race ID --root results

A race measures spectra with --log-spectra; `make why` runs one. docs/why.md explains the claims and
shows the same parts of a record: see leaderboard/pages.py.

A claim has a criterion: an open range that a figure must lie in. It "holds" if the whole interval
of the figure does, "does not hold" if none of it does, else it is "undecided". Intervals are over
seeds (`analysis.spectra`). In a race of a single seed there is none, and the figure alone decides.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from analysis import spectra
from analysis.report import select
from analysis.spectra import BEGINNING, END, GRADIENT, MIDDLE, MOMENTUM, UPDATE, WEIGHT
from analysis.stats import Estimate, losses, mean
from analysis.table import BASELINE, CHALLENGER, by_label, find, markdown_grid
from errors import UserError
from host import entry, paths
from tracking.schema import DIVERGED, Run
from tracking.spelling import display_name, recipe_of
from tracking.store import read_runs, read_spectra

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LOW_RANK = 0.1  # of the full rank: a stable rank below it is low
ALIKE = 2.0  # the 90% quantile of singular values over the 10% one, below which they are alike
BALANCED = 2.0  # the factor within which a ratio of roles must stay to be called balanced
ATTENTION, MLP = "attention", "MLP"  # the two blocks of a layer
NAMES = {"embed": "embedding", "head": "head", "vector": "vectors"}  # of roles, in prose
QUERY_KEY = ("query", "key")  # the kinds of matrices that make attention logits
NO_LIMIT = math.inf


def verdict(figure: Estimate, low: float, high: float) -> str:
    """Whether a figure lies between `low` and `high`: by its interval, else by its value."""
    if figure.low is None or figure.high is None:
        return HOLDS if low < figure.value < high else FAILS
    if low < figure.low and figure.high < high:
        return HOLDS
    return FAILS if figure.high <= low or figure.low >= high else UNDECIDED


# ---- The rows of a race, by entrant -------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """A race that measured spectra."""

    runs: Sequence[Run]
    rows: pd.DataFrame  # `spectra.measured`
    labels: Sequence[str]  # of the entrants in `rows`, in the order in which they began

    def of(self, label: str, tensor: str) -> pd.DataFrame:
        """The rows of one tensor of an entrant's hidden matrices."""
        return spectra.hidden(self.rows[self.rows["label"] == label], tensor)

    def name(self, recipe: str) -> str | None:
        """The label that stands for a recipe; None if it did not run."""
        return find(self.labels, recipe)


def race_of(root: Path, runs: Sequence[Run]) -> Race:
    """The spectra of these runs in a folder. Raises UserError if none were measured.

    An entrant whose recipe no other one has is called by the recipe, without its options. One with
    a single run left, in a race of several seeds, would have figures without intervals: it is not
    among the labels.
    """
    ordered = sorted(_called_short(runs), key=lambda run: run.started)
    rows = spectra.measured((run, read_spectra(root, run.run)) for run in ordered)
    seeds = rows.groupby("label")["seed"].nunique()
    kept = seeds[(seeds > 1) | (seeds.max() == 1)].index
    labels = [label for label in dict.fromkeys(run.label for run in ordered) if label in kept]
    if not labels:
        raise UserError(f"race {runs[0].race} measured no spectra; run: make why")
    return Race(ordered, rows[rows["label"].isin(labels)], labels)


def _called_short(runs: Sequence[Run]) -> list[Run]:
    """The runs with the name of the recipe as label, if no other label has the recipe."""
    labels = {run.label for run in runs}
    sharing = Counter(recipe_of(label) for label in labels)
    names = {each: each if sharing[recipe_of(each)] > 1 else recipe_of(each) for each in labels}
    return [replace(run, label=names[run.label]) for run in runs]


def ratio(above: pd.Series, below: pd.Series) -> Estimate | None:
    """The ratio of two figures, seed by seed; None if they have no seed in common."""
    return spectra.over_seeds((above / below).dropna())


# ---- Words and cells ---------------------------------------------------------------------------

Form = Callable[[float], str]


def plain(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    """A part in per cent, with three significant digits."""
    return f"{100 * value:.3g}%"


def times(value: float) -> str:
    """A factor."""
    return f"{plain(value)}x"


def shown(figure: Estimate | None, form: Form = plain) -> str:
    """A figure and its interval in brackets; "-" if there is none."""
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return form(figure.value)
    return f"{form(figure.value)} [{form(figure.low)}, {form(figure.high)}]"


def full_rank(rows: pd.DataFrame) -> float:
    """The geometric mean of the matrices' full ranks, which is the rank if all have the same."""
    return math.exp(rows["full"].astype(float).map(math.log).mean())


def rank(rows: pd.DataFrame, column: str = "stable_rank") -> str:
    """A rank of an entrant's matrices, beside their full rank."""
    figure = spectra.figure(rows, column)
    return "-" if figure is None else f"{shown(figure)} of {full_rank(rows):.0f}"


def share(rows: pd.DataFrame, column: str) -> Estimate | None:
    """A rank as a part of the full rank."""
    found = rows.assign(share=rows[column] / rows["full"])
    return spectra.figure(found, "share")


def summary(claim: str, verdicts: Mapping[str, str]) -> str:
    """A claim, and for which names it holds: a line of a list."""
    found = []
    for word in (HOLDS, FAILS, UNDECIDED):
        names = [name for name, each in verdicts.items() if each == word]
        if names:
            found.append(f"**{word}** for {', '.join(names)}")
    return f"- {claim}: {'; '.join(found) or 'not measured'}."


def ruling(claim: str, word: str) -> str:
    """A claim and its verdict: a line of a list."""
    return f"- {claim}: **{word}**."


# ---- The parts ---------------------------------------------------------------------------------

MEASURES: Sequence[tuple[str, str, str, float, float]] = (  # heading, criterion, column, range
    ("stable rank", f"below {LOW_RANK:.0%} of the full rank", "stable_rank", 0, LOW_RANK),
    ("effective rank", "below half of the full rank", "effective_rank", 0, 0.5),
    ("largest over median", "above 10", "over_median", 10, NO_LIMIT),
    ("norm² in the largest tenth", "above half", "top_tenth", 0.5, NO_LIMIT),
)


def directions(race: Race) -> str:
    """Whether few directions dominate the gradient and the momentum of the hidden matrices.

    A matrix of random numbers meets none of the criteria.
    """
    parts = []
    for tensor in (GRADIENT, MOMENTUM):
        table, lines = [], []
        own = {label: rows for label in race.labels if len(rows := race.of(label, tensor))}
        for label, rows in own.items():
            cells = [rank(rows), rank(rows, "effective_rank")]
            cells += [
                shown(spectra.figure(rows, name)) for name in ("over_median", "over_smallest")
            ]
            cells += [shown(spectra.figure(rows, "top_tenth"), percent), _singular(rows)]
            table.append([label, *cells])
        for heading, criterion, column, low, high in MEASURES:
            figures = {
                display_name(label): share(rows, column)
                if column.endswith("_rank")
                else spectra.figure(rows, column)
                for label, rows in own.items()
            }
            lines.append(summary(f"{heading} {criterion}", _verdicts(figures, low, high)))
        headings = [
            tensor, "stable rank", "effective rank", "largest over median",
            "largest over smallest", "norm² in the largest tenth", "singular matrices",
        ]  # fmt: skip
        parts += [markdown_grid(headings, table), "\n".join(lines)]
    return "\n\n".join(parts)


def _singular(rows: pd.DataFrame) -> str:
    """How many of the matrices have directions in which there is rounding alone."""
    return f"{int((rows['smallest'] == 0).sum()):,} of {len(rows):,}"


def _verdicts(figures: Mapping[str, Estimate | None], low: float, high: float) -> dict[str, str]:
    return {name: verdict(each, low, high) for name, each in figures.items() if each is not None}


def updates(race: Race) -> str:
    """Whether AdamW's update is of low rank, Muon's is not, and others are between them."""
    table = []
    for label in race.labels:
        momentum, update = race.of(label, MOMENTUM), race.of(label, UPDATE)
        gain = ratio(*(spectra.by_seed(rows, "stable_rank") for rows in (update, momentum)))
        cells = [rank(momentum), rank(update), shown(gain, times), rank(update, "effective_rank")]
        table.append([label, *cells, shown(spectra.figure(update, "over_median"))])
    headings = [
        "stable rank", "momentum", "update", "update over momentum", "update's effective rank",
        "update's largest over median",
    ]  # fmt: skip
    words, lines = [], []
    for recipe in (BASELINE, CHALLENGER):
        ran = race.name(recipe)
        if ran is None:
            continue
        update, name = race.of(ran, UPDATE), display_name(ran)
        words.append(
            f"{name}'s update has a stable rank of {rank(update)}, "
            f"its momentum {rank(race.of(ran, MOMENTUM))}."
        )
        if recipe == BASELINE:
            claim = f"is of low rank (stable rank below {LOW_RANK:.0%} of the full rank)"
            if part := share(update, "stable_rank"):
                lines.append(ruling(f"{name}'s update {claim}", verdict(part, 0, LOW_RANK)))
        else:
            lines += _flat(name, update)
    lines += _between(race)
    return "\n\n".join([" ".join(words), markdown_grid(headings, table), "\n".join(lines)])


def _flat(name: str, update: pd.DataFrame) -> list[str]:
    """Whether an update is no more concentrated than random numbers, and its values are alike."""
    lines = []
    found = update.assign(
        over_noise=update["stable_rank"] / update["noise"], alike=update["q90"] / update["q10"]
    )
    if over := spectra.figure(found, "over_noise"):
        claim = (
            f"{name}'s update is less concentrated than a matrix of random numbers (its stable "
            f"rank is {shown(over, times)} that of one of the same shape)"
        )
        lines.append(ruling(claim, verdict(over, 1, NO_LIMIT)))
    if alike := spectra.figure(found, "alike"):
        claim = (
            f"the singular values of {name}'s update are alike (their 90% quantile over their 10% "
            f"quantile is below {ALIKE:g}: {shown(alike, times)})"
        )
        lines.append(ruling(claim, verdict(alike, 0, ALIKE)))
    return lines


def _between(race: Race) -> list[str]:
    """For each other entrant, whether the stable rank of its update lies between the two."""
    ends = race.name(BASELINE), race.name(CHALLENGER)
    if ends[0] is None or ends[1] is None:
        return []
    low, high = (spectra.by_seed(race.of(end, UPDATE), "stable_rank") for end in ends if end)
    lines = []
    for label in race.labels:
        own = spectra.by_seed(race.of(label, UPDATE), "stable_rank")
        over, under = ratio(own, low), ratio(own, high)
        if label in ends or over is None or under is None:
            continue
        name = display_name(label)
        words = {verdict(over, 1, NO_LIMIT), verdict(under, 0, 1)}
        word = FAILS if FAILS in words else UNDECIDED if UNDECIDED in words else HOLDS
        first, second = (display_name(end) for end in ends if end)
        claim = (
            f"{name}'s update is between them ({shown(over, times)} {first}'s stable rank, and "
            f"{shown(under, times)} {second}'s)"
        )
        lines.append(ruling(claim, word))
    return lines


def training(race: Race) -> str:
    """How the stable rank changes from the beginning to the end of training."""
    table, rising = [], {}
    for tensor in (GRADIENT, MOMENTUM, UPDATE):
        for label in race.labels:
            rows, name = race.of(label, tensor), display_name(label)
            if not len(rows):
                continue
            cells, rising[f"{name}'s {tensor}"] = _change(rows)
            table.append([f"{label}, {tensor}", *cells])
            for block in (ATTENTION, MLP) if tensor == UPDATE else ():
                own = rows[rows["group"].str.startswith("mlp.") == (block == MLP)]
                cells, rising[f"{name}'s {tensor} of {block}"] = _change(own)
                table.append([f"{label}, {tensor} of {block}", *cells])
    headings = ["stable rank", *spectra.MOMENTS, "end over beginning", "change"]
    lines = [
        f"- It {word}: {', '.join(names)}."
        for word in DIRECTION.values()
        if (names := [name for name, each in rising.items() if each == word])
    ]
    return f"{markdown_grid(headings, table)}\n\n{chr(10).join(lines)}"


def _change(rows: pd.DataFrame) -> tuple[list[str], str]:
    """The cells of the stable rank at each moment and its change, and the word for the change."""
    figures = [spectra.figure(spectra.at(rows, when), "stable_rank") for when in spectra.MOMENTS]
    change = ratio(
        *(spectra.by_seed(spectra.at(rows, when), "stable_rank") for when in (END, BEGINNING))
    )
    word = "-" if change is None else DIRECTION[verdict(change, 1, NO_LIMIT)]
    return [*map(shown, figures), shown(change, times), word], word


DIRECTION = {FAILS: "falls", HOLDS: "rises", UNDECIDED: "shows no change"}


def kinds(race: Race) -> str:
    """The stable rank by kind of matrix, and whether queries and keys have the lowest ones."""
    columns = [(label, tensor) for tensor in (MOMENTUM, UPDATE) for label in race.labels]
    columns = [pair for pair in columns if len(race.of(*pair))]
    matrices = race.rows[race.rows["role"] == spectra.MATRIX]
    table = []
    for kind in spectra.groups(matrices):
        own = [(rows := race.of(*pair))[rows["group"] == kind] for pair in columns]
        full = full_rank(matrices[matrices["group"] == kind])
        table.append([f"{kind}, of {full:.0f}", *(_value(rows, "stable_rank") for rows in own)])
    headings = ["stable rank", *(f"{label}, {tensor}" for label, tensor in columns)]
    lines = []
    for tensor in (MOMENTUM, UPDATE):
        found = {}
        for label in (label for label, each in columns if each == tensor):
            rows = race.of(label, tensor)
            rows = rows.assign(share=rows["stable_rank"] / rows["full"])
            ranks = spectra.geometric(rows, "share", ["group", "seed"])
            logit = ranks.index.get_level_values("group").isin(QUERY_KEY)
            figure = ratio(ranks[logit].groupby("seed").max(), ranks[~logit].groupby("seed").min())
            found[f"{display_name(label)} ({shown(figure, times)})"] = figure
        claim = (
            f"queries and keys have the lowest stable ranks of the {tensor} (the higher of the "
            "two is below the lowest other kind)"
        )
        lines.append(summary(claim, _verdicts(found, 0, 1)))
    return f"{markdown_grid(headings, table)}\n\n{chr(10).join(lines)}"


def balance(race: Race) -> str:
    """Whether the roles keep their balance where only some of them are trained with Muon."""
    parts = [_moves(race), _growth(race)]
    base, muon = race.name(BASELINE), race.name(CHALLENGER)
    if base is None or muon is None:
        return "\n\n".join(parts)
    names = display_name(muon), display_name(base)
    lines = []
    for role in spectra.groups(race.rows[race.rows["role"] != spectra.MATRIX]):
        own, other = (_relative_to(race, label, role) for label in (muon, base))
        figure = ratio(own, other)
        if figure is None:
            continue
        rates = [shown(spectra.over_seeds(each), times) for each in (own, other)]
        claim = (
            f"hidden matrices move {rates[0]} as fast as the {NAMES[role]} with {names[0]}, "
            f"{rates[1]} with {names[1]}; "
            f"{names[0]}'s balance is {names[1]}'s within a factor of {BALANCED:g} "
            f"({shown(figure, times)})"
        )
        lines.append(ruling(claim, verdict(figure, 1 / BALANCED, BALANCED)))
    for column, what in (("norm", "norm"), ("largest", "largest singular value")):
        ends = [spectra.at(race.of(label, WEIGHT), END) for label in (muon, base)]
        figure = ratio(*(spectra.by_seed(rows, column) for rows in ends))
        if figure is not None:
            claim = (
                f"at the end the {what} of a hidden matrix is larger with {names[0]} than with "
                f"{names[1]} ({shown(figure, times)})"
            )
            lines.append(ruling(claim, verdict(figure, 1, NO_LIMIT)))
    return "\n\n".join([*parts, "\n".join(lines)])


def _relative_to(race: Race, label: str, role: str) -> pd.Series:
    """The relative update of the hidden matrices over a role's, of each seed, over all steps."""
    rows = race.rows[(race.rows["label"] == label) & (race.rows["tensor"] == UPDATE)]
    below = spectra.by_seed(rows[rows["group"] == role], "relative")
    return spectra.by_seed(spectra.hidden(rows, UPDATE), "relative") / below


def _value(rows: pd.DataFrame, column: str, form: Form = plain) -> str:
    """A figure without its interval, for a table of many."""
    figure = spectra.figure(rows, column)
    return "-" if figure is None else form(figure.value)


def _moves(race: Race) -> str:
    """The update over the weight in the middle of training, by role."""
    rows = spectra.at(race.rows[race.rows["tensor"] == UPDATE], MIDDLE)
    table = []
    for group in spectra.groups(race.rows):
        own = [rows[(rows["group"] == group) & (rows["label"] == each)] for each in race.labels]
        table.append([group, *(_value(each, "relative", percent) for each in own)])
    return markdown_grid(["update over weight, middle", *race.labels], table)


def _growth(race: Race) -> str:
    """Norm and largest singular value of the weights at the end, and their growth, by role.

    A vector has its norm alone.
    """
    weights = race.rows[race.rows["tensor"] == WEIGHT]
    table = []
    for group in spectra.groups(race.rows):
        rows = weights[weights["group"] == group]
        columns = {"norm": "norm", "largest": "largest singular value"}
        for column in columns if (rows["columns"] > 1).any() else ("norm",):
            cells = []
            for label in race.labels:
                own = rows[rows["label"] == label]
                end, start = (
                    spectra.by_seed(spectra.at(own, when), column) for when in (END, BEGINNING)
                )
                value, grown = spectra.over_seeds(end), ratio(end, start)
                growth = f" ({times(grown.value)})" if grown else ""
                cells.append(f"{plain(value.value)}{growth}" if value else "-")
            table.append([f"{group}, {columns[column]}", *cells])
    return markdown_grid(["weights at the end (over the beginning)", *race.labels], table)


def race_words(race: Race) -> str:
    """How many runs and steps the figures are of, what their brackets are, and the final losses."""
    seeds = race.rows["seed"].nunique()
    interval = (
        f"Brackets are 95% intervals over {seeds} seeds."
        if seeds > 1
        else "There is one seed, so there are no intervals, and the figures alone decide."
    )
    diverged = sum(run.status == DIVERGED for run in race.runs)
    left = f" Runs that diverged and are left out: {diverged}." if diverged else ""
    labels = {run.label for run in race.runs if run.status != DIVERGED} - {*race.labels}
    if lone := ", ".join(sorted(display_name(label) for label in labels)):
        left += f" Left out, because fewer than two of their runs were measured: {lone}."
    steps = [f"{step}" for step in sorted(race.rows["step"].unique())]
    when = f"{', '.join(steps[:-1])} and {steps[-1]}" if len(steps) > 1 else steps[0]
    return (
        f"{race.rows['run'].nunique()} runs of race {race.runs[0].race}, measured after step "
        f"{when}. {interval}{left} Mean final losses: {_final_losses(race)}."
    )


def settings(race: Race) -> str:
    """Every option of the entrants: a list."""
    entrants = {run.label: run.entrant for run in race.runs}
    return "\n".join(f"- `{entrants[label]}`" for label in race.labels)


def _final_losses(race: Race) -> str:
    """The mean final loss of each entrant, and the horizon that it is of."""
    groups = by_label(race.runs)
    return ", ".join(
        f"{display_name(label)} {mean(losses(groups[label])).value:.4f} after "
        f"{groups[label][0].steps_planned} steps"
        for label in race.labels
    )


PARTS: Mapping[str, Callable[[Race], str]] = {
    "race": race_words,
    "settings": settings,
    "directions": directions,
    "updates": updates,
    "training": training,
    "kinds": kinds,
    "balance": balance,
}


# ---- The command -------------------------------------------------------------------------------


def command(options: argparse.Namespace) -> int:
    """Print the parts; the exit code. Raises UserError."""
    runs = select(read_runs(options.root), options.race)
    race = race_of(options.root, runs)
    print(*(part(race) for part in PARTS.values()), sep="\n\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 after a user's mistake."""
    parser = entry.parser("analysis.why", __doc__)
    parser.add_argument(
        "--root", type=paths.typed, default=paths.RESULTS, help="folder of runs.csv"
    )
    parser.add_argument("--race", help="id of the race; default: the newest")
    return entry.run(parser, argv, command)


if __name__ == "__main__":
    sys.exit(main())
