"""The matched pair of 2024-10-29: the curves, and AdamW's steps over Muon's for equal loss."""

from matplotlib.figure import Figure

from analysis import evidence
from analysis.charts import _style
from analysis.published import TARGET, Data

NAMES = {"adam": "Adam", "muon": "Muon", "shampoo": "Shampoo", "soap": "SOAP"}
LOOKS = _style.looks(["adamw", "muon", "shampoo", "soap"])


def draw(data: Data) -> Figure:
    """Two panels: loss against steps, and the ratio for equal loss against AdamW's steps."""
    steps, first, last = evidence.pair_range(data, from_middle=True)
    adam = data.curve(evidence.PAIR, "adam")
    muon = data.curve(evidence.PAIR, "muon")
    ratios = evidence.iso_loss(adam, muon)
    figure = _style.new_figure(
        f"One program, one day: Adam needs {steps.low:.2f}x to {steps.high:.2f}x Muon's steps for "
        "equal loss",
        "Left: the last part of the validation losses of four optimizers in 5,100 steps, one run "
        f"each. Right: Adam's steps over Muon's at the loss of each validation of Adam. Shaded: "
        f"steps {first:,} to {last:,}, the later half of those at which both learning rates are "
        "constant. Before, the runs still start; after, Adam's learning rate falls and Muon's, "
        "which is at an earlier step, does not, so the ratio is too low.",
        "modded-nanogpt, logs of 2024-10-29, 8 H100 · results/published/track1_curves.csv",
        3.2,
    )
    left, right = figure.subplots(1, 2)
    for name, shown in NAMES.items():
        look = LOOKS["adamw" if name == "adam" else name]
        points = [p for p in data.curve(evidence.PAIR, name).points if p.step >= 1000]
        left.plot(
            [p.step for p in points], [p.val_loss for p in points],
            color=look.color, linestyle=look.dashes, label=shown,
        )  # fmt: skip
    left.axhline(TARGET, color=_style.MUTED, linewidth=0.8)
    left.set_xlabel("steps")
    left.set_ylabel("validation loss")
    left.legend()
    shown_ratios = [(step, ratio) for step, _, ratio in ratios if step >= 250]
    right.axvspan(first, last, color=_style.FAINT, alpha=0.5, linewidth=0)
    look = LOOKS["muon"]
    right.plot(*zip(*shown_ratios, strict=True), color=look.color, marker=".", markersize=4)
    for claim in (evidence.FASTER, evidence.LESS):
        right.axhline(claim, color=_style.INK, linewidth=0.8, linestyle=(0, (4, 2)))
        right.text(
            right.get_xlim()[1], claim, f"{claim:.2f}x ", ha="right", va="bottom",
            size=_style.SMALL_PT,
        )  # fmt: skip
    right.set_xlabel("Adam's steps")
    right.set_ylabel("Adam's steps over Muon's")
    return figure
