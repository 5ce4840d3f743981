"""Configuration of a decoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from fastgrow._checked import NonNegativeInt, PositiveFloat, PositiveInt, check_types
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a `Decoder`; the defaults are those of arXiv 2507.07129.

    Attributes:
        vocab_size: V, number of token ids.
        d_model: width of the residual stream.
        n_layer: number of blocks; 0 for a model whose blocks are all added by growth.
        n_head: number of query heads; d_model / n_head must be even (RoPE pairs features).
        n_kv_head: number of key/value heads, a divisor of n_head; None for n_head.
        n_embed: width of the token table, a divisor of d_model: each feature is repeated
            d_model / n_embed times. None for the substrate's width if it divides d_model, else
            d_model.
        mlp_ratio: width of the feed-forward layer divided by d_model.
        activation: `gelu`, `gelu_tanh`, `relu2` or `swiglu`.
        norm: `layer_norm` or `rms_norm`.
        attention_bias: whether the projections of attention have biases.
        mlp_bias: whether the linear layers of the MLP have biases.
        head_bias: whether the head has a bias.
        rope_base: base of the rotary frequencies.
        max_seq_len: maximum context length in tokens.
        embedding: `frozen` (a constant, not in the state dict) or `trainable` (a parameter).
        init_std: standard deviation of initial weights; for projections into the residual stream it
            is divided by √(2 · depth), as in GPT-2. None for √(2 / (5 · d_model)) (Nguyen and
            Salazar, arXiv 1910.05895, §2.2): 0.02 at d_model 1,024, and more in narrower models,
            which learn slowly with 0.02.

    Raises:
        ConfigError: a field is out of range or incompatible with another; the message names it.
    """

    vocab_size: PositiveInt
    d_model: PositiveInt = 1024
    n_layer: NonNegativeInt = 0
    n_head: PositiveInt = 32
    n_kv_head: PositiveInt | None = None
    n_embed: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "gelu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    attention_bias: bool = False
    mlp_bias: bool = True
    head_bias: bool = True
    rope_base: PositiveFloat = 10000.0
    max_seq_len: PositiveInt = 1024
    embedding: Literal["frozen", "trainable"] = "frozen"
    init_std: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_types(self, plain=True)
        head_dim, rest = divmod(self.d_model, self.n_head)
        _check(
            rest == 0 and head_dim % 2 == 0,
            "n_head",
            f"an integer for which d_model {self.d_model} / n_head is an even number",
            self.n_head,
        )
        _check(
            self.n_head % self.kv_heads == 0,
            "n_kv_head",
            f"a divisor of n_head {self.n_head}",
            self.n_kv_head,
        )
        _check(
            self.n_embed is None or self.d_model % self.n_embed == 0,
            "n_embed",
            f"a divisor of d_model {self.d_model}",
            self.n_embed,
        )
        width = self.mlp_ratio * self.d_model
        _check(
            width >= 1 and width == int(width),
            "mlp_ratio",
            f"a number for which mlp_ratio · d_model {self.d_model} is an integer",
            self.mlp_ratio,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def mlp_width(self) -> int:
        """Width of the feed-forward layer."""
        return int(self.mlp_ratio * self.d_model)

    @property
    def initial_std(self) -> float:
        """Standard deviation of initial weights: `init_std`, or the default if it is None."""
        return math.sqrt(2 / (5 * self.d_model)) if self.init_std is None else self.init_std

    @property
    def embed_width(self) -> int:
        """Width of the token table."""
        return self.d_model if self.n_embed is None else self.n_embed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """Return the configuration with these fields; the inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown, missing or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"DecoderConfig: unknown field {unknown[0]!r}")
        if "vocab_size" not in values:
            raise ConfigError("DecoderConfig: the field 'vocab_size' is missing")
        return cls(**values)


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"DecoderConfig.{name}: expected {expected}, got {got!r}")
