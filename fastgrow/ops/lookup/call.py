"""Embedding lookup that repeats each feature up to the model's width.

    y[..., j] = value(ids, j // repeat)      for j in 0 … repeat · n_embed − 1

Repeating features allows a narrow table in a wider model without a projection (arXiv 2507.07129,
`scale = d_model // n_embed`). A value is one of

    table[id, s]                                a table of floats
    offset + scale · bit s of table[id]         a table of packed bits, or of integers (codes)
    offset + scale · bit s of id                no table: the id is used as its code

where bit 0 is the highest of `bits`. Only the rows that are looked up are unpacked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError, argument_error, describe
from fastgrow.kernels.calls import EmbeddingCall
from fastgrow.ops.core.checks import check_float, check_ids, run_in_range
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.dtypes import FLOATS, INTEGERS
from fastgrow.ops.lookup import reference, triton

NAME = "embedding"
MAX_CODE_BITS = 63


def embedding(
    ids: Tensor,
    table: Tensor | None,
    *,
    repeat: int = 1,
    bits: int | None = None,
    offset: float = 0.0,
    scale: float = 1.0,
    vocab_size: int | None = None,
    dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> Tensor:
    """Look up rows of a table and repeat each feature `repeat` times.

    Args:
        ids: [...] int64 or int32, each in [0, V).
        table: [V, n_embed] float, which may require a gradient; or with `bits`
            [V, ⌈bits / 8⌉] uint8, packed with the first bit in the most significant bit of the
            first byte; or [V] int64 or int32, a code for each id, of which the lowest `bits` are
            used; or None: the code is the id.
        repeat: number of adjacent copies of each feature.
        bits: n_embed of a table of bits or codes; at most 63 for codes.
        offset: value of a bit that is 0.
        scale: value that is added for a bit that is 1.
        vocab_size: V if there is no table; by default 2 ** bits, or 2⁶³ − 1 for 63 bits.
        dtype: dtype of the result for bits and codes; torch's default dtype by default.
        impl: force an implementation.

    Returns:
        [..., n_embed · repeat], dtype of a float `table`, otherwise `dtype`.

    Raises:
        ArgumentError: shapes, dtypes or devices are wrong, or an id is out of range. On devices
            other than a CPU, ids are checked only under FASTGROW_DEBUG=1, because reading them
            synchronises with the device.
    """
    check_ids(NAME, "ids", ids)
    if table is not None and ids.device != table.device:
        raise argument_error(NAME, "ids", f"on {table.device}", describe(ids))
    if repeat < 1:
        raise argument_error(NAME, "repeat", "at least 1", repeat)
    rows, dtype = _check_table(table, bits, offset, scale, vocab_size, dtype)
    call = EmbeddingCall(
        ids, table, rows, repeat, bits, float(offset), float(offset + scale), dtype
    )
    return run_in_range(lambda: _OPERATION(call, impl), NAME, "ids", ids, rows)


def _check_table(
    table: Tensor | None,
    bits: int | None,
    offset: float,
    scale: float,
    vocab_size: int | None,
    dtype: torch.dtype | None,
) -> tuple[int, torch.dtype]:
    """Check the table and its options; return V and the dtype of the result."""
    if table is not None and vocab_size is not None:
        raise ArgumentError(f"{NAME}: vocab_size must be None if table is given, got {vocab_size}")
    if bits is None:
        if table is None:
            raise ArgumentError(f"{NAME}: bits must be given if table is None")
        check_float(NAME, "table", table)
        if table.dim() != 2:
            raise argument_error(NAME, "table", "of shape [V, n_embed]", describe(table))
        if (offset, scale) != (0.0, 1.0):
            raise ArgumentError(f"{NAME}: offset and scale require bits, but the table has floats")
        if dtype not in (None, table.dtype):
            raise argument_error(NAME, "dtype", f"the table's, {table.dtype}", dtype)
        return table.shape[0], table.dtype
    dtype = dtype or torch.get_default_dtype()
    if dtype not in FLOATS:
        raise argument_error(NAME, "dtype", "a floating-point type", dtype)
    if bits < 1:
        raise argument_error(NAME, "bits", "at least 1", bits)
    width = -(-bits // 8)
    if table is not None and table.dtype == torch.uint8:
        if table.dim() != 2 or table.shape[1] != width:
            expected = f"of shape [V, {width}] for {bits} bits"
            raise argument_error(NAME, "table", expected, describe(table))
    elif bits > MAX_CODE_BITS:
        raise argument_error(NAME, "bits", f"at most {MAX_CODE_BITS} for codes", bits)
    elif table is None:
        most = min(1 << bits, 2**63 - 1)
        rows = most if vocab_size is None else vocab_size
        if not 1 <= rows <= most:
            raise argument_error(NAME, "vocab_size", f"in [1, {most}] for {bits} bits", rows)
        return rows, dtype
    elif table.dtype not in INTEGERS or table.dim() != 1:
        expected = f"[V, {width}] uint8, or [V] int64 or int32, or None for {bits} bits"
        raise argument_error(NAME, "table", expected, describe(table))
    return table.shape[0], dtype


def _example(device: torch.device) -> EmbeddingCall:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    table = torch.zeros(4, 32, device=device)
    return EmbeddingCall(ids, table, 4, 1, None, 0.0, 1.0, table.dtype)


_OPERATION = Operation(
    NAME,
    (
        Implementation("triton", triton.run, triton.can_serve, triton.pays),
        Implementation("eager", reference.run),
    ),
    _example,
)
