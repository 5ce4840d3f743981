"""Rules that decide whether an answer is correct: the papers' and SQuAD's."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_letter(answer: str) -> str:
    """Return the first non-space character in upper case, which the papers compare with the key."""
    return answer.strip().upper()[:1]


def contains_answer(answer: str, gold: str) -> bool:
    """Whether the answer contains the gold answer, ignoring case: the papers' rule for SQuAD."""
    return gold.upper() in answer.strip().upper()


def exact_match(answer: str, golds: Iterable[str]) -> bool:
    """Whether the normalised answer equals a gold answer: SQuAD's rule (arXiv 1606.05250)."""
    normal = normalised(answer)
    return any(normal == normalised(gold) for gold in golds)


def f1(answer: str, golds: Iterable[str]) -> float:
    """Return SQuAD's F1 of the words, in [0, 1]: the maximum over the gold answers."""
    words = normalised(answer).split()
    return max(_f1(words, normalised(gold).split()) for gold in golds)


def normalised(text: str) -> str:
    """Lower-case the text, remove ASCII punctuation and English articles, use single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold))
