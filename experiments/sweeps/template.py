"""Pages of tables, pictures and texts side by side, as one HTML file and as Markdown."""

import base64
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from experiments.sweeps.tables import Table


class Picture(NamedTuple):
    title: str
    file: str  # relative to the page
    inline: str  # base64


class Difference(NamedTuple):
    """Two texts side by side, in parts that are the same or differ."""

    title: str
    note: str
    left: str  # the name of each text
    right: str
    parts: Sequence[tuple[bool, str, str]]  # (same, lines of the left, lines of the right)

    def markdown(self) -> str:
        """Return the parts as a diff, in a fence that no line of them can end."""
        lines = [f"--- {self.left}", f"+++ {self.right}"]
        for same, left, right in self.parts:
            if same:
                lines += [f" {line}" for line in left.splitlines()]
            else:
                lines += [f"-{line}" for line in left.splitlines()]
                lines += [f"+{line}" for line in right.splitlines()]
        runs = re.findall("`{3,}", "\n".join(lines))
        fence = "`" * max([3, *(len(run) + 1 for run in runs)])
        return "\n".join([f"{fence}diff", *lines, fence])


Section = Table | Picture | Difference


class Page(NamedTuple):
    title: str
    notes: Sequence[str]
    heading: str  # of the advice
    advice: Sequence[str]
    sections: Sequence[Section]


def write_picture(folder: pathlib.Path, name: str, title: str, image: bytes) -> Picture:
    """Write a PNG into the folder of the pictures beside a page, for its Markdown."""
    (folder / "figures").mkdir(exist_ok=True)
    file = f"figures/{name}.png"
    (folder / file).write_bytes(image)
    return Picture(title, file, base64.b64encode(image).decode())


def write_page(folder: pathlib.Path, name: str, page: Page) -> pathlib.Path:
    """Write NAME.html and NAME.md into a folder; return the first.

    Lone surrogates, as in the names of some files, are written as escapes.
    """
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates")
    for kind in ("html", "md"):
        environment = jinja2.Environment(loader=loader, autoescape=kind == "html")
        text = environment.get_template(f"page.{kind}.jinja").render(page._asdict())
        file = folder / f"{name}.{kind}"
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / f"{name}.html"
