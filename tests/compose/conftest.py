"""Shared substrates for the tests of this folder, since building one takes seconds."""

from __future__ import annotations

import pytest

from fastgrow.substrate import Substrate

CHARACTERS = "абвгдежз abcdefgh.中文字母"


@pytest.fixture(scope="session")
def substrate() -> Substrate:
    return Substrate.build(characters=CHARACTERS, n_components=16, n_ngrams=0)


@pytest.fixture(scope="session")
def twin_substrate() -> Substrate:
    """Another object with the same content as `substrate`."""
    return Substrate.build(characters=CHARACTERS, n_components=16, n_ngrams=0)


@pytest.fixture(scope="session")
def other_substrate() -> Substrate:
    """A substrate of the same size in which one token differs."""
    return Substrate.build(characters=CHARACTERS.replace("母", "好"), n_components=16, n_ngrams=0)
