"""Tests of every command as a user calls it: its output, files, exit status and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupting import interrupted

import fastgrow
from fastgrow.cli import main
from fastgrow.cli.settings import read_growth
from fastgrow.errors import DataError, Interrupted
from fastgrow.growth import GrowthSchedule, Moments
from fastgrow.substrate import Substrate
from fastgrow.training import HubDataset, Trainer
from fastgrow.training.run_folder import sole_user

TEXT = "the cat sat on the mat and the dog sat on the cat\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [TEXT.strip()[i % 20 :] + f" {chr(97 + i % 26)}" for i in range(300)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def config(corpus: Path) -> Path:
    path = corpus.parent / "run.yaml"
    path.write_text(
        f"""
substrate: {{characters: "abcdefghijklmnopqrstuvwxyz ", n_ngrams: 0, n_components: 16}}
model: {{d_model: 16, n_head: 2, max_seq_len: 16}}
data: [{{source: {corpus}, split: [0.8, 0.1, 0.1]}}]
schedule: {{stages: [{{tokens: 512}}, {{tokens: 512}}]}}
train: {{batch_size: 4, lr: 1e-2}}
out: {corpus.parent / "run"}
cache: {corpus.parent / "tokens"}
"""
    )
    return path


@pytest.fixture(scope="module")
def models(config: Path) -> tuple[Path, Path]:
    """Two grown models on one substrate."""
    folders = []
    for name, seed in (("one", 1), ("two", 2)):
        out = config.parent / name
        assert main(["grow", str(config), f"train.seed={seed}", "--out", str(out)]) == 0
        folders.append(out / "model")
    return folders[0], folders[1]


def test_grow_prints_stages_and_resumes(capsys, config: Path, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "grow", config, "--out", tmp_path)
    assert status == 0
    assert [line.split(",")[0] for line in out.splitlines()[:2]] == [
        "stage 1: depth 1",
        "stage 2: depth 2",
    ]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["config"]["n_layer"] == 2
    again, same, _ = run(capsys, "grow", config, "--out", tmp_path)
    assert (again, same) == (0, out)
    fresh, _, error = run(capsys, "grow", config, "--out", tmp_path, "--fresh")
    assert fresh == 1
    assert "already contains a run" in error


def test_finish_ends_a_stopped_run_and_signals_a_running_one(
    capsys, config: Path, tmp_path: Path, monkeypatch
) -> None:
    arguments = ["grow", config, "train.checkpoint_every=1", "--out", tmp_path / "run"]
    step = Trainer._train_step

    def stopping(trainer: Trainer, **options: bool) -> None:
        if trainer.step == 3:
            raise Interrupted("stopped")
        step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        assert run(capsys, *arguments)[0] != 0
    with sole_user(tmp_path / "run"):
        status, out, _ = run(capsys, *arguments, "--finish")
    assert status == 0
    assert out.startswith(f"{tmp_path / 'run'}: the running process starts its learning-rate decay")
    status, out, _ = run(capsys, *arguments, "--finish")
    assert status == 0
    (stage,) = json.loads((tmp_path / "run" / "growth.json").read_text())
    assert stage["decision"]["reason"] == "finish"
    assert out.startswith("stage 1: depth 1,")
    status, _, error = run(capsys, *arguments, "--finish")
    assert status == 1
    assert "the run is already finished; its model is in" in error
    status, _, error = run(capsys, "grow", config, "--out", tmp_path / "none", "--finish")
    assert status == 1
    assert "none: contains no run to finish" in error


def test_a_schedule_may_be_named_by_its_recipe(config: Path) -> None:
    for text, expected in (
        ("{doubling: {n_blocks: 6, tokens: 6000}}", GrowthSchedule.doubling(6, tokens=6000)),
        ("{blocks: {n_stages: 3, tokens: 10}}", GrowthSchedule.blocks(3, tokens=10)),
        (
            "{jump: {n_blocks: 4, tokens: 100, at: 0.25}, moments: {copied: copy}}",
            replace(GrowthSchedule.jump(4, tokens=100, at=0.25), moments=Moments(copied="copy")),
        ),
    ):
        assert read_growth(str(config), [f"schedule={text}"]).schedule == expected


def test_data_source_options(capsys, config: Path, tmp_path: Path) -> None:
    text = tmp_path / "paragraphs.txt"
    names = [chr(97 + i % 26) + chr(97 + i // 26) for i in range(200)]
    text.write_text("".join(f"the cat sat on\nthe mat and the dog Ж {n}\n\n" for n in names))
    options = [f"data.0.source={text}", "--out", str(tmp_path / "run")]
    status, _, error = run(capsys, "grow", config, *options)
    assert status == 1
    assert "U+0416" in error
    settings = read_growth(
        str(config),
        [options[0], "data.0.unknown=unk", "data.0.sample_by=paragraph", f"cache={tmp_path}/c"],
    )
    data = settings.open_data(settings.substrate.build())
    assert data.train.n_documents + data.validation.n_documents + data.test.n_documents == 200


def test_controls_are_other_schedules(capsys, config: Path, tmp_path: Path) -> None:
    for control, depth in (("monolith", 2), ("never-grown", 1)):
        status, out, _ = run(
            capsys, "grow", config, "--control", control, "--out", tmp_path / control
        )
        assert status == 0
        assert out.startswith(f"stage 1: depth {depth},")
        rows = json.loads((tmp_path / control / "growth.json").read_text())
        assert [row["tokens"] for row in rows] == [1024]


def test_compose_evaluate_and_generate(capsys, models, corpus: Path, tmp_path: Path) -> None:
    one, two = models
    for rule, extra in (
        ("mean", []),
        ("probability-mean", []),
        ("posterior", []),
        ("weighted", ["--weights", "0.7,0.3"]),
        ("temperature", ["--temperatures", "1,2"]),
        ("contrast", ["--against", "second", "--strength", "0.2"]),
        ("top-k", ["--k", "1", "--forgetting", "0.9"]),
    ):
        both = tmp_path / rule
        status, out, _ = run(
            capsys, "compose", one, f"second={two}", "--rule", rule, *extra, "--out", both
        )
        assert status == 0
        assert "2 experts (one, second)" in out
        status, out, _ = run(capsys, "evaluate", both, corpus)
        assert status == 0
        bits = float(out.splitlines()[-1].split()[1])
        assert 0 < bits < 10
        # A run's folder is accepted in place of its model's.
        assert run(capsys, "evaluate", one.parent, corpus) == run(capsys, "evaluate", one, corpus)
        status, out, _ = run(capsys, "generate", both, "the ", "--max-new-tokens", "5")
        assert status == 0
        assert out.startswith("the ")
        assert len(out) <= len("the ") + 5 + 1


def test_inspect_shows_the_support_of_experts(capsys, models, tmp_path: Path) -> None:
    both, page = tmp_path / "both", tmp_path / "support.html"
    run(capsys, "compose", models[0], f"second={models[1]}", "--out", both)
    status, out, _ = run(capsys, "inspect", both, "the cat", "--out", page)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "expert", "---------", "one", "second", "ensemble", str(page)
    ]  # fmt: skip
    assert page.read_text().count("<span") >= 7


def test_a_composed_model_is_tuned_and_distilled(capsys, models, corpus, tmp_path: Path) -> None:
    both, options = tmp_path / "both", ["--tokens", "256", "--batch-size", "2"]
    run(capsys, "compose", models[0], f"second={models[1]}", "--out", both)
    for what, kind in (("weights", "learned_weights"), ("adapter", "adapter"), ("head", "mean")):
        out = tmp_path / what
        command = ["compose", "tune", both, corpus, "--what", what, "--out", out, *options]
        status, printed, _ = run(capsys, *command)
        assert status == 0
        assert printed.splitlines()[-1].startswith(f"{out / 'model'}: ")
        rule = json.loads((out / "model" / "config.json").read_text())["config"]["rule"]
        assert rule["kind"] == kind
        assert run(capsys, *command)[1].splitlines()[-1] == printed.splitlines()[-1]
    status, printed, _ = run(
        capsys, "compose", "distill", both, corpus, "--student", models[1],
        "--out", tmp_path / "pupil", *options,
    )  # fmt: skip
    assert status == 0
    assert "bits per character on the test text" in printed
    assert run(capsys, "evaluate", tmp_path / "pupil", corpus)[0] == 0


def test_generate_repeats_with_a_seed(capsys, models) -> None:
    options = ["the ", "--max-new-tokens", "20", "--seed", "3"]
    _, first, _ = run(capsys, "generate", models[0], *options)
    _, second, _ = run(capsys, "generate", models[0], *options)
    _, other, _ = run(capsys, "generate", models[0], *options[:-1], "4")
    assert first == second != other


def test_substrate_commands(capsys, tmp_path: Path) -> None:
    folder = tmp_path / "substrate"
    status, out, _ = run(
        capsys, "substrate", "build", folder, "--script", "Latin", "--n-components", "32"
    )
    assert status == 0
    assert "fingerprint" in out
    status, shown, _ = run(capsys, "substrate", "inspect", folder)
    assert status == 0
    assert "table width: 32" in shown
    assert "(U+000A) = ' ' (U+0020)" in shown
    assert out.split()[-1] in shown
    picture = tmp_path / "glyphs.png"
    status, _, _ = run(capsys, "substrate", "show", "Aж汉", "--out", picture)
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "build"),
    [
        (
            ["--characters", "ab\n", "--newline", "glyph"],
            {"characters": "ab\n", "newline": "glyph"},
        ),
        (["--block", "Runic", "--block", "Ogham"], {"blocks": ["Runic", "Ogham"]}),
        (["--characters", "abc", "--codes", "id-16"], {"characters": "abc", "codes": "id-16"}),
    ],
)
def test_substrate_build_takes_the_options_of_the_library(capsys, tmp_path, options, build) -> None:
    status, out, _ = run(capsys, "substrate", "build", tmp_path / "s", *options)
    assert status == 0
    assert out.split()[-1] == Substrate.build(**build).fingerprint


def test_hub_datasets_are_requested_as_configured(capsys, config, letters, monkeypatch) -> None:
    requested = []

    def open_hub(dataset: HubDataset, text_field: str) -> None:
        requested.append(dataset)
        raise DataError("out of reach")

    monkeypatch.setattr("fastgrow.training.data.sources._open_hub", open_hub)
    prepare = ["data", "prepare", "a/b", "--substrate", letters]
    data = "data=[{source: a/b, config: c, streaming: true, revision: r, hub_split: test}]"
    for arguments in (
        prepare,
        [*prepare, "--config", "c", "--streaming"],
        ["grow", config, data],
    ):
        assert run(capsys, *arguments) == (1, "", "fastgrow: out of reach\n")
    assert requested == [
        HubDataset("a/b"),
        HubDataset("a/b", "c", streaming=True),
        HubDataset("a/b", "c", "test", "r", streaming=True),
    ]


def test_data_prepare_counts(capsys, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "substrate"
    run(capsys, "substrate", "build", folder, "--script", "Latin", "--n-components", "8")
    status, out, _ = run(
        capsys, "data", "prepare", corpus, "--substrate", folder, "--out", tmp_path / "tokens"
    )
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert set(rows) == {"train", "validation", "test"}
    assert sum(int(row[0].replace(",", "")) for row in rows.values()) == 300
    characters = sum(int(row[2].replace(",", "")) for row in rows.values())
    assert characters == len(corpus.read_text()) - 300


def test_report_makes_a_page(capsys, models, tmp_path: Path) -> None:
    one, _ = models
    page = tmp_path / "page.html"
    options = ("--text", "the cat", "--neighbours", "b", "--seed", "3")
    status, out, _ = run(capsys, "report", one.parent, "--out", page, *options)
    assert status == 0
    assert out == f"{page}\n"
    assert "Prompt “the cat”" in page.read_text()
    assert "<b>b U+0062</b></li>" in page.read_text()
    status, _, _ = run(capsys, "report", one.parent, "--records-only")
    assert status == 0
    assert "No model was loaded" in (one.parent / "report.html").read_text()


def test_info_ends_with_advice(capsys) -> None:
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert out.splitlines()[-1].startswith("Faster: ")


COMMANDS = [
    "demo",
    "substrate build",
    "substrate inspect",
    "substrate show",
    "data prepare",
    "grow",
    "compose",
    "compose experts",
    "compose tune",
    "compose distill",
    "evaluate",
    "generate",
    "inspect",
    "report",
    "info",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_everywhere(capsys, command: str) -> None:
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert f"Usage: fastgrow {command}" in out


@pytest.mark.parametrize("command", [[], ["substrate"], ["data"], ["compose"]])
def test_without_a_command_the_help_is_shown(capsys, command: list[str]) -> None:
    status, _, error = run(capsys, *command)
    assert status == 2
    assert error.startswith("Usage: fastgrow")
    assert "\nCommands:\n" in error


def test_help_lists_the_commands(capsys) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in COMMANDS:
        assert command.split()[0] in out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["grow", "absent.yaml"], 1, "absent.yaml: no such file; shipped configurations: abs-bvv"),
        (
            ["grow", "{config}", "train.lr=fast"],
            1,
            "train.lr: expected a finite number above 0, got 'fast'",
        ),
        (
            ["grow", "{config}", "schedule.stages=[]"],
            1,
            "schedule.stages: expected a list of length at least 1, got []",
        ),
        (
            ["grow", "{config}", "schedule={{doubling: {{blocks: 4}}}}"],
            1,
            "schedule.doubling.blocks: unknown name; did you mean 'n_blocks'?",
        ),
        (
            ["grow", "{config}", "schedule={{doubling: 4}}"],
            1,
            "schedule.doubling: expected a mapping with some of the names n_blocks, tokens, at, pl",
        ),
        (
            ["grow", "{config}", "schedule={{doublin: {{n_blocks: 4}}}}"],
            1,
            "schedule.doublin: expected stages or the name of a recipe; did you mean 'doubling'?",
        ),
        (
            ["grow", "{config}", "substrate.n_components=5"],
            1,
            "substrate: the token table has width 5 (n_components); expected a divisor of model.d_",
        ),
        (
            ["grow", "{config}", "schedule={{doubling: {{n_blocks: 4}}}}"],
            1,
            "schedule.doubling: GrowthSchedule.doubling() missing 1 required",
        ),
        (
            ["grow", "{config}", "schedule={{jump: {{n_blocks: 4, tokens: 9, at: 2}}}}"],
            1,
            "schedule.jump: GrowthSchedule.jump: at: expected ascending shares between 0 and 1",
        ),
        (
            ["grow", "{config}", "schedule.doubling={{n_blocks: 4, tokens: 9}}"],
            1,
            "schedule: expected either stages or one of blocks, gradual, doubling, jump",
        ),
        (["grow", "{config}", "train.decay=1"], 1, "decay: warmup and decay are shares of one run"),
        (["grow", "{config}", "--finish", "--fresh"], 1, "--finish and --fresh cannot be combin"),
        (["grow", "{config}", "model.vocab_size=7"], 1, "model.vocab_size: expected 31, the su"),
        (["grow", "{config}", "data.0.source=/absent"], 1, "/absent"),
        (["grow", "{config}", "--control", "twice"], 1, "--control: expected monolith or"),
        (["grow", "{config}", "--out", "{corpus}"], 1, "text.txt"),
        (["demo", "blocks=0"], 1, "blocks: expected an integer of at least 1, got 0"),
        (["demo", "batch_size=0"], 1, "batch_size: expected an integer of at least 1, got 0"),
        (["demo", "own_share=1"], 1, "own_share: expected a finite number above 0 and below 1"),
        (["compose", "{one}", "--out", "x", "--rule", "max"], 1, "--rule: expected one of"),
        (["compose", "{one}", "--out", "x", "--rule", "weighted"], 1, "weighted requires --weig"),
        (["compose", "{one}", "--out", "x", "--k", "2"], 1, "--k can only be used with --rule top"),
        (["compose", "{one}", "--out", "x", "--weights", "1"], 1, "--weights can only be used wit"),
        (["compose", "{one}", "--out", "x", "--rule", "weighted", "--weights", "1,2"], 1, "1 numb"),
        (["compose", "{one}", "{one}", "--out", "x"], 1, "already is an expert named 'one'"),
        (["compose", "/absent", "--out", "x"], 1, "/absent"),
        (["compose", "tune", "{one}", "{corpus}", "--out", "x"], 1, "expected the folder of an e"),
        (["inspect", "{one}", "the", "--out", "x"], 1, "expected the folder of an ensemble"),
        (["report", "/absent"], 1, "/absent: no such folder"),
        (["report", "{one}", "--out", "{corpus}"], 1, "was not written by `fastgrow report`"),
        (["evaluate", "/absent", "{corpus}"], 1, "/absent"),
        (["generate", "{one}", "Ж"], 1, "U+0416"),
        (["generate", "{one}", "a", "--temperature", "-1"], 1, "temperature"),
        (["substrate", "build", "x", "--recipe", "none"], 1, "no recipe 'none'"),
        (
            ["substrate", "build", "x", "--newline", "red"],
            1,
            "newline: expected one of blank, glyph, got 'red'",
        ),
        (["grow", "{config}", "data.0.streaming=true"], 1, "text.txt: is a file or folder; config"),
        (["grow", "nine-layers-unicode"], 1, "bvv241: no such file or folder; give the path of"),
        (["nonsense"], 2, "nonsense"),
        (["grow"], 2, "Missing argument"),
        (["generate", "{one}", "a", "--seed", "x"], 2, "--seed"),
    ],
)
def test_errors_are_one_line(
    capsys, config, corpus, models, tmp_path, monkeypatch, arguments, status, words
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"config": config, "corpus": corpus, "one": models[0]}
    got, out, error = run(capsys, *(argument.format(**names) for argument in arguments))
    assert got == status
    assert error.startswith("fastgrow: ")
    assert error.count("\n") == 1
    assert words in error
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("letters") / "substrate"
    Substrate.build(characters="abc ", n_ngrams=0).save(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "abc\naжc\n".encode(), "a.txt:2: unknown character 'ж' (U+0436)"),
        ("a.txt", b"abc\nab\xffc\n", "a.txt: not UTF-8: byte 0xff at offset 6 (line 2"),
        ("a.txt", b"\n \n", "a.txt: contains no text"),
        ("a.jsonl", b'{"text": "abc"}\n{"text": 3}\n', "a.jsonl:2: the field 'text' is int"),
        ("a.jsonl", b'{"text": "abc"}\n{"te', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"body": "abc"}\n', "a.jsonl:1: the field 'text' is missing"),
        ("a.parquet", b"PAR1 cut off", "a.parquet: not a readable Parquet file"),
    ],
)
def test_damaged_texts_are_named(capsys, letters, tmp_path, name, content, words) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    status, out, error = run(
        capsys, "data", "prepare", file, "--substrate", letters, "--out", tmp_path / "tokens"
    )
    assert (status, out) == (1, "")
    assert error.startswith(f"fastgrow: {tmp_path}")
    assert words in error
    assert error.count("\n") == 1
    # The text is unchanged, and no incomplete token file is left.
    assert file.read_bytes() == content
    assert not list(tmp_path.rglob(".*"))


def test_a_text_shorter_than_the_context_is_named(capsys, config, tmp_path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc\n")
    status, _, error = run(
        capsys, "grow", config, f"data.0.source={short}", "data.0.split=[1,0,0]",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 1
    assert f"{short} (train): 5 tokens are fewer than one window of seq_len + 1 = 17" in error
    assert error.count("\n") == 1


FASTGROW = "from fastgrow.cli import main; sys.exit(main(sys.argv[1:]))"


def test_grow_stopped_by_ctrl_c_says_how_to_resume_and_resumes(config, tmp_path) -> None:
    arguments = ["grow", config, "schedule.stages.0.tokens=20_000", "train.checkpoint_every=10"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = interrupted(FASTGROW, "*/checkpoints/step-*", [*arguments, "--out", stopped])
    error = done.stderr
    assert done.returncode == 130, error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("fastgrow: stopped by SIGINT after")
    assert "the same command" in error
    assert not (stopped / "model").exists()
    for out in (stopped, whole):
        assert main([*map(str, arguments), "--out", str(out)]) == 0
    resumed, uninterrupted = (fastgrow.load(out / "model").state_dict() for out in (stopped, whole))
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, uninterrupted[name]), name


@pytest.mark.slow
def test_demo_stopped_by_ctrl_c_says_how_to_resume_and_resumes(tmp_path) -> None:
    arguments = ["demo", "tokens=8_192", "d_model=16", "n_head=2", "seq_len=32",
                 "batch_size=4", "test_tokens=256", "eval_tokens=256", "blocks=2",
                 "--out", tmp_path]  # fmt: skip
    done = interrupted(FASTGROW, "*/latin-monolith/run.json", arguments)
    error = done.stderr
    assert done.returncode == 130, error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("fastgrow: stopped")
    assert "the same command" in error
    grown = (tmp_path / "latin-grown" / "growth.json").read_bytes()
    again = interrupted(FASTGROW, "nowhere", arguments)
    assert again.returncode == 0, again.stderr
    assert "report.html" in again.stdout
    assert (tmp_path / "latin-grown" / "growth.json").read_bytes() == grown


def test_ctrl_c_before_anything_ran_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastgrow.cli.settings.read_growth", interrupt)
    monkeypatch.setattr("fastgrow.load", interrupt)
    status, _, error = run(capsys, "grow", "x.yaml")
    assert (status, error.count("\n")) == (130, 1)
    assert "run the same command again to resume" in error
    status, _, error = run(capsys, "generate", tmp_path, "x")
    assert (status, error) == (130, "fastgrow: stopped\n")


FULL_DISK = """
import json, resource, signal, sys
from fastgrow.cli import main
from fastgrow.cli.settings import read_growth
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    assert main(arguments) == 1
"""


def test_a_full_disk_is_one_line_that_names_the_file(config, corpus, models, tmp_path) -> None:
    """Run in a process with a limit on the size of files."""
    cases = {
        "run/checkpoints/step-00000008: ": (4_000, ["grow", config, "--out", tmp_path / "run"]),
        "run2/metrics.jsonl: ": (2_000, ["grow", config, "train.log_every=1",
                                         "--out", tmp_path / "run2"]),
        "both: ": (1_000, ["compose", models[0], models[1], "--out", tmp_path / "both"]),
        "latin: ": (20_000, ["substrate", "build", tmp_path / "latin", "--script", "Latin"]),
        "glyphs.png: ": (1_000, ["substrate", "show", "Aж汉", "--out", tmp_path / "glyphs.png"]),
        "tokens/": (100, ["data", "prepare", corpus, "--substrate", models[0],
                          "--out", tmp_path / "tokens"]),
    }  # fmt: skip
    commands = [[size, [str(a) for a in arguments]] for size, arguments in cases.values()]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("fastgrow: ")]
    assert len(errors) == len(cases)
    for error, named in zip(errors, cases, strict=True):
        assert error.startswith(f"fastgrow: {tmp_path}/{named}")
        assert "File too large" in error
    assert "Traceback" not in done.stderr
    # No unfinished file is left.
    assert not list(tmp_path.rglob(".*"))


def test_a_real_process_shows_no_traceback(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "fastgrow", "grow", "absent.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("fastgrow: absent.yaml: no such file")
    assert "Traceback" not in process.stderr
