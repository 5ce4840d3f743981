"""A whole study: runs named by hashes, rules, resuming, and reproducible results."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_study import TREE, MakeStudy, settings

from fastgrow.compose import Contrast, Mean, Temperature, Weighted, load
from fastgrow.errors import ConfigError
from fastgrow.nn import Decoder
from fastgrow.study.compose import check_ensembles, compose, make_rule
from fastgrow.study.plan import Study
from fastgrow.study.record import claim_study, read_record
from fastgrow.study.results import collect, read_results
from fastgrow.study.run import plan_jobs, run_study
from fastgrow.study.tables import bits_table, markdown
from fastgrow.study.worker import train

RULES: dict[str, Any] = {
    "mean": {"rule": {"kind": "mean"}},
    "chosen": {
        "choose": [
            {"kind": "weighted", "weights": [1, 0]},
            {"kind": "weighted", "weights": [1, 1]},
            {"kind": "weighted", "weights": [0, 1]},
        ]
    },
    "tuned": {
        "rule": {"kind": "learned_weights"},
        "tune": {"what": "weights", "tokens": 512, "train": {"lr": 0.1}},
    },
    "adapter": {
        "rule": {"kind": "adapter", "rank": 2},
        "tune": {"what": "adapter", "tokens": 128},
    },
}
DUO = {"duo": {"experts": ["a", "b"], "rules": RULES}}


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of two trainings and an ensemble, run in this process."""
    out = tmp_path_factory.mktemp("finished")
    study = claim_study(settings(ensembles=DUO), [folder], out)
    for name in ("a", "b"):
        train(study, study.run(name, 1), quiet=True)
    compose(study, study.composition("duo", 1))
    return study


@pytest.fixture(scope="module")
def results(finished: Study) -> dict[str, Any]:
    return collect(finished, [1])


def test_each_expert_knows_its_own_text(results: dict[str, Any]) -> None:
    a, b = (results["trainings"][name]["1"]["stages"] for name in ("a", "b"))
    assert [stage["depth"] for stage in a] == [1, 2]
    assert a[-1]["bits"]["latin"] < b[-1]["bits"]["latin"]
    assert b[-1]["bits"]["greek"] < a[-1]["bits"]["greek"]
    assert a[-1]["bits"]["latin"] < results["baselines"]["uniform"]["latin"]


def test_the_mix_weighs_texts_by_their_length(results: dict[str, Any]) -> None:
    lengths = results["test_characters"]
    bits = results["ensembles"]["duo"]["mean"]["1"]["bits"]
    whole = sum(lengths[name] * bits[name] for name in lengths) / sum(lengths.values())
    assert bits["mix"] == pytest.approx(whole, rel=1e-4)


def test_curves_run_over_tokens_and_operations(results: dict[str, Any]) -> None:
    run = results["trainings"]["a"]["1"]
    curve = run["curve"]
    assert [point[0] for point in curve] == [128, 256, 384, 512]
    first, second = (stage["flops"] for stage in run["stages"])
    # Two blocks cost more than one.
    assert first < second
    assert [point[1] for point in curve] == pytest.approx(
        [first / 2, first, first + second / 2, first + second], rel=1e-3
    )


def test_rules_are_chosen_and_fitted_on_the_tuning_text(results: dict[str, Any]) -> None:
    rules = results["ensembles"]["duo"]
    mix = {name: by_seed["1"]["bits"]["mix"] for name, by_seed in rules.items()}
    # One expert alone predicts the other's text badly.
    assert rules["chosen"]["1"]["taken"]["weights"] == {"a": 1.0, "b": 1.0}
    assert mix["chosen"] == pytest.approx(mix["mean"], rel=1e-4)
    learned = rules["tuned"]["1"]["taken"]["weights"]
    assert learned["a"] != 0.5
    assert mix["tuned"] < mix["mean"]
    assert rules["adapter"]["1"]["taken"]["rank"] == 2


def test_what_is_finished_is_not_run_again(finished: Study, folder: Path) -> None:
    again = claim_study(settings(ensembles=DUO), [folder], finished.out)
    assert plan_jobs(again) == []
    there = {path: path.stat().st_mtime_ns for path in again.out.rglob("*.json")}
    train(again, again.run("a", 1), quiet=True)
    compose(again, again.composition("duo", 1))
    assert there == {path: path.stat().st_mtime_ns for path in again.out.rglob("*.json")}


def test_a_new_seed_is_the_same_study_and_new_jobs(finished: Study, folder: Path) -> None:
    more = claim_study(settings(ensembles=DUO, seeds=[1, 2]), [folder], finished.out)
    labels = [job.label for job in plan_jobs(more)]
    assert labels == ["a, seed 2", "b, seed 2", "ensemble duo, seed 2"]
    assert plan_jobs(more)[-1].needs == {"a, seed 2", "b, seed 2"}


def test_an_ensemble_comes_right_after_its_last_expert(make_study: MakeStudy) -> None:
    trainings = {**TREE["trainings"], "c": {"texts": {"latin": 2}}}
    labels = [job.label for job in plan_jobs(make_study(trainings=trainings, ensembles=DUO))]
    assert labels == ["a, seed 1", "b, seed 1", "ensemble duo, seed 1", "c, seed 1"]


def test_without_ensembles_no_tuning_text_is_needed(make_study: MakeStudy) -> None:
    study = make_study(documents={**TREE["documents"], "tuning": 1})
    assert len(plan_jobs(study)) == 2


def test_some_alone_are_run_with_what_they_need(make_study: MakeStudy) -> None:
    trainings = {**TREE["trainings"], "c": {"texts": {"latin": 2}}}
    study = make_study(trainings=trainings, ensembles=DUO, seeds=[1, 2])
    labels = [job.label for job in plan_jobs(study, ["duo"]) if job.label.endswith("1")]
    assert labels == ["a, seed 1", "b, seed 1", "ensemble duo, seed 1"]
    assert [job.label for job in plan_jobs(study, ["c"])] == ["c, seed 1", "c, seed 2"]
    with pytest.raises(ConfigError, match="only: there is no 'd'; expected one of a, b, c, duo"):
        plan_jobs(study, ["d"])


def test_what_is_finished_is_reported_without_a_run(
    finished: Study, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = settings(ensembles=DUO, seeds=[1, 2])
    made = run_study(whole, finished.out, folders=[folder], run=False)
    assert capsys.readouterr().out == f"report: {finished.out / 'report.html'}\n"
    assert list(made.results["trainings"]["a"]) == ["1"]
    written = json.loads((finished.out / "results.json").read_text(encoding="utf-8"))
    assert written == made.results


def test_a_rule_that_is_new_is_measured_alone(finished: Study) -> None:
    rules = {**RULES, "sharper": {"rule": {"kind": "weighted", "weights": [1, 1]}}}
    more = settings(ensembles={"duo": {"experts": ["a", "b"], "rules": rules}})
    study = Study(more, finished.folders, finished.out)
    paths = study.composition("duo", 1).results
    assert [name for name, path in paths.items() if not path.exists()] == ["sharper"]


def test_other_settings_are_rejected_or_extend_the_folder(folder: Path, tmp_path: Path) -> None:
    first = claim_study(settings(), [folder], tmp_path)
    train(first, first.run("a", 1), quiet=True)
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    changes = {
        "train.lr was 0.01 and is now 0.02": {"train": {**TREE["train"], "lr": 0.02}},
        "trainings.c was added": {"trainings": {**TREE["trainings"], "c": {"texts": {"latin": 2}}}},
        "trainings.b was removed": {"trainings": {"a": TREE["trainings"]["a"]}},
    }
    for message, change in changes.items():
        with pytest.raises(ConfigError, match=f"study with other settings: {message}"):
            claim_study(settings(**change), [folder], tmp_path)
    assert there == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    more = settings(trainings={**TREE["trainings"], "c": {"texts": {"latin": 2}}})
    extended = claim_study(more, [folder], tmp_path, extend=True)
    # Runs that are the same in both are reused, and the old results are kept.
    assert extended.run("a", 1).result.exists()
    assert (tmp_path / "old-1-results.json").read_text(encoding="utf-8") == "{}"
    assert read_record(tmp_path).settings == more
    assert "c" not in json.loads((tmp_path / "old-1-study.json").read_text())["settings"]


def test_a_run_that_another_process_is_at_is_left_alone(make_study: MakeStudy) -> None:
    study = make_study()
    run = study.run("a", 1)
    run.folder.mkdir(parents=True)
    with (run.folder / "lock").open("w") as file:
        # A reader's lock: a second worker that took one of these would get it.
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(ConfigError, match=r"another process .*is using this run folder"):
            train(study, run, quiet=True)


def test_lists_stand_for_the_experts_in_order() -> None:
    names = ["x", "y"]
    assert make_rule({"kind": "mean"}, names) == Mean()
    assert make_rule({"kind": "weighted", "weights": [2, 1]}, names) == Weighted({"x": 2, "y": 1})
    cool = make_rule({"kind": "temperature", "temperatures": [0.5, 2]}, names)
    assert cool == Temperature({"x": 0.5, "y": 2})
    assert make_rule({"kind": "contrast", "against": 1}, names) == Contrast("y")
    with pytest.raises(ConfigError, match="expected 2 values, one for each expert, got 3"):
        make_rule({"kind": "weighted", "weights": [1, 2, 3]}, names)
    with pytest.raises(ConfigError, match="expected an expert's index from 0 to 1, got 2"):
        make_rule({"kind": "contrast", "against": 2}, names)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": {"kind": "median"}}, r"ensembles\.duo\.rules\.r: rule .* is unknown"),
        ({"rule": {"kind": "weighted", "weights": {"a": 1}}}, r"rules\.r: .*'b'"),
        ({"choose": [{"kind": "contrast", "against": "z"}]}, r"rules\.r: .*'z'"),
        (
            {
                "rule": {"kind": "learned_weights"},
                "tune": {"what": "weights", "tokens": 8, "train": {"rl": 1}},
            },
            r"rules\.r\.tune\.train: rl: unknown name",
        ),
    ],
    ids=str,
)
def test_an_invalid_rule_is_rejected_before_training(
    rule: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    duo = {"duo": {"experts": ["a", "b"], "rules": {"r": rule}}}
    with pytest.raises(ConfigError, match=message):
        run_study(settings(ensembles=duo), tmp_path, folders=[folder], quiet=True)
    assert not list(tmp_path.iterdir())


def test_experts_on_different_substrates_are_rejected(make_study: MakeStudy) -> None:
    coded = {"texts": {"greek": 1}, "substrate": {"codes": "id-16"}}
    study = make_study(trainings={"a": TREE["trainings"]["a"], "b": coded}, ensembles=DUO)
    with pytest.raises(ConfigError, match=r"ensembles\.duo\.experts: .* got 2 different"):
        check_ensembles(study)


def test_random_blocks_stay_as_they_were(make_study: MakeStudy) -> None:
    control = {"a": {"texts": {"latin": 1}, "control": "frozen-without-growth"}}
    study = make_study(trainings=control)
    run = study.run("a", 1)
    train(study, run, quiet=True)
    torch.manual_seed(1)
    before = Decoder(run.model, study.corpus(run.training).substrate).state_dict()
    after = load(run.folder / "model").state_dict()
    blocks = [name for name in before if name.startswith("blocks.0.")]
    assert blocks
    assert all(torch.equal(before[name], after[name]) for name in blocks)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def command(file: Path, folder: Path, out: Path, *more: str) -> list[str]:
    words = ["study", str(file), "--data", str(folder), "--out", str(out), *more]
    return [sys.executable, "-m", "fastgrow", *words]


def printed_table(out: Path) -> str:
    return markdown(bits_table(read_results(out)))


# A worker's process reads this when it starts. In the middle of its training it sends Ctrl-C to the
# study, and waits until the study stops it.
STOPS_ITS_STUDY = """
import os, signal

replace = os.replace

def replace_and_stop(source, target, **options):
    replace(source, target, **options)
    if "/checkpoints/step-" in os.fspath(target):
        os.replace = replace
        # A signal that comes before it is waited for leaves its byte to read.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        os.kill(os.getppid(), signal.SIGINT)
        os.read(reading, 1)
        signal.set_wakeup_fd(-1)

os.replace = replace_and_stop
"""


@pytest.mark.slow
def test_a_study_that_was_stopped_prints_the_digits_of_one_that_was_not(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    stages = {"stages": [{"tokens": 16_000}, {"tokens": 16_000}]}
    tree = {**TREE, "ensembles": DUO, "schedule": stages}
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    subprocess.run(command(file, folder, tmp_path / "whole", "--jobs", "2"), check=True)

    (tmp_path / "sitecustomize.py").write_text(STOPS_ITS_STUDY)
    stopped = subprocess.run(
        command(file, folder, tmp_path / "stopped"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert stopped.returncode == 130
    assert "3 of 3 jobs unfinished" in stopped.stderr
    assert not any((tmp_path / "stopped").glob("runs/*/result.json"))
    subprocess.run(command(file, folder, tmp_path / "stopped"), check=True)

    table = printed_table(tmp_path / "whole")
    assert table == printed_table(tmp_path / "stopped")
    assert "duo: adapter" in table
    logs = [
        json.loads((tmp_path / out / "results.json").read_text()) for out in ("whole", "stopped")
    ]
    for name in ("a", "b"):
        curves = [log["trainings"][name]["1"]["curve"] for log in logs]
        assert curves[0] == curves[1]
