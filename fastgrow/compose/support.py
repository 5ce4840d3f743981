"""`token_support`: how likely each token of a text is under each expert."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastgrow.compose.ensemble import Ensemble
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class TokenSupport:
    """Probabilities of one token under the experts and the ensemble.

    Attributes:
        text: the token's characters.
        bits: −log₂ of the token's probability under each expert, by name.
        merged_bits: −log₂ of the token's probability under the ensemble.
        shares: each expert's probability of the token divided by the sum over all experts, by name:
            the posterior probability of the expert under a uniform prior.
    """

    text: str
    bits: dict[str, float]
    merged_bits: float
    shares: dict[str, float]


@torch.no_grad()
def token_support(ensemble: Ensemble, text: str) -> list[TokenSupport]:
    """Score each token of a text under each expert and under the ensemble.

    A text longer than the context is split into windows that are scored independently.

    Args:
        ensemble: an ensemble with a substrate.
        text: text to score, not empty.

    Raises:
        ConfigError: the ensemble has no substrate, or the text has no token.
        SubstrateError: the text has characters that are not in the substrate.
    """
    substrate = ensemble.substrate
    if substrate is None:
        raise ConfigError("the ensemble has no substrate, so it cannot encode text")
    tokens = substrate.encode(text)
    if not tokens:
        raise ConfigError("the text has no token")
    supports = []
    for start in range(0, len(tokens), ensemble.max_seq_len):
        window = tokens[start : start + ensemble.max_seq_len]
        targets = torch.tensor([window], device=ensemble.device)
        ids = torch.tensor([[substrate.bos_id, *window[:-1]]], device=ensemble.device)
        nats = {
            name: model.loss(ids, targets, reduction="none")[0].double()
            for name, model in ensemble.experts.items()
        }
        merged = ensemble.loss(ids, targets, reduction="none")[0].double() / math.log(2)
        shares = torch.softmax(-torch.stack(list(nats.values())), dim=0)
        for index, token in enumerate(window):
            supports.append(
                TokenSupport(
                    text=substrate.decode([token]),
                    bits={name: float(x[index]) / math.log(2) for name, x in nats.items()},
                    merged_bits=float(merged[index]),
                    shares=dict(zip(nats, shares[:, index].tolist(), strict=True)),
                )
            )
    return supports
