"""What each block of a stack does in a stage, and so what it computes and keeps.

A gradient flows down to the lowest tensor that trains and no further: below it a block runs forward
alone. Inside a block the same rule decides for every product whether the gradients of its input and
of its weight are made, and for every tensor whether it is kept for the backward pass.
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
        name: in the block's state dict.
        inputs, outputs: its widths.
        parts: layers that it stands for, each with a low-rank correction of its own.
    """

    name: str
    inputs: int
    outputs: int
    parts: int = 1


@dataclass(frozen=True)
class Role:
    """What one block does in a stage.

    Attributes:
        trained: its own weights train.
        adapted: the layers that have a low-rank correction, by their names in the block.
        rank: of those corrections; 0 without.
        input_grad: its input asks for a gradient, because something below it trains.
    """

    trained: bool = False
    adapted: tuple[str, ...] = ()
    rank: int = 0
    input_grad: bool = False

    @property
    def output_grad(self) -> bool:
        """Whether its output asks for a gradient."""
        return self.input_grad or self.trained or bool(self.adapted)

    def adapts(self, *names: str) -> bool:
        """Whether one of these layers is adapted."""
        return any(name in self.adapted for name in names)


def roles(shape: StageShape, lora: LoRA | None, config: DecoderConfig) -> list[Role]:
    """The role of every block, from the lowest to the highest."""
    there = [layer.name for layer in products(config)]
    targets = () if lora is None else tuple(name for name in there if name in lora.targets)
    flows, found = shape.table, []
    for index in range(shape.depth):
        adapted = targets if index in shape.adapted else ()
        rank = (shape.rank or 0) if adapted else 0
        found.append(Role(index in shape.trained, adapted, rank, flows))
        flows = found[-1].output_grad
    return found


def products(config: DecoderConfig) -> list[Product]:
    """The linear layers of a block, in the order in which they run."""
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
    """Which tensors inside a block ask for a gradient.

    Attributes:
        normed: what qkv reads.
        heads: queries, keys and values, and what `out` reads.
        stream: the residual stream after attention.
        mlp_in: what up and gate read.
        hidden: what down reads.
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
        """Whether what the layer reads asks for a gradient."""
        return {
            "attention.qkv": self.normed,
            "attention.out": self.heads,
            "mlp.up": self.mlp_in,
            "mlp.gate": self.mlp_in,
            "mlp.down": self.hidden,
        }[product]
