"""Lookup in a table of floats, packed bits or codes, expanded to the model's width.

The result is written once, and only the table's rows of the given ids are read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrow.kernels.calls import EmbeddingCall
from fastgrow.kernels.common import (
    INTERPRETED,
    as_strided_rows,
    cdiv,
    next_power_of_2,
    on_device_of,
)


@triton.jit(do_not_specialize=["N"])
def lookup_kernel(
    IDS, TABLE, OUT,
    t_v, N, ROWS, WIDTH, low, high,
    BITS: tl.constexpr, REPEAT: tl.constexpr, PACKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write OUT [N, WIDTH]. BITS is None for a table of floats; without TABLE ids are codes."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    feature = j // REPEAT
    row_ok = n < N
    mask = row_ok[:, None] & (j < WIDTH)[None, :]
    ids = tl.load(IDS + n, mask=row_ok, other=0).to(tl.int64)
    # The host does not check the ids; the clamp prevents reads outside the table.
    ids = tl.minimum(tl.maximum(ids, 0), ROWS - 1)
    if BITS is None:
        values = tl.load(TABLE + ids[:, None] * t_v + feature[None, :], mask=mask, other=0.0)
    else:
        if PACKED:
            at = TABLE + ids[:, None] * t_v + (feature // 8)[None, :]
            code = tl.load(at, mask=mask, other=0).to(tl.int64)
            place = 7 - feature % 8
        else:
            code = ids[:, None]
            if TABLE is not None:
                code = tl.load(TABLE + ids * t_v, mask=row_ok, other=0).to(tl.int64)[:, None]
            place = tl.maximum(BITS - 1 - feature, 0)
        one = (code >> place.to(tl.int64)[None, :]) & 1
        values = tl.where(one != 0, tl.cast(high, tl.float32), tl.cast(low, tl.float32))
    at = OUT + n.to(tl.int64)[:, None] * WIDTH + j[None, :]
    tl.store(at, values.to(OUT.dtype.element_ty), mask=mask)


def lookup(call: EmbeddingCall) -> Tensor:
    """Return the result of fastgrow.ops.embedding, [..., width]."""
    ids, table, rows, repeat, bits, low, high, dtype = call
    packed = table is not None and table.dtype == torch.uint8
    if table is not None and table.dim() == 2:
        table = as_strided_rows(table)
    width = call.width
    out = ids.new_empty(*ids.shape, width, dtype=dtype)
    if out.numel() == 0:
        return out
    count = ids.numel()
    block_d = min(1024 if INTERPRETED else 256, next_power_of_2(width))
    block_n = 256 if INTERPRETED else max(1, 4096 // block_d)
    if count < block_n and not INTERPRETED:
        # One size for all counts that do not fill a program: every size compiles a kernel.
        block_n = 1
    with on_device_of(ids):
        lookup_kernel[(cdiv(count, block_n), cdiv(width, block_d))](
            ids.contiguous(), table, out, 0 if table is None else table.stride(0),
            count, rows, width, low, high,
            BITS=bits, REPEAT=repeat, PACKED=packed, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return out
