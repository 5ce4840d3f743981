"""The lookup in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import EmbeddingCall


def run(call: EmbeddingCall) -> Tensor:
    """Return the rows of the ids; on a CPU an id out of range raises an IndexError."""
    ids, table, rows, repeat, bits, low, high, dtype = call
    if bits is None:
        assert table is not None
        values = F.embedding(ids, table)
    else:
        of_byte = _byte_values(low, high, dtype, ids.device)
        if table is not None and table.dtype == torch.uint8:
            values = F.embedding(F.embedding(ids, table).int(), of_byte).flatten(-2)[..., :bits]
        else:
            codes = (
                _own_codes(ids, rows)
                if table is None
                else F.embedding(ids, table[:, None]).squeeze(-1)
            )
            places = torch.arange(-(-bits // 8) * 8 - 8, -1, -8, device=ids.device)
            in_bytes = codes.long()[..., None] >> places & 255
            values = F.embedding(in_bytes, of_byte).flatten(-2)[..., -bits:]
    return values if repeat == 1 else values.repeat_interleave(repeat, dim=-1)


def _byte_values(low: float, high: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values of the bits of every byte, the highest bit first: [256, 8]."""
    places = torch.arange(7, -1, -1, device=device)
    ones = (torch.arange(256, device=device)[:, None] >> places & 1).bool()
    zero, one = (torch.full((), v, dtype=dtype, device=device) for v in (low, high))
    return torch.where(ones, one, zero)


def _own_codes(ids: Tensor, rows: int) -> Tensor:
    """Return the ids as codes, after a range check: there is no table whose lookup would fail."""
    # `rows` may not fit into int32.
    ids = ids.long()
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool(((ids < 0) | (ids >= rows)).any()):
            raise IndexError("id out of range")
        return ids
    return ids.clamp(0, rows - 1)
