"""Neighbours have the largest cosines, and glyphs are drawn exactly."""

from __future__ import annotations

import re

import numpy as np
import pytest
from page_text import PageText

import fastgrow as fg
from fastgrow.report import Report
from fastgrow.report.inside.neighbours import add_neighbours, glyph_svg, nearest


def test_the_nearest_are_the_largest_cosines(substrate: fg.Substrate) -> None:
    table = np.random.default_rng(0).normal(size=(len(substrate), 5)) * 3
    found = nearest(substrate, table, "b", k=6)
    assert found[0].token == "b"
    own = table[substrate.vocabulary.ids["b"]]
    cosine = {}
    for token, id_ in substrate.vocabulary.ids.items():
        if token != "b" and id_ not in substrate.vocabulary.specials.values():
            row = table[id_]
            cosine[token] = row @ own / np.linalg.norm(row) / np.linalg.norm(own)
    best = sorted(cosine, key=lambda token: -cosine[token])[:6]
    assert [n.token for n in found[1:]] == best
    assert [n.cosine for n in found[1:]] == pytest.approx([cosine[t] for t in best])


def test_tokens_with_the_same_glyph_come_first(substrate: fg.Substrate) -> None:
    latin, cyrillic = nearest(substrate, substrate.table, "A", k=1)
    assert (latin.token, cyrillic.token) == ("A", "А")
    assert cyrillic.cosine == pytest.approx(1, abs=1e-5)
    assert latin.bitmap is not None
    assert cyrillic.bitmap is not None
    assert (latin.bitmap == cyrillic.bitmap).all()


def test_equal_vectors_have_equal_cosines(substrate: fg.Substrate) -> None:
    table = np.random.default_rng(0).normal(size=(len(substrate), 301)).astype(np.float32)
    table[5::3] = table[5]
    cosines = {n.cosine for n in nearest(substrate, table, "b", k=len(substrate))}
    ids = substrate.vocabulary.ids
    left = {*range(len(substrate))} - {ids["b"], *substrate.vocabulary.specials.values()}
    assert len(cosines) == 1 + len({i if i < 5 or i % 3 != 2 else 5 for i in left})


def test_a_zero_vector_has_no_neighbours(substrate: fg.Substrate) -> None:
    table = np.ones((len(substrate), 3))
    table[substrate.vocabulary.ids["b"]] = 0
    assert [n.token for n in nearest(substrate, table, "b")] == ["b"]
    assert "b" not in [n.token for n in nearest(substrate, table, "c", k=len(substrate))]


def test_a_glyph_is_drawn_exactly() -> None:
    bitmap = np.random.default_rng(1).random((8, 8)) < 0.5
    drawn = np.zeros_like(bitmap)
    for x, y, n, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", glyph_svg(bitmap)):
        assert n == back
        assert not drawn[int(y), int(x) : int(x) + int(n)].any()
        drawn[int(y), int(x) : int(x) + int(n)] = True
    assert (drawn == bitmap).all()


def test_codes_have_no_glyphs(tmp_path) -> None:
    coded = fg.Substrate.build(characters="abcd", n_ngrams=0, codes="id-16")
    report = Report("t")
    add_neighbours(report, coded, None)
    (tmp_path / "p.html").write_text(report.html(tmp_path))
    text = PageText(tmp_path / "p.html")
    assert "svg" not in text.tags
    assert "The vectors are codes (id-16)" in text.words
    assert "a U+0061" in text.words
