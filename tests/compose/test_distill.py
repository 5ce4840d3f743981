"""The distillation loss against its definition, and whole distillation runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import make_decoder, random_text
from torch import Tensor

from fastgrow.compose import Adapter, Ensemble, Mean, Posterior, Weighted, distill, load
from fastgrow.compose.distill import _Distillation
from fastgrow.errors import ConfigError
from fastgrow.substrate import Substrate
from fastgrow.training import TextData, TrainConfig, Trainer

TRAIN = TrainConfig(batch_size=2, seq_len=16, lr=3e-3, checkpoint_every=2, eval_every=5)
DOCUMENTS = ["аб вг де ж з", "abc def gh", "中文 字母", "abba аббa".replace("a", "а")] * 6


@pytest.fixture
def data(substrate: Substrate) -> TextData:
    return TextData.from_splits(
        train=DOCUMENTS, validation=DOCUMENTS[:2], test=DOCUMENTS[:2], substrate=substrate
    )


def make_teacher(substrate: Substrate, rule: Any = None, **options: Any) -> Ensemble:
    experts = {name: make_decoder(substrate, seed, **options) for seed, name in enumerate("ab")}
    return Ensemble(experts, rule)


def from_the_definition(
    teacher: Ensemble, student: Any, ids: Tensor, counts: Tensor, temperature: float
) -> Tensor:
    p = (teacher(ids) / temperature).softmax(-1)
    q = (student(ids) / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)[counts].mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "rule",
    [Mean(), Weighted({"a": 1.5, "b": -0.5}), Posterior(forgetting=0.9), Adapter(3)],
    ids=str,
)
def test_the_loss_is_the_definition_s(rule: Any, temperature: float, substrate: Substrate) -> None:
    teacher, student = make_teacher(substrate, rule), make_decoder(substrate, 9)
    if teacher.adapter is not None:
        torch.nn.init.normal_(teacher.adapter.up.weight)
    ids = random_text(substrate, 0)
    targets = ids.roll(-1, 1).masked_fill(ids == substrate.pad_id, -100)
    pupil = _Distillation(student, teacher, temperature, truth=0.25).train()
    loss = pupil.loss(ids, targets)
    divergence = from_the_definition(teacher, student, ids, targets != -100, temperature)
    expected = 0.75 * divergence + 0.25 * student.loss(ids, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    gradient = torch.autograd.grad(loss, student.lm_head.weight)[0]
    wanted = torch.autograd.grad(expected, student.lm_head.weight)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-9)
    # In evaluation mode it is the student's cross-entropy.
    torch.testing.assert_close(pupil.eval().loss(ids, targets), student.loss(ids, targets))


def test_a_student_approaches_its_teacher(substrate: Substrate, data: TextData) -> None:
    teacher = make_teacher(substrate, dtype=torch.float32)
    student = make_decoder(substrate, 9, dtype=torch.float32)
    before = [p.detach().clone() for p in teacher.parameters()]
    ids = random_text(substrate, 0)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    first = from_the_definition(teacher, student, ids, everywhere, 1.0).item()
    distill(teacher, student, data, tokens=8_000, train=TRAIN, quiet=True)
    last = from_the_definition(teacher, student, ids, everywhere, 1.0).item()
    assert last < 0.5 * first
    for old, new in zip(before, teacher.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_run_that_was_killed_ends_in_the_same_bits(
    substrate: Substrate, data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(substrate, dtype=torch.float32)

    def run(out: Path) -> dict[str, Tensor]:
        student = make_decoder(substrate, 9, dtype=torch.float32)
        distill(teacher, student, data, tokens=400, train=TRAIN, out=out, quiet=True)
        return student.state_dict()

    whole = run(tmp_path / "whole")
    step = Trainer._train_step

    def dies(self: Trainer, **options: Any) -> None:
        if self.step == 7:
            raise MemoryError
        step(self, **options)

    monkeypatch.setattr(Trainer, "_train_step", dies)
    with pytest.raises(MemoryError):
        run(tmp_path / "killed")
    monkeypatch.undo()
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    saved = load(tmp_path / "killed" / "model", substrate=substrate)
    assert torch.equal(saved.lm_head.weight, whole["lm_head.weight"])  # type: ignore[union-attr]
    # A finished run is not repeated.
    assert all(torch.equal(whole[n], t) for n, t in run(tmp_path / "killed").items())


def test_another_setting_is_another_run(
    substrate: Substrate, data: TextData, tmp_path: Path
) -> None:
    teacher = make_teacher(substrate, dtype=torch.float32)
    student = make_decoder(substrate, 9, dtype=torch.float32)
    distill(teacher, student, data, tokens=64, train=TRAIN, out=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"contains a run with another temperature \(1\.0, now 2"):
        distill(
            teacher, student, data, tokens=64, train=TRAIN, temperature=2.0, out=tmp_path,
            quiet=True,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="already contains a run"):
        distill(
            teacher, student, data, tokens=64, train=TRAIN, out=tmp_path, resume="never",
            quiet=True,
        )  # fmt: skip


def test_what_cannot_be_distilled_is_refused(substrate: Substrate, data: TextData) -> None:
    teacher, student = make_teacher(substrate), make_decoder(substrate, 9)
    for options, message in (
        ({"truth": 1.5}, r"truth must be from 0 to 1, got 1\.5"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill(teacher, student, data, tokens=64, **options)  # type: ignore[arg-type]
    other = make_decoder(None, 1, vocab_size=9, table=torch.zeros(9, 16))
    with pytest.raises(ConfigError, match="the student has a vocabulary of 9 tokens"):
        distill(teacher, other, data, tokens=64)
    student.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the student requires a gradient"):
        distill(teacher, student, data, tokens=64)
