"""`evaluate`: answer the questions of a task with a model, and score the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrow.errors import ConfigError
from fastgrow.evaluation.answers import Prompt, sample_answers
from fastgrow.evaluation.encoding import encode_texts, require_substrate
from fastgrow.evaluation.folder import AnswerFolder
from fastgrow.evaluation.identity import model_key as key_of
from fastgrow.evaluation.likelihood import Candidates, log_likelihoods
from fastgrow.evaluation.mode import evaluation_mode
from fastgrow.evaluation.prompts import cloze_prompt
from fastgrow.evaluation.questions import ChoiceQuestion, Question
from fastgrow.evaluation.reading import QuestionSet
from fastgrow.evaluation.scoring import TaskResult, score
from fastgrow.evaluation.settings import EvaluationSettings
from fastgrow.evaluation.tasks import Task
from fastgrow.evaluation.translation_scores import require_sacrebleu
from fastgrow.nn import LanguageModel

_FORMAT = 1


def evaluate(
    model: LanguageModel,
    questions: QuestionSet,
    settings: EvaluationSettings | None = None,
    *,
    folder: Path | str | None = None,
    model_key: str | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> TaskResult:
    """Evaluate a model on the questions of a task.

    The questions are answered in chunks, short prompts first. If a folder is given, the answers of
    each chunk are saved in it; if the evaluation is interrupted, the same call resumes it and
    returns the same result. The sampled tokens depend only on the seed and the question.

    Args:
        model: any `LanguageModel` with a substrate, e.g. a decoder, an ensemble or a `HubExpert`.
        questions: the questions, from `read_questions`.
        settings: settings of the evaluation; default: the papers'.
        folder: folder to save the answers in; None to save nothing.
        model_key: identifies the model in the folder; by default a hash of its weights, for which
            the model has to be a module.
        on_progress: called with the number of questions answered so far and the total.

    Raises:
        ArgumentError: the model's logits or likelihoods contain NaN, or are all -inf.
        ConfigError: the model has no substrate; no protocol in `settings` is applicable to the
            task; the folder holds another evaluation; or the task is a translation task and
            sacrebleu is not installed.
        CheckpointError: a file in the folder is damaged.
    """
    settings = settings or EvaluationSettings()
    task = questions.task
    require_substrate(model)
    if task.kind == "translation":
        require_sacrebleu()
    if task.kind != "choice" and "generate" not in settings.protocols:
        raise ConfigError(f"the task {task.name} has no choices: it needs the protocol 'generate'")
    saved = None
    if folder is not None:
        request = {
            "format": _FORMAT,
            "model": model_key or key_of(model),
            "task": task.name,
            "questions": questions.digest,
            "settings": settings.of_answers(),
        }
        saved = AnswerFolder(Path(folder), request)
    evaluator = _Evaluator(model, task, settings)
    total = len(questions.questions)
    records: dict[int, dict[str, Any]] = {}
    order = _by_length(model, questions)
    with evaluation_mode(model):
        for number, first in enumerate(range(0, total, settings.chunk)):
            chunk = order[first : first + settings.chunk]
            answered = None if saved is None else saved.read(number, chunk)
            if answered is None:
                answered = evaluator.records(chunk, [questions.questions[i] for i in chunk])
                if saved is not None:
                    saved.write(number, answered)
            records.update(zip(chunk, answered, strict=True))
            if on_progress is not None:
                on_progress(len(records), total)
    return score(questions, [records[i] for i in range(total)], settings)


def _by_length(model: LanguageModel, questions: QuestionSet) -> list[int]:
    """Return the indices sorted by prompt length, so that equal lengths form batches."""
    texts = [questions.task.prompt(question) for question in questions.questions]
    encoded = encode_texts(require_substrate(model), texts, document_start=True)
    return sorted(range(len(texts)), key=lambda i: min(len(encoded[i].ids), model.max_seq_len))


@dataclass(frozen=True)
class _Evaluator:
    """A model, a task and the settings of the evaluation."""

    model: LanguageModel
    task: Task
    settings: EvaluationSettings

    def records(
        self, indices: Sequence[int], questions: Sequence[Question]
    ) -> list[dict[str, Any]]:
        """Return the answers and likelihoods of each question as JSON objects."""
        records: list[dict[str, Any]] = [
            {"question": index, "id": question.id}
            for index, question in zip(indices, questions, strict=True)
        ]
        if "generate" in self.settings.protocols:
            self._generate(records, questions)
        if "likelihood" in self.settings.protocols and self.task.kind == "choice":
            self._compare(records, questions)
        return records

    def _generate(self, records: list[dict[str, Any]], questions: Sequence[Question]) -> None:
        texts = [self.task.prompt(question) for question in questions]
        # Seeded by the text of a question and not by its index, which differs between samples.
        prompts = [
            Prompt(text, self.task.new_tokens(question), f"{self.task.name} {text}")
            for text, question in zip(texts, questions, strict=True)
        ]
        answers = sample_answers(
            self.model,
            prompts,
            runs=self.settings.runs,
            temperature=self.settings.temperature,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
            document_start=self.settings.document_start,
        )
        for record, answer in zip(records, answers, strict=True):
            record["answers"] = list(answer.texts)
            record["cut"] = answer.cut
            record["unknown"] = answer.unknown

    def _compare(self, records: list[dict[str, Any]], questions: Sequence[Question]) -> None:
        candidates = [
            Candidates(cloze_prompt(q), tuple(f" {choice}" for choice in q.choices))
            for q in questions
            if isinstance(q, ChoiceQuestion)
        ]
        found = log_likelihoods(
            self.model,
            candidates,
            batch_size=self.settings.batch_size,
            document_start=self.settings.document_start,
        )
        for record, likelihoods in zip(records, found, strict=True):
            record["log_likelihoods"] = list(likelihoods.log_likelihoods)
            record["cut_likelihood"] = likelihoods.cut
            record.setdefault("unknown", likelihoods.unknown)
