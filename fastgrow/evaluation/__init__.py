"""Evaluation: bits per character, and the papers' benchmark tasks and protocol."""

from fastgrow.evaluation.bits import (
    BitsPerCharacter,
    bits_per_character,
    uniform_bits,
    unigram_bits,
)
from fastgrow.evaluation.evaluator import evaluate
from fastgrow.evaluation.published import PUBLISHED, Published
from fastgrow.evaluation.reading import QuestionSet, read_questions
from fastgrow.evaluation.scoring import TaskResult
from fastgrow.evaluation.settings import EvaluationSettings
from fastgrow.evaluation.statistics import Score
from fastgrow.evaluation.tasks import TASKS, Task, find_tasks

__all__ = [
    "PUBLISHED",
    "TASKS",
    "BitsPerCharacter",
    "EvaluationSettings",
    "Published",
    "QuestionSet",
    "Score",
    "Task",
    "TaskResult",
    "bits_per_character",
    "evaluate",
    "find_tasks",
    "read_questions",
    "uniform_bits",
    "unigram_bits",
]
