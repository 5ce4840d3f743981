"""Which masks of transformers are passed to `ops.attention` as what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from hf_models import IDS, PADDED, assert_close, build
from transformers import DynamicCache
from transformers.masking_utils import sliding_window_causal_mask_function

import fastgrow as fg
from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.interop.hf import attention

RIGHT = PADDED.flip(1)
HOLES = PADDED.clone()
HOLES[0, 4] = 0


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call of `ops.attention`, as on a device whose kernels take `starts`."""
    calls: list[dict[str, Any]] = []
    run = ops.attention

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rules: Any) -> torch.Tensor:
        calls.append(rules | {"shape": (q.shape[2], k.shape[2])})
        return run(q, k, v, **rules)

    monkeypatch.setattr(ops, "attention", record)
    monkeypatch.setattr(attention, "uses_starts", lambda device: True)
    return calls


def said(rules: dict[str, Any]) -> str:
    """The mask arguments of a call, abbreviated."""
    parts = ["causal"] if rules["causal"] else []
    parts += [name for name in ("starts", "mask") if rules[name] is not None]
    return " ".join(parts)


def seen(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return logits[mask.bool()]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "causal"),
        (torch.ones_like(IDS), "causal"),
        (PADDED, "causal starts"),
        (RIGHT, "mask"),
        (HOLES, "mask"),
    ],
    ids=["none", "ones", "left", "right", "holes"],
)
def test_padding(rules: list[dict[str, Any]], mask: torch.Tensor | None, expected: str) -> None:
    model = build("llama")
    before = model(IDS, attention_mask=mask).logits
    fg.patch(model)
    after = model(IDS, attention_mask=mask).logits
    whole = torch.ones_like(IDS) if mask is None else mask
    assert_close(seen(after, whole), seen(before, whole))
    assert {said(r) for r in rules} == {expected}
    if expected == "causal starts":
        assert rules[0]["starts"].tolist() == [0, 5]


def test_a_captured_call_does_not_synchronize(
    rules: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    before = model(IDS, attention_mask=PADDED).logits
    fg.patch(model)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.delattr(attention, "_left_padding")
    after = model(IDS, attention_mask=PADDED).logits
    assert_close(seen(after, PADDED), seen(before, PADDED))
    assert {said(r) for r in rules} == {"mask"}


def test_decoding_and_prefill_in_parts(rules: list[dict[str, Any]]) -> None:
    plain, model = build("llama"), build("llama")
    fg.patch(model)
    logits = []
    for m in (plain, model):
        cache = DynamicCache(config=m.config)
        parts = []
        for piece, ends in ((slice(0, 4), 4), (slice(4, 9), 9), (slice(9, 10), 10)):
            given = {"attention_mask": PADDED[:, :ends], "past_key_values": cache}
            parts.append(m(IDS[:, piece], **given).logits)
        logits.append(torch.cat(parts, 1))
    # In row 1 the first five tokens are padding.
    assert_close(seen(logits[1], PADDED[:, :10]), seen(logits[0], PADDED[:, :10]))
    assert [(r["shape"], said(r)) for r in rules[::2]] == [
        ((4, 4), "causal starts"),
        ((5, 9), "causal starts"),
        ((1, 10), "causal starts"),
    ]


def test_prefill_in_parts_without_padding(rules: list[dict[str, Any]]) -> None:
    model = build("gpt2")
    whole = model(IDS).logits
    fg.patch(model)
    cache = DynamicCache(config=model.config)
    parts = [model(IDS[:, s], past_key_values=cache).logits for s in (slice(0, 5), slice(5, 12))]
    assert_close(torch.cat(parts, 1), whole)
    assert [said(r) for r in rules[::2]] == ["causal", "causal starts"]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_starts(rules: list[dict[str, Any]], cache: str) -> None:
    model = build("llama")
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    settings["cache_implementation"] = cache
    padded = model.generate(IDS, attention_mask=PADDED, **settings)
    whole = model.generate(IDS, **settings)
    fg.patch(model)
    assert torch.equal(model.generate(IDS, attention_mask=PADDED, **settings), padded)
    assert any(said(r) == ("causal starts" if cache == "dynamic" else "mask") for r in rules)
    rules.clear()
    assert torch.equal(model.generate(IDS, **settings), whole)
    # A static cache is longer than the tokens so far; the prompt still needs no mask.
    assert said(rules[0]) == "causal"
    assert rules[0]["shape"] == (12, 12)


@pytest.mark.parametrize("floating", [False, True], ids=["bool", "float"])
def test_masks_passed_by_the_user(rules: list[dict[str, Any]], floating: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(2, 1, 12, 12, generator=generator) < 0.5
    mask |= torch.eye(12, dtype=torch.bool)
    if floating:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    model = build("gpt_neox")
    before = model(IDS, attention_mask=mask).logits
    fg.patch(model)
    assert_close(model(IDS, attention_mask=mask).logits, before)
    assert {said(r) for r in rules} == {"mask"}


def test_packed_documents(rules: list[dict[str, Any]]) -> None:
    model = build("llama")
    positions = torch.cat([torch.arange(7), torch.arange(5)]).expand(2, -1)
    # transformers infers documents from the positions only if there is no cache.
    before = model(IDS, position_ids=positions, use_cache=False).logits
    fg.patch(model)
    after = model(IDS, position_ids=positions, use_cache=False).logits
    assert_close(after, before)
    assert {said(r) for r in rules} == {"mask"}
    apart = model(IDS[:, 7:]).logits
    assert_close(after[:, 7:], apart)


def test_requested_masks_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "uses_starts", lambda device: True)
    arguments: dict[str, Any] = {"batch_size": 2, "q_length": 12, "kv_length": 12}
    arguments["attention_mask"] = PADDED.bool()
    causal = torch.ones(12, 12, dtype=torch.bool).tril() & PADDED.bool()[:, None, None, :]
    whole = attention.attention_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(whole, causal)
    window = sliding_window_causal_mask_function(3)
    narrow = attention.attention_mask(**arguments, mask_function=window, local_size=3)
    assert torch.equal(narrow, causal & torch.ones(12, 12, dtype=torch.bool).triu(-2))


def test_on_a_cpu_padding_stays_a_mask() -> None:
    arguments: dict[str, Any] = {"batch_size": 2, "q_length": 12, "kv_length": 12}
    padding = PADDED.bool()
    on_cpu = attention.attention_mask(**arguments, attention_mask=padding, device="cpu")
    assert on_cpu is not None
    assert (on_cpu.dtype, on_cpu.shape) == (torch.bool, (2, 1, 12, 12))
    assert attention.uses_starts("cuda")


@pytest.mark.parametrize("rule", ["softcap", "position_bias", "s_aux", "cache"])
def test_unsupported_arguments_are_rejected(rule: str) -> None:
    model = build("llama")
    fg.patch(model)
    q = torch.zeros(1, 4, 3, 8)
    k = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ArgumentError, match=f"attention: {rule} must be None"):
        attention.attend(model.model.layers[0].self_attn, q, k, k, None, **{rule: 1})
