"""Every kernel's candidates compute the same, as the tuning compares them, on small inputs.

On a GPU the tuning itself compares them, on its own.
"""

from __future__ import annotations

import pytest
import torch
from harness import INTERPRETED

from fastgrow.kernels import (
    attention_tuning,
    linear_lse_tuning,
    lora_tuning,
    mlp_tuning,
    norm_tuning,
)
from fastgrow.kernels.agreement import Reference
from fastgrow.kernels.tunable import Tunable, all_tunables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INTERPRETED, reason="inputs are small for the interpreter alone"),
]
SIZES: dict[object, dict[str, object]] = {
    attention_tuning: {"TOKENS": 1024, "WIDTH": 32},
    linear_lse_tuning: {"WIDTH": 64, "VOCABULARY": 1024, "SLICE": 512},
    lora_tuning: {"ROWS": 256},
    mlp_tuning: {"SIZES": dict.fromkeys(mlp_tuning.SIZES, (128, 256)), "ROWS": (128,)},
    norm_tuning: {"ELEMENTS": 2**14},
}
# Of several buckets of a kernel these are small.
SMALL = ("bf16/D=32/T=1024", "bf16/D=32/T=1024/N=32", "bf16/N=64", "bf16/D=256")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, sizes in SIZES.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


def tunable(kernel: str, activation: str = "") -> Tunable:  # type: ignore[type-arg]
    found = [t for t in all_tunables(90) if t.kernel == kernel and activation in t.bucket]
    return next((t for t in found if t.bucket in SMALL), found[0])


def agreed(kernel: str, activation: str = "") -> tuple[Reference, object]:
    """Compare some of a kernel's candidates; what was compared, and one more result."""
    chosen = tunable(kernel, activation)
    launch = chosen.prepare("cpu")
    reference = Reference()
    candidates = list(dict.fromkeys([chosen.default, *chosen.others]))
    # All of them take minutes.
    for configuration in (*candidates[:3], *candidates[-2:]):
        assert reference.difference(launch(configuration)) == "", configuration
    return reference, launch(chosen.default)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kernel", sorted({t.kernel for t in all_tunables(90)}))
def test_candidates_agree_and_what_is_doubled_does_not(kernel: str) -> None:
    reference, result = agreed(kernel)
    for tensor in result if isinstance(result, tuple) else (result,):
        if isinstance(tensor, torch.Tensor):
            tensor[: max(1, len(tensor) // 8)].mul_(2)
    assert reference.difference(result)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kernel", ["mlp_hidden", "mlp_hidden_kept", "mlp_d_hidden"])
def test_candidates_for_gates_agree(kernel: str) -> None:
    agreed(kernel, "swiglu")
