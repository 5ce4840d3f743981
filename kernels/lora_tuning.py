"""The LoRA kernels' tiles to choose from on a GPU (benchmarks/tuning.py says how)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastgrow.kernels.ahead import usage
from fastgrow.kernels.lora import (
    WIDTHS,
    NarrowTiles,
    backward,
    forward,
    narrow_key,
    narrow_tiles,
    product_key,
    product_tiles,
)
from fastgrow.kernels.matmul import MatmulTiles

DTYPE = torch.bfloat16
ROWS = 16384
RANK = 16

# None of these spills on sm_90.
PRODUCTS = [
    MatmulTiles(64, 128, 64, 8, 4, 4),
    MatmulTiles(64, 256, 64, 8, 4, 3),
    MatmulTiles(128, 64, 64, 8, 4, 3),
    MatmulTiles(128, 128, 32, 8, 4, 4),
    MatmulTiles(128, 128, 64, 8, 4, 4),
    MatmulTiles(128, 128, 64, 8, 8, 3),
    MatmulTiles(128, 128, 64, 8, 8, 4),
    MatmulTiles(128, 256, 64, 8, 8, 3),
    MatmulTiles(256, 128, 64, 8, 8, 3),
]
NARROW = [
    NarrowTiles(32, 128, 4, 4),
    NarrowTiles(64, 64, 4, 3),
    NarrowTiles(64, 64, 4, 4),
    NarrowTiles(64, 128, 4, 2),
    NarrowTiles(64, 128, 4, 4),
    NarrowTiles(128, 64, 4, 3),
    NarrowTiles(128, 128, 4, 2),
    NarrowTiles(128, 128, 4, 3),
    NarrowTiles(128, 128, 8, 3),
    NarrowTiles(64, 256, 8, 3),
]


def _as_candidates(
    configurations: Sequence[MatmulTiles | NarrowTiles],
) -> list[dict[str, int]]:
    return [dataclasses.asdict(tiles) for tiles in dict.fromkeys(configurations)]


@dataclass(frozen=True)
class TunableProduct:
    """The product with the frozen weight, of the forward pass or of the gradient of x."""

    kernel: str
    width: int
    capability: int

    @property
    def bucket(self) -> str:
        return product_key(DTYPE, self.width)

    @property
    def candidates(self) -> list[dict[str, int]]:
        return _as_candidates([product_tiles(DTYPE), *PRODUCTS])

    def build(self, configuration: dict[str, int]) -> dict[str, int]:
        """Compile without launching; `spills` are bytes of a thread.

        Raises:
            ValueError: it needs more shared memory than a program may use.
        """
        return usage(self._call(configuration, "meta"), "low_rank_kernel", self.capability)

    def launcher(self, configuration: dict[str, int]) -> Callable[[], object]:
        """A square layer on random tensors on the current GPU."""
        return self._call(configuration, "cuda")

    def _call(self, configuration: dict[str, int], device: str) -> Callable[[], object]:
        tiles = MatmulTiles(**configuration)
        x, weight, a, b = _layer(self.width, RANK, device)
        if self.kernel == "lora_forward":
            return lambda: forward(x, weight, a, b, None, 1.0, tiles=tiles)
        return lambda: backward(x, None, None, weight, a, b, 1.0, tiles=tiles)


@dataclass(frozen=True)
class TunableNarrow:
    """The product of all rows that a gradient of a or b is."""

    rank: int
    capability: int
    kernel: str = "lora_narrow"

    @property
    def bucket(self) -> str:
        return narrow_key(DTYPE, self.rank)

    @property
    def candidates(self) -> list[dict[str, int]]:
        return _as_candidates([narrow_tiles(DTYPE), *NARROW])

    def build(self, configuration: dict[str, int]) -> dict[str, int]:
        """Compile without launching; `spills` are bytes of a thread.

        Raises:
            ValueError: it needs more shared memory than a program may use.
        """
        return usage(self._call(configuration, "meta"), "narrow_kernel", self.capability)

    def launcher(self, configuration: dict[str, int]) -> Callable[[], object]:
        """The gradient of b on random tensors on the current GPU."""
        return self._call(configuration, "cuda")

    def _call(self, configuration: dict[str, int], device: str) -> Callable[[], object]:
        tiles = NarrowTiles(**configuration)
        dy, _, a, b = _layer(WIDTHS[0], self.rank, device)
        u = torch.randn(ROWS, self.rank, dtype=DTYPE, device=device)
        return lambda: backward(dy, None, u, None, a, b, 1.0, narrow=tiles)


def _layer(width: int, rank: int, device: str) -> list[torch.Tensor]:
    """x or dy, weight, a and b of a square layer."""
    shapes = [(ROWS, width), (width, width), (rank, width), (width, rank)]
    return [torch.randn(shape, dtype=DTYPE, device=device) for shape in shapes]


def tunables(capability: int) -> list[TunableProduct | TunableNarrow]:
    """Every kernel in every bucket that may have an entry in a table."""
    products = [
        TunableProduct(kernel, width, capability)
        for kernel in ("lora_forward", "lora_d_input")
        for width in WIDTHS
    ]
    return [*products, *(TunableNarrow(rank, capability) for rank in (16, 64))]
