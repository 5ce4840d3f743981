"""What the benchmarks' headline shapes look up is tuned first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import tuning
from benchmarks.case import Shape
from benchmarks.cases import (
    attention,
    attention_decode,
    layer_norm,
    linear_cross_entropy,
    lora_linear,
    mlp,
    rms_norm,
)

pytest.importorskip("fastgrow.kernels.tunable", reason="triton is not installed")

from fastgrow.kernels import attention as launchers
from fastgrow.kernels import linear_lse as head
from fastgrow.kernels import lora, norm
from fastgrow.kernels import mlp as feed_forward
from fastgrow.kernels.tuned import tuning_modules

BF16 = torch.bfloat16


def first(family: object) -> Shape:
    return family.grids["gpu"][0]  # type: ignore[attr-defined]


def headlines() -> Iterator[tuple[str, str]]:
    """Kernels and keys of the first shape of each operation, and of the headline's other shapes."""
    # The first length of each, and a growing model's.
    for shape in (x for x in attention.FAMILY.grids["gpu"] if x["D"] != 64):
        for kernel in ("forward", "d_query", "d_key"):
            key = launchers.bucket(BF16, shape["D"], shape["T"])
            yield f"attention_{kernel}", key
    for shape in attention_decode.FAMILY.grids["gpu"]:
        heads = shape["B"] * shape["H_kv"]
        yield "attention_decode", launchers.decode_bucket(BF16, shape["D"], shape["T"], heads)
    for family in (layer_norm.FAMILY, rms_norm.FAMILY):
        for shape in family.grids["gpu"]:
            yield "norm_forward", norm.bucket(BF16, shape["d"])
            yield "norm_backward", norm.bucket(BF16, shape["d"])
    for kernel in ("linear_lse", "linear_lse_gradient"):
        yield kernel, head.key(BF16, first(linear_cross_entropy.FAMILY)["N"])
    shape = first(mlp.FAMILIES[0])
    d, rows = shape["d"], shape["N"]
    for kernel in ("mlp_hidden", "mlp_hidden_kept", "mlp_d_hidden"):
        yield kernel, feed_forward.bucket(BF16, "gelu", d, 4 * d, rows)
    for added in ("plain", "residual"):
        yield "mlp_output", feed_forward.bucket(BF16, added, 4 * d, d, rows)
    shape = first(lora_linear.FAMILY)
    yield "lora_forward", lora.product_key(BF16, shape["d"])
    yield "lora_d_input", lora.product_key(BF16, shape["m"])
    yield "lora_narrow", lora.narrow_key(BF16, shape["r"])


def test_headline_buckets_are_first_and_they_alone() -> None:
    found = tuning.entrants(tuning_modules(), 90, first_rank=0)
    assert {(e.tunable.kernel, e.tunable.bucket) for e in found} == set(headlines())
    everything = tuning.entrants(tuning_modules(), 90)
    assert [e.name for e in everything[: len(found)]] == [e.name for e in found]
    ranks = [e.tunable.rank for e in everything]
    assert ranks == sorted(ranks)
