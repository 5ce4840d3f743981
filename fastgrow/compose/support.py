"""Which expert supports which token of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastgrow.compose.ensemble import Ensemble
from fastgrow.errors import ConfigError


@dataclass(frozen=True)
class TokenSupport:
    """What was said of one token.

    Attributes:
        text: the token's characters.
        bits: −log₂ of the probability that each expert gave to it, by name.
        merged_bits: the same of the ensemble.
        shares: each expert's probability over the sum of all experts', by name: how the token is
            divided among them when nothing is known beforehand.
    """

    text: str
    bits: dict[str, float]
    merged_bits: float
    shares: dict[str, float]


@torch.no_grad()
def token_support(ensemble: Ensemble, text: str) -> list[TokenSupport]:
    """Score each token of a text by each expert and by all together.

    A text longer than the context is read in windows that do not see each other.

    Args:
        ensemble: on a substrate.
        text: not empty.

    Raises:
        ConfigError: the ensemble has no substrate, or the text no token.
        SubstrateError: the text has characters that the substrate lacks.
    """
    substrate = ensemble.substrate
    if substrate is None:
        raise ConfigError("the ensemble has no substrate, so it cannot read text")
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
        for place, token in enumerate(window):
            supports.append(
                TokenSupport(
                    text=substrate.decode([token]),
                    bits={name: float(x[place]) / math.log(2) for name, x in nats.items()},
                    merged_bits=float(merged[place]),
                    shares=dict(zip(nats, shares[:, place].tolist(), strict=True)),
                )
            )
    return supports
