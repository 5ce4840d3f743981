"""A layer around each operation, to test operations under the conditions of a model.

To add an operation, add a line to LAYERS.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from harness import DEVICE
from torch import Tensor, nn

from fastgrow import ops

WIDTH, HEADS, TOKENS = 32, 2, 24


def split(x: Tensor) -> Tensor:
    """[B, T, WIDTH] to [B, HEADS, T, WIDTH / HEADS]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


# A copy from the host waits for the device and cannot be captured in a CUDA graph, so tensors from
# the host are made once.
@functools.cache
def rotation(device: torch.device) -> ops.RopeTable:
    return ops.rope_table(TOKENS, WIDTH // HEADS, device=device)


@functools.cache
def ids(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


# Made here and not under torch.export, whose tensors have no data.
rotation(torch.empty(0, device=DEVICE).device)


def attend(a: Tensor, b: Tensor, impl: str, **options: Any) -> Tensor:
    table = rotation(a.device)
    return join(ops.attention(split(a), split(b), split(b), rope=table, impl=impl, **options))


def attend_within_a_window(a: Tensor, b: Tensor, impl: str) -> Tensor:
    return attend(a, b, impl, window=5)


def attend_in_padded_rows(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """Four rows, padded at the end, at the start, at both or not at all."""
    lengths, starts = ids((TOKENS, 20, 9, TOKENS), a.device), ids((0, 3, 0, 7), a.device)
    return attend(a, b, impl, lengths=lengths, starts=starts)


def attend_at_positions(a: Tensor, b: Tensor, impl: str) -> Tensor:
    return attend(a, b, impl, position_ids=ids(tuple(reversed(range(TOKENS))), a.device))


def attend_within_documents(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """The rows as one row of three documents."""
    q, k = (split(x.reshape(1, -1, WIDTH)) for x in (a, b))
    documents = ids((0, 7, 31, q.shape[2]), a.device)
    return join(ops.attention(q, k, k, cu_seqlens=documents, impl=impl)).view(a.shape)


def decode(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """One query over many keys, which has no gradient."""
    keys = split(b.detach()).repeat(1, 1, 32, 1)
    return join(ops.attention(split(a.detach())[:, :, -1:], keys, keys, impl=impl))


def constant(*size: int, like: Tensor) -> Tensor:
    """A frozen weight, the same at every call."""
    return torch.linspace(-0.5, 0.5, math.prod(size), device=like.device, dtype=like.dtype).view(
        size
    )


def layer_normed(a: Tensor, b: Tensor, impl: str) -> Tensor:
    scale = constant(WIDTH, like=a)
    y, total = ops.layer_norm(a, scale, scale, residual=b, impl=impl)
    # Under autocast on a GPU y is wider.
    return y.to(total.dtype) + total


def rms_normed(a: Tensor, b: Tensor, impl: str) -> Tensor:
    y, total = ops.rms_norm(a, constant(WIDTH, like=a), residual=b, impl=impl)
    return y.to(total.dtype) + total


def fed_forward(a: Tensor, b: Tensor, impl: str) -> Tensor:
    up, down = constant(4 * WIDTH, WIDTH, like=a), constant(WIDTH, 4 * WIDTH, like=a)
    return ops.mlp(a, up, down, activation="gelu", residual=b, impl=impl)


def cross_entropy(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """The second tensor's first rows are a vocabulary, each of another length."""
    words = b[0] * torch.linspace(0.2, 0.6, b.shape[1], device=b.device, dtype=b.dtype)[:, None]
    targets = torch.arange(a.shape[1], device=a.device).expand(a.shape[:2])
    loss = ops.linear_cross_entropy(a, words, targets, reduction="none", impl=impl)
    return loss.to(a.dtype)


def mean_cross_entropy(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """One loss for all tokens, whose gradients are computed together with it."""
    targets = torch.arange(a.shape[1], device=a.device).expand(a.shape[:2])
    loss = ops.linear_cross_entropy(a, b[0] / 2, targets, impl=impl)
    return loss.to(a.dtype).expand(a.shape[:2])


def low_rank(a: Tensor, b: Tensor, impl: str) -> Tensor:
    weight = constant(WIDTH, WIDTH, like=a)
    return ops.lora_linear(a, weight, b[0, :4], b[0, 4:8].T, impl=impl)


def looked_up(a: Tensor, b: Tensor, impl: str) -> Tensor:
    """Vectors without a gradient, from the bits of the ids."""
    ids = torch.arange(a.shape[1], device=a.device).expand(a.shape[:2])
    return ops.embedding(ids, None, bits=8, repeat=4, vocab_size=256, dtype=a.dtype, impl=impl)


# A function of two tensors [B, T, WIDTH] that gives one, by an implementation with kernels of ours.
Function = Callable[[Tensor, Tensor, str], Tensor]
LAYERS: dict[str, tuple[Function, str]] = {
    "attention": (attend, "triton"),
    "layer_norm": (layer_normed, "triton"),
    "rms_norm": (rms_normed, "triton"),
    "mlp": (fed_forward, "triton"),
    "linear_cross_entropy": (cross_entropy, "triton"),
    "lora_linear": (low_rank, "triton"),
}
# Other functions that must launch on the caller's stream and work in a CUDA graph.
LAUNCHES: dict[str, tuple[Function, str]] = {
    **LAYERS,
    "attention by a library": (attend, "sdpa"),
    "attention, decoding": (decode, "triton"),
    "attention, window": (attend_within_a_window, "triton"),
    "attention, lengths and starts": (attend_in_padded_rows, "triton"),
    "attention, cu_seqlens": (attend_within_documents, "triton"),
    "attention, position_ids": (attend_at_positions, "triton"),
    "embedding": (looked_up, "triton"),
    "linear_cross_entropy by a library": (mean_cross_entropy, "cublas"),
}


class Layer(nn.Module):
    """f(first(frozen(x)), second(frozen(x))), where `first` and `second` may be one matrix."""

    def __init__(self, operation: str, *, tied: bool = True) -> None:
        super().__init__()
        self.function, self.impl = LAUNCHES[operation]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.frozen = nn.Linear(WIDTH, WIDTH, device=DEVICE).requires_grad_(False)
            self.first = nn.Linear(WIDTH, WIDTH, device=DEVICE)
        self.second = self.first
        if not tied:
            self.second = nn.Linear(WIDTH, WIDTH, device=DEVICE)
            self.second.load_state_dict(self.first.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x)
        return self.function(self.first(x), self.second(x), self.impl)


def batch(rows: int = 4) -> Tensor:
    """x [rows, TOKENS, WIDTH]."""
    return torch.randn(rows, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def loss_of(y: Tensor) -> Tensor:
    """Return a loss in which the elements of y have different gradients."""
    return (y.float() * torch.linspace(-1, 1, y.shape[-1], device=y.device)).square().mean()


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that are not None, by the parameters' names."""
    return {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
