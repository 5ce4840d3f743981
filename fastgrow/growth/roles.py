"""The role of each block in a stage: what it computes, and what it saves for the backward pass.

Gradients flow down to the lowest active parameter; blocks below it run the forward pass only.
Inside a block the same rule decides for every matrix product whether the gradients of its input and
of its weight are computed, and for every tensor whether it is saved for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgrow.growth.active import StageShape
from fastgrow.growth.stage import LoRA
from fastgrow.nn import DecoderConfig


@dataclass(frozen=True)
class Product:
    """A linear layer of a block.

    Attributes:
        name: name in the block's state dict.
        inputs, outputs: input and output width.
        parts: number of layers that it combines, each with a separate low-rank correction.
    """

    name: str
    inputs: int
    outputs: int
    parts: int = 1


@dataclass(frozen=True)
class Role:
    """The role of one block in a stage.

    Attributes:
        trained: whether its own weights are active.
        adapted: names of its layers that have a low-rank correction.
        rank: rank of these corrections; 0 without any.
        input_grad: whether its input requires a gradient, because something below is active.
    """

    trained: bool = False
    adapted: tuple[str, ...] = ()
    rank: int = 0
    input_grad: bool = False

    @property
    def output_grad(self) -> bool:
        """Whether its output requires a gradient."""
        return self.input_grad or self.trained or bool(self.adapted)

    def adapts(self, *names: str) -> bool:
        """Whether one of these layers is adapted."""
        return any(name in self.adapted for name in names)


def roles(shape: StageShape, lora: LoRA | None, config: DecoderConfig) -> list[Role]:
    """Return the role of every block, from the lowest to the highest."""
    names = [layer.name for layer in products(config)]
    targets = () if lora is None else tuple(name for name in names if name in lora.targets)
    input_grad, found = shape.table, []
    for index in range(shape.depth):
        adapted = targets if index in shape.adapted else ()
        rank = (shape.rank or 0) if adapted else 0
        found.append(Role(index in shape.trained, adapted, rank, input_grad))
        input_grad = found[-1].output_grad
    return found


def products(config: DecoderConfig) -> list[Product]:
    """Return the linear layers of a block, in the order in which they run."""
    d, m = config.d_model, config.mlp_width
    heads = config.n_head * config.head_dim
    layers = [
        Product("attention.qkv", d, heads + 2 * config.kv_heads * config.head_dim, 3),
        Product("attention.out", heads, d),
        Product("mlp.up", d, m),
    ]
    if config.activation == "swiglu":
        layers.append(Product("mlp.gate", d, m))
    return [*layers, Product("mlp.down", m, d)]


@dataclass(frozen=True)
class RequiresGrad:
    """Which tensors inside a block require a gradient.

    Attributes:
        normed: the input of qkv.
        heads: queries, keys and values, and the input of `out`.
        stream: the residual stream after attention.
        mlp_in: the input of up and gate.
        hidden: the input of down.
    """

    normed: bool
    heads: bool
    stream: bool
    mlp_in: bool
    hidden: bool

    @classmethod
    def of(cls, role: Role) -> RequiresGrad:
        normed = role.input_grad or role.trained
        heads = normed or role.adapts("attention.qkv")
        stream = heads or role.adapts("attention.out")
        mlp_in = stream
        return cls(normed, heads, stream, mlp_in, mlp_in or role.adapts("mlp.up", "mlp.gate"))

    def input_of(self, product: str) -> bool:
        """Whether the input of a layer requires a gradient."""
        return {
            "attention.qkv": self.normed,
            "attention.out": self.heads,
            "mlp.up": self.mlp_in,
            "mlp.gate": self.mlp_in,
            "mlp.down": self.hidden,
        }[product]
