"""List the extension's operations with their devices, dtypes and gradients.

The list comes from the implementations' `can_serve`, called with fake tensors, so that the devices
need not be available.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastgrow.kernels.tuned import NAMES
from fastgrow.ops.core.dispatch import OPERATIONS, Implementation, Operation
from fastgrow.ops.core.extension import extension_of

DTYPES = {**NAMES, torch.float64: "fp64"}
NONE = "–"


class Support(NamedTuple):
    """The extension's support of one or several operations.

    Args:
        operations: names of the operations.
        on_cpu, on_gpu: the supported dtypes, and whether gradients are supported.
    """

    operations: list[str]
    on_cpu: str
    on_gpu: str


def native_support() -> list[Support]:
    """Return the support of every operation with an implementation `native`, built or not."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[tuple[str, str], list[str]] = {}
    with FakeTensorMode():
        for name, operation in OPERATIONS.items():
            native = operation.implementations.get("native")
            if native is not None:
                on_cpu, on_gpu = (_on(operation, native, device) for device in ("cpu", "cuda"))
                found.setdefault((on_cpu, on_gpu), []).append(name)
    return [Support(names, *cells) for cells, names in found.items()]


def _on(operation: Operation, native: Implementation, device: str) -> str:
    served = [d for d in DTYPES if _serves(operation, native, device, d, trained=False)]
    trained = any(_serves(operation, native, device, d, trained=True) for d in served)
    names = ", ".join(DTYPES[dtype] for dtype in served)
    return names + ("" if trained else "; no gradients") if served else NONE


def _serves(
    operation: Operation, native: Implementation, device: str, dtype: torch.dtype, trained: bool
) -> bool:
    """Whether it can serve the operation's example on a device, in a dtype and with gradients."""

    def made(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype).requires_grad_(trained)
        return value

    assert operation.example is not None
    can, why = native.can_serve(tree_map(made, operation.example(torch.device(device))))
    # `can_serve` checks last whether the extension is built.
    extension = extension_of(torch.empty(0, device=device))
    return can or (not extension.loaded and why == extension.reason)
