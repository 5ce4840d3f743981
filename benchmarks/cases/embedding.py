"""Lookup in a frozen table, expanded to the model's width; its aim is memory, not speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import embedding

LIFT = 4


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, V, d = shape["N"], shape["V"], shape["d"]
    device = generator.device
    return {
        "ids": torch.randint(V, (N,), device=device, generator=generator),
        "table": torch.randn(V, d // LIFT, dtype=dtype, device=device, generator=generator),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return embedding(inputs["ids"], inputs["table"], repeat=LIFT, impl=impl)


def _lookup_then_expand(inputs: Inputs) -> Tensor:
    rows = F.embedding(inputs["ids"], inputs["table"])
    return rows.unsqueeze(-1).expand(*rows.shape, LIFT).reshape(rows.shape[0], -1)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    N, d = shape["N"], shape["d"]
    return Work(bytes=N * (d + d // LIFT) * itemsize)


FAMILY = Family(
    op="embedding",
    grids={
        "tiny": [{"N": 32, "V": 64, "d": 16}],
        "cpu": [{"N": 4096, "V": 16384, "d": 256}],
        "gpu": [{"N": 16384, "V": 65536, "d": 1024}],
    },
    inputs=_inputs,
    call=_call,
    libraries=lambda case: {"lookup + expand": _lookup_then_expand},
    work=_work,
)


def _packed_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, V, bits = shape["N"], shape["V"], shape["bits"]
    device = generator.device
    packed = torch.randint(256, (V, bits // 8), device=device, generator=generator).byte()
    places = torch.arange(7, -1, -1, device=device)
    return {
        "ids": torch.randint(V, (N,), device=device, generator=generator),
        "packed": packed,
        # The table for a library's lookup: 32 times the memory in fp32.
        "floats": (packed[..., None] >> places & 1).flatten(1).to(dtype),
        "repeat": shape["d"] // bits,
    }


def _packed_call(inputs: Inputs, impl: str | None) -> Tensor:
    return embedding(
        inputs["ids"],
        inputs["packed"],
        bits=8 * inputs["packed"].shape[1],
        repeat=inputs["repeat"],
        dtype=inputs["floats"].dtype,
        impl=impl,
    )


def _codes_call(inputs: Inputs, impl: str | None) -> Tensor:
    return embedding(
        inputs["ids"],
        None,
        bits=inputs["bits"],
        repeat=inputs["repeat"],
        vocab_size=inputs["floats"].shape[0],
        dtype=inputs["floats"].dtype,
        impl=impl,
    )


def _codes_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, V, bits = shape["N"], shape["V"], shape["bits"]
    device = generator.device
    places = torch.arange(bits - 1, -1, -1, device=device)
    return {
        "ids": torch.randint(V, (N,), device=device, generator=generator),
        "floats": (torch.arange(V, device=device)[:, None] >> places & 1).to(dtype),
        "bits": bits,
        "repeat": shape["d"] // bits,
    }


def _lookup_of_floats(inputs: Inputs) -> Tensor:
    rows = F.embedding(inputs["ids"], inputs["floats"])
    return rows.repeat_interleave(inputs["repeat"], dim=-1)


def _written(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(bytes=shape["N"] * (shape["d"] * itemsize + shape["bits"] // 8))


PACKED = Family(
    op="embedding",
    variant="bits",
    grids={
        "tiny": [{"N": 32, "V": 64, "bits": 16, "d": 32}],
        "cpu": [{"N": 4096, "V": 16384, "bits": 64, "d": 256}],
        "gpu": [
            {"N": 16384, "V": 65536, "bits": 1024, "d": 1024},
            {"N": 16384, "V": 65536, "bits": 64, "d": 1024},
        ],
    },
    inputs=_packed_inputs,
    call=_packed_call,
    libraries=lambda case: {"lookup of floats": _lookup_of_floats},
    work=_written,
)

CODES = Family(
    op="embedding",
    variant="codes",
    grids={
        "tiny": [{"N": 32, "V": 64, "bits": 8, "d": 32}],
        "cpu": [{"N": 4096, "V": 16384, "bits": 16, "d": 256}],
        "gpu": [{"N": 16384, "V": 65536, "bits": 16, "d": 1024}],
    },
    inputs=_codes_inputs,
    call=_codes_call,
    libraries=lambda case: {"lookup of floats": _lookup_of_floats},
    work=_written,
)
