"""Train one growing decoder in two gloo processes, and write the results to disk."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from growing_model import batch, descend, gradients, growing_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastgrow.nn import Decoder

PROCESSES = 2
STEPS = 2


def own_rows(rank: int) -> tuple[Tensor, Tensor]:
    """The rows of the batch that a process reads."""
    ids, targets = batch()
    return ids.chunk(PROCESSES)[rank], targets.chunk(PROCESSES)[rank]


class Loss(nn.Module):
    """A module whose forward is the loss, for DistributedDataParallel."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(ids, targets)


def replicated_gradients(rank: int) -> dict[str, Tensor]:
    """The gradients under DistributedDataParallel, by the decoder's names."""
    model = growing_model()
    replica = DistributedDataParallel(Loss(model))
    replica(*own_rows(rank)).backward()
    return gradients(model)


def sharded_training(rank: int) -> dict[str, Tensor]:
    """The weights after training under FSDP2, gathered."""
    model = growing_model()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    for _ in range(STEPS):
        model.zero_grad()
        model.loss(*own_rows(rank)).backward()
        descend(model)
    weights = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is not sharded"
        weights[name] = parameter.full_tensor().detach()
    return weights


def run(rank: int, folder: Path) -> None:
    """Run one of the processes, which writes `<rank>.pt` to the folder."""
    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    results = {"ddp": replicated_gradients(rank), "fsdp": sharded_training(rank)}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
