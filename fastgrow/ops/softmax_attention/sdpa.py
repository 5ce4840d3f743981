"""`torch.nn.functional.scaled_dot_product_attention`, and the order of its backends on a GPU.

With cuDNN newer than 9.15 on a Hopper or Blackwell GPU, torch tries cuDNN, flash, efficient and
math, in this order; otherwise it tries flash first. On these GPUs cuDNN's kernels are the fastest,
and correct for causal attention without a mask. The other backends are tried before cuDNN

- for few queries: cuDNN builds a plan for every new number of keys, which takes tens to hundreds of
  milliseconds for each generated token, and flash splits the keys;
- if there is a mask: gradients of queries have been NaN on Hopper (pytorch #196678);
- if the user has activated FlashAttention 3 or 4 by
  `torch.nn.attention.activate_flash_attention_impl`.

An older cuDNN is never tried first: its results are wrong if a length is not a multiple of 128
(pytorch #169849). Settings of the user have precedence: the order is not changed inside
`sdpa_kernel`, if a backend is disabled, or if torch's order has another backend before cuDNN.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention as choice
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgrow._installed import is_there
from fastgrow.kernels.calls import AttentionCall
from fastgrow.ops.rotary.call import ROPE
from fastgrow.ops.softmax_attention.reference import rotated, visible_keys

FLASH_FIRST = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
    SDPBackend.OVERRIDEABLE,
)
FEW_QUERIES = 8
DEVICE_TYPE = "cuda"  # the device type with more than one fast backend
NAMES = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.MATH: "math",
    SDPBackend.OVERRIDEABLE: "another",
}
# FlashAttention's releases in addition to the one in torch, and their modules.
RELEASES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}

# As integers, because each call compares them.
_CUDNN: int = SDPBackend.CUDNN_ATTENTION.value
_FLASH_FIRST: list[int] = [backend.value for backend in FLASH_FIRST]


def run(call: AttentionCall) -> Tensor:
    """Return torch's attention after the rotation, with the backends in the order given above."""
    (q, k), v = rotated(call, ROPE), call.v
    group = q.shape[1] // k.shape[1]
    rules = (call.window, call.cu_seqlens, call.lengths, call.starts, call.mask)
    mask, no_key, is_causal = None, None, False
    # torch.compile requires a constant `is_causal`; branching on symbolic lengths makes it one.
    if call.causal and all(rule is None for rule in rules) and 1 < q.shape[2] == k.shape[2]:
        is_causal = True
    else:
        mask, no_key = _mask_of(call)
    if mask is not None and group > 1 and q.device.type == "cuda":
        # On a GPU the fused kernels support either a mask or grouped heads.
        k, v, group = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), 1
    with _order_for(q, mask):
        y = F.scaled_dot_product_attention(
            *(q, k, v, mask, call.dropout, is_causal), scale=call.scale, enable_gqa=group > 1
        )
    return y if no_key is None else y.masked_fill(no_key, 0.0)


def _mask_of(call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask, and which queries attend to no key, or None for either.

    SDPA's backends differ for queries without a key, so the mask lets these attend to all keys.
    """
    visible, added = visible_keys(call), call.mask
    no_key = None
    ragged = call.lengths is not None and call.q.shape[2] > 1
    if visible is not None and (call.starts is not None or added is not None or ragged):
        no_key = ~visible.any(-1, keepdim=True)
    if added is None or added.dtype == torch.bool:
        return visible if visible is None or no_key is None else visible | no_key, no_key
    if visible is not None:
        added = torch.where(visible, added, float("-inf"))
        added = added if no_key is None else added.masked_fill(no_key, 0.0)
    return added.to(call.q.dtype), no_key


def _order_for(q: Tensor, mask: Tensor | None) -> contextlib.AbstractContextManager[object]:
    if (
        q.device.type != DEVICE_TYPE
        or (mask is None and q.shape[2] > FEW_QUERIES and active_release() is None)
        or not cudnn_comes_first()
    ):
        return contextlib.nullcontext()
    if torch.compiler.is_compiling():
        # All backends are enabled, or cuDNN would not come first: this enables nothing else.
        return sdpa_kernel(list(FLASH_FIRST), set_priority=True)
    return _flash_first()


@contextlib.contextmanager
def _flash_first() -> Iterator[None]:
    """`sdpa_kernel(FLASH_FIRST, set_priority=True)` in an eighth of the host time."""
    before = torch._C._get_sdp_priority_order()
    torch._C._set_sdp_priority_order(_FLASH_FIRST)
    try:
        yield
    finally:
        torch._C._set_sdp_priority_order(before)


# torch.compile treats the result as a constant while it traces.
@torch.compiler.assume_constant_result
def cudnn_comes_first() -> bool:
    """Whether all backends are enabled and torch tries cuDNN before the others."""
    c = torch._C
    if not (
        c._get_flash_sdp_enabled()
        and c._get_mem_efficient_sdp_enabled()
        and c._get_cudnn_sdp_enabled()
        and c._get_math_sdp_enabled()
        and c._get_overrideable_sdp_enabled()
    ):
        return False
    _settle()
    return int(c._get_sdp_priority_order()[0]) == _CUDNN


@functools.cache
def _settle() -> None:
    """Make torch choose a backend once: its first choice on a GPU overwrites the order."""
    x = torch.empty(1, 1, 1, 8, dtype=torch.float16, device="cuda")
    torch._fused_sdp_choice(x, x, x)


@torch.compiler.assume_constant_result
def active_release() -> str | None:
    """Return `FA3` or `FA4` if the user has activated it, else None."""
    return choice.current_flash_attention_impl()


def installed_releases() -> list[str]:
    """Return the FlashAttention releases that are installed and that torch can activate."""
    known = choice.list_flash_attention_impls()
    return [name for name in known if is_there(RELEASES.get(name, name))]


def explain_sdpa(device: torch.device) -> list[str]:
    """Return lines about the backends used on this device, for `python -m fastgrow.info`."""
    lines = [f"training and prefill: {_chosen(device, 256, requires_grad=True)}"]
    lines.append(f"one query: {_chosen(device, 1, requires_grad=False)}")
    active = active_release()
    if active is not None:
        return [*lines, f"flash is {active}, which was activated"]
    for name in installed_releases():
        activate = f'torch.nn.attention.activate_flash_attention_impl("{name}")'
        lines.append(f"{name} is installed and not active: {activate} makes it flash, tried first")
    return lines


def _chosen(device: torch.device, queries: int, *, requires_grad: bool) -> str:
    """Return the backend of a causal call in bf16, for each head dimension if they differ."""
    found: dict[str, list[str]] = {}
    for dim in (32, 64, 128):
        q = torch.zeros(1, 2, queries, dim, dtype=torch.bfloat16, device=device)
        k = torch.zeros(1, 2, 256, dim, dtype=torch.bfloat16, device=device)
        q.requires_grad_(requires_grad)
        with _order_for(q, None):
            number = torch._fused_sdp_choice(q, k, k, None, 0.0, queries > 1)
        found.setdefault(NAMES.get(SDPBackend(number), "none"), []).append(str(dim))
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} at head dimension {', '.join(d)}" for name, d in found.items())
