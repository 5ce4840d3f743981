"""How settings are recorded, so that a record keeps its meaning when a class gets a new field."""

from __future__ import annotations

import dataclasses
from typing import Any

_BEFORE = "before"


def before(value: Any) -> dict[str, Any]:
    """Metadata of a field whose value is left out of records where it is `value`.

    That is what records from before the field, or before its default changed, stand for.
    """
    return {_BEFORE: value}


def left_out(field: dataclasses.Field[Any]) -> Any:
    """The value of a field that records leave out; `dataclasses.MISSING` if there is none."""
    return field.metadata.get(_BEFORE, field.default)
