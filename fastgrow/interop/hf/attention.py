"""Our attention in transformers' registry of attention functions.

There a model looks two functions up by the name in its configuration: one builds the mask, once for
all layers, the other attends. The first of ours says what it can by less than a mask of all scores:

- nothing, where its own SDPA needs no mask either: causal from the first query and key on;
- where the kernels run, a first visible key for each row, int32 [B, 1, 1, 1]: left padding, and
  queries that are the last of the keys. It has four axes because transformers takes those for a
  finished mask and hands them on;
- else a bool mask [B, 1, Tq, Tk], as its SDPA gets it.

Keys come rotated, because the cache holds them so; the rotation stays transformers' own.
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
except ImportError:  # releases that hand `output_attentions` on to every attention function
    _active_collector = None

if TYPE_CHECKING:
    from fastgrow.interop.hf.family import Family

NAME = "fastgrow"
# Rules of other models' attention that ours does not have.
_REFUSED = ("softcap", "position_bias", "s_aux", "cache")
_REPLACED = ("sdpa", "eager")
# Plain attributes of the model remember what it ran on before.
_BEFORE = "_fastgrow_attention_before"


def takes_starts(device: torch.device | str) -> bool:
    """Whether rows' first keys are of more use than a mask: where the kernels run."""
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
    """What `attend` gets as its mask; the arguments are those of transformers' mask functions.

    Args:
        batch_size: B.
        q_length: Tq.
        kv_length: Tk.
        q_offset: the first query's index among the keys; a tensor for a cache of fixed size.
        kv_offset: the first key's index.
        mask_function: the rule beside padding.
        attention_mask: [B, at most Tk] bool, False for padding.
        allow_is_causal_skip: whether there may be no mask.
        device: where the mask is wanted.
    """
    causal = mask_function is causal_mask_function and allow_is_causal_skip
    if (
        causal
        and takes_starts(device)
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
    """Each row's first key, whether all padding is to the left of it, whether there is none.

    It waits for the device, so that no graph of a GPU can capture it: what is traced or captured
    gets a mask instead.
    """
    starts = (~mask).sum(-1, dtype=torch.int32)
    grows = (mask[:, 1:] >= mask[:, :-1]).all()
    # One wait for the device instead of two.
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
    """`ops.attention` as transformers calls an attention function.

    Args:
        module: the attention module, which knows whether it is causal.
        query: [B, H, Tq, D], rotated.
        key: [B, H_kv, Tk, D], rotated.
        value: [B, H_kv, Tk, D].
        attention_mask: from the function above, or the caller's own: [B, 1 or H, Tq, Tk], bool or
            float to be added.
        dropout: probability of dropping a weight.
        scaling: factor of the scores.
        is_causal: the module's where it is None.

    Returns:
        [B, Tq, H, D], and no weights.

    Raises:
        ArgumentError: a rule that `ops.attention` does not have, or the weights are asked for.
    """
    if _weights_are_wanted(kwargs):
        raise argument_error(
            "attention", "output_attentions", "False on a patched model (unpatch it first)", "True"
        )
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise argument_error(
                "attention", name, "None (set_attn_implementation('sdpa') has it)", "a value"
            )
    causal = module.is_causal if is_causal is None else is_causal
    queries = query.shape[2]
    starts = mask = None
    if attention_mask is None:
        if causal and 1 < queries < key.shape[2]:
            # A cache of fixed size is being filled from its start: keys from here on are unwritten.
            key, value = key[:, :, :queries], value[:, :, :queries]
    elif attention_mask.dtype == torch.int32:
        starts = attention_mask.view(-1)
    else:
        mask, causal = attention_mask, False
    if key.shape[2] < queries:
        # Cross-attention; `ops.attention` takes queries for the last of the keys.
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


def _weights_are_wanted(kwargs: dict[str, Any]) -> bool:
    """Whether the call of the model asks for attention weights.

    GPT-2 keeps `output_attentions` from its attention functions; what is being collected tells.
    """
    if kwargs.get("output_attentions"):
        return True
    if _active_collector is None or torch.compiler.is_compiling():
        return False
    return "attentions" in (_active_collector.get() or ())


def take_attention(model: Any, family: Family) -> tuple[State, str]:
    """Let a model's attention run on ours; what was done, and where it runs or why not."""
    current = model.config._attn_implementation
    if current == NAME:
        return "already swapped", "runs on ops.attention"
    reason = family.attention_obstacle(model)
    if not reason and current not in _REPLACED:
        reason = f"the model runs on {current}"
    if not reason and model.config.output_attentions:
        reason = "its weights are asked for (output_attentions)"
    if reason:
        return "skipped", reason
    model.set_attn_implementation(NAME)
    setattr(model, _BEFORE, current)
    dropout = getattr(model.config, family.attention_dropout)
    training = f"; with dropout {dropout} in training, on SDPA" if dropout else ""
    return "swapped", f"runs on ops.attention{training}"


def restore_attention(model: Any) -> str:
    """Give a model its attention back; what it runs on then, empty where nothing was taken."""
    before: str | None = vars(model).pop(_BEFORE, None)
    if before is None or model.config._attn_implementation != NAME:
        return ""
    model.set_attn_implementation(before)
    return before


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)
