"""Distillation: one model learns to predict what an ensemble predicts."""

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
    """Train a model to predict what an ensemble predicts, on unlabelled text.

    Loss of a token: (1 − truth) · T² · KL(teacher ‖ student) at temperature T, plus truth · the
    cross-entropy of the token itself (Hinton et al. 2015, arXiv 1503.02531, §2). Under a rule over
    the logits of decoders neither side's logits are ever in memory at once.

    Args:
        teacher: not changed.
        student: trained in place, in those of its parameters that require gradients; of the
            teacher's vocabulary and device.
        data: text; its validation text picks the best weights, by bits per character.
        tokens: to read, rounded up to whole steps.
        train: how to train; its defaults suit small models.
        temperature: T > 0.
        truth: share of the text itself in the loss, from 0 to 1.
        out: folder for checkpoints, the log and the model (`model/`); None keeps all in memory.
        resume: `"auto"` goes on with the run that stands in `out`.
        quiet: print nothing.

    Raises:
        ConfigError: an option out of range, a student of another vocabulary or without anything to
            train, or `out` holds a run of other settings.
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
    pupil = _Pupil(student, teacher, temperature, truth)
    active = {name: p for name, p in pupil.named_parameters() if p.requires_grad}
    if not active:
        raise ConfigError("distill: no parameter of the student requires a gradient")
    folder = None if out is None else Path(out)
    settings = {"kind": "distillation", "temperature": temperature, "truth": truth}
    result = fit(
        pupil,
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


class _Pupil(nn.Module):
    """The student, whose loss in training is what its teacher thinks of it."""

    def __init__(
        self, student: Decoder, teacher: Ensemble, temperature: float, truth: float
    ) -> None:
        super().__init__()
        self.student = student
        # Not a submodule: nothing of the teacher trains, moves or changes its mode here.
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
        """The distillation loss in training mode, the student's own cross-entropy otherwise."""
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
