"""The papers' zero-shot prompts, byte for byte.

Source: the benchmark script of the papers' author (AVBochkov/PGT), with which the scores in arXiv
2507.04886 and 2507.07129 were measured. Texts are neither stripped nor escaped.
"""

from __future__ import annotations

from fastgrow.evaluation.questions import LETTERS, ChoiceQuestion, ReadingQuestion, Translation


def mmlu_prompt(question: ChoiceQuestion) -> str:
    """Return the prompt of MMLU: all options on one line."""
    options = " ".join(_lettered(question))
    return f"Question: {question.question}\nOptions: {options}\nAnswer:"


def choice_prompt(question: ChoiceQuestion) -> str:
    """Return the prompt of ARC, CommonsenseQA and OpenBookQA: one option per line."""
    options = "\n".join(_lettered(question))
    return f"Question: {question.question}\nOptions:\n{options}\nAnswer:"


def reading_prompt(question: ReadingQuestion) -> str:
    """Return the prompt of SQuAD."""
    return f"Context: {question.context}\nQuestion: {question.question}\nAnswer:"


def translation_prompt(pair: Translation) -> str:
    """Return the prompt of OPUS-100."""
    return f"Translate from {pair.source} to {pair.target}:\n{pair.text}\nAnswer:"


def cloze_prompt(question: ChoiceQuestion) -> str:
    """Return the context for the likelihoods of the choices; not one of the papers' prompts."""
    return f"Question: {question.question}\nAnswer:"


def _lettered(question: ChoiceQuestion) -> list[str]:
    return [f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
