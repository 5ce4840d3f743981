"""For each expert, the text for which its share is largest is selected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastgrow.compose import TokenSupport
from fastgrow.errors import SubstrateError
from fastgrow.report import Report
from fastgrow.report.inside import support
from fastgrow.report.inside.excerpts import Excerpt


def test_the_text_of_the_largest_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"ab": [0.6, 0.8], "cd": [0.9, 0.1], "ef": [0.2, 0.2]}

    def scored(ensemble: Any, text: str) -> list[TokenSupport]:
        if text not in shares:
            raise SubstrateError("unknown character U+003F")
        return [
            TokenSupport(letter, {"x": 1.0, "y": 2.0}, 1.5, {"x": share, "y": 1 - share})
            for letter, share in zip(text, shares[text], strict=True)
        ]

    monkeypatch.setattr(support, "token_support", scored)
    excerpts = [Excerpt(text, f"text {text}") for text in ("ef", "ab", "??", "cd")]
    report = Report("t")
    ensemble: Any = SimpleNamespace(names=("x", "y"))
    best = support.add_support(report, ensemble, excerpts)
    assert {name: excerpt.text for name, excerpt in best.items()} == {"x": "ab", "y": "ef"}
    text_of_page = report.markdown()
    assert "No support can be shown for text ??: unknown character U+003F." in text_of_page
    # The mean of 0.6, 0.8, 0.9, 0.1, 0.2 and 0.2.
    assert "| x | 1.00 | 47% |" in text_of_page
    assert "| ensemble | 1.50 |" in text_of_page
    assert support.add_support(Report("t"), ensemble, []) == {}
