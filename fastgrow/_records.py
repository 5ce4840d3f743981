"""Rules for leaving settings out of run records.

Records of older versions stay comparable after a settings class gets a new field or a new default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_BEFORE = "before"


def before(value: Any) -> dict[str, Any]:
    """Return dataclass field metadata that leaves the field out of records if it equals `value`.

    `value` is the behaviour of runs from before the field existed, or before its default changed.
    """
    return {_BEFORE: value}


def left_out(field: dataclasses.Field[Any]) -> Any:
    """Return the value at which a field is left out of records.

    This is the value given to `before`, or else the field's default; `dataclasses.MISSING` if the
    field has neither.
    """
    return field.metadata.get(_BEFORE, field.default)
