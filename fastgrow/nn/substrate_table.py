"""A substrate's token table as a tensor, which all models on the substrate share."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgrow.errors import ConfigError
from fastgrow.nn.embedding import FrozenEmbedding
from fastgrow.nn.language_model import SubstrateLike

# Tables of each substrate by width, so that all models on one substrate share one table.
_TABLES: weakref.WeakKeyDictionary[SubstrateLike, dict[int, Tensor]] = weakref.WeakKeyDictionary()


def substrate_embedding(substrate: SubstrateLike, width: int, d_model: int) -> FrozenEmbedding:
    """Return a frozen embedding with a substrate's table, as packed bits if it has such a table.

    All callers share one tensor. If the packed bits are used, the table of floats is not created.

    Raises:
        ConfigError: as for `substrate_table`.
    """
    packed = getattr(substrate, "packed_table", None)
    if packed is None or width != substrate.n_embed:
        return FrozenEmbedding(substrate_table(substrate, width), d_model)
    return FrozenEmbedding.from_bits(_as_tensor(packed), width, d_model)


def substrate_table(substrate: SubstrateLike, width: int) -> Tensor:
    """Return the substrate's table at a width, [V, width] float32; all callers share one tensor.

    A narrower table has the leading principal components, with rows normalised again. It is equal,
    up to rounding, to the table of a substrate built with that many components.

    Raises:
        ConfigError: the substrate's table is narrower than `width`, or is wider and not made of
            principal components (bits of token codes), so that cutting it would lose tokens.
    """
    tables = _TABLES.setdefault(substrate, {})
    if width not in tables:
        if substrate.n_embed < width:
            raise ConfigError(
                f"DecoderConfig: n_embed is {width}, but the substrate's table has only "
                f"{substrate.n_embed} columns"
            )
        table = _as_tensor(substrate.table)
        if width < substrate.n_embed:
            if bool(((table == 0) | (table == 1)).all()):
                raise ConfigError(
                    f"DecoderConfig: n_embed is {width}, but the substrate has codes of "
                    f"{substrate.n_embed} bits, which cannot be truncated"
                )
            table = nn.functional.normalize(table[:, :width], dim=1)
        tables[width] = table
    return tables[width]


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor that shares the array's memory."""
    with warnings.catch_warnings():
        # The array is read-only, which is fine: nothing writes to a frozen table.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
