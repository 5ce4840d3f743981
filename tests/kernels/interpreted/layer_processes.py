"""Two gloo processes on this machine that train one layer and write their results to disk."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from layers import LAYERS, Layer, batch, gradients, loss_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

PROCESSES = 2


def replicated(operation: str, rank: int) -> dict[str, Tensor]:
    """The gradients under DistributedDataParallel, with different rows in each process."""
    layer = Layer(operation)
    replica = DistributedDataParallel(layer)
    loss_of(replica(batch().chunk(PROCESSES)[rank])).backward()
    return gradients(layer)


def sharded(operation: str, rank: int) -> dict[str, Tensor]:
    """The gradients under FSDP2, gathered."""
    layer = fully_shard(Layer(operation), mesh=init_device_mesh("cpu", (PROCESSES,)))
    loss_of(layer(batch().chunk(PROCESSES)[rank])).backward()
    found = {}
    for name, parameter in layer.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is not sharded"
        if parameter.grad is not None:
            found[name] = parameter.grad.full_tensor()
    return found


def run(rank: int, folder: Path) -> None:
    """One of the processes; writes `<rank>.pt` into the folder."""
    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    results = {op: {"ddp": replicated(op, rank), "fsdp": sharded(op, rank)} for op in LAYERS}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
