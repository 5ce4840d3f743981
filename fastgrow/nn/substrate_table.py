"""A substrate's vectors as tensors that all models on it share."""

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

# A substrate's table at the widths asked for, so that all models on one substrate hold one table.
_TABLES: weakref.WeakKeyDictionary[SubstrateLike, dict[int, Tensor]] = weakref.WeakKeyDictionary()


def substrate_embedding(substrate: SubstrateLike, width: int, d_model: int) -> FrozenEmbedding:
    """A frozen embedding on a substrate's vectors, packed where they are bits.

    All callers hold one tensor. The table of floats of a substrate of codes is never made.

    Raises:
        ConfigError: as `substrate_table`.
    """
    packed = getattr(substrate, "packed_table", None)
    if packed is None or width != substrate.n_embed:
        return FrozenEmbedding(substrate_table(substrate, width), d_model)
    return FrozenEmbedding.from_bits(_as_tensor(packed), width, d_model)


def substrate_table(substrate: SubstrateLike, width: int) -> Tensor:
    """The substrate's table at a width, [V, width] float32; one tensor for all callers.

    A narrower table has the leading principal components, its rows normalised again: but for
    rounding what a substrate built with that many components has.

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
        table = _as_tensor(substrate.table)
        if width < substrate.n_embed:
            if bool(((table == 0) | (table == 1)).all()):
                raise ConfigError(
                    f"DecoderConfig: n_embed is {width}, but the substrate has codes of "
                    f"{substrate.n_embed} bits, which cannot be cut"
                )
            table = nn.functional.normalize(table[:, :width], dim=1)
        tables[width] = table
    return tables[width]


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The array's memory as a tensor."""
    with warnings.catch_warnings():
        # A read-only array is what is wanted here: nothing writes to a frozen table.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
