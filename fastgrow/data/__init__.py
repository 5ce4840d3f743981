"""Text and tables that ship with the package."""

from __future__ import annotations

from fastgrow.data._bundled import read as read

__all__ = ["read"]
