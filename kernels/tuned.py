"""Measured kernel configurations of a GPU, and its compute capability and size.

A launcher calls `measured` with its own key. If there is no measured configuration it uses its own
rule, which may depend on the compute capability and the number of multiprocessors. Launches on
devices other than CUDA, such as `meta`, use an assumed GPU. Measured configurations come from, in
this order,

1. the table that ships for this GPU, `tuning/<gpu>.json` in this folder, made by
   `python -m benchmarks gpu`; for the rest of such a run its new measurements replace the table;
2. only with FASTGROW_AUTOTUNE=1, the measurements of autotune.py, saved in Triton's cache.

Kernels of different configurations round differently. Therefore earlier measurements are not read
without that variable: the installed package alone determines which kernels run.

A shipped table that was measured with another minor version of Triton, or of kernels that have
changed since, is still used, because its configurations remain the best guess.
`python -m fastgrow.info` reports both cases, and the log the first one. Example of a table:

    {"schema": 1, "device": "NVIDIA H200", "capability": 90, "triton": "3.6.0", "entries": {
        "attention_forward": {"bf16/D=32/T=1024": {"configuration": {"block_m": 64, …},
            "source": "a0197032889c8aee", …}}},
     "native": {"mean_argmax": {"bf16/forward/N=64": {"native_ms": 0.16, "other_ms": 0.42,
         "other": "compile", "source": "5d41402abc4b2a76"}}}}

A configuration is an object of positive integers, such as tiles and the number of warps. `source`
is the digest (digest.py) of the kernel that was measured. `native`, which may be missing, contains
the times of the extension's operations and of the best other implementation, for the automatic
choice (fastgrow.ops.core.measured); there `source` is the digest of the extension's sources.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

SCHEMA = 1
FOLDER = Path(__file__).parent / "tuning"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ENVIRONMENT_VARIABLE = "FASTGROW_AUTOTUNE"
# Whether kernels without an entry are to be measured. Read once, because `chosen_once` needs it
# when launchers are imported.
AUTOTUNING = os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")

C = TypeVar("C")

P = ParamSpec("P")

log = logging.getLogger("fastgrow.kernels")


@dataclass(frozen=True)
class Table:
    """Content of a tuning table.

    Args:
        entries: for each kernel and launcher's key, a `configuration` and, if the file has one, the
            `source`.
        triton: version of Triton that it was measured with.
        native: for each operation of the extension and key of fastgrow.ops.core.measured, the times
            of the extension and of the best other implementation.
    """

    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    triton: str | None = None
    native: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def is_of_minor(self, version: str) -> bool:
        """Whether it was measured with the same minor version of Triton, such as 3.6 of 3.6.0."""
        return self.triton is not None and self.triton.split(".")[:2] == version.split(".")[:2]

    def changed(self, current: Mapping[str, str]) -> list[str]:
        """Return the kernels whose source has changed since they were measured."""
        return [
            kernel
            for kernel, of_keys in sorted(self.entries.items())
            if {entry.get("source") for entry in of_keys.values()} - {None, current.get(kernel)}
        ]


# Kernels and keys that launchers have looked up in this process, with or without a result. The rows
# of a benchmark depend on them.
asked: set[tuple[str, str]] = set()
# Functions that clear what was read and chosen.
forgetting: list[Callable[[], object]] = []
_substitutes: dict[str, Table] = {}


def measured(kernel: str, key: str | None, device: torch.device, kind: type[C]) -> C | None:
    """Return the measured configuration of a kernel, such as `attention_forward`.

    Args:
        key: the launcher's key; None for a launch whose configurations are not measured.
        kind: class of the configuration, a frozen dataclass of integers.

    Returns:
        None if there is no table for this GPU, no entry or one that does not fit `kind`, and
        nothing can be measured.
    """
    gpu = gpu_name(device)
    if gpu is None or key is None:
        return None
    asked.add((kernel, key))
    found = _shipped_configuration(gpu, kernel, key, kind)  # type: ignore[arg-type]
    if found is None and AUTOTUNING:
        # Imported only here, because it imports Triton's compiler.
        from fastgrow.kernels.autotune import choose

        chosen = choose(gpu, kernel, key, device)
        found = None if chosen is None else kind(**chosen)
    return found


def chosen_once(choose: Callable[P, C]) -> Callable[P, C]:
    """Decorate a launcher's choice so that it is made once for the same arguments.

    Under FASTGROW_AUTOTUNE=1 the choice is not cached: a configuration that could not be measured
    in one call, for example during CUDA graph capture, may be measured in a later one.
    """
    if AUTOTUNING:
        return choose
    # The cache is written in C: a repeated call runs no Python function.
    choice = functools.cache(choose)
    forgetting.append(choice.cache_clear)
    return choice  # type: ignore[return-value]


@functools.cache
def _shipped_configuration(gpu: str, kernel: str, key: str, kind: type[C]) -> C | None:
    _log_other_triton(gpu)
    entry = shipped(gpu).entries.get(kernel, {}).get(key)
    if entry is None:
        return None
    found = entry["configuration"]
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if set(found) == set(names):
        return kind(**found)
    warnings.warn(
        f"tuning table {path_of(gpu)}: {kernel} {key} is ignored: "
        f"expected a configuration of {', '.join(names)}, got {found}",
        stacklevel=3,
    )
    return None


@functools.cache
def shipped(gpu: str) -> Table:
    """Return the table of the GPU with that name; empty if there is none or it cannot be used."""
    if gpu in _substitutes:
        return _substitutes[gpu]
    path = path_of(gpu)
    try:
        return read_table(path)
    except FileNotFoundError:
        return Table()
    except (OSError, ValueError) as error:
        warnings.warn(f"tuning table {path} is ignored: {error}", stacklevel=2)
        return Table()


@functools.cache
def _log_other_triton(gpu: str) -> None:
    """Log a line if the table was measured with another minor version of Triton."""
    # Imported here: installing a table or reading its `native` part does not need Triton.
    import triton

    table = shipped(gpu)
    if table.entries and not table.is_of_minor(triton.__version__):
        log.info(
            "tuning table %s: measured with triton %s, used with %s",
            path_of(gpu).name,
            table.triton,
            triton.__version__,
        )


forgetting += [
    _shipped_configuration.cache_clear,
    shipped.cache_clear,
    _log_other_triton.cache_clear,
]


def path_of(gpu: str, folder: Path | None = None) -> Path:
    """Return the path of a GPU's table, such as `nvidia-h200.json` for "NVIDIA H200"."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return (folder or FOLDER) / f"{name}.json"


def read_table(path: Path) -> Table:
    """Read a table from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a table of this schema; the message names the place in it.
    """
    return table_of(json.loads(path.read_text(encoding="utf-8")))


def table_of(tree: Any) -> Table:
    """Return the table in a decoded JSON value.

    Raises:
        ValueError: it is not a table of this schema; the message names the place in it.
    """
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise ValueError(f"expected an object with schema {SCHEMA}")
    entries = _checked("entries", tree.get("entries"), _check)
    native = _checked("native", tree.get("native", {}), _check_times)
    return Table(entries, tree.get("triton"), native)


def _checked(name: str, found: Any, check: Callable[[str, Any], None]) -> Any:
    """Return a table's object of objects of entries, after checking each entry."""
    if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
        raise ValueError(f"{name}: expected an object of objects")
    for kernel, of_keys in found.items():
        for key, entry in of_keys.items():
            check(f"{kernel} {key}", entry)
    return found


def _check(where: str, entry: Any) -> None:
    """Raise an error unless `entry` is an entry of `entries`."""
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
    _check_source(where, entry)


def _check_times(where: str, entry: Any) -> None:
    """Raise an error unless `entry` is an entry of `native`."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {entry!r}")
    for name in ("native_ms", "other_ms"):
        time: Any = entry.get(name)
        if type(time) not in (int, float) or not 0 < time < math.inf:
            raise ValueError(f"{where}: {name} must be a positive number, got {time!r}")
    if not isinstance(entry.get("other"), str):
        raise ValueError(f"{where}: other must be a name, got {entry.get('other')!r}")
    _check_source(where, entry)


def _check_source(where: str, entry: dict[str, Any]) -> None:
    if not isinstance(entry.get("source"), str | None):
        raise ValueError(f"{where}: source must be a digest, got {entry['source']!r}")


def is_taken(times: dict[str, Any]) -> bool:
    """Whether the extension is no slower according to an entry of `Table.native`."""
    return bool(times["native_ms"] <= times["other_ms"])


def tuning_modules() -> list[str]:
    """Return the names of the modules that list tunables; importing them requires Triton."""
    return sorted(f"fastgrow.kernels.{x.stem}" for x in Path(__file__).parent.glob("*_tuning.py"))


@contextlib.contextmanager
def standing_in(gpu: str, table: Table) -> Iterator[None]:
    """Replace the shipped table by another one within a `with`, in this process."""
    _substitutes[gpu] = table
    forget()
    try:
        yield
    finally:
        del _substitutes[gpu]
        forget()


def forget() -> None:
    """Clear all cached tables and choices, so that they are read again."""
    for clear in forgetting:
        clear()


@functools.cache
def gpu_name(device: torch.device) -> str | None:
    """Return the driver's name of the GPU; None for another kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


# Capability and multiprocessors of the assumed GPU; None: launchers use their own numbers.
_assumed: ContextVar[tuple[int, int | None]] = ContextVar("gpu", default=(90, None))


def capability_of(device: torch.device) -> int:
    """Return the compute capability, 90 for 9.0; for devices other than CUDA the assumed one."""
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[0]


def multiprocessors(device: torch.device, otherwise: int) -> int:
    """Return the number of multiprocessors; for devices other than CUDA the assumed number.

    Args:
        otherwise: returned if no number is assumed.
    """
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[1] or otherwise


@functools.cache
def _of_gpu(device: torch.device) -> tuple[int, int]:
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor, found.multi_processor_count


@contextlib.contextmanager
def assumed(*, capability: int | None = None, multiprocessors: int | None = None) -> Iterator[None]:
    """Assume this GPU for launches on `meta`, within a `with` and in this thread.

    The number of parts that work is split into may be a constant of a kernel, so a kernel compiled
    for another number of multiprocessors is not the one that the GPU launches. None keeps a value.
    """
    before = _assumed.get()
    token = _assumed.set((capability or before[0], multiprocessors or before[1]))
    try:
        yield
    finally:
        _assumed.reset(token)
