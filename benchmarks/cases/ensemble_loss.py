"""The loss of K heads' averaged logits, without gradients, and the matrix products in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Family, Inputs, Output, Run, Shape, Work, Yardstick
from fastgrow.kernels.calls import LseCall
from fastgrow.ops.heads import chunked, linear_cross_entropy
from fastgrow.ops.heads.heads import targets_in

CHUNK_ELEMENTS = 1 << 23  # logits of a chunk of rows, 32 MB in float32


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    K, N, d, V = (shape[name] for name in "KNdV")

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "h": [random(N, d) for _ in range(K)],
        "weight": [random(V, d) * d**-0.5 for _ in range(K)],
        "targets": torch.randint(V, (N,), device=generator.device, generator=generator),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return linear_cross_entropy(inputs["h"], inputs["weight"], inputs["targets"], impl=impl)


def _scaled(inputs: Inputs) -> list[Tensor]:
    return [h / len(inputs["h"]) for h in inputs["h"]]


def _chunk_loop(inputs: Inputs) -> Tensor:
    """Compute all logits of some rows at a time, as written by hand."""
    hidden, weights, targets = _scaled(inputs), inputs["weight"], inputs["targets"]
    size = max(1, CHUNK_ELEMENTS // weights[0].shape[0])
    losses = []
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        z = hidden[0][rows] @ weights[0].T
        for h, weight in zip(hidden[1:], weights[1:], strict=True):
            z.addmm_(h[rows], weight.T)
        losses.append(F.cross_entropy(z, targets[rows], reduction="sum"))
    return torch.stack(losses).sum() / len(targets)


def _tile_loop(inputs: Inputs) -> Tensor:
    """Loop over fastgrow's tiles with torch's log-sum-exp."""
    targets = inputs["targets"]
    parts, logit = [], torch.zeros_like(inputs["h"][0][:, 0])
    call = LseCall(_scaled(inputs), inputs["weight"], None, targets)
    for rows, columns, z, _ in chunked.tiles(call):
        here, index = targets_in(targets[rows], columns)
        logit[rows] += torch.where(here, z.gather(1, index).squeeze(1), 0)
        parts.append((rows, z.logsumexp(1)))
    starts = sorted({rows.start for rows, _ in parts})
    lse = [torch.stack([x for rows, x in parts if rows.start == s]).logsumexp(0) for s in starts]
    return (torch.cat(lse) - logit).mean()


def _products(inputs: Inputs) -> Output:
    call = LseCall(_scaled(inputs), inputs["weight"], None, inputs["targets"])
    for _, _, z, _ in chunked.tiles(call):
        last = z
    return last


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(flops=2.0 * shape["K"] * shape["N"] * shape["d"] * shape["V"])


def _libraries(case: Case) -> dict[str, Run]:
    return {"chunk loop": _chunk_loop, "loop over our tiles": _tile_loop}


def _yardsticks(case: Case) -> dict[str, Yardstick]:
    return {"bare products": Yardstick(_products, _work(case.shape, 0, case.pass_))}


FAMILY = Family(
    op="linear_cross_entropy",
    variant="ensemble",
    grids={
        "tiny": [{"K": 2, "N": 32, "d": 16, "V": 128}],
        "cpu": [{"K": 4, "N": 2048, "d": 256, "V": 65536}],
        "gpu": [{"K": 4, "N": 8192, "d": 1024, "V": 65536}],
    },
    inputs=_inputs,
    call=_call,
    libraries=_libraries,
    yardsticks=_yardsticks,
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 128), "V": min(shape["V"], 8192)},
)
