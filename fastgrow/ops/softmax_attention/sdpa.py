"""`torch.nn.functional.scaled_dot_product_attention`, and which of its backends serves on a GPU.

Where cuDNN is newer than 9.15 and the GPU a Hopper or Blackwell, torch asks cuDNN, flash, efficient
and math, in this order, and elsewhere flash first. cuDNN's kernels are the fastest there, and right
for causal attention without a mask. The others come before them, in the same order,

- for few queries: cuDNN builds a plan for every new number of keys, which takes tens to hundreds of
  milliseconds and which each token of a generation would pay, and flash splits the keys;
- where there is a mask: gradients of queries have been NaN on Hopper (pytorch #196678);
- where FlashAttention 3 or 4 was activated by `torch.nn.attention.activate_flash_attention_impl`,
  which is a user's choice.

An older cuDNN is never preferred: it is at fault where a length is no multiple of 128
(pytorch #169849). What a user has set wins: nothing is ordered inside `sdpa_kernel`, where a
backend is switched off, or where torch's own order has another backend before cuDNN.
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
DEVICE_TYPE = "cuda"  # where there is more than one fast backend
NAMES = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.MATH: "math",
    SDPBackend.OVERRIDEABLE: "another",
}
# FlashAttention's releases beside the one in torch, and the modules that they are.
RELEASES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}

# The numbers, because comparing them is what each call does.
_CUDNN: int = SDPBackend.CUDNN_ATTENTION.value
_FLASH_FIRST: list[int] = [backend.value for backend in FLASH_FIRST]


def run(call: AttentionCall) -> Tensor:
    """torch's attention after the rotation, with the backends in the order given above."""
    (q, k), v = rotated(call, ROPE), call.v
    group = q.shape[1] // k.shape[1]
    rules = (call.window, call.cu_seqlens, call.lengths, call.starts, call.mask)
    mask, blind, is_causal = None, None, False
    # torch.compile wants a constant here, which a branch on symbolic lengths gives.
    if call.causal and all(rule is None for rule in rules) and 1 < q.shape[2] == k.shape[2]:
        is_causal = True
    else:
        mask, blind = _mask_of(call)
    if mask is not None and group > 1 and q.device.type == "cuda":
        # There the fused kernels take either a mask or grouped heads.
        k, v, group = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), 1
    with _order_for(q, mask):
        y = F.scaled_dot_product_attention(
            *(q, k, v, mask, call.dropout, is_causal), scale=call.scale, enable_gqa=group > 1
        )
    return y if blind is None else y.masked_fill(blind, 0.0)


def _mask_of(call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
    """The mask, and which queries see no key: SDPA's backends differ there, so they get to see."""
    visible, added = visible_keys(call), call.mask
    blind = None
    ragged = call.lengths is not None and call.q.shape[2] > 1
    if visible is not None and (call.starts is not None or added is not None or ragged):
        blind = ~visible.any(-1, keepdim=True)
    if added is None or added.dtype == torch.bool:
        return visible if visible is None or blind is None else visible | blind, blind
    if visible is not None:
        added = torch.where(visible, added, float("-inf"))
        added = added if blind is None else added.masked_fill(blind, 0.0)
    return added.to(call.q.dtype), blind


def _order_for(q: Tensor, mask: Tensor | None) -> contextlib.AbstractContextManager[object]:
    if (
        q.device.type != DEVICE_TYPE
        or (mask is None and q.shape[2] > FEW_QUERIES and active_release() is None)
        or not cudnn_comes_first()
    ):
        return contextlib.nullcontext()
    if torch.compiler.is_compiling():
        # All backends are on, or cuDNN would not come first: this switches nothing.
        return sdpa_kernel(list(FLASH_FIRST), set_priority=True)
    return _flash_first()


@contextlib.contextmanager
def _flash_first() -> Iterator[None]:
    """`sdpa_kernel(FLASH_FIRST, set_priority=True)`, at an eighth of its time on the host."""
    before = torch._C._get_sdp_priority_order()
    torch._C._set_sdp_priority_order(_FLASH_FIRST)
    try:
        yield
    finally:
        torch._C._set_sdp_priority_order(before)


# torch.compile asks while it traces, for a constant.
@torch.compiler.assume_constant_result
def cudnn_comes_first() -> bool:
    """Does torch ask cuDNN before the other backends, of its own accord?"""
    ask = torch._C
    if not (
        ask._get_flash_sdp_enabled()
        and ask._get_mem_efficient_sdp_enabled()
        and ask._get_cudnn_sdp_enabled()
        and ask._get_math_sdp_enabled()
        and ask._get_overrideable_sdp_enabled()
    ):
        return False
    _settle()
    return int(ask._get_sdp_priority_order()[0]) == _CUDNN


@functools.cache
def _settle() -> None:
    """Have torch choose once: its first choice on a GPU writes its order over any that is set."""
    x = torch.empty(1, 1, 1, 8, dtype=torch.float16, device="cuda")
    torch._fused_sdp_choice(x, x, x)


@torch.compiler.assume_constant_result
def active_release() -> str | None:
    """`FA3` or `FA4` where a user has activated it, else None."""
    return choice.current_flash_attention_impl()


def installed_releases() -> list[str]:
    """Those of FlashAttention's releases that torch can be told to take and that are here."""
    known = choice.list_flash_attention_impls()
    return [name for name in known if is_there(RELEASES.get(name, name))]


def explain_sdpa(device: torch.device) -> list[str]:
    """What serves on this device, for `python -m fastgrow.info`."""
    lines = [f"training and prefill: {_chosen(device, 256, requires_grad=True)}"]
    lines.append(f"one query: {_chosen(device, 1, requires_grad=False)}")
    active = active_release()
    if active is not None:
        return [*lines, f"flash is {active}, which was activated"]
    for name in installed_releases():
        activate = f'torch.nn.attention.activate_flash_attention_impl("{name}")'
        lines.append(f"{name} is installed and not active: {activate} makes it flash, and first")
    return lines


def _chosen(device: torch.device, queries: int, *, requires_grad: bool) -> str:
    """By head dimension, the backend of a causal call in bf16."""
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
