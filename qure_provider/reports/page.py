"""The frame that our pages share: one style, for paper-white and for black, for a desktop and for a phone."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


@cache
def style() -> str:
    """Return the style sheet, which each page holds whole: a page in the store is read without a server."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


@cache
def environment(templates: Path = _HERE) -> Environment:
    """Return what renders the templates of a folder, each on the frame.

    Args:
        templates: The folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([templates, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup(style())  # noqa: S704 -- our own file
    environment.filters["clock"] = clock
    return environment


def clock(moment: str) -> str:
    """Return an ISO 8601 time as a reader wants it: to the second, with its zone."""
    return datetime.fromisoformat(moment).isoformat(" ", "seconds")
