"""Fitting what lies on top of frozen experts: weights, an adapter, or the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.compose.adapter import Adapter
from fastgrow.compose.ensemble import Ensemble
from fastgrow.compose.learned import LearnedWeights
from fastgrow.compose.losses import have_plain_heads
from fastgrow.compose.per_request import PerRequest
from fastgrow.compose.rules import LogitRule
from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder, LMHead
from fastgrow.training import Mixture, Resume, TextData, TrainConfig, TrainResult, fit

What = Literal["weights", "adapter", "head"]


def tune(
    ensemble: Ensemble,
    data: TextData | Mixture,
    *,
    what: What,
    tokens: int,
    train: TrainConfig | None = None,
    out: Path | str | None = None,
    resume: Resume = "auto",
    quiet: bool = False,
) -> TrainResult:
    """Fit an ensemble to a text without training its experts' blocks.

    Args:
        ensemble: of decoders, under a rule over logits; changed in place.
        data: text; its validation text picks the best parameters.
        what: `weights`, one number for each expert, after which the rule is `LearnedWeights`;
            `adapter`, the low-rank term of the rule `Adapter`; `head`, the experts' own output
            layers (arXiv 2507.07129, "minimal fine-tuning of the output layer").
        tokens: to read, rounded up to whole steps.
        train: how to train; its defaults suit small models.
        out: folder for checkpoints, the log and the ensemble (`model/`).
        resume: `"auto"` goes on with the run that stands in `out`.
        quiet: print nothing.

    Raises:
        ConfigError: experts that are no decoders of one dtype, a rule that does not go with `what`,
            or `out` holds a run of other settings.
        Interrupted: the user stopped the run; its state is saved.
    """
    rule, models = ensemble.rule, ensemble.experts.values()
    if what not in ("weights", "adapter", "head"):
        raise ConfigError(f"tune: what must be weights, adapter or head, got {what!r}")
    if not have_plain_heads(models):
        raise ConfigError("tune: every expert must be a Decoder, and all of one dtype")
    if not isinstance(rule, LogitRule) or isinstance(rule, PerRequest):
        raise ConfigError(
            f"tune: expected a rule over logits, such as Mean(), that is the same for all rows, "
            f"got {rule}"
        )
    if (what == "adapter") != isinstance(rule, Adapter):
        raise ConfigError(
            f"tune: what is {what!r}, but the rule is {rule}; "
            "an adapter, and nothing else, is tuned under the rule Adapter(rank)"
        )
    tuning = _TUNINGS[what](ensemble)
    folder = None if out is None else Path(out)
    with _training(tuning) as active:
        result = fit(
            tuning,
            active,
            data,
            tokens=tokens,
            train=train or TrainConfig(),
            settings={"kind": f"tuning of {what}", "rule": rule.to_config()},
            out=folder,
            resume=resume,
            quiet=quiet,
        )
    tuning.finish()
    if folder is not None:
        ensemble.save(folder / "model")
    return result


@contextmanager
def _training(tuning: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Let the parameters require gradients for a while."""
    before = {name: p.requires_grad for name, p in tuning.named_parameters()}
    tuning.requires_grad_(True)
    try:
        yield dict(tuning.named_parameters())
    finally:
        for name, parameter in tuning.named_parameters():
            parameter.requires_grad_(before[name])


class _Tuning(nn.Module):
    """The ensemble's loss as a function of the parameters of this module alone."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        # Not a submodule: nothing of the experts trains or changes its mode here.
        self._ensemble = (ensemble,)

    @property
    def ensemble(self) -> Ensemble:
        return self._ensemble[0]

    @property
    def models(self) -> list[Decoder]:
        return self.ensemble.experts.values()

    @property
    def max_seq_len(self) -> int:
        return self.ensemble.max_seq_len

    @property
    def device(self) -> torch.device:
        return self.ensemble.device

    def coefficients(self) -> list[float]:
        rule = self.ensemble.rule
        assert isinstance(rule, LogitRule)
        return rule.coefficients(self.ensemble.names)

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        with torch.no_grad():
            hidden = [model.hidden(ids, in_float32=True) for model in self.models]
        h, weight, bias, mix = self.heads(hidden)
        return ops.linear_cross_entropy(
            h, weight, targets, bias, mix=mix, ignore_index=ignore_index, reduction=reduction
        )

    def heads(
        self, hidden: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None], Tensor | Sequence[float]]:
        """Hidden states, weights and biases of the heads, and how they are mixed."""
        linear = [model.lm_head for model in self.models]
        return hidden, [x.weight for x in linear], [x.bias for x in linear], self.coefficients()

    def finish(self) -> None:
        """Hand what was fitted to the ensemble."""


class _WeightTuning(_Tuning):
    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        like = ensemble.experts.values()[0].lm_head.weight
        self.weights = nn.Parameter(like.new_tensor(self.coefficients(), dtype=torch.float32))

    def heads(self, hidden: list[Tensor]) -> Any:
        h, weight, bias, _ = super().heads(hidden)
        return h, weight, bias, self.weights

    def finish(self) -> None:
        values = dict(zip(self.ensemble.names, self.weights.tolist(), strict=True))
        self.ensemble.reweight(LearnedWeights(values))


class _AdapterTuning(_Tuning):
    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        assert ensemble.adapter is not None
        self.adapter = ensemble.adapter

    def heads(self, hidden: list[Tensor]) -> Any:
        h, weight, bias, mix = super().heads(hidden)
        features = self.adapter.features(hidden)
        return [*h, features], [*weight, self.adapter.up.weight], [*bias, None], [*mix, 1.0]


class _HeadTuning(_Tuning):
    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        heads: list[LMHead] = [model.lm_head for model in self.models]
        self.heads_ = nn.ModuleList(heads)


_TUNINGS: dict[str, type[_Tuning]] = {
    "weights": _WeightTuning,
    "adapter": _AdapterTuning,
    "head": _HeadTuning,
}
