"""Whether the automatic choice uses the extension on a GPU: if it was measured to be no slower.

The table that ships for a GPU (fastgrow.kernels.tuned) holds, for an operation, dtype, pass and few
or many rows, the time of its `native` implementation and of the fastest other one;
`python -m benchmarks gpu` measures both. Without an entry, `native` runs only if it is requested.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastgrow.kernels import tuned
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.extension import on_gpu

# Numbers of rows of the entries: a decoding step, and training or reading a prompt.
FEW, MANY = 64, 4096
_YES: Answer = (True, "")


def native_pays(operation: str, logits: list[Tensor], differentiated: bool) -> Answer:
    """Whether the automatic choice should use `native`; reasons as in `dispatch.Implementation`.

    Args:
        operation: its name in the dispatch.
        logits: logits of the experts [..., V], of one shape, dtype and device; or the hidden
            states that logits are computed from.
        differentiated: whether gradients are needed.
    """
    first = logits[0]
    if not on_gpu(first):
        return _YES
    few, many = _answers(operation, first.device, first.dtype, differentiated)
    # A symbolic number of rows is compared only if the result depends on it.
    return few if few == many or has_few(first.shape[:-1].numel()) else many


def has_few(rows: int) -> bool:
    """Whether the entry for few rows applies."""
    if torch.compiler.is_compiling():
        # A number of rows that is known only at run time counts as many, to avoid a guard.
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(rows <= FEW)
    return rows <= FEW


def key(dtype: str, pass_: str, rows: int) -> str:
    """Return the key of an entry, such as `bf16/forward/N=64`.

    Args:
        dtype: one of `tuned.NAMES`.
        pass_: `forward` without gradients, `full` with them.
        rows: number of rows of the logits.
    """
    return f"{dtype}/{pass_}/N={FEW if has_few(rows) else MANY}"


# torch.compile can neither read a table nor query a GPU's name.
@torch.compiler.assume_constant_result
def _answers(
    operation: str, device: torch.device, dtype: torch.dtype, differentiated: bool
) -> tuple[Answer, Answer]:
    """Return the results for few and for many rows."""
    return _read(operation, device, dtype, differentiated)


@functools.cache
def _read(
    operation: str, device: torch.device, dtype: torch.dtype, differentiated: bool
) -> tuple[Answer, Answer]:
    gpu = tuned.gpu_name(device) or device.type
    entries = tuned.shipped(gpu).native.get(operation, {})
    pass_ = "full" if differentiated else "forward"
    found: list[Answer] = []
    for rows in (FEW, MANY):
        entry = entries.get(key(tuned.NAMES.get(dtype, ""), pass_, rows))
        if entry is None:
            found.append((False, f"it has not been measured on this GPU: {gpu}"))
            continue
        times = f"{entry['other_ms']:.3g} against {entry['native_ms']:.3g} ms"
        slower = (False, f"{entry['other']} is faster there ({times})")
        found.append(_YES if tuned.is_taken(entry) else slower)
    return found[0], found[1]


tuned.forgetting.append(_read.cache_clear)
