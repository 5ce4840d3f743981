"""The guarantees of a stage: frozen tensors do not change, active parameters are trained."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from growing import digest, make_data, make_model, make_train

from fastgrow import growth
from fastgrow.errors import CheckpointError, ConfigError, FastgrowError, Interrupted
from fastgrow.growth import GrowthSchedule, Stage, grow, stage_run, stage_shape
from fastgrow.growth.freeze import frozen_digest, select_active
from fastgrow.nn import Decoder
from fastgrow.training import Trainer

SCHEDULE = GrowthSchedule([Stage(1, 512), Stage(2, 512), Stage(1, 512)])


class Spy:
    """Records the active parameters and all values at the start and end of every stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stages: list[dict] = []
        original = Trainer.run

        def run(trainer: Trainer, *args: object, **kwargs: object) -> object:
            model: Decoder = trainer.model  # type: ignore[assignment]
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            result = original(trainer, *args, **kwargs)
            self.stages.append(
                {
                    "active": {n for n, p in model.named_parameters() if p.requires_grad},
                    "before": before,
                    "after": {n: p.detach().clone() for n, p in model.named_parameters()},
                    "optimized": {
                        id(p) for g in trainer.optimizer.param_groups for p in g["params"]
                    },
                    "active_ids": {id(p) for p in model.parameters() if p.requires_grad},
                    "with_state": {id(p) for p in trainer.optimizer.held},
                }
            )
            return result

        monkeypatch.setattr(Trainer, "run", run)


def test_only_new_blocks_norm_and_head_change(substrate, data, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    result = grow(make_model(substrate), data, SCHEDULE, train=make_train(pick="last"), quiet=True)
    assert [stage.depth for stage in result.stages] == [1, 3, 4]
    new_blocks = [{"0"}, {"1", "2"}, {"3"}]
    for seen, new in zip(spy.stages, new_blocks, strict=True):
        assert {n.split(".")[1] for n in seen["active"] if n.startswith("blocks.")} == new
        outside = {n for n in seen["active"] if not n.startswith("blocks.")}
        assert {n.split(".")[0] for n in outside} == {"final_norm", "lm_head"}
        assert seen["optimized"] == seen["active_ids"]
        # Adam keeps state for exactly the parameters that have had a gradient.
        assert seen["with_state"] == seen["active_ids"]
        for name, before in seen["before"].items():
            assert torch.equal(before, seen["after"][name]) == (name not in seen["active"]), name


def test_a_trainable_table_trains_with_the_first_blocks_only(substrate, data, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    model = make_model(substrate, embedding="trainable")
    grow(model, data, SCHEDULE, train=make_train(pick="last"), quiet=True)
    moved = [
        [n for n in seen["before"] if n.startswith("embedding.") and n in seen["active"]]
        for seen in spy.stages
    ]
    assert [len(names) for names in moved] == [1, 0, 0]


def test_old_blocks_stay_frozen(substrate, data) -> None:
    model = make_model(substrate)
    model.append_blocks(2)
    before = {n: t.clone() for n, t in model.blocks.state_dict().items()}
    grow(model, data, GrowthSchedule.blocks(1, tokens=256), train=make_train(), quiet=True)
    assert model.n_layer == 3
    after = model.blocks.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_identity_insertion_changes_nothing_at_first(substrate, data) -> None:
    schedule = GrowthSchedule([Stage(1, 512), Stage(1, 512, "identity"), Stage(1, 512, "random")])
    # The last weights are used: the next stage starts from exactly those evaluated here.
    stages = grow(
        make_model(substrate), data, schedule, train=make_train(pick="last"), quiet=True
    ).stages
    assert stages[1].bits_at_start == pytest.approx(stages[0].bits["validation"], rel=1e-6)
    assert stages[2].bits_at_start != pytest.approx(stages[1].bits["validation"], rel=1e-3)


def test_a_frozen_tensor_that_changes_raises(substrate, data, monkeypatch) -> None:
    original = Trainer.run

    def run(trainer: Trainer, *args: object, **kwargs: object) -> object:
        result = original(trainer, *args, **kwargs)
        frozen = next((p for p in trainer.model.parameters() if not p.requires_grad), None)
        if frozen is not None:
            frozen.data.view(-1)[0] += 1e-7
        return result

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(FastgrowError, match="stage 2: a frozen tensor changed"):
        grow(make_model(substrate), data, SCHEDULE, train=make_train(), quiet=True)


def test_frozen_digest_sees_the_table_and_every_frozen_bit(substrate) -> None:
    model = make_model(substrate)
    model.append_blocks(2)
    select_active(model, stage_shape(GrowthSchedule([Stage(1)]), 0, model.config, first_depth=1))
    first = frozen_digest(model)
    next(model.blocks[1].parameters()).data.add_(1)
    assert frozen_digest(model) == first, "an active tensor does not count"
    for name in ("blocks.0.", "embedding."):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        tensor = next(t for n, t in tensors if n.startswith(name))
        kept = tensor.detach().clone()
        tensor.data.view(-1)[0] += 1
        assert frozen_digest(model) != first, name
        tensor.data.copy_(kept)
    assert frozen_digest(model) == first


def test_gradients_of_the_stage_before_are_removed(substrate) -> None:
    model = make_model(substrate)
    model.append_blocks(2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    select_active(model, stage_shape(GrowthSchedule([Stage(1)]), 0, model.config, first_depth=1))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_saved_model_reloads_at_its_true_depth(substrate, data, tmp_path: Path) -> None:
    result = grow(
        make_model(substrate), data, SCHEDULE, train=make_train(), out=tmp_path / "run", quiet=True
    )
    loaded = Decoder.load(tmp_path / "run" / "model")
    assert loaded.n_layer == 4
    assert digest(loaded) == digest(result.model)
    assert loaded.substrate is not None
    assert loaded.substrate.fingerprint == substrate.fingerprint


def test_a_finished_run_is_not_run_again(substrate, data, tmp_path: Path, monkeypatch) -> None:
    def once() -> object:
        return grow(
            make_model(substrate), data, SCHEDULE, train=make_train(), out=tmp_path, quiet=True
        )

    first = once()
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained again"))
    second = once()
    assert digest(first.model) == digest(second.model)
    assert first.stages == second.stages


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("evaluation", "stages_kept"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_a_signal_between_trainings_loses_nothing(
    substrate, data, tmp_path, monkeypatch, number, evaluation, stages_kept
) -> None:
    """Each stage is evaluated before and after its training; the signal comes during one of these.

    No checkpoint is due within a stage, so what a stage trained would be lost if it stopped there.
    """
    evaluate, done = stage_run.bits_per_character, itertools.count(1)

    def evaluate_and_signal(*arguments, **options):
        if next(done) == evaluation:
            os.kill(os.getpid(), number)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(stage_run, "bits_per_character", evaluate_and_signal)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def once(out: Path | None) -> Decoder:
        return grow(
            make_model(substrate), data, SCHEDULE, train=make_train(), out=out, quiet=True
        ).model

    with pytest.raises(Interrupted, match=f"{number.name} after {stages_kept} of 3.*resume"):
        once(tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == stages_kept
    assert digest(once(tmp_path)) == digest(once(None))


def test_a_signal_without_a_folder_reports_that_nothing_is_saved(
    substrate, data, monkeypatch
) -> None:
    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    evaluate = stage_run.bits_per_character
    monkeypatch.setattr(stage_run, "bits_per_character", interrupted)
    with pytest.raises(Interrupted, match="has no folder for checkpoints"):
        grow(make_model(substrate), data, SCHEDULE, train=make_train(), quiet=True)


def test_runs_with_other_settings_raise_and_are_kept(substrate, data, tmp_path: Path) -> None:
    short = GrowthSchedule.blocks(1, tokens=128)
    run = {"train": make_train(), "out": tmp_path / "run", "quiet": True}
    grow(make_model(substrate), data, short, **run)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="another schedule"):
        grow(make_model(substrate), data, SCHEDULE, **run)
    with pytest.raises(ConfigError, match="another train"):
        grow(make_model(substrate), data, short, **{**run, "train": make_train(lr=0.5)})
    like = make_model(substrate)
    tabled = Decoder(like.config, substrate, table=torch.ones(len(substrate), 8))
    with pytest.raises(ConfigError, match="another table"):
        grow(tabled, data, short, **run)
    other = make_data(substrate, tmp_path / "other")
    other_text = type(other).from_splits(
        train=["abc " * 20], validation=["abc"], test=["abc"], substrate=substrate
    )
    with pytest.raises(ConfigError, match="another data"):
        grow(make_model(substrate), other_text, short, **run)
    with pytest.raises(ConfigError, match="already contains a run"):
        grow(make_model(substrate), data, short, **run, resume="never")
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert before == after


def test_the_record_holds_what_was_measured(substrate, data, tmp_path: Path) -> None:
    result = grow(
        make_model(substrate),
        data,
        SCHEDULE,
        train=make_train(),
        out=tmp_path,
        evaluate_on={"test": data.test},
        quiet=True,
    )
    record = json.loads((tmp_path / "growth.json").read_text())
    assert [row["depth"] for row in record] == [1, 3, 4]
    for row, stage in zip(record, result.stages, strict=True):
        assert row["bits"] == stage.bits
        assert set(stage.bits) == {"validation", "test"}
        assert row["tokens"] == 512
        assert row["active_parameters"] < row["total_parameters"]
    totals = {stage.depth: stage.total_parameters for stage in result.stages}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        logged = json.loads(line)
        assert logged["total_parameters"] == totals[logged["depth"]]


def test_stage_results_read_as_much_validation_text_as_training(substrate, data) -> None:
    def validation_bits(limit: int | None) -> float:
        train = make_train(pick="last", eval_tokens=limit)
        one = GrowthSchedule.blocks(1, tokens=64)
        return (
            grow(make_model(substrate), data, one, train=train, quiet=True)
            .stages[0]
            .bits["validation"]
        )

    assert validation_bits(None) == validation_bits(len(data.validation)) != validation_bits(32)


def test_an_unwritable_folder_is_found_at_the_start(substrate, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained before checking"))
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CheckpointError, match="file/run: the run folder is not writable"):
        grow(make_model(substrate), data, SCHEDULE, out=blocked / "run", quiet=True)
    assert blocked.read_text() == "not a folder"


def test_a_plain_schedule_is_recorded_as_it_always_was(substrate, data, tmp_path: Path) -> None:
    """Runs that were started by an earlier version are recognised as the same."""
    schedule = GrowthSchedule([Stage(1, 128), Stage(1, 128, head="frozen")])
    grow(make_model(substrate), data, schedule, train=make_train(), out=tmp_path, quiet=True)
    plain = {"blocks": 1, "tokens": 128, "insertion": "random", "lr": None}
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["schedule"] == [plain, {**plain, "head": "frozen"}]


def test_the_machine_that_started_a_run_is_recorded(substrate, data, tmp_path: Path) -> None:
    short = GrowthSchedule.blocks(1, tokens=128)
    grow(make_model(substrate), data, short, train=make_train(), out=tmp_path, quiet=True)
    begun = json.loads((tmp_path / "run.json").read_text())
    assert begun["environment"]["torch"] == torch.__version__
    # On another machine it is still the same run.
    begun["environment"] = {"torch": "0.1"}
    (tmp_path / "run.json").write_text(json.dumps(begun))
    grow(make_model(substrate), data, short, train=make_train(), out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "run.json").read_text()) == begun


def test_growth_does_not_import_its_planner() -> None:
    """Only users of the planner and the doctor need their imports."""
    root = Path(growth.__file__).parent
    apart = ("plan", "doctor")
    for file in root.rglob("*.py"):
        if file.relative_to(root).parts[0] in apart:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                assert not node.module.startswith(tuple(f"fastgrow.growth.{a}" for a in apart))


def test_partly_written_files_of_a_killed_run_are_removed(substrate, data, tmp_path: Path) -> None:
    for name in (".model.abcd1234.tmp", ".growth.json.abcd1234.tmp", ".run.json.abcd1234.tmp"):
        (tmp_path / name).write_text("half")
    half = tmp_path / "adapters" / ".stage-1.abcd1234.tmp"
    half.mkdir(parents=True)
    short = GrowthSchedule.blocks(1, tokens=128)
    grow(make_model(substrate), data, short, train=make_train(), out=tmp_path, quiet=True)
    assert not list(tmp_path.rglob("*.tmp"))
