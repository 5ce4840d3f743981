"""The measured operations, in the order in which a run of limited time measures them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import Family
from benchmarks.cases import (
    attention,
    attention_decode,
    embedding,
    ensemble_loss,
    experts,
    growth_step,
    layer_norm,
    linear_cross_entropy,
    linear_kl,
    logit_mean,
    lora_linear,
    mlp,
    rms_norm,
)
from fastgrow.errors import ConfigError

FAMILIES = (
    attention.FAMILY,
    attention_decode.FAMILY,
    growth_step.FAMILY,
    linear_cross_entropy.FAMILY,
    linear_cross_entropy.WITHOUT_BIAS,
    linear_cross_entropy.FROZEN,
    linear_cross_entropy.HEADS,
    ensemble_loss.FAMILY,
    linear_cross_entropy.LSE,
    linear_kl.FAMILY,
    *mlp.FAMILIES,
    lora_linear.FAMILY,
    logit_mean.FAMILY,
    logit_mean.INTO,
    *experts.EXPERTS,
    layer_norm.FAMILY,
    rms_norm.FAMILY,
    layer_norm.ALONE,
    rms_norm.ALONE,
    embedding.FAMILY,
    embedding.PACKED,
    embedding.CODES,
)


def families(names: Sequence[str] = ()) -> list[Family]:
    """Return the families with the given names, or all families.

    Raises:
        ConfigError: there is no operation with one of the names.
    """
    known = {family.name: family for family in FAMILIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"--op: {unknown[0]!r} is not a measured operation; expected {', '.join(known)}"
        )
    return [known[name] for name in names] if names else list(FAMILIES)
