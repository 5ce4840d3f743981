"""FLOPs of a training step, counted from shapes.

A product of [n, k] and [k, m] counts 2 · n · k · m. Attention counts every query with every key, as
if nothing were masked, and 2.5 times as much in the backward pass, which computes the scores again
(FlashAttention-2, arXiv 2307.08691, §4.1). Norms, activations and the optimizer are not counted.
`torch.utils.flop_counter` counts in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrow.growth.roles import Product, RequiresGrad, Role, products
from fastgrow.nn import DecoderConfig


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one token, forward and backward."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def block_flops(config: DecoderConfig, seq_len: int, role: Role) -> Flops:
    """Return the FLOPs of one block, for one token of a window of `seq_len` tokens."""
    requires = RequiresGrad.of(role)
    count = Flops()
    for layer in products(config):
        count += _product(layer, input_grad=requires.input_of(layer.name), weight_grad=role.trained)
        if layer.name in role.adapted:
            count += _low_rank(layer, role.rank, input_grad=requires.input_of(layer.name))
    scores = 4 * seq_len * config.n_head * config.head_dim
    return count + Flops(scores, scores * 5 // 2 if requires.heads else 0)


def head_flops(config: DecoderConfig, *, hidden_grad: bool, weight_grad: bool) -> Flops:
    """Return the FLOPs of the head and its loss, for one token."""
    head = Product("lm_head", config.d_model, config.vocab_size)
    return _product(head, input_grad=hidden_grad, weight_grad=weight_grad)


def stack_flops(config: DecoderConfig, seq_len: int, stack: Sequence[Role], *, head: bool) -> Flops:
    """Return the FLOPs of a whole step, for one token.

    Args:
        config: configuration of the model.
        seq_len: tokens in a window.
        stack: roles of the blocks (`fastgrow.growth.roles`).
        head: whether the head's weight is active.
    """
    count = head_flops(config, hidden_grad=True, weight_grad=head)
    for role in stack:
        count += block_flops(config, seq_len, role)
    return count


def _product(layer: Product, *, input_grad: bool, weight_grad: bool) -> Flops:
    forward = 2 * layer.inputs * layer.outputs
    return Flops(forward, forward * (input_grad + weight_grad))


def _low_rank(layer: Product, rank: int, *, input_grad: bool) -> Flops:
    """Return the FLOPs of u = x·aᵀ and u·bᵀ; of du = dy·b, then the gradients of b, a and maybe x.

    The parts of a layer are one product: each b is a block of one matrix, whose zeros are
    multiplied too.
    """
    rank *= layer.parts
    narrow, wide = 2 * rank * layer.inputs, 2 * rank * layer.outputs
    return Flops(narrow + wide, 2 * wide + narrow * (1 + input_grad))
