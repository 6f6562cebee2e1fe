"""The three runs at 1.5B: loss against time, and where Muon meets AdamW's final loss."""

from matplotlib.figure import Figure

from analysis import evidence
from analysis.charts import _style
from analysis.published import Data

NAMES = {"adamw": "AdamW", "muon-15258": "Muon", "muon-20344": "Muon, long run"}
LOOKS = _style.looks(["adamw", "muon"])
HOUR = 3600


def draw(data: Data) -> Figure:
    """The last part of each curve against hours of training."""
    found = evidence.ratios(data)
    fastest = evidence.find(found, evidence.GROUP_XL, "first to", "seconds")
    adamw = data.curve(evidence.XL, "adamw")
    end = adamw.final_loss
    figure = _style.new_figure(
        f"At 1.5B, Muon meets AdamW's final loss in {fastest.less} less time "
        f"({fastest.value.low:.3f}x as fast)",
        f"Validation loss of three runs against their training clock. Horizontal line: AdamW's "
        f"final loss, {end:g}. Each point is the first validation at or below it. The long run of "
        f"Muon meets it later, because its learning rate falls later: a schedule ends where it was "
        f"made to end.",
        "modded-nanogpt, logs of 2024-10-20, 8 H100 · results/published/track1_curves.csv",
        3.2,
    )
    axes = figure.subplots()
    for name, shown in NAMES.items():
        look = LOOKS["adamw" if name == "adamw" else "muon"]
        curve = data.curve(evidence.XL, name)
        timed = [(p.train_time_s / HOUR, p.val_loss) for p in curve.points if p.train_time_s]
        late = [(x, y) for x, y in timed if x >= 2]
        dashes = (0, (4, 1.6)) if "20344" in name else "-"
        label = f"{shown}, {curve.planned_steps:,} steps, ends at {curve.final_loss:.4f}"
        axes.plot(*zip(*late, strict=True), color=look.color, linestyle=dashes, label=label)
        met = curve.first_at(end)
        if met and met.train_time_s:
            axes.plot(met.train_time_s / HOUR, met.val_loss, look.marker, color=look.color)
            axes.annotate(
                f"{met.train_time_s / HOUR:.2f} h", (met.train_time_s / HOUR, met.val_loss),
                (0, 8 if name == "adamw" else -8), textcoords="offset points", ha="center",
                va="bottom" if name == "adamw" else "top",
                size=_style.SMALL_PT, color=look.text,
            )  # fmt: skip
    axes.axhline(end, color=_style.MUTED, linewidth=0.8)
    axes.set_xlabel("hours of training")
    axes.set_ylabel("validation loss")
    axes.legend()
    return figure
