"""Activations of a feed-forward layer and their derivatives, on fp32 tiles.

ACTIVATION is `gelu` (exact), `gelu_tanh`, `relu2` or `swiglu`; only the last one has a gate, the
others get `pre` in its place. The number of instructions matters here: fused with a product they
run in its epilogue, during which the matrix units are idle.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgrow.kernels.common import stable_cache_key

# √(2/π) · x · (1 + 0.044715 x²), the argument of tanh.
_SLOPE = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)
_LOG2_E = tl.constexpr(1.4426950408889634)
_DENSITY_AT_0 = tl.constexpr(0.3989422804014327)


@triton.jit
def _reciprocal(x, INTERPRETED: tl.constexpr):
    """Return 1/x within an ulp, for x ≥ 1; an ordinary division takes eight instructions."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@stable_cache_key
@triton.jit
def _sigmoid(x, INTERPRETED: tl.constexpr):
    return _reciprocal(1.0 + tl.exp2(x * -_LOG2_E), INTERPRETED)


@stable_cache_key
@triton.jit
def _normal(x, INTERPRETED: tl.constexpr):
    """Return the normal distribution's Φ(x) and e^(−x²/2).

    Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error of Φ is at most
    8e-8, half an ulp of fp32 at 1. The exponential is also used in the derivative.
    """
    e = tl.exp2(x * x * (-0.5 * _LOG2_E))
    # 0.3275911 / √2, and the polynomial's coefficients halved: Φ(−z) = erfc(z/√2) / 2.
    t = _reciprocal(1.0 + 0.23164188 * tl.abs(x), INTERPRETED)
    tail = -0.7265760135 + t * 0.5307027145
    tail = 0.7107068705 + t * tail
    tail = -0.142248368 + t * tail
    tail = 0.127414796 + t * tail
    tail = tail * t * e
    return tl.where(x < 0.0, tail, 1.0 - tail), e


@stable_cache_key
@triton.jit
def differentiated(d, pre, gate, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return f(pre), and the gradients of `pre` and of the gate for the gradient d of f(pre).

    Without a gate the last result is the gradient of `pre`.
    """
    if ACTIVATION == "gelu":
        phi, e = _normal(pre, INTERPRETED)
        d_pre = d * (phi + pre * e * _DENSITY_AT_0)
        return pre * phi, d_pre, d_pre
    if ACTIVATION == "gelu_tanh":
        # tanh(u) = 2 · sigmoid(2u) − 1
        square = pre * pre
        s = _sigmoid(pre * (2.0 * _SLOPE) * (square * _CUBIC + 1.0), INTERPRETED)
        hidden = pre * s
        d_pre = d * (s + hidden * (1.0 - s) * (square * (6.0 * _SLOPE * _CUBIC) + 2.0 * _SLOPE))
        return hidden, d_pre, d_pre
    if ACTIVATION == "relu2":
        # Not tl.maximum, which would not propagate NaN.
        positive = tl.where(pre < 0.0, 0.0, pre)
        d_pre = d * 2.0 * positive
        return positive * positive, d_pre, d_pre
    s = _sigmoid(gate, INTERPRETED)
    silu = gate * s
    return silu * pre, d * silu, d * pre * (s + silu * (1.0 - s))


@stable_cache_key
@triton.jit
def activated(pre, gate, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return f(pre), or silu(gate) · pre; the compiler removes the unused derivatives."""
    hidden, _, _ = differentiated(pre, pre, gate, ACTIVATION, INTERPRETED)
    return hidden
