"""The configuration of a launch, where one was measured on this GPU.

A launcher asks `measured` under a key of its own; without an answer it takes what its own rule
gives. The answers come from, in this order,

1. the table that ships for this GPU, `tuning/<gpu>.json` beside this file, made by
   `python -m benchmarks gpu`; what such a run has just measured stands in its place for the rest
   of that run;
2. under FASTGROW_AUTOTUNE=1 alone, what autotune.py measures and keeps for the user.

Kernels of different configurations round differently. So without that variable nothing in the
user's home is even read: which kernels run follows from the installed package alone.

A shipped table measured with another minor version of Triton, or of kernels that have changed
since, is used too: its configurations remain the best guess there is. `python -m fastgrow.info`
tells both, and a line of the log the former.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from fastgrow.kernels.tuning_table import Table, file_name, read_table

FOLDER = Path(__file__).parent / "tuning"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ENVIRONMENT_VARIABLE = "FASTGROW_AUTOTUNE"

C = TypeVar("C")

P = ParamSpec("P")

log = logging.getLogger("fastgrow.kernels")

# What launchers have asked for in this process, answered or not: a benchmark's row depends on it.
asked: set[tuple[str, str]] = set()
_standing_in: dict[str, Table] = {}
_kept: list[dict[tuple[object, ...], object]] = []


def measured(kernel: str, key: str, device: torch.device, kind: type[C]) -> C | None:
    """The configuration of a kernel, such as `attention_forward`, under a launcher's key.

    Args:
        kind: a frozen dataclass of integers.

    Returns:
        None where there is no table of this GPU, no entry in it or one that is no `kind`, and
        nothing is to be measured.
    """
    gpu = gpu_name(device)
    if gpu is None:
        return None
    asked.add((kernel, key))
    found = _configuration(gpu, kernel, key, kind)  # type: ignore[arg-type]
    if found is None and autotuning():
        # Only here: it is what the tuning modules need Triton's compiler for.
        from fastgrow.kernels.autotune import choose

        found = choose(gpu, kernel, key, device, kind)
    return found


def chosen_once(choose: Callable[P, C]) -> Callable[P, C]:
    """Decorator for a launcher's choice, which is then made once for the same arguments.

    Not under FASTGROW_AUTOTUNE=1: what could not be measured this time, within a CUDA graph say,
    may be the next time. Arguments are positional.
    """
    known: dict[tuple[object, ...], C] = {}
    _kept.append(known)  # type: ignore[arg-type]

    @functools.wraps(choose)
    def choice(*arguments: P.args, **nothing: P.kwargs) -> C:
        found = known.get(arguments)
        if found is None:
            found = choose(*arguments, **nothing)
            if not autotuning():
                known[arguments] = found
        return found

    return choice


def autotuning() -> bool:
    """Whether the user wants kernels without an entry to be measured."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")


@functools.cache
def _configuration(gpu: str, kernel: str, key: str, kind: type[C]) -> C | None:
    found = shipped(gpu).entries.get(kernel, {}).get(key)
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
def shipped(gpu: str) -> Table:
    """The table of a GPU with that name, empty where there is none or it cannot be used."""
    if gpu in _standing_in:
        return _standing_in[gpu]
    path = path_of(gpu)
    try:
        table = read_table(path)
    except FileNotFoundError:
        return Table()
    except (OSError, ValueError) as error:
        warnings.warn(f"tuning table {path} is ignored: {error}", stacklevel=2)
        return Table()
    # The launchers that ask have Triton; whoever ships a table need not.
    version = importlib.import_module("triton").__version__
    if not table.is_of_minor(version):
        measured_with = f"measured with triton {table.triton}, used with {version}"
        log.info("tuning table %s: %s", path.name, measured_with)
    return table


def path_of(gpu: str) -> Path:
    """Where the table of a GPU is, if one is shipped."""
    return FOLDER / file_name(gpu)


@contextlib.contextmanager
def standing_in(gpu: str, table: Table) -> Iterator[None]:
    """Let a table take the place of the shipped one within a `with`, in this process."""
    _standing_in[gpu] = table
    forget()
    try:
        yield
    finally:
        del _standing_in[gpu]
        forget()


def forget() -> None:
    """Read tables again when they are next asked for."""
    _configuration.cache_clear()
    shipped.cache_clear()
    for known in _kept:
        known.clear()


@functools.cache
def gpu_name(device: torch.device) -> str | None:
    """What the driver calls the GPU; None for another kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
