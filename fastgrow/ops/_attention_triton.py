"""The Triton implementation of `attention`: when it serves, its torch.library ops, its gradients.

Nothing rotated is saved for the backward pass, which rotates queries and keys again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops.core import registration, triton_support
from fastgrow.ops.core.dispatch import Answer

if TYPE_CHECKING:
    from fastgrow.kernels.attention import Rope, Rules
    from fastgrow.ops.attention import Visibility
    from fastgrow.ops.rope import RopeTable

MAX_HEAD_DIM = 256
# What fastgrow.kernels.attention_decode takes, and the keys from which splitting them counts.
MAX_DECODED_QUERIES, MAX_DECODED_ROWS, SPLIT_KEYS = 8, 64, 1024


def can_serve(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    visibility: Visibility,
    dropout: float,
) -> Answer:
    """The verifier."""
    ok, reason = triton_support.can_run(q)
    if not ok:
        return False, reason
    if q.shape[3] > MAX_HEAD_DIM:
        return False, f"it serves head dimensions to {MAX_HEAD_DIM}, not {q.shape[3]}"
    if visibility.mask is not None:
        return False, "it takes no mask"
    if dropout > 0:
        return False, "it has no dropout"
    return True, ""


def pays(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    visibility: Visibility,
    dropout: float,
) -> Answer:
    """By counting products, exponentials, bytes and launches: not measured.

    - A mask costs SDPA its fastest kernels and, as scores, memory: ours are taken.
    - Training: of each score our two backward kernels make seven products of D numbers and two
      exponentials, as neither writes what the other needs and nothing is added atomically;
      FlashAttention's one kernel makes five and one. A full pass is nine and three against seven
      and two, and the exponentials bound it at small D: SDPA's is taken at every head dimension.
    - Inference at D ≤ 32: two products and one exponential on either side. The exponential unit
      bounds it, and ours can do without the running maximum, for which others rescale: ours.
    - Few queries are bound by reading the keys and by launches. SDPA's flash kernel splits the
      keys too (torch's flash_api.cpp: set_params_splitkv asks for as many splits as fill the GPU)
      and reads those of grouped heads once for one query: two launches on either side, of the same
      bytes. Ours rotates the queries inside, where SDPA takes a launch more, reads the keys once
      for several grouped queries, where SDPA reads them for each of its heads, and splits in fp32
      and at head dimensions that are no multiple of 8, which flash does not take as they are.
    """
    ok, reason = triton_support.pays_on(q)
    if not ok:
        return False, reason
    queries, keys, dim = q.shape[2], k.shape[2], q.shape[3]
    rules = (visibility.window, visibility.cu_seqlens, visibility.lengths, visibility.starts)
    if any(rule is not None for rule in rules) or (visibility.causal and 1 < queries < keys):
        return True, "SDPA would need a mask of all scores"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return (
            False,
            "with gradients SDPA makes 7 products and 2 exponentials a score, ours 9 and 3",
        )
    # As many rows as a decoding program takes: a key head's queries.
    group = q.shape[1] // k.shape[1]
    if queries <= MAX_DECODED_QUERIES and queries * group <= MAX_DECODED_ROWS:
        if rope is not None:
            return True, "it rotates a few queries on the way, for which SDPA takes a launch more"
        if keys >= SPLIT_KEYS:
            if queries > 1 and group > 1:
                return True, "it reads the keys once for all queries, SDPA once for each head"
            if q.dtype == torch.float32 or dim % 8:
                return True, "it splits the keys of a few queries, as SDPA does in half precision"
            return False, "SDPA splits the keys of a few queries too, in as many launches"
    if dim <= 32 and q.dtype != torch.float32:
        return True, "SDPA's kernels are made for larger heads"
    return False, "SDPA's kernels are made for this head dimension"


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTable | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    visibility: Visibility,
    dropout: float,
) -> Tensor:
    """The kernels of fastgrow.kernels.attention."""
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    cos, sin = (None, None) if rope is None else rope
    causal, window, cu_seqlens, lengths, starts, _ = visibility
    settings = (
        *(cos, sin, position_ids, k_rotated, scale),
        *(causal, window, cu_seqlens, lengths, starts),
    )
    out: Tensor
    if registration.needs_gradient(q, k, v):
        out = _Attention.apply(*registration.distinct((q, k, v)), *settings)
    else:
        out = _ops.attention_inference.default(q, k, v, *settings)
    return out


_ops = torch.ops.fastgrow
_SETTINGS = (
    "Tensor? cos, Tensor? sin, Tensor? position_ids, bool k_rotated, float scale, bool causal, "
    "int? window, Tensor? cu_seqlens, Tensor? lengths, Tensor? starts"
)
_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(f"attention_inference(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> Tensor")
_library.define(f"attention_forward(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)")
_library.define(
    "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_SETTINGS}, bool for_query, bool for_key) -> (Tensor, Tensor, Tensor)"
)


def _unpack(
    cos: Tensor | None,
    sin: Tensor | None,
    position_ids: Tensor | None,
    k_rotated: bool,
    scale: float,
    causal: bool,
    window: int | None,
    cu_seqlens: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
) -> tuple[Rope | None, float, Rules]:
    from fastgrow.kernels.attention import Rope, Rules

    # The kernels read these without strides; what is contiguous already is not copied.
    lengths = None if lengths is None else lengths.contiguous()
    starts = None if starts is None else starts.contiguous()
    rope = None
    if cos is not None and sin is not None:
        positions = None
        if position_ids is not None:
            positions = position_ids.contiguous()
            if positions.dim() == 2 and positions.shape[0] == 1:
                positions = positions[0]
        rope = Rope(_as_floats(cos), _as_floats(sin), positions, k_rotated)
    return rope, scale, Rules(causal, window, cu_seqlens, lengths, starts)


def _as_floats(table: Tensor) -> Tensor:
    return (table if table.dtype == torch.float32 else table.float()).contiguous()


def _inference(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
    from fastgrow.kernels.attention import forward

    return forward(q, k, v, *_unpack(*settings), with_lse=False)[0]


def _forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    from fastgrow.kernels.attention import forward

    out, lse = forward(q, k, v, *_unpack(*settings), with_lse=True)
    assert lse is not None
    return out, lse


def _backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from fastgrow.kernels.attention import backward

    *settings_, for_query, for_key = settings
    arguments = (d_out, q, k, v, out, lse, *_unpack(*settings_))
    dq, dk, dv = backward(*arguments, for_query=for_query, for_key=for_key)
    nothing = q.new_empty(0)
    return (
        nothing if dq is None else dq,
        nothing if dk is None else dk,
        q.new_empty(0) if dv is None else dv,
    )


for _key in ("CPU", "CUDA"):
    _library.impl("attention_inference", _inference, _key)
    _library.impl("attention_forward", _forward, _key)
    _library.impl("attention_backward", _backward, _key)


def _like_output(q: Tensor) -> Tensor:
    batch, heads, queries, dim = q.shape
    return q.new_empty(batch, queries, heads, dim).transpose(1, 2)


@torch.library.register_fake("fastgrow::attention_inference", lib=_library)
def _(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
    return _like_output(q)


@torch.library.register_fake("fastgrow::attention_forward", lib=_library)
def _(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return _like_output(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("fastgrow::attention_backward", lib=_library)
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, for_query, for_key = settings
    dq = _like_output(q) if for_query else q.new_empty(0)
    if for_key:
        return dq, _like_output(k), _like_output(v)
    return dq, q.new_empty(0), q.new_empty(0)


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the output and one number a query."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        position_ids: Tensor | None,
        k_rotated: bool,
        scale: float,
        causal: bool,
        window: int | None,
        cu_seqlens: Tensor | None,
        lengths: Tensor | None,
        starts: Tensor | None,
    ) -> Tensor:
        out: Tensor
        out, lse = _ops.attention_forward.default(
            *(q, k, v, cos, sin, position_ids, k_rotated, scale),
            *(causal, window, cu_seqlens, lengths, starts),
        )
        ctx.numbers = (k_rotated, scale, causal, window)
        ctx.save_for_backward(
            q, k, v, out, lse, cos, sin, position_ids, cu_seqlens, lengths, starts
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, cos, sin, position_ids, cu_seqlens, lengths, starts = ctx.saved_tensors
        k_rotated, scale, causal, window = ctx.numbers
        wants_q, wants_k, wants_v = ctx.needs_input_grad[:3]
        # Only where gradients are to be differentiated is there something to refuse.
        differentiate = (
            _AttentionBackward.apply if torch.is_grad_enabled() else _ops.attention_backward.default
        )
        dq, dk, dv = differentiate(
            *(*gradients, q, k, v, out, lse, cos, sin, position_ids, k_rotated, scale),
            *(causal, window, cu_seqlens, lengths, starts, wants_q, wants_k or wants_v),
        )
        return (
            dq if wants_q else None,
            dk if wants_k else None,
            dv if wants_v else None,
            *_NO_GRADIENTS,
        )


# Of rope, position ids and everything after them.
_NO_GRADIENTS = (None,) * 10


class _AttentionBackward(torch.autograd.Function):
    """The gradients, which refuse to be differentiated rather than pass for constants."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor]
        gradients = _ops.attention_backward.default(*arguments)
        return gradients

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise argument_error(
            "attention", "impl", "eager or vendor where gradients are differentiated", "triton"
        )
