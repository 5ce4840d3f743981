"""Small decoders with distinct predictions, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate


def make_decoder(
    substrate: Substrate | None,
    seed: int,
    *,
    d_model: int = 32,
    n_layer: int = 1,
    dtype: torch.dtype = torch.float64,
    table: Tensor | None = None,
    **config: Any,
) -> Decoder:
    """Return a decoder with random weights and a scaled-up head, so that it prefers some tokens."""
    if substrate is not None:
        config.setdefault("vocab_size", len(substrate))
    # The head is scaled up from small weights. From the usual initialization of so narrow a model
    # the probabilities would be so close to 0 and 1 that float32 could not represent their logs.
    config = {"max_seq_len": 24, "init_std": 0.02, **config}
    shape = DecoderConfig(d_model=d_model, n_layer=n_layer, n_head=2, **config)
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(shape, substrate, table=table, generator=generator, dtype=dtype)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        if model.lm_head.bias is not None:
            model.lm_head.bias.normal_(generator=generator)
    return model


def random_text(substrate: Substrate, seed: int, *, batch: int = 3, length: int = 16) -> Tensor:
    """Return ids [B, T] in which documents end and start within the rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, len(substrate), (batch, length), generator=generator)
    ids[:, 0] = substrate.bos_id
    ids[0, 7], ids[0, 8] = substrate.eos_id, substrate.bos_id
    ids[1, 12:] = substrate.pad_id
    return ids
