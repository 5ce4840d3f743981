"""Decoder-only Transformer: an embedding, a stack of blocks that can grow, a norm and a head."""

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
    """Pre-norm decoder-only Transformer with rotary position embedding and an untied head.

    Args:
        config: configuration of the model. The attribute `config.n_layer` is updated when blocks
            are added.
        substrate: provides the token table, and converts text to ids.
        table: [V, n_embed] float, a token table to use instead of the substrate's. A trainable
            embedding without substrate and table is initialised at random.
        generator: random number generator of the initial weights; torch's global one by default.
        device: device of the model; torch's default device by default.
        dtype: dtype of the parameters; torch's default dtype by default.

    Raises:
        ConfigError: the configuration does not match the substrate or the table.
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
        target = torch.device(device or torch.get_default_device())
        with (built_on := _build_device(target)):
            self.embedding = make_embedding(config, substrate, table, generator)
            # The frozen table is not moved to the meta device: it is not in the state dict, so
            # that loading could not restore it.
            self.embedding.to(None if target.type == "meta" else target, dtype)
            self.rope = RotaryTable(config.max_seq_len, config.head_dim, config.rope_base)
            self.blocks = nn.ModuleList()
            self.final_norm = make_norm(config.norm, config.d_model, dtype=dtype)
            self.lm_head = LMHead(config.d_model, config.vocab_size, config.head_bias, dtype=dtype)
        initialise_linears(self.lm_head, config.initial_std, generator)
        self.append_blocks(config.n_layer, generator=generator)
        if built_on != target:
            self.to(target)

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Return the logits of the next token after each token.

        Args:
            ids: token ids [B, T] int64.
            cache: cache of the earlier tokens (`new_cache`); `ids` are added to it.
            last_only: whether to return only the logits of the last position.

        Returns:
            [B, T, V], or [B, 1, V] for `last_only`.

        Raises:
            ArgumentError: the shape is wrong, an id is out of range, or there are more tokens than
                max_seq_len or than fit into the cache.
        """
        hidden = self.hidden(ids, cache)
        return self.lm_head(hidden[:, -1:] if last_only else hidden)

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, *, in_float32: bool = False
    ) -> Tensor:
        """Return the head's input, [B, T, d_model]; arguments and errors as for `forward`.

        With `in_float32` the result of a half-precision model is float32, so that a factor can be
        multiplied in before it is rounded.
        """
        past = 0 if cache is None else cache.length
        self._check_ids(ids, past)
        if cache is not None:
            cache.begin(ids, self.n_layer)
        x = self._run_blocks(self.embedding(ids), 0, self.n_layer, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        if in_float32 and x.dtype != torch.float64:
            x = x.float()
        return self.final_norm(x)

    def trunk(self, ids: Tensor, n: int) -> Tensor:
        """Return the output of the lowest `n` blocks for `ids` [B, T]: [B, T, d_model].

        `hidden_from(trunk(ids, n), n)` is bitwise equal to `hidden(ids)`.

        Raises:
            ArgumentError: as for `forward`, or there are fewer than n blocks.
        """
        self._check_ids(ids, past=0)
        self._check_trunk(n)
        return self._run_blocks(self.embedding(ids), 0, n)

    def hidden_from(self, x: Tensor, n: int) -> Tensor:
        """Return the head's input, given the output `x` [B, T, d_model] of `trunk(ids, n)`.

        Raises:
            ArgumentError: x has a wrong shape or is too long, or there are fewer than n blocks.
        """
        if x.dim() != 3 or x.shape[-1] != self.config.d_model or x.shape[1] > self.max_seq_len:
            expected = f"[B, at most {self.max_seq_len}, {self.config.d_model}]"
            raise ArgumentError(f"Decoder: x must be of shape {expected}, got {describe(x)}")
        self._check_trunk(n)
        return self.final_norm(self._run_blocks(x, n, self.n_layer))

    def loss_from(
        self,
        x: Tensor,
        n: int,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the same as `loss`, given the output `x` [B, T, d_model] of `trunk(ids, n)`."""
        return self.lm_head.loss(
            self.hidden_from(x, n), targets, ignore_index=ignore_index, reduction=reduction
        )

    def _run_blocks(self, x: Tensor, first: int, last: int, cache: KVCache | None = None) -> Tensor:
        """Apply the blocks first … last − 1."""
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
            raise ArgumentError(
                f"Decoder: the model has {self.n_layer} blocks, got a trunk of {n} blocks"
            )

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross-entropy of the next tokens `targets` given `ids`, in nats.

        Args:
            ids: token ids [B, T] int64.
            targets: [B, T] int64, the token that follows each of `ids`.
            ignore_index: targets of this value do not contribute to the loss.
            reduction: `mean` over the targets that are not ignored, `sum`, or `none` for [B, T].

        Raises:
            ArgumentError: as for `forward`, or a target is out of range.
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
        """Add new blocks on top; the same as `insert_blocks` without `at`.

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
        """Insert new blocks into the stack.

        Args:
            n: number of new blocks.
            at: for each new block, the index of the old block that it is inserted before, in
                ascending order; None to add all on top.
            init: `random`; `identity` for blocks that at first return their input, so that the
                logits stay bitwise equal; or `copy` for copies of old blocks.
            copy_of: for `copy`, the index of the old block that each new block copies; None for the
                blocks below it (`fastgrow.nn.insertion.copied_blocks`).
            generator: random number generator; torch's global one by default.

        Returns:
            The new blocks' indices in `blocks`.

        Raises:
            ConfigError: n is negative, `init` is unknown, or an index is out of range.
        """
        if n < 0:
            raise ConfigError(f"insert_blocks: n must be 0 or more, got {n}")
        if init not in ("random", "identity", "copy"):
            raise ConfigError(
                f"insert_blocks: init must be 'random', 'identity' or 'copy', got {init!r}"
            )
        if copy_of is not None and init != "copy":
            raise ConfigError(f"insert_blocks: copy_of requires init 'copy', got {init!r}")
        old, depth = list(self.blocks), self.n_layer + n
        indices = insertion_indices(len(old), n, at)
        sources = copied_blocks(len(old), n, at, copy_of) if init == "copy" else ()
        for i, index in enumerate(indices):
            if init == "copy":
                self.blocks.insert(index, copy.deepcopy(old[sources[i]]))
                continue
            block = self._new_block(depth, generator)
            if init == "identity":
                block.make_identity()
            self.blocks.insert(index, block)
        self.config = dataclasses.replace(self.config, n_layer=depth)
        return indices

    def _new_block(self, depth: int, generator: torch.Generator | None) -> Block:
        like = self.lm_head.weight
        block = Block(self.config, device=_build_device(like.device), dtype=like.dtype)
        block.initialise(self.config.initial_std, depth, generator)
        return block.to(like.device).train(self.training)

    def new_cache(self, batch_size: int, max_len: int | None = None) -> KVCache:
        """Return an empty cache for `batch_size` sequences of at most `max_len` tokens.

        `max_len` is max_seq_len by default.
        """
        return KVCache(self.n_layer, batch_size, max_len or self.max_seq_len)

    def num_parameters(self, *, active: bool = False, include_table: bool = True) -> int:
        """Return the number of parameters.

        Args:
            active: whether to count only the active parameters, which require gradients.
            include_table: whether to count the token table, even if it is frozen.
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
        """The current number of blocks."""
        return len(self.blocks)

    @property
    def vocab_size(self) -> int:
        """V, number of token ids."""
        return self.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Maximum context length in tokens."""
        return self.config.max_seq_len

    @property
    def device(self) -> torch.device:
        """Device of the parameters; ids must be on the same device."""
        return self.lm_head.weight.device

    @property
    def own_table(self) -> Tensor | None:
        """The frozen table passed to the constructor, [V, n_embed].

        None if the table comes from the substrate, or if it is trainable (in the state dict).
        """
        return self.embedding.table if self._table_is_own else None

    def save(self, path: Path | str, *, with_substrate: bool = True) -> None:
        """Save the model in a folder (`fastgrow.nn.serialization`).

        Args:
            path: the folder.
            with_substrate: whether to save the substrate's files. If False, for a folder of several
                models that has the files only once, the substrate must be passed to `load`.

        Raises:
            FileExistsError: the folder contains files that do not belong to a saved model.
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
        """Load a model from a folder, with the depth that it was saved with.

        Args:
            path: the folder.
            substrate: substrate to use instead of loading it from the folder; must have the saved
                fingerprint.
            device: device of the model; the CPU by default.
            dtype: dtype to convert the parameters to; None for the saved one.

        Raises:
            CheckpointError: a file is missing, damaged or does not match; the message names it.
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
        # The substrate's table is float32, even if the weights were saved in another dtype.
        return model.to(device=device or "cpu", dtype=dtype or model.lm_head.weight.dtype)


def _matching_substrate(
    folder: Path, fingerprint: str, given: SubstrateLike | None
) -> SubstrateLike:
    if given is None:
        from fastgrow.substrate import Substrate

        given = Substrate.load(folder)
    if given.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: the model was trained on a substrate of fingerprint {fingerprint[:16]}…, "
            f"got a substrate of fingerprint {given.fingerprint[:16]}…"
        )
    return given


def _build_device(target: torch.device) -> torch.device:
    """Return the device to build a module on before it is moved to `target`.

    The constructor of a linear layer draws weights on its device, before our own initialisation
    draws them again. On the CPU both draws use the same generator, so that a seed gives the same
    weights on every device.
    """
    return target if target.type == "meta" else torch.device("cpu")
