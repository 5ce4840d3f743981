"""A growing decoder on two processes, where most parameters are frozen: DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path

import parallel_steps
import pytest
import torch
from growing_model import batch, descend, gradients, growing_model
from torch import Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]

FROZEN = ("blocks.0.", "blocks.1.")
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(parallel_steps.run, (folder,), nprocs=parallel_steps.PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(parallel_steps.PROCESSES)]


def test_replicas_average_their_gradients(results: list[Results]) -> None:
    own = []
    for rank in range(parallel_steps.PROCESSES):
        model = growing_model()
        model.loss(*parallel_steps.own_rows(rank)).backward()
        own.append(gradients(model))
    for result in results:
        assert list(result["ddp"]) == list(own[0])
        assert not any(name.startswith(FROZEN) for name in result["ddp"])
        for name, gradient in result["ddp"].items():
            mean = torch.stack([g[name] for g in own]).mean(0)
            assert not torch.allclose(mean, own[0][name], rtol=1e-3), name
            # Sums over a few dozen rows in a different order: units of 2^-24 of the largest.
            atol = 1e-5 * float(mean.abs().max())
            torch.testing.assert_close(gradient, mean, rtol=1e-5, atol=atol, msg=name)


def test_shards_train_as_one_process_does(results: list[Results]) -> None:
    start, alone = growing_model(), growing_model()
    for _ in range(parallel_steps.STEPS):
        alone.zero_grad()
        alone.loss(*batch()).backward()
        descend(alone)
    before = dict(start.named_parameters())
    for result in results:
        assert list(result["fsdp"]) == list(before)
        for name, parameter in alone.named_parameters():
            sharded = result["fsdp"][name]
            if name.startswith(FROZEN):
                assert torch.equal(sharded, before[name]), name
                continue
            change, expected = sharded - before[name], parameter - before[name]
            assert expected.abs().max() > 1e-5, name
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
