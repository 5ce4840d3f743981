"""`fastgrow evaluate` as a user calls it: its files, resuming, and errors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastgrow
from fastgrow.cli import main
from fastgrow.errors import DataError
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate

QUICK = ["--runs", "3", "--batch-size", "4"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two decoders, their ensemble, the tasks' files and texts."""
    folder = tmp_path_factory.mktemp("evaluate")
    characters = "".join(map(chr, range(32, 127)))
    substrate = Substrate.build(characters=characters, n_ngrams=0, n_components=16)
    experts = {}
    for name, depth in (("shallow", 1), ("deep", 3)):
        config = DecoderConfig(
            vocab_size=len(substrate), d_model=16, n_layer=depth, n_head=2, max_seq_len=96
        )
        generator = torch.Generator().manual_seed(depth)
        experts[name] = Decoder(config, substrate, generator=generator)
        experts[name].save(folder / name)
    fastgrow.Ensemble(experts).save(folder / "duo")
    data = folder / "data"
    data.mkdir()

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def choice(i: int, n: int) -> dict[str, Any]:
        question = f"What is number {i}?" + " Think." * (i % 4)
        return {"id": str(i), "question": question, "choices": list("pqrst"[:n]), "answer": i % n}

    write("mmlu_test.jsonl", [{**choice(i, 4), "subject": f"s{i % 2}"} for i in range(9)])
    write("arc_easy_val.jsonl", [choice(i, 4) for i in range(8)])
    write("arc_challenge_val.jsonl", [choice(i, 3) for i in range(7)])
    write("csqa_val.jsonl", [choice(i, 5) for i in range(6)])
    answer = {"text": ["ten"], "answer_start": [0]}
    squad = {"context": "It has ten doors.", "question": "How many?", "answers": answer}
    write("squad11_val_1000.jsonl", [squad] * 5)
    texts = folder / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("the cat sat\non the mat\n")
    (texts / "b.txt").write_text("a dog\n")
    (folder / "odd.txt").write_text("na\xefve\n")
    return folder


def everything(folder: Path, out: Path) -> list[str | Path]:
    return [
        folder / "shallow", folder / "deep", folder / "duo",
        "--tasks", "mmlu,arc,csqa,squad", "--data", folder / "data", "--out", out, *QUICK,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Path:
    out = folder / "out"
    assert main(["evaluate", *map(str, everything(folder, out))]) == 0
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_all_tasks_write_results_report_and_plots(evaluated: Path) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    assert [(m["name"], m["depth"]) for m in results["models"]] == [
        ("shallow", 1),
        ("deep", 3),
        ("duo", None),
    ]
    for model in results["models"]:
        questions = {task["task"]: task["questions"] for task in model["tasks"]}
        assert questions == {"mmlu": 9, "arc-easy": 8, "arc-challenge": 7, "csqa": 6, "squad": 5}
        for task in model["tasks"]:
            names = set(task["scores"])
            if task["task"] == "squad":
                assert names == {"substring", "exact match", "F1"}
            else:
                assert names == {"first letter", "likelihood", "likelihood per character"}
                assert task["unknown_characters"] > 0  # Newlines are not in this substrate.
            for score in task["scores"].values():
                assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 100
    report = (evaluated / "report.md").read_text()
    assert "| published: abs-bvv-6 | 21.63 | 23.42 | 25.62 | 19.51 | 5.55 |" in report
    for model in results["models"]:
        papers = [
            task["scores"]["substring" if task["task"] == "squad" else "first letter"]
            for task in model["tasks"]
        ]
        cells = " | ".join(f"{score['mean']:.2f} ± {score['ci']:.2f}" for score in papers)
        assert f"| {model['name']} | {cells} |" in report
    assert "| guessing | 25.00 | 25.00 | 33.33 | 20.00 | – |" in report
    assert "not comparable with the published scores" in report
    page = (evaluated / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2
    for name in ("scores.png", "depth.png"):
        assert (evaluated / name).read_bytes().startswith(b"\x89PNG")


def test_a_stopped_evaluation_goes_on_to_the_same_files(
    capsys, folder: Path, evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    # As if it had been stopped while the second model answered its third task.
    for gone in ("results.json", "report.md", "report.html", "scores.png", "depth.png"):
        (out / gone).unlink()
    shutil.rmtree(out / "answers" / "duo")
    for task in ("arc-challenge", "csqa", "squad"):
        shutil.rmtree(out / "answers" / "deep" / task)
    assert run(capsys, *everything(folder, out))[0] == 0
    again, whole = contents(out), contents(evaluated)
    assert again == whole
    # A finished evaluation is written again without asking a question.
    assert run(capsys, *everything(folder, out))[0] == 0
    assert contents(out) == whole


def test_results_are_never_lost(capsys, folder: Path, evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    whole = contents(out)
    arguments = everything(folder, out)
    fewer = [*arguments[:3], "--tasks", "mmlu,arc", *arguments[5:]]
    other = tmp_path / "shallow"
    shutil.copytree(folder / "deep", other)
    for changed, words in (
        (fewer, "holds the results of other models, tasks or texts (shallow, mmlu, arc-easy"),
        (arguments[1:], "holds the results of other models, tasks or texts"),
        ([*arguments, "--seed", "1"], "settings.seed is 0, expected 1"),
        ([*arguments, "--limit", "4"], "mmlu: holds another evaluation (questions is"),
        ([other, *arguments[1:]], "results of another model that is also named shallow"),
        ([folder / "deep", folder / "texts" / "a.txt", "--out", folder / "texts"], "holds 'a.txt'"),
    ):
        status, _, error = run(capsys, *changed)
        assert (status, words in error) == (1, True), error
    assert contents(out) == whole
    assert len(contents(folder / "texts")) == 2


def test_texts_by_source_and_together(capsys, folder: Path, tmp_path: Path) -> None:
    texts = folder / "texts"
    status, out, _ = run(capsys, folder / "deep", texts, texts / "b.txt", "--out", tmp_path / "o")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[2:5]] == [
        str(texts / name) for name in ("a.txt", "b.txt", "b.txt")
    ]
    results = json.loads((tmp_path / "o" / "results.json").read_text())["models"][0]["texts"]
    names = ["a.txt", "b.txt", "b.txt"]
    assert [row["text"] for row in results] == [
        *(str(texts / name) for name in names), f"{texts}, all", "all"
    ]  # fmt: skip
    a, b, _, both, all_three = results
    characters = a["characters"] + b["characters"]
    assert both["characters"] == characters == 11 + 10 + 5
    bits = a["bits_per_character"] * a["characters"] + b["bits_per_character"] * b["characters"]
    assert both["bits_per_character"] == pytest.approx(bits / characters)
    assert all_three["characters"] == characters + 5
    several = run(capsys, folder / "deep", folder / "shallow", texts / "a.txt")[1].splitlines()
    assert [line.split()[0] for line in several] == ["model", "--------", "deep", "shallow"]


def test_a_text_with_unknown_characters(capsys, folder: Path) -> None:
    odd = folder / "odd.txt"
    status, _, error = run(capsys, folder / "deep", odd)
    assert status == 1
    assert "U+00EF" in error
    status, out, _ = run(capsys, folder / "deep", odd, "--unknown", "unk")
    assert status == 0
    assert out.splitlines()[-1].split()[-2:] == ["4", "1"]


def test_a_protocol_alone_and_a_source_of_ones_own(capsys, folder: Path) -> None:
    task = f"csqa={folder / 'data' / 'arc_easy_val.jsonl'}"
    arguments = [folder / "deep", "--tasks", task, "--protocol", "likelihood"]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert [line.split()[1:4] for line in out.splitlines()[2:]] == [
        ["CSQA", "8", "likelihood"],
        ["CSQA", "8", "likelihood"],
    ]
    assert run(capsys, *arguments)[1] == out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{data}/squad11_val_1000.jsonl", "{deep}"], "found a file"),
        (["{deep}"], "nothing to evaluate on: give text files, or tasks by --tasks"),
        (["{deep}", "--tasks", "mmul", "--data", "{data}"], "no task 'mmul'; the tasks are mmlu"),
        (["{deep}", "--tasks", ","], "--tasks: expected at least one task name, got none"),
        (["{deep}", "--tasks", "mmlu", "--data", "/absent"], "/absent: no such folder"),
        (["{deep}", "--tasks", "openbookqa", "--data", "{data}"], "openbookqa_test.jsonl: no such"),
        (["{deep}", "--tasks", "csqa=/absent.jsonl"], "/absent.jsonl: no such file"),
        (["{deep}", "--tasks", "csqa={data}/squad11_val_1000.jsonl"],
         "squad11_val_1000.jsonl:1: the field 'choices' is missing"),
        (["{deep}", "--tasks", "csqa", "--data", "{data}", "--limit", "0"], "limit must be at"),
        (["{deep}", "--tasks", "csqa", "--data", "{data}", "--runs", "0"], "runs: expected an"),
        (["{deep}", "--tasks", "squad", "--data", "{data}", "--protocol", "likelihood"],
         "squad has no choices: it needs the protocol 'generate'"),
        (["{deep}", "{deep}", "--tasks", "csqa", "--data", "{data}"], "is given twice"),
        (["{deep}", "{data}/none.txt", "--tasks", "csqa", "--data", "{data}"],
         "none.txt: no such file or folder"),
        (["/absent", "--tasks", "csqa", "--data", "{data}"], "/absent"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_leave_nothing(
    capsys, folder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"deep": folder / "deep", "data": folder / "data"}
    out = tmp_path / "out"
    filled = [argument.format(**names) for argument in arguments]
    status, printed, error = run(capsys, *filled, "--out", out)
    assert (status, printed) == (1, "")
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_translations_without_sacrebleu(capsys, folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    tasks = ["--tasks", "csqa,opus-en-ru", "--data", folder / "data"]
    status, out, error = run(capsys, folder / "deep", *tasks)
    assert (status, out) == (1, "")
    assert error == (
        "fastgrow: translations are scored by sacrebleu, which is not installed: "
        "pip install 'fastgrow[eval]'\n"
    )


def test_a_hub_out_of_reach_is_one_line(capsys, folder: Path, monkeypatch) -> None:
    import huggingface_hub

    def dataset_info(self: Any, name: str, **options: Any) -> None:
        raise OSError("Name or service not known\nlong story")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    status, out, error = run(capsys, folder / "deep", "--tasks", "mmlu")
    assert (status, out) == (1, "")
    assert "Hub dataset 'cais/mmlu': cannot be loaded from" in error
    assert error.count("\n") == 1
    with pytest.raises(DataError, match="Name or service not known"):
        fastgrow.evaluation.read_questions(fastgrow.evaluation.TASKS["csqa"])
