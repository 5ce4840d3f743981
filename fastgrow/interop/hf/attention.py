"""fastgrow's attention in transformers' registry of attention functions.

A model looks up two functions by the name in its configuration: one builds the mask, once for all
layers, the other computes attention. fastgrow's mask function avoids a full mask where it can:

- None, where SDPA needs no mask either: causal attention from the first query and key on;
- on devices with kernels, the index of the first visible key of each row, int32 [B, 1, 1, 1]: for
  left padding, and for queries that are the last of the keys. It has four axes because transformers
  treats a tensor with four axes as a finished mask and passes it on unchanged;
- otherwise a bool mask [B, 1, Tq, Tk], the same as for SDPA.

Queries and keys are passed in rotated, because the cache stores rotated keys; transformers applies
the rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from fastgrow import ops
from fastgrow.errors import argument_error
from fastgrow.interop.report import State

try:
    from transformers.utils.output_capturing import _active_collector
except ImportError:  # releases that pass `output_attentions` to every attention function
    _active_collector = None

if TYPE_CHECKING:
    from fastgrow.interop.hf.family import Family

NAME = "fastgrow"
# Features of other models' attention that `ops.attention` does not support.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "cache")
_REPLACED = ("sdpa", "eager")
# Attribute of a patched model with the name of its previous attention function.
_PREVIOUS = "_fastgrow_attention_before"


def uses_starts(device: torch.device | str) -> bool:
    """Whether to pass the first key of each row instead of a mask: on devices with kernels."""
    return torch.device(device).type == "cuda"


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """Build the mask for `attend`; the arguments are those of transformers' mask functions.

    Args:
        batch_size: B.
        q_length: Tq.
        kv_length: Tk.
        q_offset: index of the first query among the keys; a tensor if the cache has a fixed size.
        kv_offset: index of the first key.
        mask_function: visibility of keys to queries, apart from padding.
        attention_mask: [B, at most Tk] bool, False for padding.
        allow_is_causal_skip: whether the result may be None.
        device: device of the mask.
    """
    causal = mask_function is causal_mask_function and allow_is_causal_skip
    if (
        causal
        and uses_starts(device)
        and isinstance(q_offset, int)
        and (q_offset + q_length, kv_offset) == (kv_length, 0)
        and not is_tracing(attention_mask)
    ):
        starts = torch.zeros(batch_size, dtype=torch.int32, device=device)
        left, none = True, True
        if attention_mask is not None:
            starts, left, none = _left_padding(attention_mask, kv_length)
        if none and q_length in (1, kv_length):
            return None
        if left:
            return starts.view(batch_size, 1, 1, 1)
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        device=device,
        **kwargs,
    )


def _left_padding(mask: Tensor, keys: int) -> tuple[Tensor, bool, bool]:
    """Return each row's first key, whether all padding is left of it, and whether there is none.

    Synchronizes with the device, so it cannot be captured in a CUDA graph: during tracing or
    capture a mask is used instead.
    """
    starts = (~mask).sum(-1, dtype=torch.int32)
    grows = (mask[:, 1:] >= mask[:, :-1]).all()
    # One synchronization instead of two.
    left, none = torch.stack((grows, mask.all())).tolist()
    whole = mask.shape[1] == keys
    return starts, whole and left, whole and none


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Call `ops.attention` with the signature of transformers' attention functions.

    Args:
        module: the attention module; its attribute `is_causal` is the default of `is_causal`.
        query: [B, H, Tq, D], rotated.
        key: [B, H_kv, Tk, D], rotated.
        value: [B, H_kv, Tk, D].
        attention_mask: result of `attention_mask`, or a mask passed by the user:
            [B, 1 or H, Tq, Tk], bool, or float to be added to the scores.
        dropout: probability of dropping a weight.
        scaling: factor of the scores.
        is_causal: whether attention is causal; None for the default of the module.

    Returns:
        The output [B, Tq, H, D], and None for the weights.

    Raises:
        ArgumentError: `ops.attention` does not support an argument, or the attention weights are
            requested.
    """
    if _weights_requested(kwargs):
        raise argument_error(
            "attention", "output_attentions", "False on a patched model (unpatch it first)", "True"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise argument_error(
                "attention", name, "None (set_attn_implementation('sdpa') has it)", "a value"
            )
    causal = module.is_causal if is_causal is None else is_causal
    queries = query.shape[2]
    starts = mask = None
    if attention_mask is None:
        if causal and 1 < queries < key.shape[2]:
            # Prefill of a cache of fixed size: the later keys are not written yet.
            key, value = key[:, :, :queries], value[:, :, :queries]
    elif attention_mask.dtype == torch.int32:
        starts = attention_mask.view(-1)
    else:
        mask, causal = attention_mask, False
    if key.shape[2] < queries:
        # Cross-attention; in `ops.attention` the queries are the last of the keys.
        out, _ = sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, is_causal=causal
        )
        return out, None
    out = ops.attention(
        query,
        key,
        value,
        scale=scaling,
        causal=causal,
        starts=starts,
        mask=mask,
        dropout=dropout,
    )
    return out.transpose(1, 2), None


def _weights_requested(kwargs: dict[str, Any]) -> bool:
    """Whether the model is called with `output_attentions=True`.

    GPT-2 does not pass `output_attentions` to its attention functions; the active collector of
    transformers shows whether attention weights are collected.
    """
    if kwargs.get("output_attentions"):
        return True
    if _active_collector is None or torch.compiler.is_compiling():
        return False
    return "attentions" in (_active_collector.get() or ())


def patch_attention(model: Any, family: Family) -> tuple[State, str]:
    """Make a model use fastgrow's attention; return the state and the note for the report."""
    current = model.config._attn_implementation
    if current == NAME:
        return "already swapped", "runs on ops.attention"
    reason = family.attention_obstacle(model)
    if not reason and current not in _REPLACED:
        reason = f"the model runs on {current}"
    if not reason and model.config.output_attentions:
        reason = "its configuration requests attention weights (output_attentions)"
    if reason:
        return "skipped", reason
    model.set_attn_implementation(NAME)
    setattr(model, _PREVIOUS, current)
    dropout = getattr(model.config, family.attention_dropout)
    training = f"; with dropout {dropout} in training, on SDPA" if dropout else ""
    return "swapped", f"runs on ops.attention{training}"


def restore_attention(model: Any) -> str:
    """Restore a model's attention; return its name, or "" if the model was not patched."""
    previous: str | None = vars(model).pop(_PREVIOUS, None)
    if previous is None or model.config._attn_implementation != NAME:
        return ""
    model.set_attn_implementation(previous)
    return previous


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)
