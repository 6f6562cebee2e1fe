"""How every chart looks: size, type, colours, and the frame of title, caption and footer.

Claims: an entrant has one colour, marker and dash in all charts; the colours are Okabe and
Ito's (two changed for contrast on white), and no meaning rests on colour alone. Charts are drawn
for a page 900 pixels wide, where the smallest type is 11 pixels high.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from tracking.spelling import DISPLAY_NAMES, display_name, options_of, recipe_of, split

WIDTH_IN = 9.0  # 900 pixels at 100 to the inch; PNGs have twice that
DPI = 200
MARGIN_IN = 0.15
TITLE_PT, BODY_PT, SMALL_PT = 12.5, 9.0, 8.0
LINE_SPACING = 1.3

INK, MUTED, FAINT = "#1F1F1F", "#5F5F5F", "#D9D9D9"

# Set by `drawing` alone, so that an import changes no setting of other programs.
SETTINGS: dict[RcKeyType, Any] = {
    "svg.hashsalt": "speedrun",  # the ids in an SVG are random without it
    "svg.fonttype": "path",  # the same picture where the font is missing
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": BODY_PT,
    "axes.labelsize": BODY_PT,
    "axes.labelcolor": INK,
    "axes.titlesize": BODY_PT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.labelsize": SMALL_PT,
    "ytick.labelsize": SMALL_PT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": SMALL_PT,
    "hatch.linewidth": 0.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, matplotlib has its own defaults and SETTINGS, and nothing that the user has set.

    So a style sheet, a matplotlibrc or the rcParams of a notebook change no chart. Afterwards the
    user's settings are as they were.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


RESERVED = {"adamw": "#0072B2", "muon": "#D55E00"}  # blue and vermilion, for no other entrant
PALETTE = (
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#882255",  # wine, for Okabe and Ito's yellow, which is faint on white
    "#707070",  # grey, for black, which is the colour of text
)
MARKERS = ("^", "D", "v", "P", "h", ">", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
SLOTS = len(PALETTE) * len(DASHES)
SLOT = {name: i for i, name in enumerate(n for n in DISPLAY_NAMES if n not in RESERVED)}


@dataclass(frozen=True)
class Look:
    """How one entrant is drawn. `text` is `color`, dark enough for letters."""

    color: str
    text: tuple[float, float, float]
    marker: str
    dashes: Any  # a matplotlib line style


def looks(shown: Iterable[str]) -> dict[str, Look]:
    """The look of each label or recipe in `shown`.

    A recipe of `DISPLAY_NAMES` has one look in all charts of all records: it follows from its
    place in that table. Another label starts from a look that follows from its spelling, and
    takes the next one that is free in this chart. Two names of one chart never share a look, up
    to `SLOTS` of them.
    """
    names = list(dict.fromkeys(shown))
    taken: dict[str, int] = {}
    for name in sorted(set(names) - set(RESERVED), key=lambda name: (name not in SLOT, name)):
        first = _first_slot(name)
        candidates = [(first + i) % SLOTS for i in range(SLOTS)]
        free = [slot for slot in candidates if slot not in taken.values()]
        taken[name] = (free or candidates)[0]
    return {name: _look(name, taken.get(name, 0)) for name in names}


def looks_in_order(names: Sequence[str]) -> dict[str, Look]:
    """Looks for names that are no entrants: the first ones of the palette, in this order."""
    return {name: _look(name, slot) for slot, name in enumerate(dict.fromkeys(names))}


def _first_slot(name: str) -> int:
    recipe = recipe_of(name).replace("_", "-")
    return SLOT.get(recipe, zlib.crc32(name.encode())) % SLOTS


def _look(name: str, slot: int) -> Look:
    if name in RESERVED:
        marker = "o" if name == "adamw" else "s"
        return Look(RESERVED[name], _readable(RESERVED[name]), marker, DASHES[0])
    lap, hue = divmod(slot, len(PALETTE))
    marker = MARKERS[(hue + 2 * lap) % len(MARKERS)]  # turned, so that a hue's laps differ
    return Look(PALETTE[hue], _readable(PALETTE[hue]), marker, DASHES[lap])


def _readable(color: str) -> tuple[float, float, float]:
    """The colour, darkened until it has a contrast of 5 to 1 on white."""
    r, g, b = to_rgb(color)
    luminance = 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2
    shade = min(1.0, (0.16 / luminance) ** (1 / 2.2))
    return (r * shade, g * shade, b * shade)


def text_width_in(text: str, size_pt: float, bold: bool = False) -> float:
    """Width of one line of text in inches, as it will be drawn."""
    font = FontProperties(
        family=SETTINGS["font.family"], size=size_pt, weight="bold" if bold else "normal"
    )
    width, _, _ = RendererAgg(1, 1, dpi=720).get_text_width_height_descent(text, font, False)
    return float(width) / 720


def wrap(text: str, width_in: float, size_pt: float, bold: bool = False) -> str:
    """The text with line breaks, so that no line is wider than `width_in` unless one word is.

    Bold text is for titles: its lines are of like lengths, so that no word is left alone.
    """
    words = text.split(" ")
    widths = [text_width_in(word + " ", size_pt, bold) for word in words]

    def broken(limit: float) -> list[str]:
        lines: list[str] = []
        room = 0.0
        for word, width in zip(words, widths, strict=True):
            if lines and width <= room:
                lines[-1] += f" {word}"
                room -= width
            else:
                lines.append(word)
                room = limit - width
        return lines

    lines = broken(width_in)
    if bold:
        narrower = (broken(width_in * percent / 100) for percent in range(50, 100, 5))
        lines = next((other for other in narrower if len(other) == len(lines)), lines)
    return "\n".join(lines)


def new_figure(title: str, caption: str, footer: str, body_in: float) -> Figure:
    """An empty figure `WIDTH_IN` wide with its frame of text; `body_in` inches high within it.

    Axes added to it share the body by matplotlib's constrained layout, until `freeze_layout`.
    """
    width = WIDTH_IN - 2 * MARGIN_IN
    blocks = [
        (wrap(title, width, TITLE_PT, bold=True), TITLE_PT, INK, "bold"),
        (wrap(caption, width, SMALL_PT), SMALL_PT, MUTED, "normal"),
        (wrap(footer, width, SMALL_PT), SMALL_PT, MUTED, "normal"),
    ]
    heights = [(text.count("\n") + 1) * size * LINE_SPACING / 72 for text, size, _, _ in blocks]
    gap = 0.08
    top, bottom = MARGIN_IN + sum(heights[:2]) + 2 * gap, MARGIN_IN + heights[2] + gap
    height = top + body_in + bottom
    side = MARGIN_IN / 2 / WIDTH_IN
    body = ConstrainedLayoutEngine(rect=(side, bottom / height, 1 - 2 * side, body_in / height))
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, layout=body, facecolor="white")
    FigureCanvasAgg(figure)
    for (text, size, color, weight), y_in, align in zip(
        blocks,
        (height - MARGIN_IN, height - MARGIN_IN - heights[0] - gap, MARGIN_IN),
        ("top", "top", "bottom"),
        strict=True,
    ):
        figure.text(
            MARGIN_IN / WIDTH_IN,
            y_in / height,
            text,
            size=size,
            color=color,
            weight=weight,
            va=align,
            linespacing=LINE_SPACING,
        )
    return figure


def freeze_layout(figure: Figure) -> None:
    """Lays the axes out and fixes them there; a frozen figure stays as it is.

    The solver's last digits differ from process to process, and the ids in an SVG are hashes of
    them, so positions are rounded.
    """
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 5), round(bottom, 5), round(width, 5), round(height, 5)))


def row_labels(axes: Axes, names: Sequence[str], styles: dict[str, Look]) -> None:
    """Makes the y axis a list of names from top to bottom, each in its own colour.

    Rows are at y = 0, 1, 2, ...; options follow on lines below the name.
    """
    axes.set_yticks(range(len(names)), [_stack(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(styles[name].text)
        tick.set_fontweight("bold")


@dataclass(frozen=True)
class Note:
    """A name for the point (x, y) of some axes."""

    text: str
    x: float
    y: float
    look: Look


def notes_beside(axes: Axes, notes: Sequence[Note]) -> None:
    """Writes names in a column right of the axes, in the order of the points' heights.

    A leader goes from each to its point, so that names never overlap, however close the points.
    """
    for row, note in enumerate(sorted(notes, key=lambda note: (-note.y, note.x))):
        axes.annotate(
            note.text,
            xy=(note.x, note.y),
            xytext=(1.04, 1 - (row + 0.5) / len(notes)),
            textcoords="axes fraction",
            size=SMALL_PT,
            weight="bold",
            color=note.look.text,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": note.look.color,
                "linewidth": 0.6,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def row_height_in(names: Sequence[str]) -> float:
    """Inches that the tallest of these names needs as a row label."""
    return max(_stack(name).count("\n") + 1 for name in names) * SMALL_PT * LINE_SPACING / 72


def _stack(label: str) -> str:
    """The recipe's name on a line, then its options, one or two a line."""
    lines = [display_name(recipe_of(label))]
    for option in _options(label):
        if len(lines) > 1 and len(lines[-1]) + len(option) < 24:
            lines[-1] += f", {option}"
        else:
            lines.append(option)
    return "\n".join(lines)


def short_names(labels: Sequence[str]) -> dict[str, str]:
    """A unique name of about 20 characters at most for each of these labels.

    The recipe alone where that is unique, else with the first option that no other label of the
    recipe has; numbered where these are alike too.
    """
    result: dict[str, str] = {}
    for label in labels:
        name, text = split(label)
        short = _cut(display_name(name), 20)
        rivals = [set(_options(o)) for o in labels if recipe_of(o) == name and split(o)[1] != text]
        if rivals and text:
            own = [option for option in _options(label) if option not in set.union(*rivals)]
            short += " " + _cut((own or _options(label))[0], 19 - len(short))
        unnumbered, count = short, 2
        while short in result.values():
            short, count = f"{unnumbered} ({count})", count + 1
        result[label] = short
    return result


def _options(label: str) -> list[str]:
    return [f"{key}={value}" for key, value in options_of(label).items()]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length, 8) - 1] + "…"


def ticks(most: int) -> MaxNLocator:
    """At most about so many tick marks, at multiples of 1, 2 or 5."""
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


@dataclass(frozen=True)
class Unit:
    """A unit that keeps the numbers of one axis short: plotted value = value / size."""

    size: float
    name: str


def unit(largest: float, units: Sequence[Unit]) -> Unit:
    """The largest of the units, smallest first, in which `largest` is at least 3."""
    return next((u for u in reversed(units) if largest >= 3 * u.size), units[0])


SECONDS = (Unit(1, "s"), Unit(60, "min"), Unit(3600, "h"))
COUNTS = (Unit(1, ""), Unit(1e3, "k"), Unit(1e6, "M"), Unit(1e9, "B"))
BYTES = (Unit(10**3, "kB"), Unit(10**6, "MB"), Unit(10**9, "GB"))
