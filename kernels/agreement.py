"""Check that configurations of a kernel compute the same result.

Configurations add the same terms in another order and round intermediate values at other places.
So an element x of a result may differ from the expected element y by

    (4 ε + 2⁻¹⁴) · (|y| + RMS of y's row + RMS of all y)

where ε is the spacing of numbers above 1 in the coarsest dtype of the results, or in TF32 if fp32
products may use it. Storing x adds an error of at most ε · |y| / 2 on each side. Rounding terms
before they are added costs at most as much relative to the row's terms, whose sum may be almost
zero. Rows may consist only of rounding errors, such as the gradient of a first query, which sees
one key. 2⁻¹⁴ covers fp32 sums of thousands of terms, for every dtype. A tile that is left out,
added twice or read from a wrong address causes an error of about the RMS itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgrow.kernels.common import dot_precision

ROUNDINGS, OF_SUMS = 4, 2**-14
TF32_EPSILON = 2**-10
# Elements compared at a time, so that their fp32 copies need less memory than the results.
PART = 1 << 24


class Reference:
    """The result of one launch, with which other launches on the same inputs are compared."""

    def __init__(self) -> None:
        self._expected: list[Tensor] | None = None

    def difference(self, result: object) -> str:
        """Describe how the tensors of a result differ from the first result; empty if they agree.

        The tensors are filled with NaN afterwards: the next launch may get the same memory, and
        elements that it does not write must not be accepted as its result.
        """
        found = list(_tensors_of(result))
        expected = self._expected
        if expected is None:
            expected = [tensor.clone() for tensor in found]
        # This waits for the launch, which may fail or hang.
        difference = _difference(found, expected)
        self._expected = expected
        for tensor in found:
            tensor.fill_(float("nan"))
        return difference


def _tensors_of(result: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested tuples and lists; other members are skipped."""
    if isinstance(result, Tensor) and result.is_floating_point():
        yield result
    elif isinstance(result, tuple | list):
        for member in result:
            yield from _tensors_of(member)


def _difference(found: list[Tensor], expected: list[Tensor]) -> str:
    kinds, wanted = ([(tuple(t.shape), t.dtype) for t in of] for of in (found, expected))
    if kinds != wanted:
        return f"shapes and dtypes {kinds} instead of {wanted}"
    precisions = (
        TF32_EPSILON if dot_precision(y.dtype) == "tf32" else torch.finfo(y.dtype).eps
        for y in expected
    )
    tolerance = ROUNDINGS * max(precisions, default=0.0) + OF_SUMS
    differences = []
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        off = _count_off(torch.atleast_1d(x), torch.atleast_1d(y), tolerance)
        if off:
            differences.append(f"{off} of {y.numel()} elements of result {i}")
    return ", ".join(differences)


def _count_off(x: Tensor, y: Tensor, tolerance: float) -> int:
    """Count the elements beyond the tolerance; those where y is not finite are not compared."""
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
    # Written so that NaN counts as a difference.
    return is_known & ~((x.float() - y).abs() <= tolerance * scale)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0, 0.0, 0.0)
