"""Alternatives for attention: each of SDPA's backends, and FlashAttention's packages.

All contenders apply rotary embeddings by the same code: one launch on a GPU, eager on a CPU. All
return [B, T, H, D], which is a view of SDPA's result.
"""

from __future__ import annotations

import functools
import warnings

import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Case, Inputs, Library, Refused
from benchmarks.cases.packages import function, package
from fastgrow.ops import RopeTable, rope

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
# torch's backends on a CPU.
ON_CPU = ("sdpa flash", "sdpa math")
# Releases of FlashAttention, and the modules that have their `flash_attn_func`.
FLASH_ATTENTION = {
    "flash-attn 4": "flash_attn.cute",
    "flash-attn 3": "flash_attn_interface",
    "flash-attn 2": "flash_attn.flash_attn_interface",
}
# torch's error messages if no backend can run.
NO_KERNEL = ("No available kernel", "No viable backend")
ASKED = {
    SDPBackend.FLASH_ATTENTION: cuda.can_use_flash_attention,
    SDPBackend.CUDNN_ATTENTION: cuda.can_use_cudnn_attention,
    SDPBackend.EFFICIENT_ATTENTION: cuda.can_use_efficient_attention,
}


def libraries(case: Case) -> dict[str, Library]:
    """Return the alternatives for inputs q, k, v and rope.

    There are as many queries as keys, or one query and rotated keys.
    """
    names = ON_CPU if case.device == "cpu" else tuple(BACKENDS)
    found: dict[str, Library] = {n: functools.partial(_sdpa, BACKENDS[n]) for n in names}
    for name, module in FLASH_ATTENTION.items():
        found |= package(case, name, module, functools.partial(_flash_attention, module))
    return found


def required(case: Case) -> tuple[str, ...]:
    """Require flash and cuDNN, which are the strongest alternatives; they do not support fp32."""
    return () if case.dtype == "fp32" else ("sdpa flash", "sdpa cudnn")


def _sdpa(backend: SDPBackend, inputs: Inputs) -> Tensor:
    q, k, v = _rotated(inputs)
    is_causal = q.shape[2] > 1
    grouped = q.shape[1] != k.shape[1]
    try:
        with sdpa_kernel(backend):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=grouped)
            return y.transpose(1, 2)
    except RuntimeError as error:
        if not any(text in str(error) for text in NO_KERNEL):
            raise
        params = cuda.SDPAParams(q, k, v, None, 0.0, is_causal, grouped)
        raise Refused(_reason(backend, params) or str(error)) from error


def _reason(backend: SDPBackend, params: cuda.SDPAParams) -> str:
    """Return why torch cannot use a backend, which it reports in warnings."""
    ask = ASKED.get(backend)
    if ask is None:
        return ""
    with warnings.catch_warnings(record=True) as said, sdpa_kernel(backend):
        warnings.simplefilter("always")
        ask(params, True)
    # Without the place in torch's sources that triggered the warning.
    return next((str(w.message).partition(" (Triggered")[0].strip() for w in said), "")


def _flash_attention(module: str, inputs: Inputs) -> Tensor:
    """Run FlashAttention, whose layout is [B, T, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in _rotated(inputs))
    result = function(module, "flash_attn_func")(q, k, v, causal=q.shape[1] > 1)
    # Some releases return the output together with the log-sum-exp.
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y


def _rotated(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, table = (inputs[name] for name in ("q", "k", "v", "rope"))
    queries, keys = q.shape[2], k.shape[2]
    q = rotate(q, table, keys - queries)
    # In decoding (one query), keys were rotated when they were added to the cache.
    return q, k if queries == 1 else rotate(k, table, 0), v


def rotate(x: Tensor, table: RopeTable, offset: int) -> Tensor:
    return rope(x, table, offset=offset, impl="triton" if x.is_cuda else "eager")
