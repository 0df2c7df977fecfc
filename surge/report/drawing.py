"""How a panel looks: one theme for light and dark, axes, legends outside, SVG with live text."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

THEME = {  # what a color means -> on white, on black; each stands once, for it becomes a variable
    "ink": ("#1f2328", "#e6edf3"),  # text, and whatever a sweep found
    "grid": ("#d8dee5", "#30363d"),
    "rejected": ("#8a929c", "#7a828c"),  # laws that are ruled out
    "law": ("#0b62d6", "#6cb0ff"),  # laws that are not
    "independent": ("#c2410c", "#fb923d"),
    "measured": ("#0a7f5e", "#3fb98b"),
    "oracle": ("#7c3aed", "#b795f7"),
    "other": ("#c6172f", "#ff7b84"),  # the second of two results
    "absent": ("#c8ced5", "#484f59"),  # a cell that was not run
    "scale0": ("#0b7284", "#22b8d0"),  # kinds of noise scales
    "scale1": ("#a61e4e", "#f06596"),
    "scale2": ("#6b5b00", "#c9b037"),
    "order0": ("#dd9a00", "#ffd43c"),  # from first to last: targets, checkpoints, horizons, layers
    "order1": ("#e8650e", "#ffa94e"),
    "order2": ("#d6336d", "#f783ad"),
    "order3": ("#9c36b6", "#da77f3"),
    "order4": ("#5f3dc5", "#9775fb"),
    "order5": ("#1e3a8b", "#748ffd"),
}
COLOR = {name: light for name, (light, _) in THEME.items()}
ORDERED = [color for name, color in COLOR.items() if name.startswith("order")]
WIDTH = 4.7  # inches of a panel: text of 10 points stays legible on a telephone
HEIGHT = 3.4  # of it, without its legend
ROW = 0.21  # of one row of a legend
MARGIN = {"left": 0.86, "right": 0.3, "top": 0.12, "bottom": 0.55}  # inches around the axes
LABELS = 1.25  # inches to the right of the axes, for labels at the ends of lines
NEAREST = 0.062  # share of the axes' height between two such labels
CURVE = 129  # points of a curve: from 128 on those that lie on a straight line are left out
WIDE = 30  # letters of a label, from which on a legend has one column
LETTER = 0.088  # inches of a digit at a tick
ROOM = 0.14  # inches between two ticks' numbers
COLUMN = 3.35  # inches of a column of a paper
STYLE = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "surge",
    "path.simplify_threshold": 0.25,
    "hatch.linewidth": 0.8,
    "text.color": COLOR["ink"],
    "axes.labelcolor": COLOR["ink"],
    "axes.edgecolor": COLOR["ink"],
    "xtick.color": COLOR["ink"],
    "ytick.color": COLOR["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.grid": True,
    "grid.color": COLOR["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
HOVER = "hover: "  # begins the identifier of a group that has a title
TOGGLED = "toggled: "  # and of one that the page can hide, under the name of a switch
Draw = Callable[[Axes], None]


class Panel(NamedTuple):
    """One picture.

    Attributes:
      title: a line above it.
      draw: fills the axes it is given.
      told: what this one shows, below it.
      name: of its file, unique on the page.
    """

    title: str
    draw: Draw
    told: str = ""
    name: str = ""


def ordered(index: int, total: int) -> str:
    """The color of one of `total` things that have an order, from the first to the last."""
    position = 0 if total < 2 else index / (total - 1)
    return ORDERED[round(position * (len(ORDERED) - 1))]


def draw(panel: Panel, width: float = WIDTH) -> Figure:
    """The panel as a figure so many inches wide, its legend below the axes, all in proportion."""
    scale = width / WIDTH
    fonts = {name: STYLE[name] * scale for name in ("font.size", "legend.fontsize")}
    with matplotlib.rc_context(STYLE | fonts):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.subplots()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        panel.draw(axes)
        _lay_out(figure, axes)
        figure.set_size_inches(width, figure.get_figheight() * scale)
    return figure


def pdf(panel: Panel, width: float = COLUMN) -> bytes:
    """The panel as a PDF of a column's width, its text as text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        draw(panel, width).savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def variables(dark: bool) -> str:
    """The theme as CSS declarations."""
    return "".join(f"--{role}:{colors[dark]};" for role, colors in THEME.items())


def log_axes(axes: Axes, x: str, y: str) -> None:
    """Both axes logarithmic: batch sizes in powers of two, rates in powers of ten."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def against_loss(axes: Axes, y: str) -> None:
    """A positive quantity along training, which runs to the right."""
    axes.set_yscale("log")
    axes.set_xlabel("training loss (training runs to the right)")
    axes.set_ylabel(y)
    axes.invert_xaxis()


def line(axes: Axes, x: Any, y: Any, *style: Any, **options: Any) -> None:
    """A line where it is positive and finite; where it is so nowhere, no entry of a legend."""
    y = np.asarray(y, float)
    y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    if np.isfinite(y).any():
        axes.plot(x, y, *style, **options)


def halo(width: float, color: str) -> dict[str, Any]:
    """Sets a line off from whatever color is below it."""
    return {"path_effects": [withStroke(linewidth=width, foreground=color)]}


def hover(artist: Artist, text: str) -> None:
    """Shows a text where the pointer rests on an artist."""
    artist.set_gid(HOVER + text)


class End(NamedTuple):
    """The label at the right end of a line: y in data, text, color, and what switches it off."""

    y: float
    text: str
    color: str
    switch: str


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Labels at the right ends of lines, moved apart; the axes' limits are final."""
    low, high = np.log(axes.get_ylim())
    known = [end for end in ends if np.isfinite(end.y) and end.y > 0]
    known.sort(key=lambda end: end.y)
    heights = [(np.log(end.y) - low) / (high - low) for end in known]
    for height, end in zip(spread(heights), known, strict=True):
        axes.text(
            1.02,
            height,
            end.text,
            color=end.color,
            fontsize=matplotlib.rcParams["legend.fontsize"],
            va="center",
            transform=axes.transAxes,
            gid=TOGGLED + end.switch,
        )


def spread(heights: Sequence[float], gap: float = NEAREST) -> list[float]:
    """Sorted heights in [0, 1], moved apart by at least `gap`; evenly where there are too many."""
    if len(heights) * gap > 1:
        return list(np.linspace(0, 1, len(heights)))
    moved = list(np.clip(heights, 0, 1))
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    highest = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], highest)
        highest = moved[index] - gap
    return moved


def _lay_out(figure: Figure, axes: Axes) -> None:
    """Margins in inches, a legend below that makes the figure taller, plain numbers at ticks."""
    bars = [other for other in figure.axes if other is not axes]
    for axis in (axes.xaxis, axes.yaxis, *(bar.yaxis for bar in bars)):
        _tick(axis)
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if labels and max(map(len, labels)) < WIDE else 1
    rows = -(-len(labels) // columns)
    total = HEIGHT + ROW * rows
    figure.set_size_inches(WIDTH, total)
    ends = any(text.get_gid() for text in axes.texts)
    right = LABELS if ends else MARGIN["right"]
    figure.subplots_adjust(
        left=MARGIN["left"] / WIDTH,
        right=1 - right / WIDTH - 0.17 * len(bars),
        top=1 - MARGIN["top"] / total,
        bottom=(MARGIN["bottom"] + ROW * rows) / total,
    )
    # As far out as the widest numbers at the ticks need it.
    place = blended_transform_factory(figure.transFigure, axes.transAxes)
    axes.yaxis.set_label_coords(0.17 / WIDTH, 0.5, transform=place)
    for bar in bars:
        box = axes.get_position()
        bar.set_position((box.x1 + 0.03, box.y0, 0.03, box.height))
    _thin(axes)
    if labels:
        figure.legend(handles, labels, ncols=columns, loc="lower left", borderaxespad=0.2)


def _thin(axes: Axes) -> None:
    """Every second tick below the axes, or every third, so that numbers keep apart."""
    axis = axes.xaxis
    low, high = axis.get_view_interval()
    ticks = [tick for tick in axis.get_majorticklocs() if min(low, high) <= tick <= max(low, high)]
    if len(ticks) < 2:
        return
    places = axes.transData.transform([(tick, axes.get_ylim()[0]) for tick in ticks])[:, 0]
    places = places / axes.figure.dpi
    widths = LETTER * np.array([len(axis.get_major_formatter()(tick)) for tick in ticks])
    for stride in range(1, len(ticks)):
        gaps = np.abs(np.diff(places[::stride]))
        needed = (widths[::stride][1:] + widths[::stride][:-1]) / 2 + ROOM
        if (gaps >= needed).all():
            break
    axis.set_major_locator(FixedLocator(ticks[::stride]))


def _tick(axis: Axis) -> None:
    """Few ticks, without minor ones, written as people write numbers."""
    if axis.get_scale() != "log":
        return
    low, high = sorted(axis.get_view_interval())
    base = getattr(axis.get_transform(), "base", 10)
    close = base == 10 and high < 100 * low
    if not isinstance(axis.get_major_locator(), FixedLocator):
        subs = (1, 2, 5) if close else (1,)
        axis.set_major_locator(LogLocator(base=base, subs=subs, numticks=9 if close else 7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tidy(value)))


def _tidy(value: float) -> str:
    """A tick: 0.001, 64, 1,024, 10k, 2e6."""
    if value >= 1e5 or value < 1e-4:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.6g}"
