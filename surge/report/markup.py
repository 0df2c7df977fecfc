"""What a page is made of, and the page made of it: blocks in, HTML out, escaped by the template."""

import base64
import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from surge.report import drawing, svg
from surge.report.drawing import Panel

HERE = Path(__file__).parent
LONGEST = 50  # letters of a label in a file's name, which may be of four bytes each
WORDS = {"note", "parameters", "verdict"}  # columns that read from the left


class Prose(NamedTuple):
    """A paragraph; `kind` is its class in style.css, like note, `lead` what it is about."""

    text: str
    kind: str = ""
    lead: str = ""


class Table(NamedTuple):
    """Rows under a header; the first cell of a row names it."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def lean(self) -> "Table":
        """Without the columns that hold nothing, such as notes where there are none."""
        kept = [index for index in range(len(self.header)) if any(row[index] for row in self.rows)]
        rows = [[row[index] for index in kept] for row in self.rows]
        return Table(self.caption, [self.header[index] for index in kept], rows)


class Drawing(NamedTuple):
    """Panels in a grid, each with a name of its own, over what all of them share."""

    panels: Sequence[Panel]
    caption: str = ""


class Source(NamedTuple):
    """Text in its own lines, such as a config."""

    text: str


class Fold(NamedTuple):
    """What few will read, behind its title."""

    title: str
    blocks: Sequence[Any]


class Section(NamedTuple):
    """A heading with an anchor, which the contents list."""

    title: str
    blocks: Sequence[Any]


def render(title: str, subject: str, sections: Sequence[Section]) -> tuple[str, dict[str, str]]:
    """The page and the panels on it.

    Args:
      title: heading of the page.
      subject: what it is of, such as the name of the workdir.
      sections: blocks; the first one is the answer, above the contents.

    Returns:
      HTML, and SVG by a panel's name.
    """
    images: dict[str, str] = {}
    page = _filled("page.html", images, title=title, subject=subject, sections=sections)
    return page, images


def fragment(blocks: Sequence[Any]) -> str:
    """Blocks for within another page, such as a notebook, whose colors they take."""
    return _filled("fragment.html", {}, blocks=blocks)


def _filled(template: str, images: dict[str, str], **content: Any) -> str:
    """A template with its content; the pictures in it are put into `images` too."""

    def image(panel: Panel) -> str:
        name = file_name(panel.name)
        images[name] = svg.element(panel, name)
        return images[name]

    return (
        _environment()
        .get_template(template)
        .render(
            image=image,
            light=drawing.variables(dark=False),
            dark=drawing.variables(dark=True),
            words=WORDS,
            **content,
        )
    )


def packed(text: str) -> str:
    """What script.js unpacks where a fold is opened: a sixth of a picture's size."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(slug=slug, unbroken=unbroken, packed=packed, file_name=file_name)
    for kind in (Prose, Table, Drawing, Source, Fold):
        environment.tests[kind.__name__.lower()] = partial(_is, kind)
    return environment


def _is(kind: type, block: Any) -> bool:
    return isinstance(block, kind)


def unbroken(text: Any) -> str:
    """An interval stays on one line, below its value where there is no room beside it."""
    return re.sub(
        r"\[[^\[\]]*\]", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), str(text)
    )


def slug(text: str) -> str:
    """A name for an anchor."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def file_name(text: str) -> str:
    """A name for a file and the identifiers in it, another one for each text."""
    plain = slug(text).strip(".")[:LONGEST]
    return plain if plain == text else f"{plain}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"
