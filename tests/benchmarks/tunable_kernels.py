"""A fake module of kernels with tunables; nothing here is compiled or launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CANDIDATES = [{"block": 16}, {"block": 32}, {"block": 64}, {"block": 128}]
# The assumed cost of launching a candidate in milliseconds: the timed call returns it.
COSTS = {16: 3.0, 32: 2.0, 64: 0.5, 128: 4.0}


@dataclass
class FakeKernel:
    """A fake tunable; `alike` is equal for those that compile to the same code."""

    kernel: str
    bucket: str
    capability: int
    candidates: Sequence[dict[str, int]]
    rank: int = 1
    alike: str = "any"
    digest: str = "0123456789abcdef"

    def codes(self, configuration: dict[str, int] | None) -> list[str]:
        block = "inputs" if configuration is None else configuration["block"]
        return [f"{self.alike} {block}"]

    def build(
        self, configuration: dict[str, int] | None, only: str | None = None
    ) -> dict[str, int]:
        assert only in self.codes(configuration)
        if configuration is None:
            return {"spills": 0, "shared": 0}
        if configuration["block"] == 128:
            raise RuntimeError("out of shared memory")
        # The fastest one spills, so it must not win.
        return {"spills": 8 if configuration["block"] == 64 else 0, "shared": self.capability}

    def launcher(self) -> Callable[[dict[str, int]], object]:
        return lambda configuration: COSTS[configuration["block"]]


def tunables(capability: int) -> list[FakeKernel]:
    """Return tunables; that of the lowest rank is last, and two compile to the same code."""
    buckets = [("bf16/D=64", 2, "D=64"), ("bf16/D=128", 3, "D=64"), ("bf16/D=32", 0, "D=32")]
    return [
        FakeKernel("attention_forward", bucket, capability, CANDIDATES, rank, alike)
        for bucket, rank, alike in buckets
    ]
