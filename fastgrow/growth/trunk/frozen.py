"""The frozen trunk of a stage: its blocks, run without autograd, as they are or quantized."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow.errors import ConfigError
from fastgrow.nn import Block, Decoder
from fastgrow.nn.tensor_digest import add_tensor
from fastgrow.ops import RopeTable
from fastgrow.training.precision import autocast

RunBlock = Callable[[Tensor, RopeTable], Tensor]

# The largest number of each format.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_ONE_BYTE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class FrozenTrunk:
    """The embedding and the lowest `n` blocks of a decoder, run without autograd.

    Args:
        model: the decoder; blocks may be added above the trunk later.
        n: number of blocks of the trunk.
        dtype: as `Trunk.dtype`.
        precision: the autocast dtype to run under; None uses the caller's.
    """

    def __init__(
        self,
        model: Decoder,
        n: int,
        *,
        dtype: str = "same",
        precision: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.n = n
        self.dtype = dtype
        self.precision = precision
        # A list of modules is one of Module to the type checker.
        blocks: list[Any] = list(model.blocks[:n])
        self._blocks: list[RunBlock] = blocks if dtype == "same" else quantized(blocks, dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the trunk's output [B, T, d_model] for int64 ids [B, T] on the model's device."""
        with torch.no_grad(), self._autocast(ids.device):
            return self._run(self._embed(ids), 0)

    def example(self, ids: Tensor) -> Tensor:
        """Return a tensor with the output's shape, dtype and range, computed by one block only."""
        with torch.no_grad(), self._autocast(ids.device):
            return self._run(self._embed(ids), self.n - 1)

    def run_from(self, x: Tensor, first: int) -> Tensor:
        """Return the trunk's output, given the output `x` of the blocks below block `first`."""
        with torch.no_grad(), self._autocast(x.device):
            return self._run(x, first)

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        if self.precision is None:
            return contextlib.nullcontext()
        return autocast(self.precision, device)

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.model.embedding(ids)
        return x.to(torch.bfloat16) if self.dtype == "bf16" else x

    def _run(self, x: Tensor, first: int) -> Tensor:
        rope = self.model.rope(x.shape[1])
        for block in self._blocks[first:]:
            x = block(x, rope)
        return x


def trunk_digests(model: Decoder, n: int) -> list[str]:
    """Return the SHA-256 of the embedding and the lowest 0, 1, … n blocks: n + 1 digests.

    Each digest continues the one before, so if blocks are added on top of a trunk, the digests of
    its lower depths stay the same.
    """
    config = {k: v for k, v in asdict(model.config).items() if k != "n_layer"}
    embedding = model.embedding
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(f"{embedding!r} {embedding.offset} {embedding.scale}".encode())
    _add_module(digest, embedding)
    digests = [digest.hexdigest()]
    for block in model.blocks[:n]:
        _add_module(digest, block)
        digests.append(digest.hexdigest())
    return digests


def _add_module(digest: Any, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        add_tensor(digest, name, tensor)


@dataclass(frozen=True)
class Difference:
    """The distance of one result from a reference.

    Attributes:
        largest: largest absolute difference.
        relative: root mean square of the differences over that of the reference.
    """

    largest: float
    relative: float

    @classmethod
    def between(cls, x: Tensor, reference: Tensor) -> Difference:
        apart = x.double() - reference.double()
        size = float(reference.double().square().mean().sqrt())
        root = float(apart.square().mean().sqrt())
        return cls(float(apart.abs().max()), root / size if size else root)

    def __str__(self) -> str:
        if self.largest == 0:
            return "bit for bit"
        return f"maximum error {self.largest:.3g}, {self.relative:.2g} of the values' size"


# -- quantized blocks --------------------------------------------------------------------------


def quantized(blocks: list[Block], dtype: str) -> list[RunBlock]:
    """Return copies of the blocks in `"bf16"`, `"int8"` or `"fp8"`, called as blocks are.

    Raises:
        ConfigError: the device cannot convert to the format.
    """
    if dtype == "bf16":
        return [copy.deepcopy(block).to(torch.bfloat16) for block in blocks]
    if not blocks:
        return []
    kind, device = _ONE_BYTE[dtype], next(blocks[0].parameters()).device
    try:
        torch.ones(1, device=device).to(kind).float()
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"Trunk.dtype: {device} does not support {dtype} ({error}); use another dtype"
        ) from None
    # One block holds the dequantized weights of the block that runs; all others stay quantized.
    workspace = copy.deepcopy(blocks[0]).requires_grad_(False)
    return [_QuantizedBlock(block, workspace, kind) for block in blocks]


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix as values · scale.

    Attributes:
        values: [out, in] int8 or float8_e4m3fn.
        scale: [out, 1], the largest magnitude of the channel divided by that of the format.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> QuantizedMatrix:
        """Round a matrix [out, in] to the nearest of the format, each output channel by itself."""
        largest = _LARGEST[dtype]
        scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        scale = scale / largest
        scaled = (weight / scale).clamp(-largest, largest)
        return cls((scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale)

    def dequantized(self) -> Tensor:
        """Return the matrix [out, in] in the scale's dtype."""
        return self.values.to(self.scale.dtype) * self.scale


class _QuantizedBlock:
    def __init__(self, block: Block, workspace: Block, dtype: torch.dtype) -> None:
        self._workspace = workspace
        self._matrices: dict[str, QuantizedMatrix] = {}
        self._vectors: dict[str, Tensor] = {}
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                self._matrices[name] = QuantizedMatrix.of(parameter.detach(), dtype)
            else:
                self._vectors[name] = parameter.detach()

    def __call__(self, x: Tensor, rope: RopeTable) -> Tensor:
        for name, parameter in self._workspace.named_parameters():
            matrix = self._matrices.get(name)
            parameter.copy_(self._vectors[name] if matrix is None else matrix.dequantized())
        return self._workspace(x, rope)
