"""Time the parts of a training step on this machine, with the shapes of the model.

A part is one block in one role, the head with its loss, or the optimizer step. A block is timed on
as many windows of the micro-batch as take a fraction of a second, and its time is assumed to be
proportional to their number. The head, whose gradients may be large compared with a few rows, is
timed on two numbers of rows, and its time is extrapolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgrow.growth.flops import block_flops, head_flops
from fastgrow.growth.lora import adapt_block
from fastgrow.growth.plan.timing import fastest
from fastgrow.growth.roles import Role, products
from fastgrow.nn import Block, DecoderConfig
from fastgrow.nn.head import LMHead
from fastgrow.nn.rotary import RotaryTable
from fastgrow.ops import RopeTable
from fastgrow.ops.heads import rows_in_chunks
from fastgrow.training import TrainConfig
from fastgrow.training.activations import block_forwards
from fastgrow.training.optimizer import Optimizer
from fastgrow.training.precision import autocast

# Seconds. A part that takes longer than LONGEST_PART is timed on fewer rows. Nothing is timed if a
# block takes longer than TOO_LONG on a single window.
LONGEST_PART, TOO_LONG = 0.4, 8.0
MOST_PARAMETERS = 1 << 24


@dataclass(frozen=True)
class Speeds:
    """Time of the parts of a step, in seconds.

    Attributes:
        blocks: time of one block per token, by role: forward, and backward if it has one.
        heads: time of head and loss per micro-batch, forward and backward, by whether the head's
            weight is active.
        update: time of clipping and optimizer step per parameter.
    """

    blocks: dict[Role, float]
    heads: dict[bool, float]
    update: float


@dataclass(frozen=True)
class Bench:
    """The setting in which parts are timed.

    Attributes:
        config: configuration of the model.
        train: training settings: batch size, optimizer and clipping.
        seq_len: number of tokens in a window.
        device: device to compute on.
        dtype: dtype of matrix products: float32, or the autocast dtype.
    """

    config: DecoderConfig
    train: TrainConfig
    seq_len: int
    device: torch.device
    dtype: torch.dtype

    def windows(self, flops: int, speed: float) -> int:
        """Return the number of windows to time a part on that takes `flops` per token."""
        seconds = flops * self.seq_len / speed
        return max(1, min(self.train.batch_size, int(LONGEST_PART / max(seconds, 1e-9))))


def calibrate(
    bench: Bench,
    stack: Iterable[Role],
    heads: Iterable[bool],
    shapes: Sequence[tuple[int, ...]],
    *,
    budget: float = 2.0,
) -> Speeds | None:
    """Time the parts of a step.

    Args:
        bench: the setting.
        stack: roles of blocks in all stages.
        heads: whether the head's weight is active, in all stages.
        shapes: shapes of the parameters of the largest active set.
        budget: seconds to spend on repetitions.

    Returns:
        The times; None if the model is too large to be timed quickly on this machine.
    """
    roles, heads = list(dict.fromkeys(stack)), list(dict.fromkeys(heads))
    speed, config = product_speed(bench), bench.config
    flops = {role: block_flops(config, bench.seq_len, role).total for role in roles}
    if max(flops.values()) * bench.seq_len / speed > TOO_LONG:
        return None
    micro_batch = bench.train.batch_size * bench.seq_len
    calls: dict[Hashable, Callable[[], object]] = {}
    windows = {role: bench.windows(flops[role], speed) for role in roles}
    rope = RotaryTable(bench.seq_len, config.head_dim, config.rope_base).to(bench.device)
    for role in roles:
        calls[role] = _block_call(bench, role, windows[role], rope(bench.seq_len))
    rows = _head_rows(bench, micro_batch, speed)
    for trains in heads:
        for n in rows:
            calls[trains, n] = _head_call(bench, n, trains)
    calls["update"], updated = _update_call(bench, shapes)
    best = fastest(calls, bench.device, budget=budget)
    return Speeds(
        {role: best[role] / (windows[role] * bench.seq_len) for role in roles},
        {trains: _on_line({n: best[trains, n] for n in rows}, micro_batch) for trains in heads},
        best["update"] / updated,
    )


def _head_rows(bench: Bench, micro_batch: int, speed: float) -> list[int]:
    """Return one or two numbers of rows to time the head on."""
    flops = head_flops(bench.config, hidden_grad=True, weight_grad=True).total
    affordable = int(LONGEST_PART * speed / flops)
    # At least the chunk size of the loss, so that the first chunk's overhead is not extrapolated.
    chunk = rows_in_chunks(micro_batch, bench.config.vocab_size)
    if micro_batch <= max(affordable, 2 * chunk):
        return [micro_batch]
    first = max(affordable // 2, chunk)
    return [first, 2 * first]


def _on_line(seconds: dict[int, float], rows: int) -> float:
    """Extrapolate the seconds at `rows` linearly from two points; a single point is returned."""
    points = sorted(seconds)
    (first, last), at_last = (points[0], points[-1]), seconds[points[-1]]
    if first == last:
        return at_last
    slope = max(at_last - seconds[first], 0.0) / (last - first)
    return at_last + slope * (rows - last)


def product_speed(bench: Bench) -> float:
    """Measure the FLOP/s of the widest matrix product of a block."""
    config, rows = bench.config, 256
    a = torch.randn(rows, config.d_model, device=bench.device, dtype=bench.dtype)
    b = torch.randn(config.d_model, config.mlp_width, device=bench.device, dtype=bench.dtype)
    best = fastest({"mm": lambda: torch.mm(a, b)}, bench.device, budget=0.2)["mm"]
    return 2 * rows * config.d_model * config.mlp_width / best


def _block_call(bench: Bench, role: Role, windows: int, rope: RopeTable) -> Callable[[], object]:
    block = make_block(bench, role)
    size = (windows, bench.seq_len, bench.config.d_model)
    x = torch.randn(size, device=bench.device, requires_grad=role.input_grad)
    dy = torch.randn(size, device=bench.device)
    forwards = {"checkpoint_activations": bench.train.checkpoint_activations}

    def run() -> Tensor:
        with autocast(bench.dtype, bench.device), block_forwards(block, **forwards):
            y: Tensor = block(x, rope)
        if role.output_grad:
            y.backward(dy.to(y.dtype))
            block.zero_grad(set_to_none=True)
            x.grad = None
        return y

    return run


def make_block(bench: Bench, role: Role) -> Block:
    """Create a block with the active parameters and LoRA adapters of `role`."""
    block = Block(bench.config, device=bench.device)
    block.initialise(bench.config.initial_std, 1)
    block.requires_grad_(role.trained)
    adapt_block(block, bench.config, role.adapted, role.rank)
    return block


def _head_call(bench: Bench, rows: int, trains: bool) -> Callable[[], object]:
    config = bench.config
    head = LMHead(config.d_model, config.vocab_size, config.head_bias, device=bench.device)
    head.requires_grad_(trains)
    hidden = torch.randn(rows, config.d_model, device=bench.device, requires_grad=True)
    targets = torch.randint(config.vocab_size, (rows,), device=bench.device)

    def run() -> Tensor:
        with autocast(bench.dtype, bench.device):
            loss = head.loss(hidden, targets)
        loss.backward()
        head.zero_grad(set_to_none=True)
        hidden.grad = None
        return loss

    return run


def _update_call(
    bench: Bench, shapes: Sequence[tuple[int, ...]]
) -> tuple[Callable[[], object], int]:
    """Return the optimizer step of at most `MOST_PARAMETERS` parameters, and their number."""
    active: dict[str, nn.Parameter] = {}
    numbers = 0
    for index, shape in enumerate(shapes):
        size = torch.Size(shape)
        rows = max(1, min(size[0], (MOST_PARAMETERS - numbers) * size[0] // size.numel()))
        tensor = nn.Parameter(torch.randn(rows, *size[1:], device=bench.device))
        tensor.grad = torch.randn_like(tensor)
        active[str(index)] = tensor
        numbers += tensor.numel()
        if numbers >= MOST_PARAMETERS:
            break
    optimizer, limit = Optimizer(active, bench.train), bench.train.grad_clip

    def run() -> None:
        nn.utils.clip_grad_norm_(active.values(), float("inf") if limit is None else limit)
        optimizer.step()

    return run, numbers


def active_shapes(
    config: DecoderConfig, stack: Iterable[Role], *, head: bool
) -> list[tuple[int, ...]]:
    """Return the shapes of the active parameters, largest first."""
    whole = [tuple(p.shape) for p in Block(config, device="meta").parameters()]
    shapes: list[tuple[int, ...]] = []
    for role in stack:
        shapes += whole if role.trained else []
        for layer in products(config):
            if layer.name in role.adapted:
                shapes += [(role.rank * layer.parts, layer.inputs), (layer.outputs, role.rank)]
    shapes += [(config.vocab_size, config.d_model)] if head else []
    return sorted(shapes or [(config.d_model,)], key=math.prod, reverse=True)
