"""Cases: a case is an operation on one shape, in one dtype and one pass.

A `Family` describes an operation to the suite. To add an operation, write its family:

    FAMILY = Family(
        op="layer_norm",
        grids={"tiny": [...], "cpu": [...], "gpu": [...]},
        inputs=make_inputs,
        call=lambda inputs, impl: ops.layer_norm(inputs["x"], inputs["weight"], impl=impl),
        differentiate=("x", "weight"),
        libraries=lambda case: {"torch": torch_layer_norm},
    )

and add it to the list in `benchmarks/cases/__init__.py`. The eager formula, fastgrow's
implementations and torch.compile become contenders automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ConfigError

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
# `forward` runs without autograd, as in inference; `backward` computes the gradients only, after a
# forward pass that is not timed; `full` is both.
PASSES = ("forward", "backward", "full")

Shape = dict[str, int]
Inputs = dict[str, Any]
Output = Tensor | tuple[Tensor, ...]
Run = Callable[[Inputs], Output]


@dataclass(frozen=True)
class Case:
    """One cell of the grid."""

    family: Family
    shape: Shape
    dtype: str
    pass_: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.family.name} {shape_text(self.shape)} {self.dtype} {self.pass_}"

    def inputs(self, seed: int, shape: Shape | None = None) -> Inputs:
        """Make random inputs; those to differentiate require gradients unless it is `forward`."""
        generator = torch.Generator(self.device).manual_seed(seed)
        inputs = self.family.inputs(shape or self.shape, DTYPES[self.dtype], generator)
        if self.pass_ != "forward":
            for tensor in self.family.differentiated(inputs).values():
                tensor.requires_grad_()
        return inputs


class Refused(Exception):
    """Raised by a library's run for a case that it does not support; the message is one line."""


@dataclass(frozen=True)
class Absent:
    """Takes the place of a library's run, and states why the library is not measured.

    `not installed`, or `refused: …` if it is known in advance that it does not support the case.
    """

    why: str


@dataclass(frozen=True)
class Compiled:
    """Takes the place of a library's run: torch.compile of `run`, which takes time to compile."""

    run: Run


Library = Run | Absent | Compiled


@dataclass(frozen=True)
class Work:
    """The least work that a call has to do, to compare with the machine's ceilings."""

    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Yardstick:
    """A part of the work, or another kind of work, that shows the machine's best speed.

    It is timed with the contenders, but its result is not checked and ratios do not use it.
    """

    run: Run
    work: Work


@dataclass(frozen=True)
class Family:
    """Description of an operation for the suite.

    Args:
        op: the operation's name in fastgrow's dispatch, or another name for several operations.
        variant: distinguishes several families of one operation.
        grids: shapes by the name of the grid: `tiny` (tests), `cpu` and `gpu`. A quick run uses the
            first shape of a grid.
        inputs: `inputs(shape, dtype, generator)` makes random arguments on the generator's device.
        call: `call(inputs, impl)` runs fastgrow's operation; impl None is the automatic choice.
        differentiate: names of the inputs (tensors or lists of tensors) that get gradients; empty
            for `forward` only.
        parameters: those of them whose gradient is a sum over the rows.
        rows: `rows(shape)` returns the number of terms of such a sum.
        sums: `sums(shape)` returns the number of terms of the sums in the other results, if they
            are long.
        libraries: `libraries(case)` returns the functions that a user would call instead, by name;
            a library that is not available is an `Absent`.
        yardsticks: `yardsticks(case)` returns other work to compare the operation's time with.
        written: names of the inputs that a call writes its result to.
        required: `required(case)` returns names of libraries that must have run on a GPU, or
            refused the case, before a speed-up is reported.
        work: `work(shape, itemsize, pass)` returns the least work of a call.
        checked: returns the shape on which a case's correctness is checked. A smaller shape makes
            the fp64 reference affordable; it must use the same implementation with the same tiles
            as the timed shape.
    """

    op: str
    grids: Mapping[str, Sequence[Shape]]
    inputs: Callable[[Shape, torch.dtype, torch.Generator], Inputs]
    call: Callable[[Inputs, str | None], Output]
    differentiate: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    rows: Callable[[Shape], int] = field(default=lambda shape: shape.get("N", 1))
    sums: Callable[[Shape], int] = field(default=lambda shape: 0)
    libraries: Callable[[Case], Mapping[str, Library]] = field(default=lambda case: {})
    yardsticks: Callable[[Case], dict[str, Yardstick]] = field(default=lambda case: {})
    written: tuple[str, ...] = ()
    required: Callable[[Case], tuple[str, ...]] = field(default=lambda case: ())
    work: Callable[[Shape, int, str], Work] = field(default=lambda shape, itemsize, pass_: Work())
    checked: Callable[[Shape], Shape] = field(default=lambda shape: shape)
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.op}-{self.variant}" if self.variant else self.op

    @property
    def passes(self) -> tuple[str, ...]:
        return PASSES if self.differentiate else PASSES[:1]

    def differentiated(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tensors that get gradients, by name, such as `h` or `logits[0]`."""
        found: dict[str, Tensor] = {}
        for name in self.differentiate:
            value = inputs[name]
            if isinstance(value, list):
                found |= {f"{name}[{k}]": tensor for k, tensor in enumerate(value)}
            else:
                found[name] = value
        return found


def tensors_of(output: Output) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def shape_text(shape: Shape) -> str:
    """`{"B": 2, "T": 128}` as `B=2,T=128`."""
    return ",".join(f"{name}={size}" for name, size in shape.items())


def parse_shape(text: str) -> Shape:
    """Parse a shape such as `B=2,T=128`.

    Raises:
        ConfigError: the text does not have this form.
    """
    shape: Shape = {}
    for part in text.split(","):
        name, equals, size = part.partition("=")
        if not equals or not size.strip().isdigit():
            raise ConfigError(f"shape {text!r}: expected the form B=2,T=128, got {part!r}")
        shape[name.strip()] = int(size)
    return shape


def select(
    families: Sequence[Family],
    *,
    device: str,
    grid: str,
    dtypes: Sequence[str],
    passes: Sequence[str] = PASSES,
    shapes: Sequence[Shape] = (),
    first_only: bool = False,
) -> list[Case]:
    """Return the cases of a run, operation by operation.

    Args:
        families: operations to measure.
        device: device type, `cpu` or `cuda`.
        grid: name of the grid.
        dtypes: names of dtypes.
        passes: names of passes.
        shapes: shapes to measure instead of the grid's.
        first_only: select only the first shape and the last (most informative) pass of each
            operation.

    Raises:
        ConfigError: a shape has a name that the operation does not have, or nothing is left to
            measure.
    """
    cases = []
    for family in families:
        known = family.grids[grid]
        chosen = [_completed(family, shape, known[0]) for shape in shapes] or list(known)
        wanted = [p for p in family.passes if p in passes]
        if first_only:
            chosen, wanted = chosen[:1], wanted[-1:]
        cases += [Case(family, s, d, p, device) for s in chosen for d in dtypes for p in wanted]
    if not cases:
        raise ConfigError(
            f"--pass {','.join(passes)}: no chosen operation has such a pass; nothing to measure"
        )
    return cases


def _completed(family: Family, shape: Shape, known: Shape) -> Shape:
    """Fill in sizes that are not given from the grid's first shape."""
    unknown = [name for name in shape if name not in known]
    if unknown:
        names = ", ".join(known)
        raise ConfigError(
            f"--shape: {family.name} has no size {unknown[0]!r}; expected some of {names}"
        )
    return {**known, **shape}
