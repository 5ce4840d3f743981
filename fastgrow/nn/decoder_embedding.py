"""Make the embedding of a decoder from its configuration and a substrate or a table."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastgrow.errors import ConfigError, describe
from fastgrow.nn.config import DecoderConfig
from fastgrow.nn.draw import draw_normal
from fastgrow.nn.embedding import FrozenEmbedding
from fastgrow.nn.language_model import SubstrateLike
from fastgrow.nn.substrate_table import substrate_embedding, substrate_table


def with_width(
    config: DecoderConfig, substrate: SubstrateLike | None, table: Tensor | None
) -> DecoderConfig:
    """Return the configuration with n_embed set, after checking the substrate or table.

    Raises:
        ConfigError: the substrate or table does not match the configuration.
    """
    if substrate is not None and len(substrate) != config.vocab_size:
        raise ConfigError(
            f"DecoderConfig: vocab_size is {config.vocab_size}, "
            f"but the substrate has {len(substrate)} tokens"
        )
    if table is not None:
        width = config.n_embed or (table.shape[-1] if table.dim() == 2 else 0)
        if tuple(table.shape) != (config.vocab_size, width):
            expected = [config.vocab_size, config.n_embed or "n_embed"]
            raise ConfigError(f"Decoder: table must be of shape {expected}, got {describe(table)}")
        return dataclasses.replace(config, n_embed=width)
    if substrate is not None and config.n_embed is None:
        fits = config.d_model % substrate.n_embed == 0
        return dataclasses.replace(config, n_embed=substrate.n_embed if fits else config.d_model)
    return dataclasses.replace(config, n_embed=config.embed_width)


def make_embedding(
    config: DecoderConfig,
    substrate: SubstrateLike | None,
    table: Tensor | None,
    generator: torch.Generator | None,
) -> FrozenEmbedding:
    """Return the embedding of a configuration, with the table or else the substrate's table.

    Raises:
        ConfigError: the embedding is frozen, and there is neither a substrate nor a table.
    """
    trainable = config.embedding == "trainable"
    if table is None and substrate is not None:
        if not trainable:
            return substrate_embedding(substrate, config.embed_width, config.d_model)
        table = substrate_table(substrate, config.embed_width)
    if table is None:
        if not trainable:
            raise ConfigError("Decoder: a frozen embedding requires a substrate or a table")
        empty = torch.empty(config.vocab_size, config.embed_width)
        table = draw_normal(empty, config.initial_std, generator)
    return FrozenEmbedding(table, config.d_model, trainable=trainable)
