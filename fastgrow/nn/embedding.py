"""Embedding of token ids, with a table that is frozen or trainable."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ConfigError, describe
from fastgrow.ops.lookup import MAX_CODE_BITS

# Copies of tables on another device or in another dtype, keyed by the address of the original. The
# address stays valid as long as a copy is in use, because each of its users holds the original.
_COPIES: weakref.WeakValueDictionary[tuple[object, ...], Tensor] = weakref.WeakValueDictionary()


class FrozenEmbedding(nn.Module):
    """Looks up ids in a constant table and repeats each feature up to the model's width.

    The table holds floats, or with `from_bits` or `from_codes` packed bits or integer codes, of
    which only the rows that are looked up are unpacked: a bit takes 1/32 of a float's memory. If
    the ids are used as codes, there is no table.

    The table is a buffer outside the state dict. It is never copied: modules made from one tensor
    share its memory, also after `copy.deepcopy` and after they have been moved to one device.

    Args:
        table: [V, n_embed] float.
        d_model: width of the result, a multiple of n_embed; None for n_embed.
        trainable: whether to hold a copy of the table as a parameter, in the state dict, instead.

    Attributes:
        table: the table of floats, bits or codes; None if the ids are used as codes.
        vocab_size: V.
        n_embed: number of features of a row.
        repeat: number of copies of each feature in the result.
        bits: n_embed if the table holds bits or codes, else None.

    Shapes:
        ids [...] int64 → [..., d_model].

    Raises:
        ConfigError: d_model is not a multiple of n_embed.
        ArgumentError (on call): an id outside [0, V).
    """

    table: Tensor | None

    def __init__(
        self, table: Tensor, d_model: int | None = None, *, trainable: bool = False
    ) -> None:
        if table.dim() != 2:
            raise ConfigError(f"FrozenEmbedding: table must be [V, n_embed], got {describe(table)}")
        self._set_up(table, tuple(table.shape), d_model, trainable=trainable)

    @classmethod
    def from_bits(
        cls,
        table: Tensor,
        bits: int,
        d_model: int | None = None,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> FrozenEmbedding:
        """Return an embedding with a table of packed bits.

        Args:
            table: [V, ⌈bits / 8⌉] uint8, the first bit in the most significant bit of the first
                byte.
            bits: n_embed.
            d_model: width of the result, a multiple of `bits`; None for `bits`.
            offset: value of a bit that is 0.
            scale: value that is added for a bit that is 1.
            dtype: dtype of the result; `module.to(dtype)` changes it, as for a table of floats.

        Raises:
            ConfigError: `table` has a wrong shape or dtype, or d_model is not a multiple of bits.
        """
        width = -(-bits // 8)
        if table.dtype != torch.uint8 or table.dim() != 2 or table.shape[1] != width:
            expected = f"[V, {width}] uint8 for {bits} bits"
            raise ConfigError(f"FrozenEmbedding: table must be {expected}, got {describe(table)}")
        module = cls.__new__(cls)
        module._set_up(table, (table.shape[0], bits), d_model, (offset, scale, dtype))
        return module

    @classmethod
    def from_codes(
        cls,
        bits: int,
        d_model: int | None = None,
        *,
        codes: Tensor | None = None,
        vocab_size: int | None = None,
        offset: float = 0.0,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> FrozenEmbedding:
        """Return an embedding whose features are the binary digits of integers, highest first.

        Args:
            bits: n_embed, at most 63.
            d_model: width of the result, a multiple of `bits`; None for `bits`.
            codes: [V] int64 or int32, the integer of each id; None to use the ids themselves.
            vocab_size: V if `codes` is None; 2 ** bits by default.
            offset, scale, dtype: as for `from_bits`.

        Raises:
            ConfigError: an argument is out of range, or has a wrong shape or dtype.
        """
        if codes is not None and (
            codes.dtype not in (torch.int64, torch.int32) or codes.dim() != 1
        ):
            expected = "[V] int64 or int32"
            raise ConfigError(f"FrozenEmbedding: codes must be {expected}, got {describe(codes)}")
        if not 1 <= bits <= MAX_CODE_BITS:
            expected = f"in [1, {MAX_CODE_BITS}] for codes"
            raise ConfigError(f"FrozenEmbedding: bits must be {expected}, got {bits}")
        if codes is not None and vocab_size is not None:
            raise ConfigError("FrozenEmbedding: vocab_size must be None if codes are given")
        rows = 1 << bits if vocab_size is None else vocab_size
        if not 1 <= rows <= 1 << bits:
            expected = f"in [1, {1 << bits}] for {bits} bits"
            raise ConfigError(f"FrozenEmbedding: vocab_size must be {expected}, got {rows}")
        module = cls.__new__(cls)
        shape = (rows if codes is None else codes.shape[0], bits)
        module._set_up(codes, shape, d_model, (offset, scale, dtype))
        return module

    def _set_up(
        self,
        table: Tensor | None,
        shape: tuple[int, ...],
        d_model: int | None,
        of_bits: tuple[float, float, torch.dtype] | None = None,
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size, self.n_embed = shape
        width = self.n_embed if d_model is None else d_model
        if width % self.n_embed:
            raise ConfigError(
                f"FrozenEmbedding: d_model must be a multiple of the table's width "
                f"{self.n_embed}, got {width}"
            )
        self.repeat = width // self.n_embed
        self.trainable = trainable
        self.bits: int | None = None
        self.offset, self.scale, self._dtype = 0.0, 1.0, torch.float32
        if of_bits is not None:
            self.bits = self.n_embed
            self.offset, self.scale, self._dtype = of_bits
        self._original: Tensor | None = None
        if trainable:
            assert table is not None
            self.table = nn.Parameter(table.detach().clone())
        else:
            self._original = None if table is None else table.detach()
            self.register_buffer("table", self._original, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if self.bits is None:
            return ops.embedding(ids, self.table, repeat=self.repeat)
        return ops.embedding(
            ids,
            self.table,
            repeat=self.repeat,
            bits=self.bits,
            offset=self.offset,
            scale=self.scale,
            vocab_size=self.vocab_size if self.table is None else None,
            dtype=self._dtype,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        return self._dtype if self.bits is not None or self.table is None else self.table.dtype

    @property
    def address(self) -> tuple[int, int]:
        """Key of the table's memory: equal for modules that share one table.

        Modules without a table have equal keys if they have the same number of bits.
        """
        return (self.n_embed, 0) if self.table is None else (self.n_embed, self.table.data_ptr())

    def share(self, other: FrozenEmbedding) -> bool:
        """Use another module's memory for the table, if both tables are frozen and equal.

        Returns:
            Whether the two modules share one table now.
        """
        mine, theirs = self.table, other.table
        if self.trainable or other.trainable or self._decoding != other._decoding:
            return False
        if mine is None or theirs is None:
            return mine is theirs
        if mine.is_meta or theirs.is_meta:
            return False
        if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
            return False
        if mine.data_ptr() != theirs.data_ptr() and not torch.equal(mine, theirs):
            return False
        self.table, self._original = theirs, other._original
        return True

    @property
    def _decoding(self) -> tuple[object, ...]:
        """Settings that determine how the table's values are converted to features."""
        return self.vocab_size, self.bits, self.offset, self.scale

    def extra_repr(self) -> str:
        kind = "trainable" if self.trainable else "frozen"
        if self.bits is not None:
            packed = self.table is not None and self.table.dtype == torch.uint8
            kind += " bits" if packed else " codes"
        return f"{self.vocab_size}, {self.n_embed}, repeat={self.repeat}, {kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEmbedding:
        super()._apply(fn, recurse)
        if self.table is not None and not self.trainable:
            self.table = self._shared(self.table)
        if self.bits is not None:
            # The table is not of a floating-point type, so that `fn` does not convert its dtype.
            self._dtype = fn(torch.empty(0, dtype=self._dtype, device="cpu")).dtype
        return self

    def _shared(self, table: Tensor) -> Tensor:
        """Return the first copy of the original on this device and in this dtype."""
        original = self._original
        if original is None or table.is_meta or original.is_meta:
            return table
        if (table.device, table.dtype) == (original.device, original.dtype):
            return original
        key = (original.data_ptr(), original.shape, original.dtype, table.device, table.dtype)
        return _COPIES.setdefault(key, table)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEmbedding:
        duplicate = FrozenEmbedding.__new__(FrozenEmbedding)
        memo[id(self)] = duplicate
        duplicate.__dict__.update(self.__dict__)
        duplicate._parameters = {}
        duplicate._buffers = dict(self._buffers)
        if self.trainable:
            assert self.table is not None
            copied = nn.Parameter(self.table.detach().clone(), self.table.requires_grad)
            memo[id(self.table)] = copied
            duplicate._parameters["table"] = copied
        return duplicate
