"""Tiles that were measured on this GPU, where there is a table of them.

`python -m benchmarks gpu` writes `tuning.json`; as `tuning/<gpu>.json` beside this file, with a
name such as `nvidia-h200`, it serves the launches on GPUs of that name. Without a table, or an
entry in it, launchers take the tiles that their own rules give.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fastgrow.kernels.attention_arguments import Tiles

SCHEMA = 1
FOLDER = Path(__file__).parent / "tuning"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Lengths that are measured. A key that follows the length more closely would compile a kernel for
# every few sequences.
LENGTHS = (1024, 8192)
_FIELDS = tuple(field.name for field in dataclasses.fields(Tiles))

# Of each kernel, by bucket.
Table = dict[str, dict[str, Tiles]]


def bucket(dtype: torch.dtype, dim: int, keys: int) -> str:
    """The key of a table's entries, such as `bf16/D=32/T=1024`."""
    length = LENGTHS[0] if keys <= 2 * LENGTHS[0] else LENGTHS[1]
    return f"{NAMES[dtype]}/D={dim}/T={length}"


def measured_tiles(kernel: str, q: Tensor, keys: int) -> Tiles | None:
    """Tiles of the table for a launch on q [B, H, Tq, D] and `keys` keys; None without an entry."""
    gpu = gpu_name(q.device)
    entries = table_of(gpu).get(kernel) if gpu else None
    return entries.get(bucket(q.dtype, q.shape[3], keys)) if entries else None


@functools.cache
def table_of(gpu: str) -> Table:
    """The table of a GPU with that name, empty where there is none or it cannot be used."""
    path = FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    try:
        return read_table(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"tuning table {path} is ignored: {error}", stacklevel=2)
        return {}


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
        kernel: {name: _tiles(f"{kernel} {name}", entry) for name, entry in buckets.items()}
        for kernel, buckets in _object("entries", tree.get("entries"))
    }


def _object(where: str, value: object) -> list[tuple[str, dict[str, object]]]:
    """Items of an object of objects."""
    if not isinstance(value, dict) or not all(isinstance(x, dict) for x in value.values()):
        raise ValueError(f"{where}: expected an object of objects")
    return list(value.items())


def _tiles(where: str, entry: object) -> Tiles:
    found = entry.get("configuration") if isinstance(entry, dict) else None
    if not isinstance(found, dict) or set(found) != set(_FIELDS):
        raise ValueError(f"{where}: expected a configuration of {', '.join(_FIELDS)}, got {found}")
    for name, number in found.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{where}: {name} must be a positive integer, got {number!r}")
        if name != "num_stages" and number & (number - 1):
            raise ValueError(f"{where}: {name} must be a power of two, got {number}")
    if min(found["block_m"], found["block_n"]) < 16:
        raise ValueError(f"{where}: blocks must be at least 16, got {found}")
    return Tiles(**found)


@functools.cache
def gpu_name(device: torch.device) -> str | None:
    """What the driver calls the GPU; None for another kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
