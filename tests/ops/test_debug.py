"""FASTGROW_DEBUG=1 checks the values of integer arguments; without it they are not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.ops.core.checks import run_in_range

TOKENS = 8


def attend(batch: int = 1, positions: int = TOKENS, **arguments: Any) -> Tensor:
    q = torch.zeros(batch, 2, TOKENS, 16)
    return ops.attention(q, q, q, rope=ops.rope_table(positions, 16), impl="eager", **arguments)


def attend_documents(*bounds: int) -> Tensor:
    return attend(cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


def attend_positions(*positions: int) -> Tensor:
    return attend(position_ids=torch.tensor(positions))


def attend_rows(argument: str, *rows: int) -> Tensor:
    values: dict[str, Any] = {argument: torch.tensor(rows, dtype=torch.int32)}
    return attend(batch=2, **values)


def rotate(*positions: int) -> Tensor:
    x = torch.zeros(1, 2, len(positions), 16)
    return ops.rope(x, ops.rope_table(TOKENS, 16), torch.tensor([positions]))


def loss(*targets: int) -> Tensor:
    h, weight = torch.zeros(len(targets), 16), torch.zeros(5, 16)
    return ops.linear_cross_entropy(h, weight, torch.tensor(targets), ignore_index=-1, impl="eager")


def embed(*ids: int) -> Tensor:
    return ops.embedding(torch.tensor(ids), torch.zeros(5, 4))


@pytest.fixture
def _debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGROW_DEBUG", "1")


@pytest.mark.usefixtures("_debug")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend_documents(1, 8), "attention: cu_seqlens must be 0 at [0], got 1"),
        (
            lambda: attend_documents(0, 5, 3, 8),
            "attention: cu_seqlens must be non-decreasing, got 3 at [2] after 5",
        ),
        (
            lambda: attend_documents(0, 5, 7),
            "attention: cu_seqlens must be 8 (number of tokens) at its end, got 7 at [2]",
        ),
        (lambda: attend_documents(0, 9), "at its end, got 9 at [1]"),
        (
            lambda: attend_positions(0, 1, 2, 3, 4, 5, 6, 8),
            "attention: position_ids must be in [0, 8), got 8 at [7]",
        ),
        (
            lambda: attend_positions(0, 1, 2, -1, 4, 5, 6, 7),
            "attention: position_ids must be in [0, 8), got -1 at [3]",
        ),
        (
            lambda: attend_rows("lengths", 8, 0),
            "attention: lengths must be in [1, 9), got 0 at [1]",
        ),
        (
            lambda: attend_rows("lengths", 9, 1),
            "attention: lengths must be in [1, 9), got 9 at [0]",
        ),
        (
            lambda: attend_rows("starts", 0, -1),
            "attention: starts must be in [0, 9), got -1 at [1]",
        ),
        (lambda: attend_rows("starts", 9, 0), "attention: starts must be in [0, 9), got 9 at [0]"),
        (lambda: rotate(0, 8), "rope: position_ids must be in [0, 8), got 8 at [0, 1]"),
        (lambda: loss(4, 5), "linear_cross_entropy: targets must be in [0, 5), got 5 at [1]"),
        (lambda: loss(-2, 4), "linear_cross_entropy: targets must be in [0, 5), got -2 at [0]"),
        (lambda: embed(0, 5), "embedding: ids must be in [0, 5), got 5 at [1]"),
    ],
)
def test_values_out_of_range_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.usefixtures("_debug")
@pytest.mark.parametrize(
    "call",
    [
        lambda: attend_documents(0, 3, 3, 8),
        lambda: attend_positions(0, 1, 2, 0, 1, 2, 7, 7),
        lambda: attend_rows("lengths", 1, 8),
        lambda: attend_rows("starts", 0, 8),
        lambda: rotate(7, 0),
        lambda: loss(0, -1, 4),
        lambda: embed(0, 4),
    ],
)
def test_values_in_range_pass(call: Callable[[], Tensor]) -> None:
    assert torch.isfinite(call()).all()


def test_values_are_not_read_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Callable[[], Tensor]] = [
        lambda: attend(cu_seqlens=torch.zeros(3, dtype=torch.int32)),
        lambda: attend(position_ids=torch.zeros(TOKENS, dtype=torch.int64)),
        lambda: attend(batch=2, lengths=torch.ones(2, dtype=torch.int32)),
        lambda: attend(batch=2, starts=torch.zeros(2, dtype=torch.int32)),
        lambda: ops.embedding(torch.zeros(2, dtype=torch.int64), torch.zeros(5, 4)),
        lambda: ops.linear_cross_entropy(
            torch.zeros(2, 16), torch.zeros(5, 16), torch.zeros(2, dtype=torch.int64), impl="eager"
        ),
    ]
    for value in (None, "0", ""):
        if value is None:
            monkeypatch.delenv("FASTGROW_DEBUG", raising=False)
        else:
            monkeypatch.setenv("FASTGROW_DEBUG", value)
        # A fake tensor has no values: reading them raises.
        with FakeTensorMode():
            for call in calls:
                call()
    monkeypatch.setenv("FASTGROW_DEBUG", "1")
    for call in calls:
        with FakeTensorMode(), pytest.raises(DataDependentOutputException):
            call()


@pytest.mark.usefixtures("_debug")
def test_compiled_graphs_and_meta_tensors_are_not_checked() -> None:
    def f(ids: Tensor, table: Tensor) -> Tensor:
        return ops.embedding(ids, table)

    ids, table = torch.tensor([0, 4]), torch.zeros(5, 4)
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, table), f(ids, table))
    assert f(ids.to("meta"), table.to("meta")).shape == (2, 4)


@pytest.mark.parametrize("error", [IndexError, RuntimeError])
def test_an_error_of_values_in_range_is_passed_on(error: type[Exception]) -> None:
    def run() -> None:
        raise error("something else")

    with pytest.raises(error, match="something else"):
        run_in_range(run, "lookup", "ids", torch.tensor([0, 3]), 4)
    with pytest.raises(ArgumentError, match=r"lookup: ids must be in \[0, 3\), got 3 at \[1\]"):
        run_in_range(run, "lookup", "ids", torch.tensor([0, 3]), 3)
