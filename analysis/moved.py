"""What a wider search changed: who gained, whether the order changed, how much was tuning.

    markdown(earlier, later, leagues)      # docs/comparison.md shows it

An optimizer's confirmed loss is the mean over the fresh seeds of its best setting at the common
horizon. The earlier ones are of the tuner's stage "standing": the earlier settings under the
conditions of the wider search, because precision and attention change losses too. A search that
found nothing better keeps the earlier setting. Gains are paired by seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis import stats
from analysis.league import times, verdict
from analysis.pairs import Pair, Pairs
from analysis.price import Prices
from analysis.stats import Estimate
from analysis.table import BASELINE, CHALLENGER, by_label, find, markdown_grid, standing
from errors import UserError
from tracking.schema import Run, Trial
from tracking.spelling import display_name, recipe_of

CONFIRMED = ("confirm", "standing")  # stages with all fresh seeds
CONDITIONS = ("track_hash", "steps", "dtype", "attention", "torch")  # alike in rows compared


class League(NamedTuple):
    """A race of all tuned optimizers."""

    runs: Sequence[Run]
    prices: Prices


@dataclass(frozen=True)
class Gain:
    """The confirmed losses of one optimizer before and after, nats per token."""

    recipe: str
    before: float
    after: float
    by_seed: Mapping[int, float]  # before - after

    @property
    def difference(self) -> Estimate:
        """The mean over seeds, with its 95% interval."""
        return stats.mean([*self.by_seed.values()])


def confirmed(trials: Sequence[Trial]) -> dict[str, Mapping[int, float]]:
    """By recipe: the losses by seed of the setting whose mean over the most seeds is lowest."""
    losses: dict[tuple[str, str], dict[int, float]] = {}
    for row in trials:
        if row.stage in CONFIRMED and row.final_loss is not None:
            losses.setdefault((row.recipe, row.entrant), {})[row.seed] = row.final_loss
    most = max(map(len, losses.values()), default=0)
    best: dict[str, Mapping[int, float]] = {}
    for (recipe, _), by_seed in losses.items():
        if len(by_seed) == most and (recipe not in best or _mean(by_seed) < _mean(best[recipe])):
            best[recipe] = by_seed
    return best


def gains(earlier: Sequence[Trial], later: Sequence[Trial]) -> list[Gain]:
    """What each optimizer of both searches gained, the largest gain first.

    Rows of later trials under other conditions are left out: a search that went on with another
    precision has some. Raises UserError if the earlier rows have several tracks, horizons or
    conditions, or the later ones none of theirs.
    """
    earlier, later = ([row for row in rows if row.stage in CONFIRMED] for rows in (earlier, later))
    for name in CONDITIONS:
        values = {str(getattr(row, name)) for row in earlier}
        like = [row for row in later if str(getattr(row, name)) in values]
        if not like:
            values |= {str(getattr(row, name)) for row in later}
        if len(values) > 1:
            raise UserError(
                f"rows with {name} {' and '.join(sorted(values))} are not comparable; run the "
                "earlier settings again with: python -m studies.tune --stage standing"
            )
        later = like
    before, after = confirmed(earlier), confirmed([*earlier, *later])
    found = []
    for recipe in before.keys() & confirmed(later).keys():  # the others are not done
        seeds = before[recipe].keys() & after[recipe].keys()
        by_seed = {seed: before[recipe][seed] - after[recipe][seed] for seed in sorted(seeds)}
        found.append(Gain(recipe, _mean(before[recipe]), _mean(after[recipe]), by_seed))
    return sorted(found, key=lambda gain: (-gain.difference.value, gain.recipe))


def markdown(
    earlier: Sequence[Trial], later: Sequence[Trial], leagues: Sequence[League] = ()
) -> str:
    """The table and what it shows. leagues: the earlier and the later one, or none."""
    found = gains(earlier, later)
    against = [_against(league) for league in leagues]
    headings = ["optimizer", "loss, earlier settings", "loss, wider search", "gain"]
    if leagues:
        headings += ["AdamW's steps over its own, earlier", "now"]
        headings += ["place in seconds, earlier", "now"]
    sentences = [*_gainers(found), *_gap(found)]
    if leagues:
        sentences += [*_ratios(leagues), *_order(leagues)]
    listed = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"{markdown_grid(headings, [_cells(gain, against) for gain in found])}\n\n{listed}"


def _mean(by_seed: Mapping[int, float]) -> float:
    return statistics.fmean(by_seed.values())


def _against(league: League) -> dict[str, tuple[str, int]]:
    """By recipe: AdamW's steps over its own, as text, and its place in seconds."""
    groups = by_label(league.runs)
    base = find(groups, BASELINE)
    pairs = Pairs(groups, "steps", league.prices)
    order = sorted(groups, key=lambda label: standing(groups[label], "seconds"))
    found = {}
    for place, label in enumerate(order, start=1):
        pair = Pair(None, None, 0) if base in (None, label) else pairs.of(base, label)
        ratio = "-" if pair.ratio is None else f"{times(pair.ratio)}{verdict(pair)}"
        found[recipe_of(label)] = ("1" if label == base else ratio, place)
    return found


def _cells(gain: Gain, leagues: Sequence[Mapping[str, tuple[str, int]]]) -> list[str]:
    standings = [each.get(gain.recipe, ("-", "-")) for each in leagues]
    return [
        gain.recipe,
        f"{gain.before:.4f}",
        f"{gain.after:.4f}",
        interval(gain.difference),
        *(ratio for ratio, _ in standings),
        *(str(place) for _, place in standings),
    ]


def interval(estimate: Estimate) -> str:
    """A loss with its interval, if it has one."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _shown(gain: Gain) -> bool:
    return gain.difference.low is not None and gain.difference.low > 0


def _gainers(found: Sequence[Gain]) -> list[str]:
    """Who gained more than the seeds explain."""
    shown = [gain for gain in found if _shown(gain)]
    rest = [display_name(gain.recipe) for gain in found if not _shown(gain)]
    sentences = []
    if shown:
        names = ", ".join(f"{display_name(g.recipe)} {g.difference.value:.3f}" for g in shown)
        sentences.append(f"The interval of the gain lies above 0 for: {names} (nats per token).")
    if rest:
        sentences.append(f"No gain is shown for: {', '.join(rest)}.")
    return sentences


def _gap(found: Sequence[Gain]) -> list[str]:
    """How much of the challenger's lead at one horizon was tuning."""
    by_recipe = {gain.recipe: gain for gain in found}
    if not by_recipe.keys() >= {BASELINE, CHALLENGER}:
        return []
    base, challenger = by_recipe[BASELINE], by_recipe[CHALLENGER]
    before, after = base.before - challenger.before, base.after - challenger.after
    names = display_name(CHALLENGER), display_name(BASELINE)
    now = f"{abs(after):.3f} {'below' if after >= 0 else 'above'} it now"
    sentence = (
        f"At the common horizon {names[0]} ended {before:.3f} nats below {names[1]} with the "
        f"earlier settings, and ends {now}"
    )
    shared = base.by_seed.keys() & challenger.by_seed.keys()
    lost = stats.mean([base.by_seed[s] - challenger.by_seed[s] for s in sorted(shared)])
    if lost.low is None or lost.high is None:
        return [f"{sentence}."]
    if lost.low <= 0 <= lost.high:
        sentence += "; the difference may be chance"
    elif lost.low > 0 and before > 0:
        part = f"{1 - after / before:.0%}" if after > 0 else "all"
        sentence += f": {part} of the earlier lead was tuning"
    return [f"{sentence}. The lead {'fell' if lost.value > 0 else 'grew'} by {_size(lost)}."]


def _size(estimate: Estimate) -> str:
    """A change without its sign, and its interval."""
    if estimate.value >= 0:
        return interval(estimate)
    low, high = (None if x is None else -x for x in (estimate.high, estimate.low))
    return interval(Estimate(-estimate.value, low, high, estimate.n))


def _ratios(leagues: Sequence[League]) -> list[str]:
    """The challenger's ratio in steps in both leagues."""
    words = []
    for league in leagues:
        groups = by_label(league.runs)
        base, challenger = find(groups, BASELINE), find(groups, CHALLENGER)
        if base is None or challenger is None:
            return []
        pair = Pairs(groups, "steps", league.prices).of(base, challenger)
        if pair.ratio is None:
            return []
        words.append(f"{times(pair.ratio)} to a loss of {league.runs[0].target:g}")
    names = f"{display_name(BASELINE)}'s steps over {display_name(CHALLENGER)}'s"
    return [f"{names}: {words[0]} in the earlier league, {words[1]} in the later one."]


def _order(leagues: Sequence[League]) -> list[str]:
    """Whether the order in seconds changed."""
    first, second = ({r: place for r, (_, place) in _against(x).items()} for x in leagues)
    moved = [
        f"{display_name(recipe)} from {first[recipe]} to {second[recipe]}"
        for recipe in sorted(second, key=second.__getitem__)
        if recipe in first and first[recipe] != second[recipe]
    ]
    if not moved:
        return ["The order in seconds did not change."]
    return [f"Places in seconds that changed: {', '.join(moved)}."]
