"""The compiled extension, which is optional.

Importing this module loads it once. `CPU` and `CUDA` then report whether its operations can be
called, and the reason if not. They are plain values because torch.compile reads them while tracing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Extension:
    """State of one compiled library: `fastgrow._C` (CPU) or `fastgrow._C_cuda`.

    Attributes:
        name: "_C" or "_C_cuda".
        loaded: whether the library is loaded.
        reason: details of the build, or why the library is not loaded.
        source: digest of the library's source files as recorded by the build; empty without a
            build record.
    """

    name: str
    loaded: bool
    reason: str
    source: str = ""


def _load(name: str, package: Path) -> Extension:
    state = _build_state(name, package)
    loaded, reason = _load_library(name, package, state)
    digests = state.get("sources", {})
    text = json.dumps(digests, sort_keys=True).encode()
    source = hashlib.sha256(text).hexdigest()[:16] if digests else ""
    return Extension(name, loaded, reason, source)


def _load_library(name: str, package: Path, state: dict[str, Any]) -> tuple[bool, str]:
    """Load the library; return whether that succeeded, and details or the reason if not."""
    library = package / f"{name}.so"
    if not library.is_file():
        why = state.get("detail", "it has not been built")
        return False, f"fastgrow.{name} is not available: {why}"
    changed = _changed_source(state, package.parent)
    if changed is not None:
        return False, f"fastgrow.{name} is older than {changed}: rebuild it"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return False, f"fastgrow.{name} cannot be loaded: {error}"
    return True, str(state.get("detail", "built"))


def _build_state(name: str, package: Path) -> dict[str, Any]:
    """Return the build record that setup.py wrote for one library; empty if there is none."""
    try:
        state = json.loads((package / "_build.json").read_text())[name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return state if isinstance(state, dict) else {}


def _changed_source(state: dict[str, Any], root: Path) -> str | None:
    """Return a source file that has changed since the library was built, or None.

    Sources are only present in a working copy.
    """
    for name, digest in state.get("sources", {}).items():
        file = root / name
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return str(name)
    return None


CPU = _load("_C", PACKAGE)
CUDA = _load("_C_cuda", PACKAGE)
