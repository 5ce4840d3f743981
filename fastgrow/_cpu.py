"""What Linux tells of the processor."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """The processor's name, or else its architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def cpu_flags() -> set[str]:
    """The names of what it can do, such as avx2; none where they are not known."""
    found = re.search(r"^(?:flags|Features)\s*:(.+)$", _text(), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _text() -> str:
    try:
        return _CPUINFO.read_text()
    except OSError:
        return ""
