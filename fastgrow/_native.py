"""The compiled extension: used where it is there, never required.

Importing this module loads it, once; `CPU` and `CUDA` then say whether its operations can be
called, and if not why. They are plain values because torch.compile reads them while tracing.
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

    Args:
        source: a digest of what it was, or would have been, made from; empty where no build says.
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
    """Whether the library could be loaded, and why not."""
    library = package / f"{name}.so"
    if not library.is_file():
        why = state.get("detail", "it has not been built")
        return False, f"fastgrow.{name} is not there: {why}"
    changed = _changed_source(state, package.parent)
    if changed is not None:
        return False, f"fastgrow.{name} is older than {changed}: build it again"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return False, f"fastgrow.{name} cannot be loaded: {error}"
    return True, str(state.get("detail", "built"))


def _build_state(name: str, package: Path) -> dict[str, Any]:
    """What setup.py recorded of the build."""
    try:
        state = json.loads((package / "_build.json").read_text())[name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return state if isinstance(state, dict) else {}


def _changed_source(state: dict[str, Any], root: Path) -> str | None:
    """A source file that no longer is what the library was made from (in a working copy)."""
    for name, digest in state.get("sources", {}).items():
        file = root / name
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return str(name)
    return None


CPU = _load("_C", PACKAGE)
CUDA = _load("_C_cuda", PACKAGE)
