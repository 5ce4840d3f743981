"""Lookup in packed bits and in codes: the values are those of the equivalent float table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgrow import ops
from fastgrow.errors import ArgumentError

VOCABULARY = 50
IDS = torch.tensor([[0, 49, 7], [7, 31, 2]])


def bits_of(n_bits: int) -> np.ndarray:
    """Random rows of 0 and 1, [V, n_bits]."""
    return np.random.default_rng(0).integers(0, 2, (VOCABULARY, n_bits), dtype=np.uint8)


@pytest.mark.parametrize("n_bits", [1, 8, 13, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_packed_bits_are_the_table_of_ones_and_zeros(n_bits: int, dtype: torch.dtype) -> None:
    bits = bits_of(n_bits)
    packed = torch.from_numpy(np.packbits(bits, axis=1))
    table = torch.from_numpy(bits).to(dtype)
    expected = ops.embedding(IDS, table, repeat=3)
    y = ops.embedding(IDS, packed, bits=n_bits, repeat=3, dtype=dtype)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    signs = ops.embedding(IDS, packed, bits=n_bits, offset=-0.25, scale=0.5, dtype=dtype)
    assert torch.equal(signs, table[IDS] * 0.5 - 0.25)


@pytest.mark.parametrize("ids", [IDS, IDS.int()], ids=["int64", "int32"])
def test_ids_as_codes(ids: Tensor) -> None:
    digits = [[int(d) for d in f"{i:06b}"] for i in ids.flatten().tolist()]
    expected = torch.tensor(digits, dtype=torch.float32).view(2, 3, 6)
    assert torch.equal(ops.embedding(ids, None, bits=6), expected)
    lifted = ops.embedding(ids, None, bits=6, repeat=2, vocab_size=VOCABULARY)
    assert torch.equal(lifted, expected.repeat_interleave(2, -1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_codes_from_a_table_of_integers(dtype: torch.dtype) -> None:
    codes = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))[:VOCABULARY]
    y = ops.embedding(IDS, codes.to(dtype), bits=16, scale=2.0)
    assert torch.equal(y, 2 * ops.embedding(codes[IDS], None, bits=16))


def test_codes_wider_than_32_bits() -> None:
    codes = torch.tensor([1 << 39, (1 << 40) - 1, 5])
    y = ops.embedding(torch.tensor([0, 1, 2]), codes, bits=40)
    assert y.sum(1).tolist() == [1, 40, 2]
    assert y[0, 0] == 1


@pytest.mark.parametrize("debug", ["0", "1"])
def test_ids_of_more_rows_than_an_integer_can_count(
    monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    monkeypatch.setenv("FASTGROW_DEBUG", debug)
    longest = ops.embedding(torch.tensor([0, 1 << 62, 2**63 - 2]), None, bits=63)
    assert longest.sum(1).tolist() == [0, 1, 62]
    assert longest[1, 0] == 1
    # int32 ids, with more rows than int32 can count.
    short = ops.embedding(torch.tensor([0, 5], dtype=torch.int32), None, bits=33)
    assert short.sum(1).tolist() == [0, 2]


def test_half_precision_values_are_rounded_once() -> None:
    ids = torch.tensor([0, 1])
    y = ops.embedding(ids, None, bits=1, offset=1.0, scale=0.3, dtype=torch.bfloat16)
    assert torch.equal(y, torch.tensor([[1.0], [1.3]]).to(torch.bfloat16))


def test_no_ids() -> None:
    none = IDS[:0]
    assert ops.embedding(none, None, bits=6, repeat=2).shape == (0, 3, 12)
    packed = torch.zeros(5, 2, dtype=torch.uint8)
    assert ops.embedding(none, packed, bits=13).shape == (0, 3, 13)


def test_compiles_without_graph_breaks() -> None:
    packed = torch.from_numpy(np.packbits(bits_of(13), axis=1))

    def both(ids: Tensor) -> Tensor:
        own = ops.embedding(ids, None, bits=6)
        return torch.cat([own, ops.embedding(ids, packed, bits=13)], -1)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(IDS), both(IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([3, 64])}, r"ids must be in \[0, 64\), got 64 at \[1\]"),
        ({"ids": torch.tensor([-1])}, r"ids must be in \[0, 64\), got -1"),
        ({"ids": torch.tensor([60]), "vocab_size": 60}, r"ids must be in \[0, 60\), got 60"),
        (
            {"table": torch.zeros(4, 1, dtype=torch.uint8), "ids": torch.tensor([-1])},
            r"ids must be in \[0, 4\), got -1",
        ),
        ({"table": torch.zeros(4).long(), "ids": torch.tensor([4])}, r"ids must be in \[0, 4\)"),
        ({"bits": None}, "bits must be given if table is None"),
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"bits": 64}, "bits must be at most 63 for codes, got 64"),
        ({"vocab_size": 65}, r"vocab_size must be in \[1, 64\] for 6 bits, got 65"),
        ({"bits": 63, "vocab_size": 1 << 63}, r"vocab_size must be in \[1, 9223372036854775807\]"),
        (
            {"table": torch.zeros(4).long(), "vocab_size": 4},
            "vocab_size must be None if table is given, got 4",
        ),
        ({"table": torch.zeros(4, 2).byte()}, r"table must be of shape \[V, 1\] for 6 bits"),
        ({"table": torch.zeros(4, 6)}, r"table must be \[V, 1\] uint8, or \[V\] int64 or int32"),
        ({"table": torch.zeros(4, 6).byte(), "bits": None}, "table must be a floating-point"),
        (
            {"table": torch.zeros(4, 6), "bits": None, "scale": 2.0},
            "offset and scale require bits",
        ),
        (
            {"table": torch.zeros(4, 6), "bits": None, "dtype": torch.half},
            "dtype must be the table",
        ),
        ({"dtype": torch.int32}, "dtype must be a floating-point type"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments = {"ids": torch.tensor([1]), "table": None, "bits": 6}
    with pytest.raises(ArgumentError, match=f"embedding: {message}"):
        ops.embedding(**(arguments | change))
