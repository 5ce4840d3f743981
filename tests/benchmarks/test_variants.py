"""How many variants of each kernel a GPU would compile: lengths must not make new ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no variants", allow_module_level=True)

from benchmarks.stubbed import Variants, launches_stubbed
from fastgrow import ops
from fastgrow.nn import Decoder, DecoderConfig

BF16 = torch.bfloat16


@pytest.fixture
def variants() -> Iterator[Variants]:
    with launches_stubbed() as variants, ops.use_impl("triton"):
        yield variants


def decoder(max_seq_len: int, **options: object) -> Decoder:
    config = DecoderConfig(64, 64, n_layer=1, n_head=2, max_seq_len=max_seq_len, **options)
    return Decoder(config, table=torch.randn(64, 64)).to(BF16)


@pytest.mark.parametrize("prompt", [1, 400])
def test_generating_makes_at_most_two_variants_of_a_kernel(variants: Variants, prompt: int) -> None:
    """Prefill and decoding, over keys that pass from one launch's share to several's."""
    model = decoder(2048)
    with torch.no_grad():
        cache = model.new_cache(1)
        model(torch.zeros(1, prompt, dtype=torch.int64), cache=cache)
        for _ in range(300):
            model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    counts = variants.count()
    assert {"forward_kernel", "lookup_kernel"} <= counts.keys()
    assert ("decode_kernel" in counts) == (prompt > 1)
    assert max(counts.values()) <= 2, counts


# Few rows have tiles of their own.
OF_FEW_ROWS = ("lookup_kernel", "lse_kernel", "gradient_kernel")


@pytest.mark.parametrize("options", [{}, {"norm": "rms_norm", "activation": "swiglu"}])
def test_training_on_varying_lengths_makes_no_new_variants(
    variants: Variants, options: dict[str, object]
) -> None:
    model = decoder(256, **options)

    def step(batch: int, length: int) -> dict[str, int]:
        ids = torch.zeros(batch, length, dtype=torch.int64)
        model.loss(ids, ids).backward()
        return variants.count()

    first = step(3, 67)
    assert {"backward_kernel", "d_query_kernel", "d_key_kernel", "lse_kernel"} <= first.keys()
    for batch, length in ((1, 99), (4, 64), (16, 256)):
        assert step(batch, length) == first
    for batch, length in ((1, 1), (1, 16), (2, 17)):
        step(batch, length)
    assert variants.count() == {k: n + (k in OF_FEW_ROWS) for k, n in first.items()}
