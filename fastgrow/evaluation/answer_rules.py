"""When an answer is right: the papers' rules and SQuAD's own."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_letter(answer: str) -> str:
    """What the papers compare with the key: the first character but spaces, in upper case."""
    return answer.strip().upper()[:1]


def holds_answer(answer: str, gold: str) -> bool:
    """The papers' rule for SQuAD: the right answer stands somewhere in it, in any case."""
    return gold.upper() in answer.strip().upper()


def exact_match(answer: str, golds: Iterable[str]) -> bool:
    """SQuAD's exact match (Rajpurkar et al., arXiv 1606.05250): equal after normalisation."""
    normal = normalised(answer)
    return any(normal == normalised(gold) for gold in golds)


def f1(answer: str, golds: Iterable[str]) -> float:
    """SQuAD's F1, in [0, 1]: shared words of the best of the right answers."""
    words = normalised(answer).split()
    return max(_f1(words, normalised(gold).split()) for gold in golds)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold))
