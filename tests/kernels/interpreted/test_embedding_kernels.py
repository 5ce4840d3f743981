"""The lookup kernel against the eager formula, bit for bit: it computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DEVICE, INTERPRETED, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import embedding

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
VOCABULARY = 40


def tables(n_bits: int) -> dict[str, tuple[Tensor | None, dict[str, Any]]]:
    """Return a table of each kind with its options."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(256, (VOCABULARY, -(-n_bits // 8)), generator=generator).byte()
    codes = torch.randint(1 << min(n_bits, 31), (VOCABULARY,), generator=generator)
    bits = {"bits": n_bits, "offset": -1.0, "scale": 2.0}
    return {
        "float": (torch.randn(VOCABULARY, n_bits, generator=generator).to(DEVICE), {}),
        "packed": (packed.to(DEVICE), bits),
        "codes": (codes.to(DEVICE), bits),
        "int32 codes": (codes.int().to(DEVICE), bits),
        "ids": (None, bits),
    }


def ids(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, shape, generator=generator).to(DEVICE)


# On a GPU each is another compilation: every size in one dtype, every dtype in one size.
SIZES = [(13, 1, F32), (33, 64, F32), (16, 5, F16), (16, 5, F32), smoke(16, 5, BF16)]


@pytest.mark.parametrize("kind", tables(8))
@pytest.mark.parametrize(("n_bits", "repeat", "dtype"), SIZES)
def test_agrees_with_the_formula(kind: str, n_bits: int, repeat: int, dtype: torch.dtype) -> None:
    table, options = tables(n_bits)[kind]
    if kind == "float":
        assert table is not None
        table = table.to(dtype)
    else:
        options["dtype"] = dtype
    some = ids(3, 29)
    expected = embedding(some, table, repeat=repeat, impl="eager", **options)
    y = embedding(some, table, repeat=repeat, impl="triton", **options)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert torch.equal(
        embedding(some.int(), table, repeat=repeat, impl="triton", **options), expected
    )


def test_strided_tables_and_ids() -> None:
    table = torch.randn(VOCABULARY, 24, device=DEVICE)
    some = ids(6, 4).T
    for view in (table[:, 3:15], table.T.contiguous().T, table[::2]):
        inside = some % view.shape[0]
        expected = embedding(inside, view, impl="eager")
        assert torch.equal(embedding(inside, view, impl="triton"), expected)
    codes = torch.arange(2 * VOCABULARY, device=DEVICE)[::2]
    expected = embedding(some, codes, bits=7, impl="eager")
    assert torch.equal(embedding(some, codes, bits=7, impl="triton"), expected)


@pytest.mark.parametrize("kind", tables(8))
def test_ids_out_of_range_are_clamped(kind: str) -> None:
    """The host does not check them; no memory outside the table may be accessed."""
    table, options = tables(6)[kind]
    if table is None:
        options["vocab_size"] = VOCABULARY
    far = torch.tensor([-5, 10**9, VOCABULARY], device=DEVICE)
    near = torch.tensor([0, VOCABULARY - 1, VOCABULARY - 1], device=DEVICE)
    y = embedding(far, table, repeat=2, impl="triton", **options)
    assert torch.equal(y, embedding(near, table, repeat=2, impl="triton", **options))


def test_debugging_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGROW_DEBUG", "1")
    with pytest.raises(ArgumentError, match=r"ids must be in \[0, 64\), got 64 at \[0\]"):
        embedding(torch.tensor([64], device=DEVICE), None, bits=6, impl="triton")


def test_no_ids_and_a_single_one() -> None:
    table, options = tables(13)["packed"]
    assert embedding(ids(0, 3), table, repeat=2, impl="triton", **options).shape == (0, 3, 26)
    assert embedding(ids(1)[0], table, impl="triton", **options).shape == (13,)


def test_what_the_kernel_does_not_serve_is_refused_with_the_reason() -> None:
    table = torch.randn(5, 4, device=DEVICE, requires_grad=True)
    one = torch.tensor([1], device=DEVICE)
    with pytest.raises(ConfigError, match="the table requires a gradient"):
        embedding(one, table, repeat=2, impl="triton")
    with torch.no_grad():
        assert not embedding(one, table, repeat=2, impl="triton").requires_grad
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        embedding(one, None, bits=3, dtype=torch.float64, impl="triton")


def test_registration_passes_opcheck() -> None:
    lookup = torch.ops.fastgrow.embedding_lookup.default
    for table, options in tables(13).values():
        bits = options.get("bits")
        opcheck(lookup, (ids(2, 3), table, VOCABULARY, 2, bits, -1.0, 1.0, F32))


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    table, options = tables(13)["packed"]
    compiled = torch.compile(
        lambda some: embedding(some, table, repeat=2, impl="triton", **options),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for n in (5, 9):
        expected = embedding(ids(3, n), table, repeat=2, impl="triton", **options)
        assert torch.equal(compiled(ids(3, n)), expected)
    assert graphs == 1


@pytest.mark.skipif(not INTERPRETED, reason="the table lies in a sparse file")
def test_offsets_past_two_to_the_31(tmp_path: Path) -> None:
    # A sparse file uses disk space only for what is written to it.
    size = (1 << 31) + 64
    storage = torch.from_file(str(tmp_path / "far"), shared=True, size=size, dtype=torch.uint8)
    table = storage.view(-1, 2)
    last = table.shape[0] - 1
    table[last] = torch.tensor([0b10110000, 0b10000000])
    far = torch.tensor([last, 0])
    y = embedding(far, table, bits=9, impl="triton")
    assert y.tolist() == [[1, 0, 1, 1, 0, 0, 0, 0, 1], [0] * 9]


@pytest.mark.skipif(not INTERPRETED, reason="the result lies in a sparse file")
def test_results_past_two_to_the_31(tmp_path: Path) -> None:
    from fastgrow.kernels.embedding import lookup_kernel

    wide = 1 << 30
    storage = torch.from_file(str(tmp_path / "far"), shared=True, size=2 * wide + 64, dtype=F16)
    # Of the result's three rows this program has the first features.
    lookup_kernel[1, 1](
        torch.tensor([5, 0, 3]), None, storage, 0, 3, 8, wide, 0.0, 1.0,
        BITS=3, REPEAT=2, PACKED=False, BLOCK_N=4, BLOCK_D=4,
    )  # fmt: skip
    assert storage.as_strided((3, 4), (wide, 1)).tolist() == [[1, 1, 0, 0], [0] * 4, [0, 0, 1, 1]]


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_runs_in_a_cuda_graph() -> None:
    table, options = tables(13)["packed"]
    some = ids(64)
    embedding(some, table, impl="triton", **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = embedding(some, table, impl="triton", **options)
    some.fill_(3)
    graph.replay()
    assert torch.equal(captured, embedding(some, table, impl="triton", **options))
