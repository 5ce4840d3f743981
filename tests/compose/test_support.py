"""`token_support`, and the page that shows it by colours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from compose_models import make_decoder

from fastgrow.compose import Ensemble, Posterior, token_support
from fastgrow.errors import ConfigError, SubstrateError
from fastgrow.report import write_heat_strip
from fastgrow.substrate import Substrate

TEXT = "абв abc <中文>"


@pytest.fixture
def duo(substrate: Substrate) -> Ensemble:
    experts = {name: make_decoder(substrate, seed) for seed, name in enumerate(("ru", "zh"))}
    return Ensemble(experts, Posterior())


@torch.no_grad()
def test_bits_and_shares_are_the_experts(duo: Ensemble, substrate: Substrate) -> None:
    text = TEXT.replace("<", "").replace(">", "")
    supports = token_support(duo, text)
    assert "".join(support.text for support in supports) == text
    ids = torch.tensor([[substrate.bos_id, *substrate.encode(text)]])
    expected = {
        name: m(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        for name, m in duo.experts.items()
    }
    merged = duo(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
    for place, support in enumerate(supports):
        p = {name: float(x[place].exp()) for name, x in expected.items()}
        for name in ("ru", "zh"):
            assert 2 ** -support.bits[name] == pytest.approx(p[name], rel=1e-9)
            assert support.shares[name] == pytest.approx(p[name] / sum(p.values()), rel=1e-9)
        assert 2**-support.merged_bits == pytest.approx(float(merged[place].exp()), rel=1e-9)


def test_a_long_text_is_read_in_windows(duo: Ensemble) -> None:
    text = "аб" * 30
    supports = token_support(duo, text)
    assert len(supports) == 60
    assert supports[24].bits == token_support(duo, text[24:48])[0].bits


def test_the_page_colours_tokens_by_their_winner(duo: Ensemble, tmp_path: Path) -> None:
    text = TEXT.replace("<", "").replace(">", "")
    supports = token_support(duo, text)
    write_heat_strip(supports, tmp_path / "strip.html", title="a <b> c")
    page = (tmp_path / "strip.html").read_text()
    assert "<h1>a &lt;b&gt; c</h1>" in page
    spans = re.findall(r'<span style="background: hsl\((\d+) .*?/ ([\d.]+)\)" title="(.*?)">', page)
    assert len(spans) == len(text)
    for (hue, strength, title), support in zip(spans, supports, strict=True):
        winner = max(support.shares, key=lambda name: support.shares[name])
        assert hue == {"ru": "0", "zh": "138"}[winner]
        assert float(strength) == pytest.approx(0.75 * (2 * support.shares[winner] - 1), abs=0.006)
        assert title.startswith(f"ru {support.bits['ru']:.1f} bits; zh ")
    means = [sum(s.bits[name] for s in supports) / len(supports) for name in ("ru", "zh")]
    for mean in means:
        assert f"<td>{mean:.2f}</td>" in page


def test_texts_that_cannot_be_encoded_are_named(duo: Ensemble) -> None:
    with pytest.raises(ConfigError, match="the text has no token"):
        token_support(duo, "")
    with pytest.raises(SubstrateError, match=r"U\+0401"):
        token_support(duo, "Ё")
    bare = Ensemble({"a": make_decoder(None, 1, vocab_size=9, table=torch.zeros(9, 16))})
    with pytest.raises(ConfigError, match="has no substrate"):
        token_support(bare, "a")
