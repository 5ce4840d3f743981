"""What a launch goes by of its GPU: what was measured there, else its capability and size.

A launcher asks `measured` under a key of its own; without an answer it takes what its own rule
gives, which may ask for the compute capability and the number of multiprocessors. Launches on other
devices than CUDA's, such as `meta`, are those of a GPU that is assumed. What was measured comes
from, in this order,

1. the table that ships for this GPU, `tuning/<gpu>.json` beside this file, made by
   `python -m benchmarks gpu`; what such a run has just measured stands in its place for the rest
   of that run;
2. under FASTGROW_AUTOTUNE=1 alone, what autotune.py measures and keeps in Triton's cache.

Kernels of different configurations round differently. So without that variable no earlier
measurement is even looked for: which kernels run follows from the installed package alone.

A shipped table measured with another minor version of Triton, or of kernels that have changed
since, is used too: its configurations remain the best guess there is. `python -m fastgrow.info`
tells both, and a line of the log the former. A table:

    {"schema": 1, "device": "NVIDIA H200", "capability": 90, "triton": "3.6.0", "entries": {
        "attention_forward": {"bf16/D=32/T=1024": {"configuration": {"block_m": 64, …},
            "source": "a0197032889c8aee", …}}},
     "native": {"mean_argmax": {"bf16/forward/N=64": {"native_ms": 0.16, "other_ms": 0.42,
         "other": "compile", "source": "5d41402abc4b2a76"}}}}

A configuration is an object of positive integers, such as tiles and the number of warps. `source`
is the digest (digest.py) of the kernel that was measured. `native`, which may be missing, says how
long the extension's operations took beside the best of what else there is, for the automatic choice
(fastgrow.ops.core.measured); `source` is there the digest of the extension's sources.
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
# Whether the user wants kernels without an entry to be measured. Read once: `chosen_once` has to
# know when launchers are imported.
AUTOTUNING = os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")

C = TypeVar("C")

P = ParamSpec("P")

log = logging.getLogger("fastgrow.kernels")


@dataclass(frozen=True)
class Table:
    """What such a file says.

    Args:
        entries: of each kernel, by the launcher's key; each with a `configuration` and, where the
            file has one, the `source`.
        triton: the version that it was measured with.
        native: of each operation of the extension, by the choice's key, the times of both sides.
    """

    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    triton: str | None = None
    native: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def is_of_minor(self, version: str) -> bool:
        """Whether it was measured with this version of Triton or another patch of it."""
        # 3.6 of 3.6.0.
        return self.triton is not None and self.triton.split(".")[:2] == version.split(".")[:2]

    def changed(self, current: Mapping[str, str]) -> list[str]:
        """Kernels whose source is known to be another one than when they were measured."""
        return [
            kernel
            for kernel, of_keys in sorted(self.entries.items())
            if {entry.get("source") for entry in of_keys.values()} - {None, current.get(kernel)}
        ]


# What launchers have asked for in this process, answered or not: a benchmark's row depends on it.
asked: set[tuple[str, str]] = set()
# How to forget what was read and chosen.
forgetting: list[Callable[[], object]] = []
_standing_in: dict[str, Table] = {}


def measured(kernel: str, key: str | None, device: torch.device, kind: type[C]) -> C | None:
    """The configuration of a kernel, such as `attention_forward`, under a launcher's key.

    Args:
        key: None for a launch of which none is measured.
        kind: a frozen dataclass of integers.

    Returns:
        None where there is no table of this GPU, no entry in it or one that is no `kind`, and
        nothing is to be measured.
    """
    gpu = gpu_name(device)
    if gpu is None or key is None:
        return None
    asked.add((kernel, key))
    found = _shipped_configuration(gpu, kernel, key, kind)  # type: ignore[arg-type]
    if found is None and AUTOTUNING:
        # Only here: it is what the tuning modules need Triton's compiler for.
        from fastgrow.kernels.autotune import choose

        chosen = choose(gpu, kernel, key, device)
        found = None if chosen is None else kind(**chosen)
    return found


def chosen_once(choose: Callable[P, C]) -> Callable[P, C]:
    """Decorator for a launcher's choice, which is then made once for the same arguments.

    Not under FASTGROW_AUTOTUNE=1: what could not be measured this time, within a CUDA graph say,
    may be the next time.
    """
    if AUTOTUNING:
        return choose
    # Written in C: a call that is known enters no function of Python.
    choice = functools.cache(choose)
    forgetting.append(choice.cache_clear)
    return choice  # type: ignore[return-value]


@functools.cache
def _shipped_configuration(gpu: str, kernel: str, key: str, kind: type[C]) -> C | None:
    _tell_of_another_triton(gpu)
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
    """The table of a GPU with that name, empty where there is none or it cannot be used."""
    if gpu in _standing_in:
        return _standing_in[gpu]
    path = path_of(gpu)
    try:
        return read_table(path)
    except FileNotFoundError:
        return Table()
    except (OSError, ValueError) as error:
        warnings.warn(f"tuning table {path} is ignored: {error}", stacklevel=2)
        return Table()


@functools.cache
def _tell_of_another_triton(gpu: str) -> None:
    """A line of the log where the kernels' entries are another version's."""
    # The launchers that ask have Triton; whoever ships a table or asks for its other part need not.
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
    _tell_of_another_triton.cache_clear,
]


def path_of(gpu: str, folder: Path | None = None) -> Path:
    """Where the table of a GPU would be, such as `nvidia-h200.json` of "NVIDIA H200"."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return (folder or FOLDER) / f"{name}.json"


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
    entries = _checked("entries", tree.get("entries"), _check)
    native = _checked("native", tree.get("native", {}), _check_times)
    return Table(entries, tree.get("triton"), native)


def _checked(name: str, found: Any, check: Callable[[str, Any], None]) -> Any:
    """One of a table's objects of objects of entries, each of which is checked."""
    if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
        raise ValueError(f"{name}: expected an object of objects")
    for kernel, of_keys in found.items():
        for key, entry in of_keys.items():
            check(f"{kernel} {key}", entry)
    return found


def _check(where: str, entry: Any) -> None:
    """Raise an error unless it is an entry."""
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
    """Raise an error unless it says how long both sides took."""
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
    """Whether an entry of `Table.native` says that the extension is no slower."""
    return bool(times["native_ms"] <= times["other_ms"])


def tuning_modules() -> list[str]:
    """Names of the modules that have something to tune; importing them takes Triton."""
    return sorted(f"fastgrow.kernels.{x.stem}" for x in Path(__file__).parent.glob("*_tuning.py"))


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
    """Read tables, and what was measured, again when they are next asked for."""
    for clear in forgetting:
        clear()


@functools.cache
def gpu_name(device: torch.device) -> str | None:
    """What the driver calls the GPU; None for another kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


# Capability and multiprocessors of the GPU that is assumed; None: launchers take numbers of theirs.
_assumed: ContextVar[tuple[int, int | None]] = ContextVar("gpu", default=(90, None))


def capability_of(device: torch.device) -> int:
    """90 for compute capability 9.0; for other devices than CUDA's the one assumed, or 90."""
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[0]


def multiprocessors(device: torch.device, otherwise: int) -> int:
    """Those of a CUDA device; for any other, the number assumed, or `otherwise`."""
    return (_of_gpu(device) if device.type == "cuda" else _assumed.get())[1] or otherwise


@functools.cache
def _of_gpu(device: torch.device) -> tuple[int, int]:
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor, found.multi_processor_count


@contextlib.contextmanager
def assumed(*, capability: int | None = None, multiprocessors: int | None = None) -> Iterator[None]:
    """Let launches on `meta` be those of such a GPU, within a `with` and in this thread.

    Into how many parts work is split may be a constant of a kernel: what is compiled for another
    number of multiprocessors is not what that GPU launches. What is None stays as it was.
    """
    before = _assumed.get()
    token = _assumed.set((capability or before[0], multiprocessors or before[1]))
    try:
        yield
    finally:
        _assumed.reset(token)
