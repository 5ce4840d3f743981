"""Distillation of an ensemble into one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.losses import have_plain_heads
from fastgrow.compose.per_request import PerRequest
from fastgrow.compose.rules import LogitRule
from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Decoder
from fastgrow.training import Mixture, Resume, TextData, TrainConfig, TrainResult, fit


def distill(
    teacher: Ensemble,
    student: Decoder,
    data: TextData | Mixture,
    *,
    tokens: int,
    train: TrainConfig | None = None,
    temperature: float = 1.0,
    truth: float = 0.0,
    out: Path | str | None = None,
    resume: Resume = "auto",
    quiet: bool = False,
) -> TrainResult:
    """Train a model to reproduce the predictions of an ensemble.

    Loss of a token: (1 − truth) · T² · KL(teacher ‖ student) at temperature T, plus truth · the
    cross-entropy of the token itself (Hinton et al. 2015, arXiv 1503.02531, §2). If the experts are
    decoders under a rule over logits, the logits of neither teacher nor student are stored in full.

    Args:
        teacher: the ensemble; it is not changed.
        student: the model to train, in place: all its parameters that require gradients. It has
            the vocabulary and device of the teacher.
        data: training text; the best weights are selected by bits per character on its validation
            text.
        tokens: number of training tokens, rounded up to whole steps.
        train: training configuration; the defaults suit small models.
        temperature: T > 0.
        truth: weight of the cross-entropy in the loss, from 0 to 1.
        out: folder for checkpoints, the log and the model (`model/`); None writes nothing.
        resume: `"auto"` continues the run in `out` if there is one.
        quiet: whether to print nothing.

    Raises:
        ConfigError: an option is out of range, the student has another vocabulary or no parameter
            to train, or `out` holds a run with other settings.
        Interrupted: the user stopped the run; its state is saved.
    """
    if not 0 <= truth <= 1:
        raise ConfigError(f"distill: truth must be from 0 to 1, got {truth}")
    if not temperature > 0:
        raise ConfigError(f"distill: temperature must be above 0, got {temperature}")
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"distill: the student has a vocabulary of {student.vocab_size:,} tokens, "
            f"the teacher one of {teacher.vocab_size:,}"
        )
    model = _Distillation(student, teacher, temperature, truth)
    active = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not active:
        raise ConfigError("distill: no parameter of the student requires a gradient")
    folder = None if out is None else Path(out)
    settings = {"kind": "distillation", "temperature": temperature, "truth": truth}
    result = fit(
        model,
        active,
        data,
        tokens=tokens,
        train=train or TrainConfig(),
        settings={**settings, "rule": teacher.rule.to_config()},
        out=folder,
        resume=resume,
        quiet=quiet,
    )
    if folder is not None:
        student.save(folder / "model")
    return result


class _Distillation(nn.Module):
    """The student with the distillation loss as its training loss."""

    def __init__(
        self, student: Decoder, teacher: Ensemble, temperature: float, truth: float
    ) -> None:
        super().__init__()
        self.student = student
        # In a tuple, so that it is no submodule: the teacher is not trained, moved or switched to
        # training mode.
        self._teacher = (teacher,)
        self.temperature = temperature
        self.truth = truth

    @property
    def max_seq_len(self) -> int:
        return min(self.student.max_seq_len, self._teacher[0].max_seq_len)

    @property
    def device(self) -> torch.device:
        return self.student.device

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Return the distillation loss in training mode, else the student's cross-entropy."""
        options = {"ignore_index": ignore_index, "reduction": reduction}
        if not self.training:
            return self.student.loss(ids, targets, **options)  # type: ignore[arg-type]
        if reduction != "mean":
            raise ArgumentError(f"distillation: reduction must be mean, got {reduction!r}")
        hidden = self.student.hidden(ids)
        head = self.student.lm_head
        loss = torch.zeros((), device=ids.device)
        if self.truth < 1:
            counts = targets != ignore_index
            loss = (1 - self.truth) * self._divergence(ids, hidden, counts)
        if self.truth > 0:
            loss = loss + self.truth * head.loss(hidden, targets, ignore_index=ignore_index)
        return loss

    def _divergence(self, ids: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
        (teacher,) = self._teacher
        head, rule, models = self.student.lm_head, teacher.rule, teacher.experts.values()
        plain = have_plain_heads(models) and models[0].lm_head.weight.dtype == hidden.dtype
        if isinstance(rule, LogitRule) and not isinstance(rule, PerRequest) and plain:
            with torch.no_grad():
                heads = [(m.hidden(ids), m.lm_head.weight, m.lm_head.bias) for m in models]
                shares = rule.coefficients(teacher.names)
                if teacher.adapter is not None:
                    features = teacher.adapter.features([h for h, _, _ in heads])
                    heads.append((features, teacher.adapter.up.weight, None))
                    shares = [*shares, 1.0]
            return ops.linear_kl(
                hidden,
                head.weight,
                heads,
                head.bias,
                teacher_weights=shares,
                counts=counts,
                temperature=self.temperature,
            )
        with torch.no_grad():
            log_p = _log_softmax(teacher(ids) / self.temperature)
        log_q = _log_softmax(head(hidden) / self.temperature)
        rows = F.kl_div(log_q, log_p.to(log_q.dtype), reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * rows[counts].mean()


def _log_softmax(logits: Any) -> Tensor:
    wide: Tensor = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1)
