"""The file of configurations that were measured on one kind of GPU.

    {"schema": 1, "device": "NVIDIA H200", "capability": 90, "triton": "3.6.0", "entries": {
        "attention_forward": {"bf16/D=32/T=1024": {"configuration": {"block_m": 64, …},
            "source": "a0197032889c8aee", …}}}}

A configuration is an object of positive integers, such as tiles and the number of warps. `source`
is the digest (digest.py) of the kernel that was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1

# Of each kernel, by the launcher's key.
Entries = dict[str, dict[str, dict[str, int]]]
Sources = dict[str, dict[str, str | None]]


@dataclass(frozen=True)
class Table:
    """What such a file says.

    Args:
        triton: the version that it was measured with.
        sources: digests of what was measured; None where the file has none.
    """

    entries: Entries = field(default_factory=dict)
    triton: str | None = None
    sources: Sources = field(default_factory=dict)

    def is_of_minor(self, version: str) -> bool:
        """Whether it was measured with this version of Triton or another patch of it."""
        return self.triton is not None and _minor(self.triton) == _minor(version)

    def changed(self, current: Mapping[str, str]) -> list[str]:
        """Kernels whose source is known to be another one than when they were measured."""
        return [
            kernel
            for kernel, of_keys in sorted(self.sources.items())
            if {*of_keys.values()} - {None, current.get(kernel)}
        ]


def file_name(gpu: str) -> str:
    """The name of a GPU's table, such as `nvidia-h200.json` for "NVIDIA H200"."""
    return f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def read_table(path: Path) -> Table:
    """Read a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table of this schema; says where in it.
    """
    return table_of(json.loads(path.read_text(encoding="utf-8")))


def table_of(tree: Any) -> Table:
    """The table in a JSON value.

    Raises:
        ValueError: it is no table of this schema; says where in it.
    """
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise ValueError(f"expected an object with schema {SCHEMA}")
    found = _object("entries", tree.get("entries"))
    entries = {
        kernel: {name: _numbers(f"{kernel} {name}", entry) for name, entry in buckets.items()}
        for kernel, buckets in found
    }
    sources = {
        kernel: {name: _source(f"{kernel} {name}", entry) for name, entry in buckets.items()}
        for kernel, buckets in found
    }
    return Table(entries, tree.get("triton"), sources)


def write_atomically(path: Path, tree: dict[str, Any]) -> None:
    """Write a file so that no reader ever sees half of it.

    Raises:
        OSError: the disk is full, the folder is not writable, …
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(tree, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _object(where: str, value: object) -> list[tuple[str, dict[str, Any]]]:
    """Items of an object of objects."""
    if not isinstance(value, dict) or not all(isinstance(x, dict) for x in value.values()):
        raise ValueError(f"{where}: expected an object of objects")
    return list(value.items())


def _numbers(where: str, entry: object) -> dict[str, int]:
    found = entry.get("configuration") if isinstance(entry, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{where}: expected a configuration, got {found}")
    for name, number in found.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{where}: {name} must be a positive integer, got {number!r}")
        if name != "num_stages" and number & (number - 1):
            raise ValueError(f"{where}: {name} must be a power of two, got {number}")
        if name.startswith("block_") and number < 16:
            raise ValueError(f"{where}: blocks must be at least 16, got {found}")
    return found


def _source(where: str, entry: dict[str, Any]) -> str | None:
    found = entry.get("source")
    if found is None or isinstance(found, str):
        return found
    raise ValueError(f"{where}: source must be a digest, got {found!r}")


def _minor(version: str) -> list[str]:
    """3.6 of 3.6.0."""
    return version.split(".")[:2]
