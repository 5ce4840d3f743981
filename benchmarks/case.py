"""What is measured: a case is an operation on one shape, in one dtype and one pass.

A `Family` describes an operation to the suite. It is all that a new operation has to write:

    FAMILY = Family(
        op="layer_norm",
        grids={"tiny": [...], "cpu": [...], "gpu": [...]},
        inputs=make_inputs,
        call=lambda inputs, impl: ops.layer_norm(inputs["x"], inputs["weight"], impl=impl),
        differentiate=("x", "weight"),
        libraries=lambda case: {"torch": torch_layer_norm},
    )

and its line in `benchmarks/cases/__init__.py`. The formula, our implementations and torch.compile
become contenders by themselves.
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
# `forward` runs without autograd, as inference does; `backward` is the gradients alone, after a
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
        """Random inputs; the tensors to differentiate require gradients unless `forward`."""
        generator = torch.Generator(self.device).manual_seed(seed)
        inputs = self.family.inputs(shape or self.shape, DTYPES[self.dtype], generator)
        if self.pass_ != "forward":
            for tensor in self.family.differentiated(inputs).values():
                tensor.requires_grad_()
        return inputs


class Refused(Exception):
    """Raised by a library's run that was asked for what it does not do; says what, in a line."""


@dataclass(frozen=True)
class Absent:
    """Stands where a library's run would, and says why it takes no part.

    `not installed`, or `refused: …` where it is known beforehand that it does not do the case.
    """

    why: str


@dataclass(frozen=True)
class Compiled:
    """Stands where a library's run would: torch.compile of `run`, which takes time of its own."""

    run: Run


Library = Run | Absent | Compiled


@dataclass(frozen=True)
class Work:
    """The least that a call has to do, for comparing with the machine's ceilings."""

    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Yardstick:
    """A part of the work, or another kind of work, that tells what the machine can do at best.

    It is timed among the contenders, and neither checked nor a rival.
    """

    run: Run
    work: Work


@dataclass(frozen=True)
class Family:
    """An operation as the suite sees it.

    Args:
        op: the operation's name in fastgrow's dispatch, or another for several operations.
        variant: tells apart two families of one operation.
        grids: shapes by the name of the grid: `tiny` (tests), `cpu` and `gpu`. The first of a grid
            is the one that a quick run takes.
        inputs: `inputs(shape, dtype, generator)` makes random arguments on the generator's device.
        call: `call(inputs, impl)` runs our operation; impl None is the automatic choice.
        differentiate: names of the inputs that get gradients, tensors or lists of them; none means
            `forward` only.
        parameters: those of them whose gradient is a sum over the rows.
        rows: `rows(shape)`, how many terms such a sum has.
        sums: `sums(shape)`, how many terms the sums have that the other results are, where they are
            long.
        libraries: `libraries(case)` gives what a user would call instead, by name; what could be
            called but is not here stays in it, as `Absent`.
        yardsticks: `yardsticks(case)` gives what the operation's time is to be seen against.
        written: names of the inputs that a call writes its result to.
        required: `required(case)` names libraries that must have run on a GPU for a speed-up to
            be told, unless they refuse the case.
        work: `work(shape, itemsize, pass)`.
        checked: the shape on which a case's correctness is checked. A smaller one keeps the fp64
            truth affordable; it has to run what is timed: the same implementation, with the same
            tiles.
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
    """Read `B=2,T=128`.

    Raises:
        ConfigError: the text has another form.
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
    """The cases of a run, operation by operation.

    Args:
        grid: name of the grid; `shapes` replace its shapes where they are given.
        first_only: the first shape of each operation and its most telling pass (the last).

    Raises:
        ConfigError: a shape has other names than the operation's, or nothing is left to measure.
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
        raise ConfigError(f"no operation has a pass among {', '.join(passes)}")
    return cases


def _completed(family: Family, shape: Shape, known: Shape) -> Shape:
    """Sizes that are not given are those of the grid's first shape."""
    unknown = [name for name in shape if name not in known]
    if unknown:
        names = ", ".join(known)
        raise ConfigError(f"{family.name}: it has no size {unknown[0]!r}; there are {names}")
    return {**known, **shape}
