"""The papers' zero-shot prompts, to the byte.

Source: the benchmark script of the papers' author (AVBochkov/PGT), which arXiv 2507.04886 and
2507.07129 report with. Nothing is stripped or escaped: a question's own spaces stay.
"""

from __future__ import annotations

from fastgrow.evaluation.questions import LETTERS, ChoiceQuestion, ReadingQuestion, Translation


def mmlu_prompt(question: ChoiceQuestion) -> str:
    """All options on one line."""
    options = " ".join(_lettered(question))
    return f"Question: {question.question}\nOptions: {options}\nAnswer:"


def choice_prompt(question: ChoiceQuestion) -> str:
    """An option a line: ARC, CommonsenseQA."""
    options = "\n".join(_lettered(question))
    return f"Question: {question.question}\nOptions:\n{options}\nAnswer:"


def reading_prompt(question: ReadingQuestion) -> str:
    """SQuAD."""
    return f"Context: {question.context}\nQuestion: {question.question}\nAnswer:"


def translation_prompt(pair: Translation) -> str:
    """OPUS-100."""
    return f"Translate from {pair.source} to {pair.target}:\n{pair.text}\nAnswer:"


def cloze_prompt(question: ChoiceQuestion) -> str:
    """What a choice's text is to continue when likelihoods are compared; not the papers'."""
    return f"Question: {question.question}\nAnswer:"


def _lettered(question: ChoiceQuestion) -> list[str]:
    return [f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
