"""Configurations of kernels that were measured on this GPU, where there is a table of them.

`python -m benchmarks gpu` writes `tuning.json`; as `tuning/<gpu>.json` beside this file, with a
name such as `nvidia-h200`, it serves the launches on GPUs of that name. Without a table, or an
entry in it, launchers take the configurations that their own rules give.

A configuration is a frozen dataclass of integers, such as tiles and the number of warps; each
launcher has its own kind, and its own keys of dtype and shape.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
from pathlib import Path
from typing import TypeVar

import torch

SCHEMA = 1
FOLDER = Path(__file__).parent / "tuning"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

C = TypeVar("C")
# Of each kernel, by key.
Table = dict[str, dict[str, dict[str, int]]]


def measured(kernel: str, key: str, device: torch.device, kind: type[C]) -> C | None:
    """The table's configuration of a kernel, such as `attention_forward`, under a launcher's key.

    None where there is no table of this GPU, no entry in it, or one that is no `kind`.
    """
    gpu = gpu_name(device)
    return _configuration(gpu, kernel, key, kind) if gpu else None  # type: ignore[arg-type]


@functools.cache
def _configuration(gpu: str, kernel: str, key: str, kind: type[C]) -> C | None:
    found = table_of(gpu).get(kernel, {}).get(key)
    if found is None:
        return None
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if set(found) != set(fields):
        expected = f"expected a configuration of {', '.join(fields)}, got {found}"
        where = f"{path_of(gpu)}: {kernel} {key}"
        warnings.warn(f"tuning table {where} is ignored: {expected}", stacklevel=3)
        return None
    return kind(**found)


@functools.cache
def table_of(gpu: str) -> Table:
    """The table of a GPU with that name, empty where there is none or it cannot be used."""
    path = path_of(gpu)
    try:
        return read_table(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"tuning table {path} is ignored: {error}", stacklevel=2)
        return {}


def path_of(gpu: str) -> Path:
    """Where the table of a GPU is, if there is one."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def forget() -> None:
    """Read tables again when they are next asked for."""
    _configuration.cache_clear()
    table_of.cache_clear()


def read_table(path: Path) -> Table:
    """Read what `python -m benchmarks gpu` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no table of this schema; says where in it.
    """
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise ValueError(f"expected an object with schema {SCHEMA}")
    return {
        kernel: {name: _numbers(f"{kernel} {name}", entry) for name, entry in buckets.items()}
        for kernel, buckets in _object("entries", tree.get("entries"))
    }


def _object(where: str, value: object) -> list[tuple[str, dict[str, object]]]:
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


@functools.cache
def gpu_name(device: torch.device) -> str | None:
    """What the driver calls the GPU; None for another kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
