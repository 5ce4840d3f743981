"""The HTML of a report, from the Jinja templates in the folder `templates`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render_part(kind: str, **values: Any) -> Markup:
    """Return the HTML of a part of a report. Every value that is not `Markup` is escaped.

    Args:
        kind: name of a macro in `parts.html`.
        values: arguments of the macro.
    """
    macro = getattr(_environment().get_template("parts.html").module, kind)
    return Markup(macro(**values))


def render_page(**values: Any) -> str:
    """Return a page from `page.html`. Every value that is not `Markup` is escaped."""
    return _environment().get_template("page.html").render(**values)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
