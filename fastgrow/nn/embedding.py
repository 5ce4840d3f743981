"""Token ids to vectors, from a table that usually never trains."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ConfigError
from fastgrow.nn.language_model import SubstrateLike
from fastgrow.ops._check import describe

# A substrate's table at the widths asked for, so that all models on one substrate hold one table.
_TABLES: weakref.WeakKeyDictionary[SubstrateLike, dict[int, Tensor]] = weakref.WeakKeyDictionary()
# What became of a table on another device or in another dtype, keyed by the address of the table it
# was made from; that stays taken while a user of the copy lives, because each keeps the original.
_COPIES: weakref.WeakValueDictionary[tuple[object, ...], Tensor] = weakref.WeakValueDictionary()


class FrozenEmbedding(nn.Module):
    """Looks ids up in a constant table and repeats each feature up to the model's width.

    The table is a buffer outside the state dict. It is never copied: modules made from one tensor
    share its memory, also after `copy.deepcopy` and after they have been moved to one device.

    Args:
        table: [V, n_embed] float.
        d_model: width of the result, a multiple of n_embed; None for n_embed.
        trainable: hold a copy of the table as a parameter instead, in the state dict.

    Shapes:
        ids [...] int64 → [..., d_model].

    Raises:
        ConfigError: d_model is not a multiple of n_embed.
        ArgumentError (on call): an id outside [0, V).
    """

    table: Tensor

    def __init__(
        self, table: Tensor, d_model: int | None = None, *, trainable: bool = False
    ) -> None:
        super().__init__()
        if table.dim() != 2:
            raise ConfigError(f"FrozenEmbedding: table must be [V, n_embed], got {describe(table)}")
        width = table.shape[1] if d_model is None else d_model
        if width % table.shape[1]:
            raise ConfigError(
                f"FrozenEmbedding: d_model must be a multiple of the table's width "
                f"{table.shape[1]}, got {width}"
            )
        self.repeat = width // table.shape[1]
        self.trainable = trainable
        if trainable:
            self.table = nn.Parameter(table.detach().clone())
        else:
            self.register_buffer("table", table.detach(), persistent=False)
            self._original = table.detach()

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.table, repeat=self.repeat)

    def share(self, other: FrozenEmbedding) -> bool:
        """Use another module's memory for the table, if both tables are frozen and equal.

        Returns:
            Whether the two modules hold one table now.
        """
        mine, theirs = self.table, other.table
        if self.trainable or other.trainable or mine.is_meta or theirs.is_meta:
            return False
        if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
            return False
        if mine.data_ptr() != theirs.data_ptr() and not torch.equal(mine, theirs):
            return False
        self.table, self._original = theirs, other._original
        return True

    def extra_repr(self) -> str:
        kind = "trainable" if self.trainable else "frozen"
        return f"{self.table.shape[0]}, {self.table.shape[1]}, repeat={self.repeat}, {kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEmbedding:
        super()._apply(fn, recurse)
        if not self.trainable:
            self.table = self._shared(self.table)
        return self

    def _shared(self, table: Tensor) -> Tensor:
        """The first tensor that the original became on this device in this dtype."""
        original = self._original
        if table.is_meta or original.is_meta:
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
            copied = nn.Parameter(self.table.detach().clone(), self.table.requires_grad)
            memo[id(self.table)] = copied
            duplicate._parameters["table"] = copied
        return duplicate


def substrate_table(substrate: SubstrateLike, width: int) -> Tensor:
    """The substrate's table at a width, [V, width] float32; one tensor for all callers.

    A narrower table has the leading principal components, its rows normalised again: just what a
    substrate built with that many components has.

    Raises:
        ConfigError: the substrate's table is narrower than `width`, or is wider and not made of
            principal components (bits of token codes), so that cutting it would lose tokens.
    """
    tables = _TABLES.setdefault(substrate, {})
    if width not in tables:
        if substrate.n_embed < width:
            raise ConfigError(
                f"DecoderConfig: n_embed is {width}, but the substrate has {substrate.n_embed}"
            )
        with warnings.catch_warnings():
            # A read-only array is what is wanted here: nothing writes to a frozen table.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            table = torch.from_numpy(substrate.table)
        if width < substrate.n_embed:
            if bool(((table == 0) | (table == 1)).all()):
                raise ConfigError(
                    f"DecoderConfig: n_embed is {width}, but the substrate has codes of "
                    f"{substrate.n_embed} bits, which cannot be cut"
                )
            table = nn.functional.normalize(table[:, :width], dim=1)
        tables[width] = table
    return tables[width]
