"""Grids are within CUDA's limits for any number of rows, sequences and heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cross_compile import recorded

attention = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")

from fastgrow.kernels import (  # noqa: E402
    embedding,
    linear_lse,
    lora,
    mlp,
    norm,
)
from fastgrow.kernels.calls import (  # noqa: E402
    AttentionCall,
    EmbeddingCall,
    HeadLossCall,
    LoraCall,
    LoraGradient,
    LseCall,
    LseGradientCall,
    MlpHidden,
    MlpHiddenGradient,
    MlpOutput,
    NormCall,
)
from fastgrow.kernels.logit_loss import fill_losses  # noqa: E402

F32, BF16 = torch.float32, torch.bfloat16
FIRST, OTHERS = 2**31 - 1, 65_535  # programs along the axes
BATCH, HEADS, DIM = 35_000, 2, 32
ROWS, WIDTH = 2**26, 256


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def check(call: Callable[[], object], *kernels: str) -> None:
    """The launchers start these kernels, each with a grid within CUDA's limits."""
    launches = recorded(call)
    assert {launch.name for launch in launches} == set(kernels)
    for launch in launches:
        first, *others = launch.grid
        assert first <= FIRST, f"{launch.name}: {launch.grid}"
        assert all(programs <= OTHERS for programs in others), f"{launch.name}: {launch.grid}"


def attend(batch: int, queries: int, keys: int, *, decoding: bool = False) -> None:
    q, k = empty(batch, HEADS, queries, DIM), empty(batch, HEADS, keys, DIM)
    table = empty(keys, DIM // 2, dtype=F32)
    call = AttentionCall(q, k, k, table, table)
    if decoding:
        attention.inference(call)
        return
    out, lse = attention.forward(call)
    assert lse is not None
    attention.backward(call, q, out, lse)


TRAINING = ("rotate_kernel", "forward_kernel", "prepare_kernel", "d_query_kernel", "d_key_kernel")


def test_attention_of_many_sequences() -> None:
    check(lambda: attend(BATCH, 64, 64), *TRAINING)


def test_attention_of_a_long_sequence() -> None:
    check(lambda: attend(1, 2**24, 2**24), *TRAINING)


@pytest.mark.parametrize("batch", [1, BATCH])
def test_decoding(batch: int) -> None:
    decoding = ("rotate_kernel", "decode_kernel", "join_kernel")
    check(lambda: attend(batch, 8, 2**24 // batch + 1024, decoding=True), *decoding)


@pytest.mark.parametrize("width", [WIDTH, 2**15])
def test_norms(width: int) -> None:
    x, weight, statistics = empty(ROWS, width), empty(width), empty(ROWS, dtype=F32)

    def step() -> None:
        norm.forward(NormCall(x, x, weight, weight, 1e-5, True, BF16))
        norm.backward(
            x, x, x, statistics, statistics, weight,
            for_input=True, for_weight=True, for_bias=True, parameter_dtype=BF16,
        )  # fmt: skip

    wide = ("wide_forward_kernel", "wide_backward_kernel") if width > norm.WIDEST_FORWARD else ()
    check(step, *(wide or ("forward_kernel",)), "backward_kernel", "sum_kernel")


@pytest.mark.parametrize("fused", [1, 2])
def test_mlp(fused: int) -> None:
    x, up, down, pre = empty(ROWS, WIDTH), empty(512, WIDTH), empty(WIDTH, 512), empty(ROWS, 512)
    product = mlp.ProductChoice(128, 128, 64, 8, 8, 3, fused)

    def step() -> None:
        mlp.hidden(MlpHidden(x, up, None, None, "gelu", True), product=product)
        mlp.output(MlpOutput(pre, down, None, x), product=product)
        gradient = MlpHiddenGradient(x, down, pre, None, "gelu", True, True)
        mlp.d_hidden(gradient, product=product)

    of_products = ("hidden_kernel", "output_kernel", "d_hidden_kernel")
    check(step, *(of_products if fused == 2 else ("activate_kernel", "d_activate_kernel")))


def test_lora() -> None:
    x, weight, a, b = empty(ROWS, WIDTH), empty(WIDTH, WIDTH), empty(16, WIDTH), empty(WIDTH, 16)

    def step() -> None:
        lora.forward(LoraCall(x, weight, a, b, None, 0.5))
        lora.backward(LoraGradient(x, x, empty(ROWS, 16), weight, a, b, 0.5))

    check(step, "low_rank_kernel", "narrow_kernel")


def test_embedding() -> None:
    ids = empty(ROWS, dtype=torch.int64)
    call = EmbeddingCall(ids, None, 256, 4, 8, 0.0, 1.0, BF16)
    check(lambda: embedding.lookup(call), "lookup_kernel")


def test_loss_of_a_head() -> None:
    words = 1024
    heads = [empty(ROWS, WIDTH)], [empty(words, WIDTH)], None
    targets, row, out = empty(ROWS, dtype=torch.int64), empty(ROWS, dtype=F32), empty(ROWS, words)

    def step() -> None:
        linear_lse.forward(LseCall(*heads, targets, True))
        gradient = LseGradientCall(*heads, targets, row, row, row, row, [])
        linear_lse.logits_gradient(gradient, 0, out, with_sums=True)
        loss = HeadLossCall(*heads, targets, label_smoothing=0.1)
        fill_losses(loss, slice(0, ROWS), out, row, row, out)

    check(step, "lse_kernel", "merge_kernel", "gradient_kernel", "loss_kernel")
