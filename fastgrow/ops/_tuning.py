"""Which measured configurations the Triton kernels take on each GPU, in words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from fastgrow.ops.core import triton_support


def explain_tuning() -> list[str]:
    """Lines on the tables that fastgrow.kernels.tuned describes, for every GPU.

    A table that cannot be used is named with the reason.
    """
    if not torch.cuda.is_available():
        return ["no GPU: there is nothing to tune"]
    if not triton_support.INSTALLED:
        return ["triton is not installed: there is nothing to tune"]
    return [line for index in range(torch.cuda.device_count()) for line in _of_gpu(index)]


def _of_gpu(index: int) -> list[str]:
    import triton

    from fastgrow.kernels import autotune, tuned
    from fastgrow.kernels.tunable import digests

    gpu = torch.cuda.get_device_name(index)
    major, minor = torch.cuda.get_device_capability(index)
    current = functools.partial(digests, 10 * major + minor)
    shipped = tuned.path_of(gpu)
    found = [_line(f"shipped table kernels/tuning/{shipped.name}", shipped, current)]
    try:
        users = autotune.user_file(gpu)
    except FileNotFoundError as error:
        found.append(f"user's table: {error}")
    else:
        what = f"user's table {_from_home(users)}"
        wanted = tuned.autotuning()
        condition = "" if wanted else f"not read without {tuned.ENVIRONMENT_VARIABLE}=1"
        found.append(_line(what, users, current, condition, version=triton.__version__))
    lines = [line for line in found if line]
    if not any(": used, " in line for line in lines):
        lines.append(f"{gpu} has no table in use: kernels follow their own rules")
    return [f"cuda:{index} {line}" for line in lines]


def _line(
    what: str,
    path: Path,
    current: Callable[[], dict[str, str]],
    condition: str = "",
    *,
    version: str | None = None,
) -> str:
    """One table's line; empty where there is none.

    Args:
        current: the digests of the kernels as they are now.
        condition: why it is not used.
        version: of Triton, where the table holds for the one that it was measured with alone.
    """
    import triton

    from fastgrow.kernels.tuning_table import read_table

    try:
        table = read_table(path)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"{what}: cannot be used: {reason}"
    if version is not None and table.triton != version:
        condition = f"not used with triton {version}"
    kernels = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(table.entries.items()))
    count = sum(map(len, table.entries.values()))
    origin = f"measured with triton {table.triton}" if table.triton else "of an unknown triton"
    if not condition and not table.is_of_minor(triton.__version__):
        origin += f" (this is {triton.__version__})"
    line = f"{what}: {condition or 'used'}, {count} entries {origin}: {kernels or 'none'}"
    changed = table.changed(current())
    return f"{line}; changed since they were measured: {', '.join(changed)}" if changed else line


def _from_home(path: Path) -> str:
    """A path without the name of the user whose home it lies in."""
    home = Path("~").expanduser()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
