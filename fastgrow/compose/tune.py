"""Fitting an ensemble of frozen experts: its weights, an adapter, or the output heads."""

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
    """Fit an ensemble to a text while the experts' blocks stay frozen.

    Args:
        ensemble: ensemble of decoders with a rule over logits; changed in place.
        data: training text; the best parameters are selected on its validation text.
        what: parameters to fit. `weights`: one number for each expert; the rule is `LearnedWeights`
            afterwards. `adapter`: the low-rank term of the rule `Adapter`. `head`: the experts'
            output heads (arXiv 2507.07129, "minimal fine-tuning of the output layer").
        tokens: number of training tokens, rounded up to whole steps.
        train: training configuration; the defaults suit small models.
        out: folder for checkpoints, the log and the ensemble (`model/`); None writes nothing.
        resume: `"auto"` continues the run in `out` if there is one.
        quiet: whether to print nothing.

    Raises:
        ConfigError: an expert is not a decoder, the experts' dtypes differ, the rule does not fit
            `what`, or `out` holds a run with other settings.
        Interrupted: the user stopped the run; its state is saved.
    """
    rule, models = ensemble.rule, ensemble.experts.values()
    if what not in ("weights", "adapter", "head"):
        raise ConfigError(f"tune: what must be weights, adapter or head, got {what!r}")
    if not have_plain_heads(models):
        raise ConfigError("tune: all experts must be instances of Decoder with the same dtype")
    if not isinstance(rule, LogitRule) or isinstance(rule, PerRequest):
        raise ConfigError(
            f"tune: expected a rule over logits that is the same for all rows, such as Mean(), "
            f"got {rule}"
        )
    if (what == "adapter") != isinstance(rule, Adapter):
        raise ConfigError(
            f"tune: what is {what!r}, but the rule is {rule}; "
            "what='adapter' requires the rule Adapter(rank), and that rule requires what='adapter'"
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
    """Context manager: all parameters of `tuning` require gradients; yields them by name."""
    before = {name: p.requires_grad for name, p in tuning.named_parameters()}
    tuning.requires_grad_(True)
    try:
        yield dict(tuning.named_parameters())
    finally:
        for name, parameter in tuning.named_parameters():
            parameter.requires_grad_(before[name])


class _Tuning(nn.Module):
    """The loss of the ensemble, with the parameters to fit as the parameters of this module."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: the experts are not trained or switched to
        # training mode.
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
        """Return hidden states, weights, biases and mixing coefficients of the heads."""
        linear = [model.lm_head for model in self.models]
        return hidden, [x.weight for x in linear], [x.bias for x in linear], self.coefficients()

    def finish(self) -> None:
        """Set the fitted parameters in the ensemble."""


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
