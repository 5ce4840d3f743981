"""Report the tuning tables of each GPU: configurations of the Triton kernels, and the operations
that the automatic choice runs with the extension.
"""

from __future__ import annotations

import os

import torch

from fastgrow import _native
from fastgrow.kernels import tuned
from fastgrow.ops.core import dispatch


def explain_tuning() -> list[str]:
    """Return lines about the tuning table of every GPU (fastgrow.kernels.tuned) and autotuning.

    For a table that cannot be used, the line gives the reason.
    """
    if not torch.cuda.is_available():
        return ["no GPU: there is nothing to tune"]
    lines = [f"cuda:{i} {line}" for i in range(torch.cuda.device_count()) for line in _of_gpu(i)]
    if not dispatch.TRITON_INSTALLED:
        return ["triton is not installed: there is nothing to tune", *lines]
    if tuned.AUTOTUNING:
        from triton import knobs

        # Omits the user's name.
        folder = knobs.cache.dir.replace(os.environ.get("HOME") or "~", "~", 1)
        lines.append(
            f"{tuned.ENVIRONMENT_VARIABLE} is on: kernels without an entry are measured when first "
            f"called; the measurements are kept in Triton's cache, {folder}"
        )
    return lines


def _of_gpu(index: int) -> list[str]:
    """Return lines about the table of a GPU, or that there is none."""
    gpu = torch.cuda.get_device_name(index)
    path = tuned.path_of(gpu)
    what = f"shipped table kernels/tuning/{path.name}"
    without = f"{gpu} has no table in use" + (
        ""
        if tuned.AUTOTUNING or not dispatch.TRITON_INSTALLED
        else ": kernels use their default configurations"
    )
    try:
        table = tuned.read_table(path)
    except FileNotFoundError:
        return [without]
    except (OSError, ValueError) as error:
        # `strerror` only, because the line already contains the path.
        return [f"{what}: cannot be used: {getattr(error, 'strerror', error)}", without]
    kernels = [f"{what}: {_of_kernels(table, index)}"] if dispatch.TRITON_INSTALLED else []
    return [*kernels, *_of_native(table)]


def _of_kernels(table: tuned.Table, index: int) -> str:
    import triton

    from fastgrow.kernels.tunable import digests

    kernels = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(table.entries.items()))
    origin = f"measured with triton {table.triton or 'of unknown version'}"
    if not table.is_of_minor(triton.__version__):
        origin += f" (this is {triton.__version__})"
    count = sum(map(len, table.entries.values()))
    line = f"used, {count} entries {origin}: {kernels or 'none'}"
    major, minor = torch.cuda.get_device_capability(index)
    changed = table.changed(digests(10 * major + minor))
    return f"{line}; changed since they were measured: {', '.join(changed)}" if changed else line


def _of_native(table: tuned.Table) -> list[str]:
    """Return which operations the automatic choice runs with the extension, with the times."""
    used: list[str] = []
    slower: list[str] = []
    sources = set()
    for operation, of_keys in sorted(table.native.items()):
        for key, entry in sorted(of_keys.items()):
            times = f"{entry['native_ms']:.3g} ms, {entry['other']} {entry['other_ms']:.3g}"
            (used if tuned.is_taken(entry) else slower).append(f"{operation} {key} ({times})")
            sources.add(entry.get("source"))
    lines = [f"native is used automatically: {', '.join(used)}"] if used else []
    lines += [f"native is slower: {', '.join(slower)}"] if slower else []
    if sources - {None, _native.CUDA.source}:
        lines.append(f"fastgrow.{_native.CUDA.name} has changed since native was measured")
    return lines
