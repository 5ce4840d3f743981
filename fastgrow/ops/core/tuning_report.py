"""What was measured on each GPU, in words: the Triton kernels' configurations, and which of the
extension's operations are taken there unasked.
"""

from __future__ import annotations

import os

import torch

from fastgrow import _native
from fastgrow.kernels import tuned
from fastgrow.ops.core import dispatch


def explain_tuning() -> list[str]:
    """Lines on the tables that fastgrow.kernels.tuned describes, for every GPU, and on autotuning.

    A table that cannot be used is named with the reason.
    """
    if not torch.cuda.is_available():
        return ["no GPU: there is nothing to tune"]
    lines = [f"cuda:{i} {line}" for i in range(torch.cuda.device_count()) for line in _of_gpu(i)]
    if not dispatch.TRITON_INSTALLED:
        return ["triton is not installed: there is nothing to tune", *lines]
    if tuned.AUTOTUNING:
        from triton import knobs

        # Without the name of the user whose home it is.
        folder = knobs.cache.dir.replace(os.environ.get("HOME") or "~", "~", 1)
        lines.append(
            f"{tuned.ENVIRONMENT_VARIABLE} is on: kernels without an entry are measured when first "
            f"called; what was measured is kept in Triton's cache, {folder}"
        )
    return lines


def _of_gpu(index: int) -> list[str]:
    """On the table of a GPU, and on what is done without one."""
    gpu = torch.cuda.get_device_name(index)
    path = tuned.path_of(gpu)
    what = f"shipped table kernels/tuning/{path.name}"
    without = f"{gpu} has no table in use" + (
        ""
        if tuned.AUTOTUNING or not dispatch.TRITON_INSTALLED
        else ": kernels follow their own rules"
    )
    try:
        table = tuned.read_table(path)
    except FileNotFoundError:
        return [without]
    except (OSError, ValueError) as error:
        # Of what the system says no more than the reason: the path stands before it.
        return [f"{what}: cannot be used: {getattr(error, 'strerror', error)}", without]
    kernels = [f"{what}: {_of_kernels(table, index)}"] if dispatch.TRITON_INSTALLED else []
    return [*kernels, *_of_native(table)]


def _of_kernels(table: tuned.Table, index: int) -> str:
    import triton

    from fastgrow.kernels.tunable import digests

    kernels = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(table.entries.items()))
    origin = f"measured with triton {table.triton}" if table.triton else "of an unknown triton"
    if not table.is_of_minor(triton.__version__):
        origin += f" (this is {triton.__version__})"
    count = sum(map(len, table.entries.values()))
    line = f"used, {count} entries {origin}: {kernels or 'none'}"
    major, minor = torch.cuda.get_device_capability(index)
    changed = table.changed(digests(10 * major + minor))
    return f"{line}; changed since they were measured: {', '.join(changed)}" if changed else line


def _of_native(table: tuned.Table) -> list[str]:
    """Which operations of the extension are taken unasked, and which are not, with the times."""
    taken: list[str] = []
    left: list[str] = []
    sources = set()
    for operation, of_keys in sorted(table.native.items()):
        for key, entry in sorted(of_keys.items()):
            times = f"{entry['native_ms']:.3g} ms, {entry['other']} {entry['other_ms']:.3g}"
            (taken if tuned.is_taken(entry) else left).append(f"{operation} {key} ({times})")
            sources.add(entry.get("source"))
    lines = [f"native is taken unasked: {', '.join(taken)}"] if taken else []
    lines += [f"native is slower: {', '.join(left)}"] if left else []
    if sources - {None, _native.CUDA.source}:
        lines.append(f"fastgrow.{_native.CUDA.name} has changed since native was measured")
    return lines
