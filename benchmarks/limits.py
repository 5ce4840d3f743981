"""Check upper limits of overhead on a CPU: `python -m benchmarks.limits`.

The overhead of the trainer over the step that it runs, and of a patched model over the plain one:
processor seconds on one thread, both sides in turns, the shortest of each, so that other work on
the machine matters little. The building of the default substrate: processor seconds of all threads
together, once. Run it on an idle machine nevertheless. The tests count operations instead of
seconds, as these are the same on every machine.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import fastgrow as fg
from benchmarks.planned import Windows
from fastgrow import _terminal
from fastgrow.training import TrainConfig, Trainer
from fastgrow.training.optimizer import Optimizer
from fastgrow.training.schedule import cosine

OVERHEAD, PATCHED, BUILDING = 0.02, 1.05, 10.0  # allowed values
V, T = 64, 64
Clock = Callable[[], float]


@dataclass(frozen=True)
class Limit:
    """A measured number and its allowed maximum."""

    what: str
    measured: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.allowed


def one_block(d_model: int) -> fg.Decoder:
    """Make a decoder of one block with a random token table of size V."""
    torch.manual_seed(0)
    config = fg.DecoderConfig(vocab_size=V, d_model=d_model, n_layer=1, n_head=4, max_seq_len=T)
    return fg.Decoder(config, table=torch.randn(V, d_model))


def bare_loop(model: fg.Decoder, steps: int) -> None:
    """Train with a minimal loop."""
    config, batches = TrainConfig(), Windows(V, 4, T)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(parameters, config)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, peak=config.lr, warmup=0.05, min_ratio=0.1)
        ids, targets = next(batches)
        model.loss(ids, targets).backward()
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def trainer_loop(model: fg.Decoder, steps: int) -> None:
    """Run the same steps with the trainer."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    Trainer(model, parameters, Windows(V, 4, T), TrainConfig(pick="last"), steps=steps).run()


def trainer_overhead(clock: Clock, *, steps: int = 100, rounds: int = 8) -> Limit:
    """Measure the time that the trainer adds to a step, relative to a step of a block of width 128.

    The difference is measured on a tiny model, where it is larger than the noise.
    """
    tiny = one_block(8)
    bare, trained = _shortest(
        clock, rounds, lambda: bare_loop(tiny, steps), lambda: trainer_loop(tiny, steps)
    )
    block = one_block(128)
    (step,) = _shortest(clock, rounds, lambda: bare_loop(block, steps))
    return Limit("overhead of the trainer", (trained - bare) / step, OVERHEAD)


def patched_step(name: str, model: nn.Module, clock: Clock, *, rounds: int = 12) -> Limit:
    """Measure a training step of a patched model relative to the plain model's."""
    ids = torch.randint(1, V, (2, 256), generator=torch.Generator().manual_seed(0))
    patched = copy.deepcopy(model)
    fg.patch(patched)

    def step(of: nn.Module) -> Callable[[], None]:
        def run() -> None:
            of.zero_grad(set_to_none=True)
            of(ids, labels=ids).loss.backward()

        return run

    plain, swapped = _shortest(clock, rounds, step(model), step(patched))
    return Limit(f"patched {name}, training", swapped / plain, PATCHED)


def plain_models() -> dict[str, nn.Module]:
    """Make transformers models with four blocks of width 256."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    gpt2 = GPT2Config(vocab_size=V, n_embd=256, n_head=8, n_layer=4, n_positions=256)
    llama = LlamaConfig(
        vocab_size=V,
        hidden_size=256,
        intermediate_size=688,
        num_attention_heads=8,
        num_hidden_layers=4,
    )
    return {"GPT-2": GPT2LMHeadModel(gpt2), "Llama": LlamaForCausalLM(llama)}


def substrate_building(clock: Clock) -> Limit:
    """Measure the seconds for building the default substrate and its token table."""
    start = clock()
    _ = fg.Substrate.build().table
    return Limit("default substrate, seconds", clock() - start, BUILDING)


def _shortest(clock: Clock, rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Return the shortest time of each, measured in turns after a warm-up round."""
    times = []
    for _ in range(rounds + 1):
        row = []
        for run in runs:
            start = clock()
            run()
            row.append(clock() - start)
        times.append(row)
    return [min(column) for column in zip(*times[1:], strict=True)]


def main() -> int:
    """Print the table; return 1 if a limit is exceeded."""
    torch.set_num_threads(1)
    clock = time.process_time
    limits = [trainer_overhead(clock), substrate_building(clock)]
    limits += [patched_step(name, model, clock) for name, model in plain_models().items()]
    rows = [
        [limit.what, f"{limit.measured:.3f}", f"{limit.allowed:g}", "yes" if limit.holds else "NO"]
        for limit in limits
    ]
    _terminal.show(_terminal.table(["what", "measured", "allowed", "holds"], rows))
    return 0 if all(limit.holds for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
