"""Measure the host's time of a call before its kernel runs, in microseconds, without a GPU.

`benchmarks.stubbed` documents what is omitted from a launch. A call's time is split by replacing
more and more of it by stubs, from the inside out, and taking differences:

    launch      Triton's work for a launch
    launcher    the launcher: shapes, strides, tiles, memory for the results
    op          torch.library's operator and autograd's function (and its backward pass)
    dispatch    the choice of an implementation
    checks      the public function's checks of its arguments, which remain

Tensors are so small that the computation of libraries in between (products of MLP, head and LoRA,
sums of partial gradients) takes little time; it counts in the part that calls it. The time of
torch's equivalent call, measured for comparison, includes its computation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.machine import Machine
from benchmarks.overhead_calls import CALLS, Call, Inputs
from benchmarks.stubbed import launches_stubbed
from fastgrow.ops import OPERATIONS, Implementation, Operation

SCHEMA = 1
NOTE = (
    "Microseconds of a CPU, the minimum of many samples, on one thread. No GPU is used: Triton's "
    "C launch function is a stub and kernels are not compiled, so no number is a GPU's time. "
    "Parts are differences of such times, so a part close to zero may be slightly negative. "
    "\\* the automatic choice would select another implementation at this size."
)
# The launchers that operators call, by module.
LAUNCHERS = {
    "norm": ("inference", "forward", "backward"),
    "attention": ("inference", "forward", "backward", "rope"),
    "mlp": ("hidden", "output", "d_hidden"),
    "lora": ("forward", "backward"),
    "linear_lse": ("forward", "logits_gradient"),
    "logit_loss": ("fill_losses",),
    "embedding": ("lookup",),
}
PARTS = ("checks", "dispatch", "op", "launcher", "launch")
SWEEPS, ROUNDS, SAMPLE_SECONDS, WARM_UP = 8, 25, 5e-4, 10

Function = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """One call in one pass.

    Times are in microseconds, each the minimum of many samples. `asked` means that the kernels were
    requested by `impl=`, because the automatic choice would select something else.
    """

    op: str
    pass_: str
    asked: bool
    launches: list[str]
    parts: dict[str, float]
    total: float
    torch_call: str
    torch_total: float


def overhead(
    calls: Sequence[Call] = CALLS,
    sweeps: int = SWEEPS,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measure each call forward without gradients and, if it has gradients, forward and backward.

    Other work on the machine may last longer than a row's samples, so every row is sampled in each
    of several sweeps.
    """
    threads = torch.get_num_threads()
    # For such small tensors, several threads would only wait for each other.
    torch.set_num_threads(1)
    # Stubbed kernels leave memory uninitialised, and computing with denormal numbers is slow.
    torch.set_flush_denormal(True)
    try:
        with launches_stubbed():
            timings = [_Timing(call, pass_) for call in calls for pass_ in call.passes]
            for sweep in range(sweeps):
                gc.collect()
                gc.disable()
                for timing in timings:
                    timing.sample()
                gc.enable()
                say(f"sweep {sweep + 1} of {sweeps}")
    finally:
        gc.enable()
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    return [timing.row() for timing in timings]


class _Timing:
    """A row being measured: the minimum microseconds of its call so far, at each level of stubs."""

    def __init__(self, call: Call, pass_: str) -> None:
        inputs = call.inputs(with_gradients=pass_ == "full")
        self.call, self.pass_ = call, pass_
        for impl in (None, call.implementation):
            asking = call.asking(impl)
            ours, ours_forward = _step(asking, inputs, pass_), _step(asking, inputs, "forward")
            self.asked, self.record = impl is not None, _Record()
            with self.record.recording():
                ours()
            if self.record.chosen == call.implementation:
                break
        self.levels: dict[str, tuple[Function, Callable[[], object]]] = {
            "checks": (self.record.choices_stubbed, ours_forward),
            "dispatch": (self.record.implementations_stubbed, ours_forward),
            "op": (self.record.launchers_stubbed, ours),
            "launcher": (self.record.launches_stubbed, ours),
            "launch": (contextlib.nullcontext, ours),
            "torch": (contextlib.nullcontext, _step(call.torch, inputs, pass_)),
        }
        self.repeats: dict[str, int] = {}
        for name, (stub, run) in self.levels.items():
            with stub():
                for _ in range(WARM_UP):
                    run()
                self.repeats[name] = max(1, round(SAMPLE_SECONDS / _seconds(run, WARM_UP)))
        self.least = dict.fromkeys(self.levels, float("inf"))

    def sample(self) -> None:
        """Take more samples of all levels in turns."""
        for _ in range(ROUNDS):
            for name, (stub, run) in self.levels.items():
                with stub():
                    run()
                    seconds = _seconds(run, self.repeats[name])
                self.least[name] = min(self.least[name], 1e6 * seconds)

    def row(self) -> Row:
        least = self.least
        inner = dict(zip(PARTS, (0.0, *(least[name] for name in PARTS)), strict=False))
        return Row(
            op=self.call.op,
            pass_=self.pass_,
            asked=self.asked,
            launches=self.record.launches,
            parts={name: least[name] - inner[name] for name in PARTS},
            total=least["launch"],
            torch_call=self.call.torch_name,
            torch_total=least["torch"],
        )


def _step(function: Function, inputs: Inputs, pass_: str) -> Callable[[], object]:
    """Return a function without arguments that runs the call and, in `full`, its backward pass."""
    trained = [x for x in inputs.values() if x.requires_grad]

    def forward() -> object:
        return function(inputs)

    if pass_ == "forward":
        return forward
    results = function(inputs)
    seeds = [torch.ones_like(y) for y in (results if isinstance(results, tuple) else [results])]

    def full() -> object:
        return torch.autograd.grad(function(inputs), trained, seeds)

    return full


def _seconds(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


class _Record:
    """The results of the parts of one call, so that stubs can return them again."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self._chosen: list[tuple[Operation, str]] = []
        self._results: list[Any] = []  # of the called implementations
        self._of_launchers: dict[tuple[str, str], list[Any]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls inside this context."""

        def noted_run(kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:
            self.launches.append(str(kernel.__name__))
            return run(kernel, *args, **kwargs)

        def noting(original: Function, note: Callable[[Any], object]) -> Function:
            def noted(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                note(result)
                return result

            return noted

        def of_operation(operation: Operation, name: str) -> Callable[[Any], object]:
            def note(result: Any) -> None:
                self._chosen.append((operation, name))
                self._results.append(_detached(result))

            return note

        run = JITFunction.run
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(JITFunction, "run", noted_run))
            for operation in OPERATIONS.values():
                for name, entry in operation.implementations.items():
                    noted = noting(entry.run, of_operation(operation, name))
                    stack.enter_context(_running(entry, noted))
            for module, name in _launchers():
                found = self._of_launchers.setdefault((module.__name__, name), [])
                noted = noting(getattr(module, name), found.append)
                stack.enter_context(mock.patch.object(module, name, noted))
            yield

    @property
    def chosen(self) -> str:
        """The implementation that ran; operations that it called itself are recorded before it."""
        *_, (_, name) = self._chosen
        return name

    def choices_stubbed(self) -> Any:
        """Return a patch under which no implementation is chosen and none runs."""
        (result,) = self._results
        return mock.patch.object(Operation, "__call__", _giving(result))

    def implementations_stubbed(self) -> Any:
        """Return a patch under which the chosen implementation does not run."""
        ((operation, name),), (result,) = self._chosen, self._results
        return _running(operation.implementations[name], _giving(result))

    @contextlib.contextmanager
    def launchers_stubbed(self) -> Iterator[None]:
        """Make launchers return their recorded results immediately."""

        def again(results: list[Any]) -> Function:
            following = itertools.cycle(results)
            # An operator's result must not be the same tensor twice.
            return lambda *args, **kwargs: _detached(next(following))

        with contextlib.ExitStack() as stack:
            for module, name in _launchers():
                results = self._of_launchers[module.__name__, name]
                stack.enter_context(mock.patch.object(module, name, again(results)))
            yield

    def launches_stubbed(self) -> Any:
        """Return a patch under which a Triton launch does nothing."""
        return mock.patch.object(JITFunction, "run", _giving(None))


def _giving(result: Any) -> Function:
    """Return a stub; it is a plain function, because a Mock would be slower than the original."""
    return lambda *args, **kwargs: result


@contextlib.contextmanager
def _running(entry: Implementation, run: Function) -> Iterator[None]:
    """Temporarily replace the function that an implementation (a frozen dataclass) runs."""
    original = entry.run
    object.__setattr__(entry, "run", run)
    try:
        yield
    finally:
        object.__setattr__(entry, "run", original)


def _launchers() -> Iterator[tuple[Any, str]]:
    for module, names in LAUNCHERS.items():
        for name in names:
            yield importlib.import_module(f"fastgrow.kernels.{module}"), name


def _detached(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_detached(x) for x in result)
    return result.detach() if isinstance(result, Tensor) else result


PASSES = {"forward": "forward", "full": "forward and backward"}
HEADER = ("operation", "pass", *PARTS, "whole", "torch", "torch's own call, with its computation")


def cells(row: Row) -> list[str]:
    """Return a line of the table; a star marks kernels that were requested by `impl=`."""
    times = (*row.parts.values(), row.total, row.torch_total)
    name = row.op + (" \\*" if row.asked else "")
    return [name, PASSES[row.pass_], *(f"{x:.0f}" for x in times), row.torch_call]


def as_json(rows: Sequence[Row], machine: Machine, command: str) -> dict[str, Any]:
    """Return the result as JSON values."""
    return {
        "schema": SCHEMA,
        "command": command,
        "environment": machine.environment,
        "rows": [dataclasses.asdict(row) for row in rows],
        "notes": [NOTE],
    }


def markdown(result: dict[str, Any]) -> str:
    """Format a result as a Markdown table with its notes and origin."""
    rows = [Row(**row) for row in result["rows"]]
    known = result["environment"]
    origin = (
        f"Origin: `{result['command']}` on {known['device']}, Python {known['python']}, "
        f"torch {known['torch']}, triton {known['triton']}, commit {known['commit']}, "
        f"{known['date']}."
    )
    lines = [HEADER, ("---", "---", *("---:" for _ in HEADER[2:-1]), "---")]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *map(cells, rows)])
    return "\n\n".join([table, *result["notes"], origin]) + "\n"
