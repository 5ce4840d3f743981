"""`patch` and `unpatch`: run Hugging Face models on `fastgrow.ops`, in place.

Patching a module changes its `__class__` to a subclass whose `forward` calls the operation. Its
parameters, buffers, hooks and name are not changed, `isinstance` still holds, and copies and
pickles work as before. Unpatching restores the original class. Attention is not a separate module
in transformers but a function that is looked up by name; patching sets the name of fastgrow's
function in the model's configuration.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from fastgrow.errors import ArgumentError
from fastgrow.interop.report import PatchReport, State, Treated

if TYPE_CHECKING:
    from fastgrow.interop.hf.family import Family

# Base classes of the supported models, by full name so that transformers need not be imported.
_FAMILIES = {
    "transformers.models.gpt2.modeling_gpt2.GPT2PreTrainedModel": "gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXPreTrainedModel": "gpt_neox",
    "transformers.models.llama.modeling_llama.LlamaPreTrainedModel": "llama",
}
# The oldest tested version. Before 5.4 mask functions were called with cache positions instead of
# lengths, and the models' submodules had other names.
_OLDEST_TRANSFORMERS = (5, 17)


def patch(model: nn.Module, *, loss: bool = False) -> PatchReport:
    """Make a Hugging Face GPT-2, GPT-NeoX or Llama model use `fastgrow.ops`, in place.

    Attention, norms, feed-forward layers and, with `loss=True`, the loss are replaced. Parameters,
    state dict and outputs stay the same. A module whose forward or children are not the original
    ones of transformers (adapters, quantized weights) is skipped, even if they change after
    patching. The models may be submodules of `model`. Other models are not changed.

    Args:
        model: the model, or a module that contains models.
        loss: whether to compute the loss of a causal language model without its logits. A call with
            `labels` then returns `logits=None`; calls without `labels` do not change.

    Returns:
        The modules that were replaced or skipped, and the reasons.

    Raises:
        ArgumentError: `model` is not a module.
    """
    _check("patch", model)
    roots = list(_known_models(model))
    reason = _too_old() if roots else "not a GPT-2, GPT-NeoX or Llama model of transformers"
    if reason:
        return _report(model, [("model", model, "", "skipped", reason)])
    found = [
        (part, module, _join(name, inner), state, note)
        for name, root, family in roots
        for part, module, inner, state, note in _patch_model(root, _load(family), loss)
    ]
    return _report(model, found)


def unpatch(model: nn.Module) -> PatchReport:
    """Undo `patch`: restore the original forward of every module.

    Args:
        model: a model, patched or not, or a module that contains models.

    Returns:
        The modules that were restored.

    Raises:
        ArgumentError: `model` is not a module.
    """
    _check("unpatch", model)
    found = [
        (part, module, _join(name, inner), state, note)
        for name, root, family in _known_models(model)
        if not _too_old()
        for part, module, inner, state, note in _unpatch_model(root, _load(family))
    ]
    return _report(model, found)


# part, module, name, state, note
_Found = tuple[str, nn.Module, str, State, str]


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{function}: model must be a torch.nn.Module, got {type(model)}")


def _too_old() -> str:
    transformers = sys.modules.get("transformers")
    version = getattr(transformers, "__version__", None)
    if version is None or tuple(map(int, version.split(".")[:2])) >= _OLDEST_TRANSFORMERS:
        return ""
    return f"transformers {version} is older than {'.'.join(map(str, _OLDEST_TRANSFORMERS))}"


def _known_models(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield name, model and family of the outermost supported models in a module."""
    covered: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in covered:
            continue
        bases = (f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__)
        family = next((_FAMILIES[base] for base in bases if base in _FAMILIES), None)
        if family is not None:
            covered.update(map(id, module.modules()))
            yield name, module, family


def _load(family: str) -> Family:
    module = importlib.import_module(f"fastgrow.interop.hf.{family}")
    loaded: Family = module.FAMILY
    return loaded


def _patch_model(root: nn.Module, family: Family, loss: bool) -> Iterator[_Found]:
    from fastgrow.interop.hf.attention import patch_attention
    from fastgrow.interop.hf.family import original_of

    attention_state, attention_note = patch_attention(root, family)
    for name, module in root.named_modules():
        if isinstance(module, family.attention):
            yield "attention", module, name, attention_state, attention_note
        for part, layer, note in family.not_replaced:
            if isinstance(module, layer):
                yield part, module, name, "skipped", note
        done = original_of(module)
        if done is not None:
            yield done.part, module, name, "already swapped", f"runs on {done.operation}"
            continue
        for replacement in family.replacements:
            if not isinstance(module, replacement.original):
                continue
            reason = replacement.obstacle_in(module)
            if not reason and replacement.part == "loss" and not loss:
                reason = "only with patch(model, loss=True)"
            if reason:
                yield replacement.part, module, name, "skipped", reason
            else:
                module.__class__ = replacement.fast
                note = f"runs on {replacement.operation}"
                yield replacement.part, module, name, "swapped", note


def _unpatch_model(root: nn.Module, family: Family) -> Iterator[_Found]:
    from fastgrow.interop.hf.attention import restore_attention
    from fastgrow.interop.hf.family import original_of

    restored = [name for name in map(restore_attention, root.modules()) if name]
    for name, module in root.named_modules():
        if restored and isinstance(module, family.attention):
            yield "attention", module, name, "restored", f"runs on {restored[0]}"
        replacement = original_of(module)
        if replacement is not None:
            module.__class__ = replacement.original
            yield replacement.part, module, name, "restored", ""


def _report(model: nn.Module, found: Iterable[_Found]) -> PatchReport:
    groups: dict[tuple[str, str, State, str], list[str]] = {}
    for part, module, name, state, note in found:
        groups.setdefault((part, _class_name(module), state, note), []).append(name)
    treated = (Treated(*what, tuple(names)) for what, names in groups.items())
    return PatchReport(_class_name(model), tuple(treated))


def _class_name(module: nn.Module) -> str:
    """Return the name of the original class, also for a patched module."""
    return getattr(type(module), "original_name", type(module).__name__)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
