"""All published ratios of AdamW to Muon, beside the two claims that are known as "35%"."""

from matplotlib.figure import Figure

from analysis import evidence
from analysis.charts import _style
from analysis.published import Data

LOOKS = _style.looks_in_order(["steps", "tokens", "seconds"])
GROUP_GAP = 1.3  # rows between groups


def draw(data: Data) -> Figure:
    """A row for each ratio; filled where the two runs are matched."""
    found = [ratio for ratio in evidence.ratios(data) if ratio.basis != "price"]
    tuned = evidence.find(found, evidence.GROUP_TODAY, "both tuned", "steps")
    figure = _style.new_figure(
        f"AdamW's cost over Muon's: {tuned.value.low:.2f}x the steps with both tuned",
        f"Each row is one published comparison, recomputed. Filled: the runs differ in little "
        f"beside the optimizer. Hollow: they differ in more, or no curve is there. A bar is a "
        f"range along a curve, an arrow a lower bound. Lines: {evidence.FASTER:g}x as fast and "
        f"35% less ({evidence.LESS:.2f}x), "
        f'the two claims known as "35%".',
        "modded-nanogpt, snapshot of 2026-08-01 · results/published",
        0.19 * (len(found) + GROUP_GAP * len({r.group for r in found})) + 0.7,
    )
    axes = figure.subplots()
    y, ticks, names, group = 0.0, [], [], ""
    for ratio in found:
        if ratio.group != group:
            y, group = y + GROUP_GAP, ratio.group
            axes.text(
                0, y - 1.0, group, transform=axes.get_yaxis_transform(), va="center",
                size=_style.SMALL_PT, weight="bold",
            )  # fmt: skip
        look, value = LOOKS[ratio.basis], ratio.value
        axes.plot([value.low, value.high], [y, y], color=look.color, linewidth=2.5)
        axes.plot(
            [value.low, value.high], [y, y], look.marker, color=look.color, markersize=6,
            markerfacecolor=look.color if ratio.is_matched else "white", linestyle="",
        )  # fmt: skip
        if ratio.is_bound:
            axes.annotate(
                "", (value.high + 0.06, y), (value.high, y),
                arrowprops={"arrowstyle": "->", "color": look.color, "linewidth": 1.2},
            )  # fmt: skip
        ticks.append(y)
        names.append(ratio.what)
        y += 1
    for claim in (evidence.FASTER, evidence.LESS):
        axes.axvline(claim, color=_style.INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(claim, -0.55, f"{claim:.2f}x", ha="center", va="bottom", size=_style.SMALL_PT)
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_ylim(y - 0.3, -0.6)
    axes.set_xlim(0.95, 2.1)
    axes.set_xlabel("times Muon's cost (1: equal)")
    for basis, look in LOOKS.items():
        axes.plot([], [], look.marker, color=look.color, label=basis, linestyle="")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.32))
    return figure
