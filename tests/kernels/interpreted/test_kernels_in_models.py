"""Every operation's kernels under torch's own machinery, between frozen and tied weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import layer_processes
import pytest
import torch
from harness import DEVICE, INTERPRETED
from layers import LAYERS, Layer, batch, gradients, loss_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

pytestmark = pytest.mark.parametrize("operation", LAYERS)


def trained(layer: Layer, x: Tensor) -> dict[str, Tensor]:
    loss_of(layer(x)).backward()
    return gradients(layer)


def test_weights_that_are_shared_get_the_sum_of_gradients(operation: str) -> None:
    apart = trained(Layer(operation, tied=False), batch())
    tied = trained(Layer(operation), batch())
    assert set(tied) == {"first.weight", "first.bias"}
    for name, gradient in tied.items():
        other = apart[name.replace("first", "second")]
        assert other.abs().max() > 1e-3 * gradient.abs().max(), name
        torch.testing.assert_close(gradient, apart[name] + other, rtol=1e-5, atol=1e-7)


def test_the_same_bits_twice_where_torch_is_deterministic(operation: str) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    once, twice = (trained(Layer(operation), batch()) for _ in range(2))
    assert all(torch.equal(gradient, twice[name]) for name, gradient in once.items())


class Calls(TorchDispatchMode):
    """Return the fastgrow operators that run inside the call."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[Any] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op.namespace == "fastgrow":
            self.of.append(op)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("save_own", [True, False])
def test_selective_checkpointing(operation: str, save_own: bool) -> None:
    """Our operators are saved or computed again as a policy says; the gradients are the same."""
    save, again = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return save if save_own and op.namespace == "fastgrow" else again

    layer = Layer(operation)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with Calls() as forward:
        y = checkpoint(layer, batch(), use_reentrant=False, context_fn=contexts)
    with Calls() as backward:
        loss_of(y).backward()
    repeated = [op for op in backward.of if op in forward.of]
    assert forward.of
    assert repeated == ([] if save_own else forward.of)
    expected = trained(Layer(operation), batch())
    assert all(torch.equal(g, expected[name]) for name, g in gradients(layer).items())


def test_autocast(operation: str) -> None:
    exact, layer = trained(Layer(operation), batch()), Layer(operation)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = layer(batch())
    assert y.dtype == torch.bfloat16
    loss_of(y).backward()
    for name, gradient in gradients(layer).items():
        assert gradient.dtype == torch.float32
        error = (gradient - exact[name]).square().mean().sqrt()
        # Activations and their gradients are rounded some ten times on the way, to 2⁻⁹ each.
        assert error < 10 * 2**-9 * exact[name].square().mean().sqrt(), name


def test_export(operation: str) -> None:
    layer = Layer(operation).eval()
    program = torch.export.export(layer, (batch(),), strict=False)
    assert any("fastgrow" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(batch()), layer(batch()))


def test_compiles_whole(operation: str) -> None:
    torch.compiler.reset()
    layer, expected = Layer(operation), trained(Layer(operation), batch())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    loss_of(compiled(batch())).backward()
    torch.testing.assert_close(gradients(layer), expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    if not (INTERPRETED and torch.distributed.is_available()):
        pytest.skip("two processes share the interpreter's CPU by gloo")
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(layer_processes.run, (folder,), nprocs=layer_processes.PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(layer_processes.PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("machinery", ["ddp", "fsdp"])
def test_processes_average_their_gradients(
    operation: str, machinery: str, processes: list[Any]
) -> None:
    own = [trained(Layer(operation), x) for x in batch().chunk(layer_processes.PROCESSES)]
    for result in processes:
        found = result[operation][machinery]
        assert set(found) == set(own[0]), "frozen weights have no gradient, others have"
        for name, gradient in found.items():
            mean = (own[0][name] + own[1][name]) / 2
            assert not torch.allclose(mean, own[0][name], rtol=1e-3), name
            # Sums over rows in a different order: units of 2^-24 of the largest.
            torch.testing.assert_close(
                gradient, mean, rtol=1e-5, atol=1e-5 * float(mean.abs().max())
            )
