"""The decoder: a frozen embedding, a stack of blocks that may grow, a norm and a head."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fastgrow.errors import ArgumentError, CheckpointError, ConfigError, describe
from fastgrow.nn.block import Block, initialise_linears
from fastgrow.nn.cache import KVCache
from fastgrow.nn.config import DecoderConfig
from fastgrow.nn.decoder_embedding import make_embedding, with_width
from fastgrow.nn.generate import GenerationMixin
from fastgrow.nn.head import LMHead
from fastgrow.nn.insertion import copied_blocks, insertion_indices
from fastgrow.nn.language_model import SubstrateLike
from fastgrow.nn.norm import make_norm
from fastgrow.nn.rotary import RotaryTable
from fastgrow.nn.serialization import (
    TABLE,
    WEIGHTS,
    load_weights,
    read_model_config,
    read_tensors,
    save_model_folder,
)

KIND = "decoder"


class Decoder(GenerationMixin, nn.Module):
    """Pre-norm decoder-only Transformer with rotary positions and an untied head.

    Args:
        config: its shape. `config.n_layer` follows the true depth as blocks are appended.
        substrate: gives the embedding table, and turns text into ids.
        table: [V, n_embed] float, a table of the caller's instead of the substrate's. A trainable
            embedding without either starts from random rows.
        generator: source of the initial weights' randomness; torch's global one without.
        device: where to build; torch's default device without.
        dtype: of the parameters; torch's default dtype without.

    Raises:
        ConfigError: the configuration does not go with the substrate or the table.
    """

    def __init__(
        self,
        config: DecoderConfig,
        substrate: SubstrateLike | None = None,
        *,
        table: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = with_width(config, substrate, table)
        self.config = dataclasses.replace(config, n_layer=0)
        self.substrate = substrate
        self._table_is_own = table is not None and config.embedding != "trainable"
        place = torch.device(device or torch.get_default_device())
        with (made_on := _made_on(place)):
            self.embedding = make_embedding(config, substrate, table, generator)
            # A constant stays real where a module is only sketched on the meta device: the state
            # dict could not bring it back.
            self.embedding.to(None if place.type == "meta" else place, dtype)
            self.rope = RotaryTable(config.max_seq_len, config.head_dim, config.rope_base)
            self.blocks = nn.ModuleList()
            self.final_norm = make_norm(config.norm, config.d_model, dtype=dtype)
            self.lm_head = LMHead(config.d_model, config.vocab_size, config.head_bias, dtype=dtype)
        initialise_linears(self.lm_head, config.initial_std, generator)
        self.append_blocks(config.n_layer, generator=generator)
        if made_on != place:
            self.to(place)

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits of the next token after each token.

        Args:
            ids: [B, T] int64.
            cache: earlier tokens (`new_cache`); these are added to it.
            last_only: give the last position's logits alone.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`.

        Raises:
            ArgumentError: wrong shape, an id out of range, more tokens than max_seq_len or than
                the cache holds.
        """
        hidden = self.hidden(ids, cache)
        return self.lm_head(hidden[:, -1:] if last_only else hidden)

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, *, in_float32: bool = False
    ) -> Tensor:
        """The vectors that the head reads, [B, T, d_model]; arguments and errors as `forward`.

        With `in_float32` those of a half-precision model are not yet rounded, for a factor to be
        multiplied in first.
        """
        past = 0 if cache is None else cache.length
        self._check_ids(ids, past)
        if cache is not None:
            cache.begin(ids, self.n_layer)
        x = self._through(self.embedding(ids), 0, self.n_layer, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        if in_float32 and x.dtype != torch.float64:
            x = x.float()
        return self.final_norm(x)

    def trunk(self, ids: Tensor, n: int) -> Tensor:
        """What the lowest `n` blocks make of `ids` [B, T]: [B, T, d_model].

        `hidden_from(trunk(ids, n), n)` is `hidden(ids)`, bit for bit.

        Raises:
            ArgumentError: as `forward`, or there are fewer than n blocks.
        """
        self._check_ids(ids, past=0)
        self._check_trunk(n)
        return self._through(self.embedding(ids), 0, n)

    def hidden_from(self, x: Tensor, n: int) -> Tensor:
        """The vectors that the head reads, from the output `x` [B, T, d_model] of `trunk(…, n)`.

        Raises:
            ArgumentError: x is of another shape or too long, or there are fewer than n blocks.
        """
        if x.dim() != 3 or x.shape[-1] != self.config.d_model or x.shape[1] > self.max_seq_len:
            expected = f"[B, at most {self.max_seq_len}, {self.config.d_model}]"
            raise ArgumentError(f"Decoder: x must be of shape {expected}, got {describe(x)}")
        self._check_trunk(n)
        return self.final_norm(self._through(x, n, self.n_layer))

    def loss_from(
        self,
        x: Tensor,
        n: int,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        """As `loss`, from the output `x` [B, T, d_model] of `trunk(ids, n)`."""
        return self.lm_head.loss(
            self.hidden_from(x, n), targets, ignore_index=ignore_index, reduction=reduction
        )

    def _through(self, x: Tensor, first: int, last: int, cache: KVCache | None = None) -> Tensor:
        """Through the blocks first … last − 1."""
        past = 0 if cache is None else cache.length
        rope = self.rope(past + x.shape[1])
        for index in range(first, last):
            x = self.blocks[index](x, rope, None if cache is None else cache.layers[index])
        return x

    def _check_ids(self, ids: Tensor, past: int) -> None:
        if ids.dim() != 2:
            raise ArgumentError(f"Decoder: ids must be of shape [B, T], got {describe(ids)}")
        if past + ids.shape[1] > self.max_seq_len:
            raise ArgumentError(
                f"Decoder: max_seq_len is {self.max_seq_len} tokens, got {ids.shape[1]}"
                + (f" after {past} in the cache" if past else "")
            )

    def _check_trunk(self, n: int) -> None:
        if not 0 <= n <= self.n_layer:
            raise ArgumentError(f"Decoder: there are {self.n_layer} blocks, got a trunk of {n}")

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy in nats of `targets` [B, T], the token that follows each of `ids` [B, T].

        Args:
            ids: [B, T] int64.
            targets: [B, T] int64.
            ignore_index: targets of this value count nothing.
            reduction: `mean` over the targets that count, `sum`, or `none` for [B, T].

        Raises:
            ArgumentError: as `forward`, or a target out of range.
        """
        return self.lm_head.loss(
            self.hidden(ids), targets, ignore_index=ignore_index, reduction=reduction
        )

    def append_blocks(
        self,
        n: int,
        init: Literal["random", "identity", "copy"] = "random",
        *,
        generator: torch.Generator | None = None,
    ) -> range:
        """Stack new blocks on top: `insert_blocks` without `at`.

        Returns:
            The new blocks' indices in `blocks`.
        """
        first = self.n_layer
        self.insert_blocks(n, init=init, generator=generator)
        return range(first, self.n_layer)

    def insert_blocks(
        self,
        n: int,
        at: Sequence[int] | None = None,
        init: Literal["random", "identity", "copy"] = "random",
        *,
        copy_of: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[int, ...]:
        """Put new blocks into the stack.

        Args:
            n: how many.
            at: for each new block the index of the old block it goes before, ascending; None is on
                top.
            init: `random`; `identity` for blocks that at first pass their input through, so that
                the logits stay what they were, bit for bit; or `copy` for copies of old blocks.
            copy_of: for `copy`, the old block that each new one copies; None for those below its
                place (`fastgrow.nn.insertion.copied_blocks`).
            generator: source of randomness; torch's global one without.

        Returns:
            The new blocks' indices in `blocks`.

        Raises:
            ConfigError: n is negative, `init` unknown, or an index out of range.
        """
        if n < 0:
            raise ConfigError(f"insert_blocks: n must be 0 or more, got {n}")
        if init not in ("random", "identity", "copy"):
            raise ConfigError(
                f"insert_blocks: init must be 'random', 'identity' or 'copy', got {init!r}"
            )
        if copy_of is not None and init != "copy":
            raise ConfigError(f"insert_blocks: copy_of goes with init 'copy', got {init!r}")
        old, depth = list(self.blocks), self.n_layer + n
        indices = insertion_indices(len(old), n, at)
        sources = copied_blocks(len(old), n, at, copy_of) if init == "copy" else ()
        for i, index in enumerate(indices):
            if init == "copy":
                self.blocks.insert(index, copy.deepcopy(old[sources[i]]))
                continue
            block = self._fresh_block(depth, generator)
            if init == "identity":
                block.make_identity()
            self.blocks.insert(index, block)
        self.config = dataclasses.replace(self.config, n_layer=depth)
        return indices

    def _fresh_block(self, depth: int, generator: torch.Generator | None) -> Block:
        like = self.lm_head.weight
        block = Block(self.config, device=_made_on(like.device), dtype=like.dtype)
        block.initialise(self.config.initial_std, depth, generator)
        return block.to(like.device).train(self.training)

    def new_cache(self, batch_size: int, max_len: int | None = None) -> KVCache:
        """An empty cache for `batch_size` sequences of at most `max_len` (max_seq_len) tokens."""
        return KVCache(self.n_layer, batch_size, max_len or self.max_seq_len)

    def num_parameters(self, *, active: bool = False, include_table: bool = True) -> int:
        """Count numbers.

        Args:
            active: only those that train.
            include_table: the embedding table too, frozen or not.
        """
        embedding = self.embedding
        in_table = set(embedding.parameters())
        parameters = {p for p in self.parameters() if p.requires_grad or not active} - in_table
        counted = sum(p.numel() for p in parameters)
        if include_table and (not active or any(p.requires_grad for p in in_table)):
            counted += embedding.vocab_size * embedding.n_embed
        return counted

    @property
    def n_layer(self) -> int:
        """The number of blocks there are now."""
        return len(self.blocks)

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""
        return self.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens."""
        return self.config.max_seq_len

    @property
    def device(self) -> torch.device:
        """Where the parameters are and ids are expected."""
        return self.lm_head.weight.device

    @property
    def own_table(self) -> Tensor | None:
        """The frozen table that the model was given, [V, n_embed].

        None where it comes from the substrate, or trains and is in the state dict.
        """
        return self.embedding.table if self._table_is_own else None

    def save(self, path: Path | str, *, with_substrate: bool = True) -> None:
        """Write the model into a folder (`fastgrow.nn.serialization`).

        Args:
            path: the folder.
            with_substrate: False leaves the substrate's files out, for a folder of several models
                that keeps them once; `load` then has to be given the substrate.

        Raises:
            FileExistsError: the folder holds something that is not a saved model's.
        """
        save_model_folder(
            path,
            kind=KIND,
            config=self.config.to_dict(),
            state=self.state_dict(),
            substrate=self.substrate,
            table=self.own_table,
            with_substrate=with_substrate,
        )

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        substrate: SubstrateLike | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Decoder:
        """Read a model from a folder, at the depth it was saved with.

        Args:
            path: the folder.
            substrate: share this one instead of loading another of the same fingerprint.
            device: where to put the model; the CPU without.
            dtype: cast the parameters.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit; the message names it.
        """
        folder = Path(path)
        content = read_model_config(folder, KIND)
        try:
            config = DecoderConfig.from_dict(content["config"])
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        fingerprint = content.get("fingerprint")
        if fingerprint is not None:
            substrate = _matching_substrate(folder, fingerprint, substrate)
        table = None
        if (folder / TABLE).exists():
            table = read_tensors(folder / TABLE)["table"]
        with torch.device("meta"):
            model = cls(config, substrate, table=table)
        load_weights(model, folder / WEIGHTS)
        # The table comes from the substrate, in float32, whatever the weights were saved in.
        return model.to(device=device or "cpu", dtype=dtype or model.lm_head.weight.dtype)


def _matching_substrate(
    folder: Path, fingerprint: str, given: SubstrateLike | None
) -> SubstrateLike:
    if given is None:
        from fastgrow.substrate import Substrate

        given = Substrate.load(folder)
    if given.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on a substrate of fingerprint {fingerprint[:16]}…, "
            f"got one of {given.fingerprint[:16]}…"
        )
    return given


def _made_on(place: torch.device) -> torch.device:
    """Where a module for `place` is made before it is moved there.

    A linear layer draws its weights when it is made, where it is made, before they are drawn as
    they are to be. On the CPU both draws follow one seed, so that it gives the same weights on
    every device.
    """
    return place if place.type == "meta" else torch.device("cpu")
