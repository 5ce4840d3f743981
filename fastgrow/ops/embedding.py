"""Embedding lookup with the lift to the model's width.

    y[..., j] = value(ids, j // repeat)      for j in 0 … repeat · n_embed − 1

Repeating features is how a table of any width feeds a wider model without a projection
(arXiv 2507.07129, `scale = d_model // n_embed`). A value is one of

    table[id, s]                                a table of floats
    offset + scale · bit s of table[id]         a table of packed bits, or of integers (codes)
    offset + scale · bit s of id                no table at all: the id is its own code

where bit 0 is the highest of `bits`. Only what is looked up is ever unpacked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops import _embedding_triton
from fastgrow.ops.core.checks import check_float, check_ids, check_range, out_of_range
from fastgrow.ops.core.dtypes import FLOATS, INTEGERS
from fastgrow.ops.core.legacy import Operation

NAME = "embedding"
MAX_CODE_BITS = 63
_MAX_ROWS = torch.iinfo(torch.int64).max


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
            [V, ⌈bits / 8⌉] uint8, packed with the first bit in the highest place of the first
            byte; or [V] int64 or int32, a code for each id, of which the lowest `bits` count; or
            None: the code is the id.
        repeat: copies of each feature, side by side.
        bits: n_embed of a table of bits or codes; at most 63 for codes.
        offset: value of a bit that is 0.
        scale: what a bit that is 1 adds to it.
        vocab_size: V where there is no table; without, 2 ** bits, or 2⁶³ − 1 for 63 bits.
        dtype: of the result, for bits and codes; torch's default dtype without.
        impl: force an implementation.

    Returns:
        [..., n_embed · repeat], dtype of a float `table`, otherwise `dtype`.

    Raises:
        ArgumentError: wrong shapes, dtypes or devices; on a CPU also an id out of range (on other
            devices only under FASTGROW_DEBUG=1: reading the ids costs a synchronisation).
    """
    check_ids(NAME, "ids", ids)
    if table is not None and ids.device != table.device:
        raise argument_error(NAME, "ids", f"on {table.device}", describe(ids))
    if repeat < 1:
        raise argument_error(NAME, "repeat", "at least 1", repeat)
    rows, dtype = _check_table(table, bits, offset, scale, vocab_size, dtype)
    check_range(NAME, "ids", ids, 0, rows)
    arguments = (ids, table, rows, repeat, bits, float(offset), float(offset + scale), dtype)
    y: Tensor
    if torch.compiler.is_compiling():
        y = _OPERATION(*arguments, impl=impl)
        return y
    try:
        y = _OPERATION(*arguments, impl=impl)
    except IndexError:
        raise out_of_range(NAME, "ids", ids, rows) from None
    return y


def _check_table(
    table: Tensor | None,
    bits: int | None,
    offset: float,
    scale: float,
    vocab_size: int | None,
    dtype: torch.dtype | None,
) -> tuple[int, torch.dtype]:
    """V and the dtype of the result."""
    if table is not None and vocab_size is not None:
        raise argument_error(NAME, "vocab_size", "None beside a table", vocab_size)
    if bits is None:
        if table is None:
            raise argument_error(NAME, "bits", "given where there is no table", "None")
        check_float(NAME, "table", table)
        if table.dim() != 2:
            raise argument_error(NAME, "table", "of shape [V, n_embed]", describe(table))
        if (offset, scale) != (0.0, 1.0):
            got = f"{offset} and {scale}"
            raise argument_error(NAME, "offset and scale", "0 and 1 for a table of floats", got)
        if dtype not in (None, table.dtype):
            raise argument_error(
                NAME, "dtype", f"{table.dtype} or None for a table of floats", dtype
            )
        return table.shape[0], table.dtype
    dtype = dtype or torch.get_default_dtype()
    if dtype not in FLOATS:
        raise argument_error(NAME, "dtype", "a floating-point type", dtype)
    if bits < 1:
        raise argument_error(NAME, "bits", "at least 1", bits)
    if table is not None and table.dtype == torch.uint8:
        width = -(-bits // 8)
        if table.dim() != 2 or table.shape[1] != width:
            raise argument_error(
                NAME, "table", f"of shape [V, {width}] for {bits} bits", describe(table)
            )
        return table.shape[0], dtype
    if bits > MAX_CODE_BITS:
        raise argument_error(NAME, "bits", f"at most {MAX_CODE_BITS} for codes", bits)
    if table is None:
        most = min(1 << bits, _MAX_ROWS)
        rows = most if vocab_size is None else vocab_size
        if not 1 <= rows <= most:
            raise argument_error(NAME, "vocab_size", f"in [1, {most}] for {bits} bits", rows)
        return rows, dtype
    if table.dtype not in INTEGERS or table.dim() != 1:
        expected = f"[V, {-(-bits // 8)}] uint8, or [V] int64 or int32, or None for {bits} bits"
        raise argument_error(NAME, "table", expected, describe(table))
    return table.shape[0], dtype


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    table = torch.zeros(4, 32, device=device)
    return (ids, table, 4, 1, None, 0.0, 1.0, table.dtype), {}


_OPERATION = Operation(NAME, example=_example)


@_OPERATION.implementation("eager")
def embedding_eager(
    ids: Tensor,
    table: Tensor | None,
    rows: int,
    repeat: int,
    bits: int | None,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    """The formula, as it stands; `low` and `high` are the values of a bit."""
    if bits is None:
        assert table is not None
        values = F.embedding(ids, table)
    else:
        of_byte = _byte_values(low, high, dtype, ids.device)
        if table is not None and table.dtype == torch.uint8:
            values = F.embedding(F.embedding(ids, table).int(), of_byte).flatten(-2)[..., :bits]
        else:
            if table is None:
                codes = _own_codes(ids, rows)
            else:
                codes = F.embedding(ids, table[:, None]).squeeze(-1)
            places = torch.arange(-(-bits // 8) * 8 - 8, -1, -8, device=ids.device)
            in_bytes = codes.long()[..., None] >> places & 255
            values = F.embedding(in_bytes, of_byte).flatten(-2)[..., -bits:]
    return values if repeat == 1 else values.repeat_interleave(repeat, dim=-1)


def _byte_values(low: float, high: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values of the bits of every byte, the highest bit first: [256, 8]."""
    places = torch.arange(7, -1, -1, device=device)
    ones = (torch.arange(256, device=device)[:, None] >> places & 1).bool()
    zero, one = (torch.full((), v, dtype=dtype, device=device) for v in (low, high))
    return torch.where(ones, one, zero)


def _own_codes(ids: Tensor, rows: int) -> Tensor:
    """The ids. No table refuses one that is out of range, so that it is done here."""
    # There may be more rows than an int32 counts.
    ids = ids.long()
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool(((ids < 0) | (ids >= rows)).any()):
            raise IndexError("id out of range")
        return ids
    return ids.clamp(0, rows - 1)


_OPERATION.implementation(
    "triton", verify=_embedding_triton.can_serve, pays=_embedding_triton.pays
)(_embedding_triton.embedding_triton)
