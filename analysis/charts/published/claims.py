"""The 46 results of track 3: the mean loss of each, and whether it is the claimed one."""

from matplotlib.figure import Figure

from analysis import claims
from analysis.charts import _style
from analysis.published import TARGET, Data
from analysis.stats import TRACK3_MARGIN

LOOKS = _style.looks_in_order([claims.PASSED, claims.DIFFERS, claims.UNCHECKED])


def draw(data: Data) -> Figure:
    """Two panels over the results: mean losses, and the statistic of the rule."""
    found = claims.verdicts(data)
    number = claims.counts(found)
    figure = _style.new_figure(
        f"{number[claims.PASSED]} of {len(found)} claims of track 3 are what their curves say",
        f"Top: the mean final loss of each result, recomputed from its runs' curves (filled, with "
        f"one standard deviation between runs), and as it was claimed (hollow) where no curves are "
        f"here or the two differ. Bottom: ({TARGET:g} - mean) √n; the rule asks for at least "
        f"{TRACK3_MARGIN:g}.",
        "modded-nanogpt, track 3, snapshot of 2026-08-01 · results/published",
        4.6,
    )
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for state, look in LOOKS.items():
        rows = [v for v in found if v.state == state]
        x = [v.claim.result for v in rows if v.mean is not None]
        y = [v.mean for v in rows if v.mean is not None]
        sd = [v.sd or 0.0 for v in rows if v.mean is not None]
        top.errorbar(
            x, y, sd, fmt=look.marker, color=look.color, markersize=5, elinewidth=1, linestyle=""
        )
        hollow = [v for v in rows if state != claims.PASSED]
        top.plot(
            [v.claim.result for v in hollow],
            [v.claim.claimed_mean_loss for v in hollow],
            look.marker, color=look.color, markerfacecolor="white", markersize=5, linestyle="",
        )  # fmt: skip
        bottom.plot(
            [v.claim.result for v in rows],
            [v.statistic for v in rows],
            look.marker, color=look.color, markersize=5, linestyle="",
            markerfacecolor="white" if state == claims.UNCHECKED else look.color,
            label=f"{state} ({len(rows)})",
        )  # fmt: skip
    top.axhline(TARGET, color=_style.MUTED, linewidth=1)
    top.set_ylabel("mean validation loss")
    bottom.axhline(TRACK3_MARGIN, color=_style.MUTED, linewidth=1)
    bottom.set_ylabel("statistic")
    bottom.set_ylim(0, 1.1 * max(v.statistic for v in found))
    bottom.set_xlabel("result of track 3, in the order of the list")
    bottom.set_xlim(0, max(v.claim.result for v in found) + 1)
    bottom.legend(loc="upper right", ncols=3)
    return figure
