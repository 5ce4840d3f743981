"""Codes that are used instead of glyphs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fastgrow.errors import SubstrateError
from fastgrow.substrate.codes import RANDOM_BITS, Code


def test_id_codes_are_binary_digits_highest_first() -> None:
    bits = Code.parse("id-16").bits(65536, seed=0)
    assert bits.shape == (65536, 2)
    digits = np.unpackbits(bits, axis=1)
    assert "".join(map(str, digits[0xD801])) == format(0xD801, "016b")
    assert (digits.astype(int) @ (1 << np.arange(15, -1, -1)) == np.arange(65536)).all()


@pytest.mark.parametrize("n_bits", RANDOM_BITS)
def test_random_codes_are_unique_balanced_and_follow_the_seed(n_bits: int) -> None:
    code = Code.parse(f"random-{n_bits}")
    n_tokens = 65536 if n_bits == 16 else 5000
    bits = code.bits(n_tokens, seed=1)
    assert bits.shape == (n_tokens, n_bits // 8)
    assert len({row.tobytes() for row in bits}) == n_tokens
    # Five standard deviations of a fair coin tossed n_tokens times.
    share = np.unpackbits(bits, axis=1).mean(axis=0)
    assert (np.abs(share - 0.5) < 5 * 0.5 / n_tokens**0.5).all()
    np.testing.assert_array_equal(bits, code.bits(n_tokens, seed=1))
    assert (bits != code.bits(n_tokens, seed=2)).any()


def test_more_tokens_do_not_change_the_first_codes() -> None:
    code = Code.parse("random-64")
    np.testing.assert_array_equal(code.bits(10, seed=0), code.bits(1000, seed=0)[:10])


def test_random_codes_are_a_published_stream() -> None:
    bits = Code.parse("random-64").bits(1000, seed=5)
    assert bits.tobytes() == hashlib.shake_256(b"fastgrow codes 5").digest(8000)


def test_names_and_limits() -> None:
    assert Code.parse("random-256-float") == Code(random=True, n_bits=256, real=True)
    for name in ("random-17", "id-64", "glyphs", "random-64-floats", ""):
        with pytest.raises(SubstrateError, match=r"no codes .* expected one of id-16, random-16"):
            Code.parse(name)
    with pytest.raises(SubstrateError, match=r"65,537 tokens need more than the 65,536 codes"):
        Code.parse("id-16").bits(65537, seed=0)
