"""The rotation in one pass against the formula: forward, gradient, gradient of the gradient."""

from __future__ import annotations

import pytest
import torch
from harness import DEVICE, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow import ops
from fastgrow.errors import ConfigError

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
POSITIONS = 60
IDS = {
    "from 0": None,
    "shared": (37,),
    "of one row": (1, 37),
    "of each row": (2, 37),
}


def table(dim: int) -> ops.RopeTable:
    return ops.rope_table(POSITIONS, dim, device=DEVICE)


def random(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def ids_of(kind: str) -> Tensor | None:
    shape = IDS[kind]
    return None if shape is None else torch.randint(POSITIONS, shape).to(DEVICE)


# On a GPU each is another compilation: every size in bf16, every dtype in one size.
SIZES = [smoke(32, 32, BF16), (24, 16, BF16), (13, 8, BF16)]
SIZES += [pytest.param(32, 32, dtype, marks=pytest.mark.slow) for dtype in (F32, F16)]


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize(("dim", "rotated", "dtype"), SIZES)
def test_agrees_with_the_formula(kind: str, dim: int, rotated: int, dtype: torch.dtype) -> None:
    # The layout of projections.
    x = random(2, 37, 3, dim, dtype=dtype).transpose(1, 2).requires_grad_()
    ids, rope = ids_of(kind), table(rotated)
    offset = 0 if ids is not None else POSITIONS - 37
    results = {}
    for impl, tensor in (("triton", x), ("eager", x), ("truth", x.detach().double())):
        leaf = tensor.detach().requires_grad_()
        wanted = rope if impl != "truth" else (rope[0].double(), rope[1].double())
        y = ops.rope(leaf, wanted, ids, offset=offset, impl="eager" if impl == "truth" else impl)
        (d_x,) = torch.autograd.grad(y.float().square().sum(), leaf)
        results[impl] = (y.detach(), d_x)
    for name, result, eager, truth in zip(
        ("y", "d x"), results["triton"], results["eager"], results["truth"], strict=True
    ):
        assert_accurate(name, result, eager, truth.double())


def test_one_token_and_none() -> None:
    x = random(2, 3, 1, 16)
    rope = table(16)
    expected = ops.rope(x, rope, offset=41, impl="eager")
    torch.testing.assert_close(ops.rope(x, rope, offset=41, impl="triton"), expected)
    assert ops.rope(x[:, :, :0], rope, impl="triton").shape == (2, 3, 0, 16)


def test_what_is_not_rotated_stays_as_it_is() -> None:
    x = random(1, 2, 5, 16)
    x[..., 8] = float("inf")
    y = ops.rope(x, table(8), impl="triton")
    assert torch.equal(y[..., 8:], x[..., 8:])
    assert y.transpose(1, 2).is_contiguous()
    assert y[..., :8].isfinite().all()


def test_gradients_of_gradients() -> None:
    x, rope = random(1, 2, 5, 8).requires_grad_(), table(8)
    found = []
    for impl in ("triton", "eager"):
        y = ops.rope(x, rope, offset=3, impl=impl)
        (d_x,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(d_x.pow(2).sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_registration() -> None:
    x = random(2, 3, 5, 8)
    arguments = (x, *table(8), None, 3, False)
    opcheck(torch.ops.fastgrow.rope, arguments)
    compiled = torch.compile(
        lambda x, offset: ops.rope(x, table(8), offset=offset, impl="triton"),
        fullgraph=True,
        backend="aot_eager",
    )
    for offset in (3, 4, 5):
        y = ops.rope(x, table(8), offset=offset, impl="triton")
        assert torch.equal(compiled(x, offset), y)


def test_attention_of_a_library_rotates_with_it() -> None:
    x = random(1, 2, 20, 16).requires_grad_()
    rope = table(16)
    with ops.use_impl("rope=triton,attention=sdpa"):
        y = ops.attention(x, x, x, rope=rope)
    torch.testing.assert_close(y, ops.attention(x, x, x, rope=rope, impl="eager"))
    names = set()
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [before for before, _ in node.next_functions if before is not None]
    assert "_RopeBackward" in names


def test_what_it_does_not_serve() -> None:
    with pytest.raises(ConfigError, match="it supports float32, bfloat16 or float16"):
        ops.rope(random(1, 1, 2, 8).double(), table(8), impl="triton")
    with pytest.raises(ConfigError, match="head dimensions up to 512, not 520"):
        ops.rope(random(1, 1, 2, 520), table(8), impl="triton")
