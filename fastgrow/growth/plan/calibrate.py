"""How fast this machine computes the parts of a step, at the model's own shapes.

A part is one block in one role, the head with its loss, or the update of the parameters. Each is
timed on as many windows of the micro-batch as take a fraction of a second, and its time is taken to
be in proportion to the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgrow.growth.plan.flops import block_flops, head_flops
from fastgrow.growth.plan.roles import Role
from fastgrow.growth.plan.timing import fastest
from fastgrow.nn import Block, DecoderConfig
from fastgrow.nn.head import LMHead
from fastgrow.nn.rotary import RotaryTable
from fastgrow.ops import RopeTable
from fastgrow.training import TrainConfig
from fastgrow.training.optimizer import build_optimizer
from fastgrow.training.precision import autocast

# A part that takes longer is timed on fewer rows; one that takes longer on a single window is not.
LONGEST_PART, TOO_LONG = 0.4, 8.0
MOST_PARAMETERS = 1 << 24
HEAD_ROWS = 64


@dataclass(frozen=True)
class Speeds:
    """Seconds that the parts of a step take.

    Attributes:
        blocks: one block on one token, by its role: forward, and backward where it has one.
        heads: head and loss on one token, forward and backward, by whether its weight trains.
        update: clipping and the optimizer, for one parameter.
    """

    blocks: dict[Role, float]
    heads: dict[bool, float]
    update: float


@dataclass(frozen=True)
class Bench:
    """What is timed and where.

    Attributes:
        config: the model's.
        train: batch size, optimizer and clipping.
        seq_len: of the windows.
        device: where.
        dtype: of the products: float32, or autocast's.
    """

    config: DecoderConfig
    train: TrainConfig
    seq_len: int
    device: torch.device
    dtype: torch.dtype

    def windows(self, flops: int, speed: float) -> int:
        """Windows of the micro-batch to time a part on, that takes `flops` a token."""
        seconds = flops * self.seq_len / speed
        return max(1, min(self.train.batch_size, int(LONGEST_PART / max(seconds, 1e-9))))


def calibrate(
    bench: Bench,
    stack: Iterable[Role],
    heads: Iterable[bool],
    shapes: Iterable[tuple[int, ...]],
    *,
    budget: float = 2.0,
) -> Speeds | None:
    """Time the parts.

    Args:
        bench: the setting.
        stack: roles that blocks have in any stage.
        heads: whether the head's weight trains, in any stage.
        shapes: of the largest active set.
        budget: seconds to spend on repetitions.

    Returns:
        None where the model is too large for this machine to be timed in a short while.
    """
    roles, heads = list(dict.fromkeys(stack)), list(dict.fromkeys(heads))
    speed = product_speed(bench)
    config = bench.config
    largest = max(block_flops(config, bench.seq_len, role).total for role in roles)
    if largest * bench.seq_len / speed > TOO_LONG:
        return None
    calls: dict[object, Callable[[], object]] = {}
    tokens: dict[object, int] = {}
    rope = RotaryTable(bench.seq_len, config.head_dim, config.rope_base).to(bench.device)
    for role in roles:
        windows = bench.windows(block_flops(config, bench.seq_len, role).total, speed)
        calls[role] = _block_call(bench, role, windows, rope(bench.seq_len))
        tokens[role] = windows * bench.seq_len
    for trains in heads:
        flops = head_flops(config, hidden_grad=True, weight_grad=trains).total
        rows = bench.train.batch_size * bench.seq_len
        rows = max(HEAD_ROWS, min(rows, int(LONGEST_PART * speed / flops)))
        calls[trains] = _head_call(bench, rows, trains)
        tokens[trains] = rows
    calls["update"], tokens["update"] = _update_call(bench, list(shapes))
    best = fastest(calls, bench.device, budget=budget)
    per_unit = {name: seconds / tokens[name] for name, seconds in best.items()}
    return Speeds(
        {role: per_unit[role] for role in roles},
        {trains: per_unit[trains] for trains in heads},
        per_unit["update"],
    )


def product_speed(bench: Bench) -> float:
    """FLOPs a second of the widest product of a block."""
    config, rows = bench.config, 256
    a = torch.randn(rows, config.d_model, device=bench.device, dtype=bench.dtype)
    b = torch.randn(config.d_model, config.mlp_width, device=bench.device, dtype=bench.dtype)
    best = fastest({"mm": lambda: torch.mm(a, b)}, bench.device, budget=0.2)["mm"]
    return 2 * rows * config.d_model * config.mlp_width / best


def _block_call(
    bench: Bench, role: Role, windows: int, rope: RopeTable
) -> Callable[[], object]:
    block = make_block(bench, role)
    size = (windows, bench.seq_len, bench.config.d_model)
    x = torch.randn(size, device=bench.device, requires_grad=role.input_grad)
    dy = torch.randn(size, device=bench.device)

    def run() -> Tensor:
        with autocast(bench.dtype, bench.device):
            y: Tensor = block(x, rope)
        if role.output_grad:
            y.backward(dy.to(y.dtype))
            block.zero_grad(set_to_none=True)
            x.grad = None
        return y

    return run


def make_block(bench: Bench, role: Role) -> Block:
    """A block that does what `role` says."""
    block = Block(bench.config, device=bench.device)
    block.initialise(bench.config.init_std, 1)
    return block.requires_grad_(role.trained)


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
    bench: Bench, shapes: list[tuple[int, ...]]
) -> tuple[Callable[[], object], int]:
    """The update of as many of the tensors as have `MOST_PARAMETERS` numbers together."""
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
    optimizer, limit = build_optimizer(active, bench.train), bench.train.grad_clip

    def run() -> None:
        nn.utils.clip_grad_norm_(active.values(), float("inf") if limit is None else limit)
        optimizer.step()

    return run, numbers
