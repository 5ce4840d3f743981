"""Offloaded experts: their weights are in host memory or on disk between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, KVCache, SubstrateLike


class OffloadedExpert:
    """A decoder whose weights are on the device only during a call.

    If all experts of an ensemble are offloaded, the device needs memory for one of them at a time;
    each call has to transfer the weights. Not a module: it cannot be trained, and its parameters
    are not parameters of the ensemble.

    Args:
        model: the decoder to offload.
        folder: folder to save the weights in; default: host memory.

    Raises:
        FileExistsError: the folder contains files that do not belong to a saved model.
    """

    def __init__(self, model: Decoder, folder: Path | str | None = None) -> None:
        self.substrate: SubstrateLike | None = model.substrate
        self.vocab_size = model.vocab_size
        self.max_seq_len = model.max_seq_len
        self.device = model.device
        self._dtype = model.lm_head.weight.dtype
        self._training = model.training
        self._n_layer = model.n_layer
        self._frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        self.folder = None if folder is None else Path(folder)
        self._model: Decoder | None = None
        if self.folder is None:
            self._model = model.to("cpu")
        else:
            model.save(self.folder, with_substrate=False)

    def __call__(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        """See `Decoder.forward`."""
        with self.on_device() as model:
            logits: Tensor = model(ids, cache, last_only=last_only)
            return logits

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """See `Decoder.loss`."""
        with self.on_device() as model:
            return model.loss(ids, targets, ignore_index=ignore_index, reduction=reduction)

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
        """See `Decoder.new_cache`; the cache stays on the device between calls."""
        return KVCache(self._n_layer, batch_size, max_len or self.max_seq_len)

    @contextmanager
    def on_device(self) -> Iterator[Decoder]:
        """Context manager: the decoder on the device, with gradients disabled."""
        model = self.recall()
        try:
            with torch.no_grad():
                yield model
        finally:
            if self._model is not None:
                self._model.to("cpu")

    def recall(self) -> Decoder:
        """Return the decoder, on the device.

        Raises:
            CheckpointError: its files are missing or damaged.
        """
        if self._model is not None:
            return self._model.to(self.device)
        assert self.folder is not None
        model = Decoder.load(
            self.folder, substrate=self.substrate, device=self.device, dtype=self._dtype
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        return model.train(self._training)


def check_offloadable(name: str, model: object) -> Decoder:
    """Return the model if it can be offloaded.

    Raises:
        ConfigError: it is not a decoder.
    """
    if type(model) is not Decoder:
        raise ConfigError(
            f"expert {name!r} is a {type(model).__name__}; only a Decoder can be offloaded"
        )
    return model
