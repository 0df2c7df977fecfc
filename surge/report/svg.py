"""A panel as SVG with live text, whose colors are the page's variables."""

import hashlib
import io
import re
from html import escape

import matplotlib

from surge.report import drawing
from surge.report.drawing import COLOR, HOVER, TOGGLED, WIDTH, Panel


def element(panel: Panel, name: str) -> str:
    """The panel as one SVG element with live text; its colors are the page's variables.

    Args:
      panel: what to draw.
      name: unique on the page, since identifiers within the element come from it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(drawing.STYLE):
        drawing.draw(panel).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    markup = re.sub(r"\s+", " ", buffer.getvalue())
    view = re.search(r'viewBox="[^"]*"', markup)
    body = markup[markup.index(">", markup.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body)
    used = dict.fromkeys(re.findall(r"(?:url\(|href=\")#([^\")]*)", body))
    start = hashlib.sha1(name.encode()).hexdigest()[:6]
    short = {long: f"i{start}-{index}" for index, long in enumerate(used)}
    body = re.sub(r"<[^>]*>", lambda tag: _slim(tag[0], short), body)
    size = view[0] if view else ""
    label = f'role="img" aria-label="{escape(panel.title)}"'
    head = f'<svg {size} {label} font-family="system-ui, sans-serif"'
    return f"{head}>{_ungrouped(body)}".strip()


def standalone(markup: str) -> str:
    """An element as a file of its own, with both themes and a size."""
    themes = f":root{{{drawing.variables(dark=False)}}}"
    themes += f"@media (prefers-color-scheme: dark){{:root{{{drawing.variables(dark=True)}}}}}"
    head, _, body = markup.partition(">")
    head += f' xmlns="http://www.w3.org/2000/svg" width="{round(WIDTH * 100)}"'
    return f"{head}><style>{themes}</style>{body}\n"


def _slim(tag: str, short: dict[str, str]) -> str:
    """A tag with coordinates to a tenth of a point, the page's font and colors, and, of its
    identifiers, those that are referred to, made unique on the page."""
    named = re.search(r' id="([^"]*)"', tag)
    if named and named[1].startswith(HOVER):
        return f'<g class="point"><title>{named[1].removeprefix(HOVER)}</title>'
    if named and named[1].startswith(TOGGLED):
        return f'<g data-switch="{named[1].removeprefix(TOGGLED)}">'
    tag = re.sub(r"(?<!opacity: )\d+\.\d{2,}", lambda digits: f"{float(digits[0]):.1f}", tag)
    tag = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"; stroke-line(cap|join): \w+", "", tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag)
    tag = tag.replace("xlink:href", "href")
    if named:
        kept = f' id="{short[named[1]]}"' if named[1] in short else ""
        tag = tag.replace(named[0], kept)
    tag = re.sub(r'(url\(|href=")#([^")]*)', lambda link: f"{link[1]}#{short[link[2]]}", tag)
    for role, color in COLOR.items():
        tag = tag.replace(color, f"var(--{role})")
    return tag


def _ungrouped(body: str) -> str:
    """Without groups that have no attributes, from the innermost on."""
    bare = re.compile(r"<g> *((?:<(?!/?g\b)[^>]*>[^<]*)*)</g>")
    while bare.search(body):
        body = bare.sub(r"\1", body)
    return re.sub(r"<defs> *</defs>", "", body).replace("> <", "><")
