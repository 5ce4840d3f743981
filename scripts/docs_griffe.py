"""A griffe extension: a docstring item that documents several names becomes one item for each.

The docstrings have items such as `rows, columns: N and V, at least 1.`, which griffe would take for
one name.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ITEM = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class SeveralNames(Extension):
    """Repeats the text of an item for each of its names."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ITEM.sub(repeated, obj.docstring.value)


def repeated(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
