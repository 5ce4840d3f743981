"""Check one stage: start it, train for a few steps, stop and resume it."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgrow.errors import FastgrowError
from fastgrow.growth.active import StageShape, active_parameters
from fastgrow.growth.boundary import begin_stage
from fastgrow.growth.doctor.findings import CHECKS, Finding
from fastgrow.growth.doctor.tensors import differing, digests, largest_difference, shorten
from fastgrow.growth.freeze import select_active
from fastgrow.growth.lora import adapters, merge_lora
from fastgrow.growth.sharing import separate_blocks
from fastgrow.growth.stage import Stage
from fastgrow.nn import Decoder
from fastgrow.training import Batches, Checkpointer, TrainConfig, Trainer
from fastgrow.training.data.batches import IGNORE_INDEX
from fastgrow.training.precision import autocast, resolve_precision
from fastgrow.training.rng import seed_everything

# LoRA products and the parts of a fused layer are rounded in a different order than a plain layer.
ROUNDING = 1e-4
# Tolerance on a GPU, where atomic additions make runs non-deterministic.
ON_GPU = 1e-2


@dataclass(frozen=True)
class Setting:
    """The setting of the checks of a stage.

    Attributes:
        train: training settings of the run, with small batches.
        seq_len: number of tokens in a window.
        steps: number of training steps; the checkpoint is written after half of them.
        stream: the training text.
        folder: folder for checkpoints.
    """

    train: TrainConfig
    seq_len: int
    steps: int
    stream: Any
    folder: Path

    def batches(self) -> Batches:
        return Batches(self.stream, self.train.batch_size, self.seq_len, seed=self.train.seed)


class StageExam:
    """Check one stage of a model. Afterwards the model is as at the end of the stage."""

    def __init__(
        self, model: Decoder, number: int, stage: Stage, shape: StageShape, setting: Setting
    ) -> None:
        self.model = model
        self.number = number
        self.stage = stage
        self.shape = shape
        self.setting = setting
        self.findings: list[Finding] = []
        config = (
            setting.train if stage.lr is None else dataclasses.replace(setting.train, lr=stage.lr)
        )
        self.train = dataclasses.replace(config, checkpoint_every=max(1, setting.steps // 2))
        self.ids, self.targets = (t.to(model.device) for t in next(setting.batches()))

    def run(self) -> list[Finding]:
        """Run all checks; those that cannot run after a failure are reported as not reached."""
        try:
            self._insertion()
            active = self._active_set()
            self._gradients(active)
            self._training(active)
            self._merge()
        except FastgrowError as error:
            # `self._now` is the check that was running.
            self._report(self._now, False, str(error))
        separate_blocks(self.model)
        reached = {finding.check for finding in self.findings}
        for check in CHECKS:
            if check not in reached and check not in ("substrate", "trunk", "run"):
                self._report(check, None, "not reached")
        return self.findings

    def _report(self, check: str, ok: bool | None, detail: str = "") -> None:
        self.findings.append(Finding(self.number, check, ok, "" if ok else detail))

    # -- before training -----------------------------------------------------------------------

    def _insertion(self) -> None:
        self._now = "insertion"
        model, shape, stage = self.model, self.shape, self.stage
        old, before = list(model.blocks), self._hidden(model)
        begin_stage(model, stage, shape, self.setting.train.seed + self.number)
        kept = [block for i, block in enumerate(model.blocks) if i not in shape.new]
        problem = ""
        if model.n_layer != shape.depth:
            problem = f"expected {shape.depth} blocks, there are {model.n_layer}"
        elif len(kept) != len(old) or any(a is not b for a, b in zip(kept, old, strict=True)):
            problem = f"the new blocks are not at {list(shape.new)}, or old blocks were replaced"
        elif stage.insertion == "identity" or not stage.blocks:
            problem = self._differs(before, self._hidden(model), exact=stage.lora is None)
        self._report("insertion", not problem, problem)

    def _hidden(self, model: Decoder) -> Tensor:
        """Return the input of the head, which does not depend on changes of the head."""
        with torch.no_grad():
            return model.hidden(self.ids)

    def _differs(self, before: Tensor, after: Tensor, *, exact: bool) -> str:
        difference = float((after - before).abs().max())
        allowed = 0.0 if exact else ROUNDING * float(before.abs().max())
        if difference <= allowed:
            return ""
        return (
            f"the hidden states changed by up to {difference:.3g}, expected at most {allowed:.3g}"
        )

    def _active_set(self) -> dict[str, nn.Parameter]:
        self._now = "active set"
        active = select_active(self.model, self.shape)
        expected = {name for name, _ in self.model.named_parameters() if self._trains(name)}
        found = {name for name, p in self.model.named_parameters() if p.requires_grad}
        numbers = sum(p.numel() for p in active.values())
        counted = active_parameters(self.stage, self.shape, self.model.config)
        problems = []
        if expected - found:
            problems.append(f"frozen but should be active: {shorten(sorted(expected - found))}")
        if found - expected:
            problems.append(f"active but should be frozen: {shorten(sorted(found - expected))}")
        if set(active) != found:
            names = shorten(sorted(found ^ set(active)))
            problems.append(f"in only one of the active set and requires_grad: {names}")
        if numbers != counted and not problems:
            problems.append(f"{numbers:,} parameters are active, expected {counted:,}")
        self._report("active set", not problems, "; ".join(problems))
        return active

    def _trains(self, name: str) -> bool:
        """Whether a parameter should be active according to the stage's shape."""
        part, _, rest = name.partition(".")
        if part != "blocks":
            shape = self.shape
            return {"embedding": shape.table, "final_norm": shape.final_norm}.get(part, shape.head)
        index = int(rest.partition(".")[0])
        if name.endswith((".lora_A", ".lora_B")):
            return index in self.shape.adapted
        return index in self.shape.trained

    def _gradients(self, active: dict[str, nn.Parameter]) -> None:
        self._now = "gradients"
        model = self.model
        with autocast(resolve_precision(self.train.precision, model.device), model.device):
            loss = model.loss(self.ids, self.targets, ignore_index=IGNORE_INDEX)
        if loss.requires_grad:
            loss.backward()
        without = [name for name, p in active.items() if p.grad is None]
        broken = [
            n for n, p in active.items() if p.grad is not None and not p.grad.isfinite().all()
        ]
        frozen = [n for n, p in model.named_parameters() if n not in active and p.grad is not None]
        model.zero_grad(set_to_none=True)
        problems = [
            f"{what}: {shorten(names)}"
            for what, names in (
                ("active parameters without a gradient", without),
                ("gradients that are not finite", broken),
                ("frozen parameters with a gradient", frozen),
            )
            if names
        ]
        self._report("gradients", not problems, "; ".join(problems))

    # -- training, stopping, resuming ------------------------------------------------------------

    def _training(self, active: dict[str, nn.Parameter]) -> None:
        self._now = "training"
        model = self.model
        # The copy shares the substrate, which is as large as the token table.
        twin = copy.deepcopy(model, {id(model.substrate): model.substrate})
        trainer = self._trainer(model, active)
        before = digests(model)
        checkpointer = Checkpointer(self.setting.folder / f"stage-{self.number}")

        def save(_: Trainer) -> Path:
            state = {"model": model.state_dict(), "trainer": trainer.state_dict()}
            return checkpointer.save(trainer.step, {"doctor": state})

        try:
            trainer.run(save)
        finally:
            # The optimizer can be checked even if training failed.
            self._optimizer(trainer, active)
        self._report("training", True)
        after = digests(model)
        changed = [n for n in before if n not in active and after[n] != before[n]]
        self._report("frozen", not changed, f"changed: {shorten(changed)}")
        unchanged = [name for name in active if after[name] == before[name]]
        self._report("moves", not unchanged, f"did not change: {shorten(unchanged)}")
        self._resume(twin, checkpointer.load()["doctor"])

    def _trainer(self, model: Decoder, active: dict[str, nn.Parameter]) -> Trainer:
        return Trainer(model, active, self.setting.batches(), self.train, steps=self.setting.steps)

    def _optimizer(self, trainer: Trainer, active: dict[str, nn.Parameter]) -> None:
        names = {id(p): name for name, p in self.model.named_parameters()}
        held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        wanted = {id(p) for p in active.values()}
        stated = {id(p) for p in trainer.optimizer.held}
        problems = []
        foreign = (set(held) | stated) - wanted
        if foreign:
            known = (names.get(i, "a tensor that is not a parameter of the model") for i in foreign)
            problems.append(f"holds tensors that are not active: {shorten(sorted(known))}")
        missing = wanted - set(held)
        if missing:
            problems.append(f"does not hold {shorten(sorted(names[i] for i in missing))}")
        if len(held) != len(set(held)):
            problems.append("holds a parameter twice")
        self._report("optimizer", not problems, "; ".join(problems))

    def _resume(self, twin: Decoder, saved: dict[str, Any]) -> None:
        self._now = "resume"
        names = {name for name, p in twin.named_parameters() if p.requires_grad}
        active = {name: p for name, p in twin.named_parameters() if name in names}
        with torch.no_grad():
            # Weights that the checkpoint does not restore stay NaN.
            for parameter in active.values():
                parameter.fill_(float("nan"))
        twin.load_state_dict(saved["model"])
        trainer = self._trainer(twin, active)
        seed_everything(self.setting.train.seed + 1)
        trainer.load_state_dict(saved["trainer"])
        loaded = trainer.state_dict()
        wrong = differing(saved["trainer"]["optimizer"], loaded["optimizer"])
        self._report("state", not wrong, f"differs from the saved state: {shorten(wrong)}")
        moved = differing(saved["trainer"]["data"], loaded["data"])
        self._report("data cursor", not moved, f"differs from the saved position: {shorten(moved)}")
        trainer.run(lambda _: None)
        self._compare(twin)

    def _compare(self, twin: Decoder) -> None:
        mine, theirs = self.model.state_dict(), twin.state_dict()
        wrong = differing(mine, theirs)
        difference = largest_difference(mine, theirs)
        allowed = ON_GPU if self.model.device.type == "cuda" else 0.0
        self._report(
            "resume",
            not wrong or difference <= allowed,
            f"the final weights differ by up to {difference:.3g}: {shorten(wrong)}",
        )

    # -- after training ------------------------------------------------------------------------

    def _merge(self) -> None:
        self._now = "merge"
        if self.stage.lora is None:
            self._report("merge", None, "no LoRA adapters")
            return
        before = self._hidden(self.model)
        merge_lora(self.model)
        left = list(adapters(self.model))
        problem = f"adapters that were not merged: {shorten(left)}" if left else ""
        if not problem:
            problem = self._differs(before, self._hidden(self.model), exact=False)
        self._report("merge", not problem, problem)


def not_reached(number: int, why: str) -> list[Finding]:
    """Return the findings of a stage that could not be started."""
    return [Finding(number, check, None, why) for check in CHECKS]
