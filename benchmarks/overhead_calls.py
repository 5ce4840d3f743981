"""The calls that `python -m benchmarks overhead` times, each with the equivalent call of torch.

Every operation that has Triton kernels is included, with inputs so small that a CPU's computation
takes almost no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow import ops

Inputs = dict[str, Tensor]
Results = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One operation.

    Args:
        op: name of the call in the table.
        make: makes the inputs.
        trained: names of the inputs that have gradients.
        ours: calls fastgrow's operation with the given `impl=`.
        torch: the equivalent call of torch.
        torch_name: names of torch's functions, for the table.
        passes: `forward` without gradients; `full`, forward and backward.
        implementation: the implementation that launches the kernels; it is requested if the
            automatic choice would select another.
    """

    op: str
    make: Callable[[], Inputs]
    trained: tuple[str, ...]
    ours: Callable[[Inputs, str | None], Results]
    torch: Callable[[Inputs], Results]
    torch_name: str
    passes: tuple[str, ...] = ("forward", "full")
    implementation: str = "triton"

    def inputs(self, *, with_gradients: bool) -> Inputs:
        made = self.make()
        if with_gradients:
            for name in self.trained:
                made[name].requires_grad_()
        return made

    def asking(self, impl: str | None) -> Callable[[Inputs], Results]:
        """Return `ours` with an implementation, or with the automatic choice if None."""
        return lambda inputs: self.ours(inputs, impl)


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


D = 64


def _rows() -> Inputs:
    return {"x": _random(2, 8, D), "weight": _random(D), "bias": _random(D)}


def _torch_residual(x: Inputs) -> Results:
    total = x["x"] + x["residual"]
    return F.layer_norm(total, (D,), x["weight"], x["bias"]), total


def _heads(queries: int, keys: int) -> Inputs:
    shape, half = (1, 2, queries, 32), torch.bfloat16
    q = _random(*shape, dtype=half)
    k, v = (_random(1, 2, keys, 32, dtype=half) for _ in range(2))
    cos, sin = ops.rope_table(keys, 32)
    return {"q": q, "k": k, "v": v, "cos": cos, "sin": sin}


def _sdpa(x: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True)


def _rotated_sdpa(x: Inputs) -> Tensor:
    table = (x["cos"], x["sin"])
    q, k = (ops.rope(t, table, impl="eager") for t in (x["q"], x["k"]))
    return F.scaled_dot_product_attention(q, k, x["v"], is_causal=True)


def _decoding_sdpa(x: Inputs) -> Tensor:
    position = x["k"].shape[2] - 1
    q = ops.rope(x["q"], (x["cos"], x["sin"]), offset=position, impl="eager")
    return F.scaled_dot_product_attention(q, x["k"], x["v"])


def _layer() -> Inputs:
    return {"x": _random(16, D), "up": _random(4 * D, D), "down": _random(D, 4 * D)}


def _low_rank() -> Inputs:
    return {"x": _random(16, D), "weight": _random(D, D), "a": _random(16, D), "b": _random(D, 16)}


def _torch_lora(x: Inputs) -> Tensor:
    return F.linear(x["x"], x["weight"]) + 0.5 * F.linear(F.linear(x["x"], x["a"]), x["b"])


def _head() -> Inputs:
    return {"h": _random(16, D), "weight": _random(128, D), "targets": torch.arange(16)}


def _torch_lse(x: Inputs) -> Results:
    logits = F.linear(x["h"], x["weight"])
    return logits.logsumexp(-1), logits.gather(1, x["targets"][:, None]).squeeze(1)


def _codes() -> Inputs:
    return {"ids": torch.arange(16), "table": _random(32, D)}


CALLS = (
    Call(
        "layer_norm",
        _rows,
        ("x", "weight", "bias"),
        lambda x, impl: ops.layer_norm(x["x"], x["weight"], x["bias"], impl=impl),
        lambda x: F.layer_norm(x["x"], (D,), x["weight"], x["bias"]),
        "layer_norm",
    ),
    Call(
        "layer_norm with residual",
        lambda: _rows() | {"residual": _random(2, 8, D)},
        ("x", "weight", "bias", "residual"),
        lambda x, impl: ops.layer_norm(
            x["x"], x["weight"], x["bias"], residual=x["residual"], impl=impl
        ),
        _torch_residual,
        "add, layer_norm",
    ),
    Call(
        "rms_norm",
        _rows,
        ("x", "weight"),
        lambda x, impl: ops.rms_norm(x["x"], x["weight"], impl=impl),
        lambda x: F.rms_norm(x["x"], (D,), x["weight"], 1e-6),
        "rms_norm",
    ),
    Call(
        "attention",
        lambda: _heads(32, 32),
        ("q", "k", "v"),
        lambda x, impl: ops.attention(x["q"], x["k"], x["v"], impl=impl),
        _sdpa,
        "SDPA",
    ),
    Call(
        "attention with rope",
        lambda: _heads(32, 32),
        ("q", "k", "v"),
        lambda x, impl: ops.attention(x["q"], x["k"], x["v"], rope=(x["cos"], x["sin"]), impl=impl),
        _rotated_sdpa,
        "eager rope, SDPA",
    ),
    Call(
        "attention, decoding with rope",
        lambda: _heads(1, 1024),
        (),
        lambda x, impl: ops.attention(
            x["q"], x["k"], x["v"], rope=(x["cos"], x["sin"]), k_rotated=True, impl=impl
        ),
        _decoding_sdpa,
        "eager rope, SDPA",
        passes=("forward",),
    ),
    Call(
        "mlp",
        _layer,
        ("x", "up", "down"),
        lambda x, impl: ops.mlp(x["x"], x["up"], x["down"], impl=impl),
        lambda x: F.linear(F.gelu(F.linear(x["x"], x["up"])), x["down"]),
        "linear, gelu, linear",
    ),
    Call(
        "lora_linear",
        _low_rank,
        ("x", "a", "b"),
        lambda x, impl: ops.lora_linear(x["x"], x["weight"], x["a"], x["b"], scale=0.5, impl=impl),
        _torch_lora,
        "three linears, mul, add",
    ),
    Call(
        "linear_cross_entropy (cuBLAS and one kernel)",
        _head,
        ("h", "weight"),
        lambda x, impl: ops.linear_cross_entropy(x["h"], x["weight"], x["targets"], impl=impl),
        lambda x: F.cross_entropy(F.linear(x["h"], x["weight"]), x["targets"]),
        "linear, cross_entropy",
        implementation="cublas",
    ),
    Call(
        "linear_cross_entropy",
        _head,
        ("h", "weight"),
        lambda x, impl: ops.linear_cross_entropy(x["h"], x["weight"], x["targets"], impl=impl),
        lambda x: F.cross_entropy(F.linear(x["h"], x["weight"]), x["targets"]),
        "linear, cross_entropy",
    ),
    Call(
        "linear_lse_gather",
        _head,
        ("h", "weight"),
        lambda x, impl: ops.linear_lse_gather(x["h"], x["weight"], x["targets"], impl=impl),
        _torch_lse,
        "linear, logsumexp, gather",
    ),
    Call(
        "embedding",
        _codes,
        (),
        lambda x, impl: ops.embedding(x["ids"], x["table"], repeat=2, impl=impl),
        lambda x: F.embedding(x["ids"], x["table"]).repeat_interleave(2, -1),
        "embedding, repeat_interleave",
        passes=("forward",),
    ),
)
