"""A small substrate and models on it."""

from __future__ import annotations

import pytest
import torch
from tiny_model import TinySubstrate, small_config

from fastgrow.nn import Decoder, DecoderConfig


@pytest.fixture
def substrate() -> TinySubstrate:
    return TinySubstrate()


@pytest.fixture
def config() -> DecoderConfig:
    return small_config()


@pytest.fixture
def model(config: DecoderConfig, substrate: TinySubstrate) -> Decoder:
    return Decoder(config, substrate, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 260, (2, 17), generator=torch.Generator().manual_seed(1))
