"""BLEU and chrF, computed by sacrebleu."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from fastgrow.errors import ConfigError


def require_sacrebleu() -> Any:
    """Import sacrebleu.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("sacrebleu")
    except ImportError:
        raise ConfigError(
            "translations are scored by sacrebleu, which is not installed: "
            "pip install 'fastgrow[eval]'"
        ) from None


def papers_bleu(answer: str, reference: str) -> float:
    """Compute the papers' BLEU of a sentence, 0 to 100: upper case, corpus of one sentence."""
    library = require_sacrebleu()
    return float(library.corpus_bleu([answer.strip().upper()], [[reference.upper()]]).score)


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Compute the corpus BLEU of a set."""
    return float(require_sacrebleu().corpus_bleu(list(answers), [list(references)]).score)


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """Compute the corpus chrF of a set."""
    return float(require_sacrebleu().corpus_chrf(list(answers), [list(references)]).score)
