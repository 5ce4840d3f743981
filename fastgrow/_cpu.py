"""Processor name and features, as reported by Linux."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def cpu_flags() -> set[str]:
    """Return the processor's feature flags, such as avx2; an empty set if they are unknown."""
    found = re.search(r"^(?:flags|Features)\s*:(.+)$", _text(), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _text() -> str:
    try:
        return _CPUINFO.read_text()
    except OSError:
        return ""
