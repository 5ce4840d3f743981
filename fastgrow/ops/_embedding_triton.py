"""The Triton implementation of `embedding`: when it serves, and its torch.library op.

It has no gradient: what it looks up in is frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer


def can_serve(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Answer:
    """The verifier."""
    ok, reason = triton_support.can_run(ids, dtype)
    if not ok:
        return False, reason
    if table is not None and table.requires_grad and torch.is_grad_enabled():
        return False, "the table requires a gradient, which eager alone gives"
    return True, ""


def pays(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Answer:
    """Where there is more to do than a copy of rows: by reasoning, not measured."""
    ok, reason = triton_support.pays_on(ids)
    if not ok:
        return False, reason
    if bits is None and repeat == 1:
        return False, "torch's lookup copies rows as fast as any"
    return True, "the rows are lifted or unpacked in the lookup"


def embedding_triton(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    """The kernel of fastgrow.kernels.embedding."""
    y: Tensor = torch.ops.fastgrow.embedding_lookup(
        ids, None if table is None else table.detach(), rows, repeat, bits, low, high, dtype
    )
    return y


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "embedding_lookup(Tensor ids, Tensor? table, SymInt rows, SymInt repeat, SymInt? bits, "
    "float low, float high, ScalarType dtype) -> Tensor"
)


def _lookup(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    from fastgrow.kernels.embedding import lookup

    return lookup(ids, table, rows, repeat, bits, low, high, dtype)


for _key in ("CPU", "CUDA"):
    _library.impl("embedding_lookup", _lookup, _key)


@torch.library.register_fake("fastgrow::embedding_lookup", lib=_library)
def _(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    if bits is None:
        assert table is not None
        return ids.new_empty(*ids.shape, table.shape[1] * repeat, dtype=dtype)
    return ids.new_empty(*ids.shape, bits * repeat, dtype=dtype)
