"""Experts that wait outside of the device: in main memory or on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, KVCache, SubstrateLike


class ParkedExpert:
    """A decoder that comes to the device for the length of each call, and leaves again.

    An ensemble of many experts then needs room for one of them at a time; each call pays for the
    way. Not a module: it does not train, and its parameters are not among the ensemble's.

    Args:
        model: goes to main memory, or to the disk.
        folder: where it is kept on the disk; main memory without. A folder that holds something
            else is refused.

    Raises:
        FileExistsError: the folder holds something that is not a saved model's.
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
        """As the decoder's."""
        with self.present() as model:
            logits: Tensor = model(ids, cache, last_only=last_only)
            return logits

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """As the decoder's."""
        with self.present() as model:
            return model.loss(ids, targets, ignore_index=ignore_index, reduction=reduction)

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
        """As the decoder's; the cache stays on the device between calls."""
        return KVCache(self._n_layer, batch_size, max_len or self.max_seq_len)

    @contextmanager
    def present(self) -> Iterator[Decoder]:
        """The decoder on the device, without gradients; afterwards it is away again."""
        model = self.recall()
        try:
            with torch.no_grad():
                yield model
        finally:
            if self._model is not None:
                self._model.to("cpu")

    def recall(self) -> Decoder:
        """The decoder, on the device.

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


def check_parkable(name: str, model: object) -> Decoder:
    """The model, if it can be parked.

    Raises:
        ConfigError: it is no decoder.
    """
    if type(model) is not Decoder:
        raise ConfigError(
            f"expert {name!r} is a {type(model).__name__}; only a Decoder can be taken off the "
            "device"
        )
    return model
