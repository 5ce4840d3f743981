"""Whether configurations of a kernel compute the same.

They add the same terms in another order, and round what they multiply at other places on the way.
So an element x of a result may differ from the one expected, y, by

    (4 ε + 2⁻¹⁴) · (|y| + RMS of y's row + RMS of all y)

with ε the spacing of numbers above 1 in the coarsest dtype of the results, or in TF32 where fp32
products may be made in it. Storing x costs half of ε · |y| on either side; what is rounded before
it is added costs at most as much of the row's terms, whose sum may be next to nothing; and rows may
consist of rounding errors alone, as the gradient of a first query does, which sees one key. 2⁻¹⁴
is for sums in fp32 of thousands of terms, whatever the dtype. A tile that is left out, added twice
or read from beside its place is off by about the RMS itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgrow.kernels.common import dot_precision

ROUNDINGS, OF_SUMS = 4, 2**-14
TF32_EPSILON = 2**-10
# Elements compared at a time, so that their copies in fp32 take less than the results themselves.
PART = 1 << 24


class Reference:
    """What one launch computed, with which others on the same inputs are compared."""

    def __init__(self) -> None:
        self._expected: list[Tensor] | None = None

    def difference(self, result: object) -> str:
        """How the tensors of a result differ from the first one's; empty where they do not.

        They are filled with NaN afterwards: the next launch may get the same memory, and what it
        leaves there untouched must not pass for its own result.
        """
        found = list(_tensors_of(result))
        expected = self._expected
        if expected is None:
            expected = [tensor.clone() for tensor in found]
        # It waits for the launch, which may not come to its end.
        said = _difference(found, expected)
        self._expected = expected
        for tensor in found:
            tensor.fill_(float("nan"))
        return said


def _tensors_of(result: object) -> Iterator[Tensor]:
    """Those of floating point in nested tuples and lists, which may hold None too."""
    if isinstance(result, Tensor) and result.is_floating_point():
        yield result
    elif isinstance(result, tuple | list):
        for member in result:
            yield from _tensors_of(member)


def _difference(found: list[Tensor], expected: list[Tensor]) -> str:
    kinds, wanted = ([(tuple(t.shape), t.dtype) for t in of] for of in (found, expected))
    if kinds != wanted:
        return f"{kinds} instead of {wanted}"
    precisions = (
        TF32_EPSILON if dot_precision(y.dtype) == "tf32" else torch.finfo(y.dtype).eps
        for y in expected
    )
    tolerance = ROUNDINGS * max(precisions, default=0.0) + OF_SUMS
    said = []
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        off = _count_off(torch.atleast_1d(x), torch.atleast_1d(y), tolerance)
        if off:
            said.append(f"{off} of {y.numel()} elements of result {i}")
    return ", ".join(said)


def _count_off(x: Tensor, y: Tensor, tolerance: float) -> int:
    """Elements beyond the tolerance; of those where y is not finite nothing is said."""
    if y.numel() == 0:
        return 0
    of_all = torch.linalg.vector_norm(_finite(y), dtype=torch.float32) / y.numel() ** 0.5
    length = max(1, PART // y[0].numel())
    counts = [
        _off(part, of_part, tolerance, of_all).sum()
        for part, of_part in zip(x.split(length), y.split(length), strict=True)
    ]
    return int(torch.stack(counts).sum())


def _off(x: Tensor, y: Tensor, tolerance: float, of_all: Tensor) -> Tensor:
    is_known, y = y.isfinite(), _finite(y).float()
    scale = y.abs() + y.square().mean(-1, keepdim=True).sqrt() + of_all
    # NaN is within no tolerance.
    return is_known & ~((x.float() - y).abs() <= tolerance * scale)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0, 0.0, 0.0)
