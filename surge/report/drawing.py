"""How a panel looks: one theme for light and dark, axes, legends outside, SVG with live text."""

import io
import re
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
WIDE = 30  # letters of a label, from which on a legend has one column
STYLE = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "surge",
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
Draw = Callable[[Axes], None]


class Panel(NamedTuple):
    """One picture.

    Attributes:
      title: a line above it.
      draw: fills the axes it is given.
      told: what it shows, for who cannot see it; without it the title.
    """

    title: str
    draw: Draw
    told: str = ""


def ordered(index: int, total: int) -> str:
    """The color of one of `total` things that have an order, from the first to the last."""
    position = 0 if total < 2 else index / (total - 1)
    return ORDERED[round(position * (len(ORDERED) - 1))]


def draw(panel: Panel, height: float = HEIGHT) -> Figure:
    """The panel as a figure, its legend below the axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        panel.draw(axes)
        _lay_out(figure, axes, height)
    return figure


def svg(panel: Panel, name: str) -> str:
    """The panel as one SVG element with live text; its colors are the page's variables.

    Args:
      panel: what to draw.
      name: unique on the page, since identifiers within the element begin with it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        draw(panel).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    markup = re.sub(r"\s+", " ", buffer.getvalue())
    view = re.search(r'viewBox="[^"]*"', markup)
    body = markup[markup.index(">", markup.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body)
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]*)", body))
    body = re.sub(r"<[^>]*>", lambda tag: _slim(tag[0], name, used), body)
    size = view[0] if view else ""
    head = f'<svg {size} role="img" font-family="system-ui, sans-serif"'
    return f"{head}>{_ungrouped(body)}".strip()


def standalone(markup: str) -> str:
    """An element of `svg` as a file of its own, with both themes and a size."""
    themes = f":root{{{variables(dark=False)}}}"
    themes += f"@media (prefers-color-scheme: dark){{:root{{{variables(dark=True)}}}}}"
    head, _, body = markup.partition(">")
    head += f' xmlns="http://www.w3.org/2000/svg" width="{round(WIDTH * 100)}"'
    return f"{head}><style>{themes}</style>{body}\n"


def _slim(tag: str, name: str, used: set[str]) -> str:
    """A tag with coordinates to a tenth of a point, the page's font and colors, and, of its
    identifiers, those that are referred to, made unique on the page."""
    named = re.search(r' id="([^"]*)"', tag)
    if named and named[1].startswith(HOVER):
        return f'<g class="point"><title>{named[1].removeprefix(HOVER)}</title>'
    tag = re.sub(r"\d+\.\d{2,}", lambda digits: f"{float(digits[0]):.1f}", tag)
    tag = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"; stroke-line(cap|join): \w+", "", tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag)
    tag = tag.replace("xlink:href", "href")
    if named:
        kept = f' id="{name}-{named[1]}"' if named[1] in used else ""
        tag = tag.replace(named[0], kept)
    tag = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", tag)
    for role, color in COLOR.items():
        tag = tag.replace(color, f"var(--{role})")
    return tag


def _ungrouped(body: str) -> str:
    """Without groups that have no attributes, from the innermost on."""
    bare = re.compile(r"<g> *((?:<(?!/?g\b)[^>]*>[^<]*)*)</g>")
    while bare.search(body):
        body = bare.sub(r"\1", body)
    return re.sub(r"<defs> *</defs>", "", body).replace("> <", "><")


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
    """A line where it is positive and finite; nothing, in the legend neither, where it is so
    nowhere."""
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


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels at the right ends of lines, moved apart where they would overlap.

    Args:
      axes: whose limits are final.
      ends: (y in data, text, color).
    """
    low, high = np.log(axes.get_ylim())
    known = [end for end in ends if np.isfinite(end[0]) and end[0] > 0]
    known.sort(key=lambda end: end[0])
    heights = [(np.log(value) - low) / (high - low) for value, _, _ in known]
    for height, (_, text, color) in zip(spread(heights), known, strict=True):
        axes.text(
            1.02,
            height,
            text,
            color=color,
            fontsize=9,
            va="center",
            transform=axes.transAxes,
            gid="end",
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


def _lay_out(figure: Figure, axes: Axes, height: float) -> None:
    """Margins in inches, a legend below that makes the figure taller, plain numbers at ticks."""
    bars = [other for other in figure.axes if other is not axes]
    for axis in (axes.xaxis, axes.yaxis, *(bar.yaxis for bar in bars)):
        _tick(axis)
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if labels and max(map(len, labels)) < WIDE else 1
    rows = -(-len(labels) // columns)
    total = height + ROW * rows
    figure.set_size_inches(WIDTH, total)
    ends = any(text.get_gid() == "end" for text in axes.texts)
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
    if labels:
        figure.legend(handles, labels, ncols=columns, loc="lower left", borderaxespad=0.2)


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
