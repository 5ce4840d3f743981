"""Generation on a device: with a cache, beyond the context, and a step as a CUDA graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from against_cpu import assert_close
from torch import Tensor

import fastgrow as fg
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate


@pytest.fixture(scope="module")
def model(substrate: Substrate) -> Decoder:
    """On the CPU."""
    config = DecoderConfig(
        vocab_size=len(substrate), d_model=64, n_layer=2, n_head=2, n_kv_head=1, max_seq_len=32
    )
    made = Decoder(config, substrate, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        made.lm_head.weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def prompt(substrate: Substrate) -> Tensor:
    return torch.tensor([substrate.encode("abc "), substrate.encode("Zyx,")])


def test_the_most_likely_continuation_beyond_the_context(
    model: Decoder, prompt: Tensor, device: torch.device
) -> None:
    expected = model.generate(prompt, max_new_tokens=50, temperature=0)
    moved = copy.deepcopy(model).to(device)
    assert torch.equal(moved.generate(prompt, max_new_tokens=50, temperature=0).cpu(), expected)


def test_a_text_prompt_and_stops(model: Decoder, device: torch.device) -> None:
    moved = copy.deepcopy(model).to(device)
    start = "Some text"
    stop = model.generate(start, max_new_tokens=20, temperature=0)[len(start) + 10 :][:2]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0, "stop": stop}
    expected = model.generate(start, **options)
    assert len(expected) < len(start) + 12
    assert moved.generate(start, **options) == expected
    options = {"max_new_tokens": 20, "top_k": 5, "temperature": 0.8, "seed": 1}
    assert moved.generate(start, **options) == moved.generate(start, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["decoder", "ensemble"])
def test_a_step_as_a_cuda_graph(
    kind: str, dtype: torch.dtype, model: Decoder, prompt: Tensor, gpu: torch.device
) -> None:
    """One step with a cache is captured, and replayed for other tokens in the same place."""
    truth: Any = model
    if kind == "ensemble":
        truth = fg.Ensemble({"one": model, "two": copy.deepcopy(model)})
    moved = copy.deepcopy(truth).to(gpu, dtype)
    in_bf16 = copy.deepcopy(truth).to(torch.bfloat16)
    ids = prompt.to(gpu)

    def after_prompt(reader: Any, tokens: Tensor) -> Any:
        cache = reader.new_cache(*tokens.shape[:1], 32)
        reader(tokens, cache, last_only=True)
        return cache

    with torch.no_grad():
        step = ids[:, :1].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Compiling happens before the capture.
            moved(step, after_prompt(moved, ids), last_only=True)
            cache = after_prompt(moved, ids)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = moved(step, cache, last_only=True)
        for column in (1, 2):
            step.copy_(ids[:, column : column + 1])
            graph.replay()
            plain = moved(step, after_prompt(moved, ids), last_only=True)
            torch.testing.assert_close(captured, plain)
            token = prompt[:, column : column + 1]
            expected = truth(token, after_prompt(truth, prompt), last_only=True)
            rounded = None
            if dtype == torch.bfloat16:
                rounded = in_bf16(token, after_prompt(in_bf16, prompt), last_only=True)
            assert_close(captured, expected, rounded)
