"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from fastgrow.errors import CheckpointError, ConfigError, DivergenceError, Interrupted
from fastgrow.evaluation.bits import EncodedText, HasLoss, bits_per_character
from fastgrow.training.activations import block_forwards, training_mode
from fastgrow.training.config import TrainConfig
from fastgrow.training.data.batches import IGNORE_INDEX
from fastgrow.training.interrupt import InterruptGuard
from fastgrow.training.log import RunLog
from fastgrow.training.lr_controller import LRController, RunPosition, StopDecision, StopRule
from fastgrow.training.optimizer import Optimizer, Rate
from fastgrow.training.precision import autocast, resolve_precision
from fastgrow.training.rng import rng_state, set_rng_state


class BatchSource(Protocol):
    """Protocol of an iterator of training batches, such as `Batches`."""

    @property
    def stream(self) -> Any: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def tokens_per_batch(self) -> int: ...
    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of `Trainer.run`.

    Attributes:
        step: number of steps made.
        tokens: number of tokens read.
        loss: final training loss in nats per token, averaged over the last logged steps.
        best_step: step with the best validation result; None without validation.
        best_bits_per_character: bits per character at that step; None without validation.
        decision: why and when the training ended; None if it made its planned steps, unless there
            is a rule `until`, whose decision is then that the planned tokens were used up.
    """

    step: int
    tokens: int
    loss: float
    best_step: int | None
    best_bits_per_character: float | None
    decision: StopDecision | None = None


class Trainer:
    """Train the parameters in `active`, and no others, for a number of steps.

    A step runs `config.accumulate` micro-batches, clips the gradients and calls the optimizer. The
    micro-batches are weighted by their number of targets, so that the accumulated gradient is that
    of the mean loss over all targets. On a CPU, with the same libraries and number of threads, a
    run that was stopped at any step and resumed ends with bit-identical weights to an uninterrupted
    one.

    Args:
        model: a model with `loss(ids, targets, ignore_index=…, reduction="mean")`. It is moved to
            `device`.
        active: parameters to train, by name. All other parameters of the model must be frozen.
        batches: training data.
        config: training settings.
        steps: number of steps. Give either `steps` or `tokens`.
        tokens: number of tokens, rounded up to whole steps.
        until: rule that may end the training earlier (`fastgrow.training.lr_controller`).
        position: position of this training in a run whose stages share one learning-rate schedule;
            None if the schedule covers this training alone.
        finish: function called with the number of each finished step; it returns whether the user
            requested the run to end (see `LRController`).
        rates: learning-rate multipliers by parameter name; parameters without one use the learning
            rate itself.
        validation: stream that is evaluated every `config.eval_every` steps and at the end.
        log: log of the run; None for no output.
        device: device to train on; None for the device of the active parameters.
        labels: labels of this training in the log, such as {"stage": 2, "depth": 3}.
        objective: object that computes training and validation losses instead of the model. Its
            inputs are the items of `batches` and the ids of the validation text.

    Raises:
        ConfigError: neither or both of steps and tokens are given; an active parameter is frozen or
            not a parameter of the model; another parameter is not frozen; the device does not
            support the precision.
    """

    def __init__(
        self,
        model: nn.Module,
        active: Mapping[str, nn.Parameter],
        batches: BatchSource,
        config: TrainConfig,
        *,
        steps: int | None = None,
        tokens: int | None = None,
        until: StopRule | None = None,
        position: RunPosition | None = None,
        finish: Callable[[int], bool] | None = None,
        rates: Mapping[str, Rate] | None = None,
        validation: EncodedText | None = None,
        log: RunLog | None = None,
        device: torch.device | str | None = None,
        labels: Mapping[str, Any] | None = None,
        objective: HasLoss | None = None,
    ) -> None:
        self._tokens_per_step = batches.tokens_per_batch * config.accumulate
        self._planned_steps = _run_length(steps, tokens, self._tokens_per_step)
        self._lr = LRController(config, self._planned_steps, until, position, finish)
        _check_active(model, active)
        self.device = torch.device(device) if device is not None else _device_of(active)
        self.model = model.to(self.device)
        self._objective = objective if objective is not None else cast(HasLoss, self.model)
        self.active = dict(active)
        self.batches = batches
        self.config = config
        self.validation = validation
        self.labels = {
            "active_parameters": sum(p.numel() for p in active.values()),
            "total_parameters": sum(p.numel() for p in model.parameters()),
            **(labels or {}),
        }
        self.step = 0
        self.best_step: int | None = None
        self.best_bits_per_character = math.inf
        self._best_weights: dict[str, torch.Tensor] = {}
        self._log = log if log is not None else RunLog(quiet=True)
        self._dtype = resolve_precision(config.precision, self.device)
        self._optimizer = Optimizer(self.active, config, rates)
        self._parameters = list(self.active.values())
        self._eval_every = config.eval_every or max(1, math.ceil(self._planned_steps / 10))
        # Reading a value of a CPU tensor is free. On other devices it would synchronize, so losses
        # are summed on the device and read only for logging, evaluation or a checkpoint. A NaN
        # propagates through the sum.
        self._reads_every_step = self.device.type == "cpu"
        self._loss_sum = torch.zeros((), device=self.device)
        self._norm_sum = torch.zeros((), device=self.device)
        self._summed_steps = 0
        self._last_loss = math.nan
        self._rate = 0.0
        self._seconds = 0.0

    @property
    def steps(self) -> int:
        """The step at which the training is currently expected to end."""
        return self._lr.steps

    @property
    def tokens(self) -> int:
        """Number of tokens read so far."""
        return self.step * self._tokens_per_step

    def run(
        self, on_checkpoint: Callable[[Trainer], Path | str | None] | None = None
    ) -> TrainResult:
        """Train from the current step to the last one.

        Args:
            on_checkpoint: function that saves a checkpoint. It is called every
                `config.checkpoint_every` steps and if the run is interrupted, and may return the
                path of the checkpoint.

        Raises:
            Interrupted: the process received SIGINT or SIGTERM. The current step was finished and
                `on_checkpoint` was called.
            DivergenceError: the loss or gradients are NaN or infinite. No checkpoint was saved
                since.
        """
        self._log.begin(self.labels)
        try:
            with InterruptGuard() as guard, training_mode(self.model), self._block_forwards():
                self._clock = time.perf_counter()
                first = self.step
                while self.step < self.steps:
                    self._train_step(check_gradients=self.step == first)
                    self._report(on_checkpoint)
                    if guard.requested is not None:
                        self._stop(guard.requested.name, on_checkpoint)
            self._restore_best()
        finally:
            self._log.clear_line()
        return TrainResult(
            step=self.step,
            tokens=self.tokens,
            loss=self._last_loss,
            best_step=self.best_step,
            best_bits_per_character=(
                self.best_bits_per_character if self.best_step is not None else None
            ),
            decision=self._lr.decision,
        )

    def _block_forwards(self) -> contextlib.AbstractContextManager[None]:
        config = self.config
        return block_forwards(
            self.model,
            checkpoint_activations=config.checkpoint_activations,
            compile=config.compile,
        )

    def _train_step(self, *, check_gradients: bool) -> None:
        self._rate = self._lr.rate(self.step)
        self._optimizer.set_rate(self._rate, self.step, self._planned_steps)
        loss = self._backward()
        if check_gradients:
            self._require_gradients()
        norm = self._clip()
        self._loss_sum += loss
        self._norm_sum += norm
        self._summed_steps += 1
        if self._reads_every_step:
            self._require_finite(loss.item(), norm.item(), self.step + 1)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def _backward(self) -> torch.Tensor:
        """Accumulate gradients of the mean loss over all micro-batches, and return that loss."""
        batches = [next(self.batches) for _ in range(self.config.accumulate)]
        counts = [int((targets != IGNORE_INDEX).sum()) for _, targets in batches]
        total = torch.zeros((), device=self.device)
        for (ids, targets), count in zip(batches, counts, strict=True):
            if not count:
                continue
            with autocast(self._dtype, self.device):
                loss = self._objective.loss(
                    self._to_device(ids),
                    self._to_device(targets),
                    ignore_index=IGNORE_INDEX,
                    reduction="mean",
                )
            loss = loss.float() * (count / sum(counts))
            loss.backward()
            total += loss.detach()
        return total

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            return pinned.to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _clip(self) -> torch.Tensor:
        limit = self.config.grad_clip
        return nn.utils.clip_grad_norm_(self._parameters, math.inf if limit is None else limit)

    def _require_gradients(self) -> None:
        for name, parameter in self.active.items():
            if parameter.grad is None:
                raise ConfigError(
                    f"{name} is to be trained but got no gradient: the loss does not depend on it"
                )

    def _require_finite(self, loss: float, norm: float, step: int) -> None:
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise DivergenceError(
                    f"the {what} became {value} at step {step} of {self.steps} (learning rate "
                    f"{self._rate:.3g}); no checkpoint was saved since. Resume from the last "
                    "checkpoint with a lower learning rate or stronger gradient clipping"
                )

    def _report(self, on_checkpoint: Callable[[Trainer], Path | str | None] | None) -> None:
        """Log, evaluate and save a checkpoint after a step, if due."""
        last = self.step == self.steps
        config = self.config
        evaluates = self.validation is not None and (last or self.step % self._eval_every == 0)
        saves = (
            on_checkpoint is not None
            and config.checkpoint_every is not None
            and self.step % config.checkpoint_every == 0
            and not last
        )
        logs = last or self.step % config.log_every == 0
        if logs or evaluates or saves:
            # A diverged model must neither count as the best nor be saved.
            self._require_finite(self._loss_sum.item(), self._norm_sum.item(), self.step)
        loss = self._evaluate() if evaluates else None
        # Before a checkpoint is saved, so that a resumed run has this step's observation.
        was_last = self._lr.is_last
        if self._lr.observe(self.step, loss):
            decision = self._lr.decision
            assert decision is not None
            text = f"ends after step {decision.last_step:,}: {decision.reason}"
            self._log.event("cooldown", text, **decision.to_dict())
            if not was_last and self._lr.is_last:
                # The best weights are chosen only from those of the decay phase.
                self.best_step, self.best_bits_per_character = None, math.inf
            if self.step == self.steps and not last:
                # The training has just been found to end at this step.
                self._require_finite(self._loss_sum.item(), self._norm_sum.item(), self.step)
                logs, saves = True, False
                if self.validation is not None and not evaluates:
                    self._evaluate()
        if logs:
            self._log_training()
        if saves and on_checkpoint is not None:
            with self._off_the_clock():
                on_checkpoint(self)

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Exclude the time of the block from tokens per second."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def _log_training(self) -> None:
        steps = self._summed_steps
        loss, norm = self._loss_sum.item() / steps, self._norm_sum.item() / steps
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self._seconds += elapsed
        values = {
            "loss": loss,
            "bits_per_character": loss / math.log(2) * self.batches.stream.tokens_per_character,
            "gradient_norm": norm,
            "learning_rate": self._rate,
            "tokens": self.tokens,
            "tokens_per_second": steps * self._tokens_per_step / elapsed,
            "seconds": self._seconds,
        }
        self._log.row(self.step, values)
        remaining = (self.steps - self.step) * elapsed / steps
        self._log.progress(self.step, self.steps, values, seconds=remaining)
        self._last_loss = loss
        self._loss_sum.zero_()
        self._norm_sum.zero_()
        self._summed_steps = 0

    def _evaluate(self) -> float:
        """Evaluate on the validation text, keep the weights if they are the best; return the loss.

        The time is excluded from tokens per second.
        """
        with self._off_the_clock():
            return self._measure()

    def _measure(self) -> float:
        assert self.validation is not None
        with autocast(self._dtype, self.device):
            result = bits_per_character(
                self._objective,
                self.validation,
                batch_size=self.config.batch_size,
                seq_len=self.batches.seq_len,
                max_tokens=self.config.eval_tokens,
            )
        bits = result.bits_per_character
        if not math.isfinite(bits):
            raise DivergenceError(f"the validation loss became {bits} at step {self.step}")
        values = {"validation_loss": result.loss, "validation_bits_per_character": bits}
        self._log.row(self.step, values)
        self._log.note(values)
        if bits < self.best_bits_per_character:
            self.best_bits_per_character, self.best_step = bits, self.step
            # Earlier stages that share the schedule continue from their last weights, to which the
            # optimizer state belongs.
            if self.config.pick == "best" and self._lr.is_last:
                self._best_weights = {
                    name: p.detach().to("cpu", copy=True) for name, p in self.active.items()
                }
        return result.loss

    def _restore_best(self) -> None:
        if self._best_weights and self.best_step != self.step:
            with torch.no_grad():
                for name, weights in self._best_weights.items():
                    self.active[name].copy_(weights)

    def _stop(
        self, signal_name: str, on_checkpoint: Callable[[Trainer], Path | str | None] | None
    ) -> None:
        stopped = f"stopped by {signal_name} after step {self.step:,} of {self.steps:,}"
        if on_checkpoint is None:
            raise Interrupted(
                f"{stopped}; this run keeps no checkpoints and has to start from the beginning"
            )
        self._require_finite(self._loss_sum.item(), self._norm_sum.item(), self.step)
        path = on_checkpoint(self)
        where = f" in {path}" if path is not None else ""
        raise Interrupted(
            f"{stopped}; the state is saved{where}. To continue from this step, repeat the "
            'same command, or call the same function with resume="auto"'
        )

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the active parameters."""
        return self._optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume, except the model's weights."""
        return {
            "step": self.step,
            "plan": self._plan(),
            "optimizer": self._optimizer.state_dict(),
            "rng": rng_state(),
            "data": self.batches.state_dict(),
            "pace": self._lr.state_dict(),
            "log": self._log.state_dict(),
            "best": {
                "step": self.best_step,
                "bits_per_character": self.best_bits_per_character,
                "weights": self._best_weights,
            },
            "sums": {
                "loss": self._loss_sum.clone(),
                "norm": self._norm_sum.clone(),
                "steps": self._summed_steps,
                "last_loss": self._last_loss,
                "seconds": self._seconds,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`. The caller loads the model's weights of the same checkpoint.

        Raises:
            CheckpointError: the state belongs to a run with different settings, parameters or data.
        """
        mine = self._plan()
        for name, expected in mine.items():
            saved = state["plan"].get(name)
            if saved != expected:
                raise CheckpointError(
                    f"the checkpoint was made with {name}={saved!r}, this run has "
                    f"{name}={expected!r}; resume with the same settings or start a new run"
                )
        self._optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["data"])
        self._log.load_state_dict(state["log"])
        self._lr.load_state_dict(state.get("pace"))
        self.step = int(state["step"])
        best, sums = state["best"], state["sums"]
        self.best_step = best["step"]
        self.best_bits_per_character = best["bits_per_character"]
        self._best_weights = dict(best["weights"])
        self._loss_sum = sums["loss"].to(self.device, copy=True)
        self._norm_sum = sums["norm"].to(self.device, copy=True)
        self._summed_steps = sums["steps"]
        self._last_loss = sums["last_loss"]
        self._seconds = sums["seconds"]
        set_rng_state(state["rng"])

    def _plan(self) -> dict[str, Any]:
        """Return the settings that affect the results of the run, as JSON values."""
        return {
            **self.config.identity(),
            "steps": self._planned_steps,
            "active": sorted(self.active),
        }


def _run_length(steps: int | None, tokens: int | None, tokens_per_step: int) -> int:
    if (steps is None) == (tokens is None):
        raise ConfigError("Trainer: expected exactly one of steps= and tokens=")
    if steps is None:
        assert tokens is not None
        steps = math.ceil(tokens / tokens_per_step)
    if steps < 1:
        raise ConfigError(f"Trainer: a run must have at least one step, got {steps}")
    return steps


def _device_of(active: Mapping[str, nn.Parameter]) -> torch.device:
    return next(iter(active.values())).device if active else torch.device("cpu")


def _check_active(model: nn.Module, active: Mapping[str, nn.Parameter]) -> None:
    """Check that active parameters belong to the model and all its other parameters are frozen."""
    owned = {id(parameter) for parameter in model.parameters()}
    for name, parameter in active.items():
        if id(parameter) not in owned:
            raise ConfigError(f"{name} is to be trained but is not a parameter of the model")
    trained = {id(parameter) for parameter in active.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise ConfigError(
                f"{name} is not among the parameters to train but requires a gradient; freeze it "
                "with requires_grad_(False)"
            )
