"""The README says what is so: its code runs, its commands exist, its numbers are the run's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastgrow.cli import main
from fastgrow.cli.settings import read_growth, shipped_configs
from fastgrow.demo.measure import Matrix
from fastgrow.demo.run import depth_table, matrix_table
from fastgrow.growth import GrowthSchedule
from fastgrow.study.results import read_results
from fastgrow.study.tables import (
    bits_table,
    budget_table,
    cost_table,
    difference_table,
    rules_table,
)
from fastgrow.study.tables import depth_table as depth_of_study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORD = ROOT / "benchmarks" / "results" / "demo.json"


def block(language: str, mark: str) -> str:
    """The fenced block of a language that contains `mark`."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if mark in text)
    return str(found)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    code = block("python", "from fastgrow.data import")
    # The same at a size for tests: shorter stages of a narrower model.
    small = code
    for written, tested in (
        ("tokens=60_000", "tokens=512"),
        ("d_model=128", "d_model=16"),
        ("n_components=128", "n_components=16"),
        ("max_seq_len=128", "max_seq_len=32"),
    ):
        assert small.count(written) == 1
        small = small.replace(written, tested)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["duo"].names == ("latin", "cyrillic")
    sample, bits = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert sample.startswith("Все люди ")
    assert 0 < float(bits) < 20
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"Latin", "Cyrillic", "duo"}


@pytest.mark.parametrize("mark", ["from fastgrow import ops", "from fastgrow.nn import"])
def test_functions_and_modules_run(mark: str) -> None:
    names: dict = {}
    exec(compile(block("python", mark), "README.md", "exec"), names)
    assert names["loss"].isfinite()


def test_patching_runs(capsys) -> None:
    pytest.importorskip("transformers")
    exec(compile(block("python", "fg.patch(model)"), "README.md", "exec"), {})
    assert "swapped" in capsys.readouterr().out


def test_the_commands_exist(capsys) -> None:
    named = set()
    for line in block("text", "fastgrow demo").splitlines():
        words = line.split()
        assert words[0] == "fastgrow"
        commands = [[words[1]]]
        if words[1] in ("substrate", "data"):
            # Alternatives stand apart: build | inspect | show "Aж汉".
            rest = re.split(r"\s{2,}", line.split(maxsplit=2)[2])[0]
            commands = [[words[1], part.split()[0]] for part in rest.split("|")]
        elif words[1] == "compose":
            # Without a word of its own it composes experts.
            commands = [["compose", words[2] if words[2] in ("tune", "distill") else "experts"]]
        options = set(re.findall(r"(?<![\w-])--[a-z-]+", line))
        for command in commands:
            named.add(" ".join(command))
            assert main([*command, "--help"]) == 0
            help_text = capsys.readouterr().out
            assert options <= set(re.findall(r"--[a-z-]+", help_text)), line
    assert main(["--help"]) == 0
    commands_there = re.findall(r"^  (\w+)", capsys.readouterr().out.split("Commands:")[1], re.M)
    assert {name.split()[0] for name in named} == set(commands_there)


def test_the_configuration_is_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block("yaml", "schedule:"), encoding="utf-8")
    settings = read_growth(str(file), [])
    assert settings.schedule == GrowthSchedule.gradual(6, tokens=6_000_000)
    growth = {name for name in shipped_configs() if not name.startswith("demo")}
    assert growth == {name for name in growth if f"`{name}`" in README or f" {name} " in README}


def markdown_table(first_cell: str) -> list[list[str]]:
    """Header and rows of the README's table whose header begins with `first_cell`."""
    tables = re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE)
    cells = [
        [[c.strip() for c in line.strip().strip("|").split("|")] for line in table.splitlines()]
        for table in tables
    ]
    (table,) = (rows for rows in cells if rows[0][0] == first_cell)
    header, rule, *rows = table
    assert all(re.fullmatch(r":?-+:?", cell) for cell in rule)
    return [header, *rows]


def growth_of(record: Mapping) -> dict:
    """The record's runs as `depth_table` reads them."""
    return {
        script: {
            kind: SimpleNamespace(stages=[SimpleNamespace(**stage) for stage in stages])
            for kind, stages in runs.items()
        }
        for script, runs in record["growth"].items()
    }


@pytest.fixture
def record() -> Mapping:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def flat(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(header), *map(list, rows)]


def test_the_numbers_are_those_of_the_record(record: Mapping) -> None:
    assert markdown_table("specialist") == flat(*depth_table(growth_of(record)))
    assert markdown_table("") == flat(*matrix_table(Matrix(**record["matrix"])))
    assert f"{record['seconds']:.0f} s" in README
    for sentence in record["findings"]:
        assert " ".join(sentence.split()) in " ".join(README.split()), sentence
    assert not re.search(r"@[A-Z]+@", README)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


FOUR = "K=4,N=512,V=65536"
SPEEDS = [
    ("head", "linear_cross_entropy", "N=2048,d=256,V=65536", "fp32", "full", "eager"),
    (
        "experts",
        "linear_cross_entropy-ensemble",
        "K=4,N=2048,d=256,V=65536",
        "fp32",
        "forward",
        "eager",
    ),
    (
        "experts",
        "mean_cross_entropy",
        FOUR,
        "fp32",
        "forward",
        "add in place + cross_entropy",
    ),
    ("experts", "mean_sample", FOUR, "fp32", "forward", "eager"),
    ("experts", "logit_mean", FOUR, "fp32", "forward", "sum, add in place"),
    ("experts", "logit_mean-into", FOUR, "fp32", "forward", "sum, add in place"),
    ("experts", "logit_mean-into", FOUR, "bf16", "forward", "sum, add in place"),
]


@pytest.mark.parametrize("row", range(len(SPEEDS)), ids=lambda i: "-".join(SPEEDS[i][:4]))
def test_speeds_are_those_of_the_result_files(row: int) -> None:
    file, op, shape, dtype, pass_, best_eager = SPEEDS[row]
    results = ROOT / "benchmarks" / "results" / "cpu-amd-epyc" / file / "results.json"
    measured = {
        x["contender"]: x
        for x in json.loads(results.read_text(encoding="utf-8"))["rows"]
        if (x["op"], x["shape"], x["dtype"], x["pass_"]) == (op, shape, dtype, pass_)
    }
    # What a user would write: none of the eager ways is faster than the one that is told.
    others = ("compile", "loop over our tiles")
    eager = [x for who, x in measured.items() if x["role"] == "library" and who not in others]
    assert measured[best_eager]["median_ms"] == min(x["median_ms"] for x in eager)
    digits = 0 if measured["fastgrow"]["median_ms"] > 1000 else 1
    told = [
        f"{measured[who]['median_ms']:,.{digits}f} ms, {measured[who]['peak_mib']:,.0f} MiB"
        if who in measured
        else "not measured"
        for who in ("fastgrow", best_eager, "compile")
    ]
    assert markdown_table("on a CPU")[1 + row][1:] == told


def test_what_is_claimed_of_growing_is_what_was_measured() -> None:
    """The pages' tables stand in the benchmark's own, line by line; docs/growth.md has them all."""
    folder = ROOT / "benchmarks" / "results" / "cpu-amd-epyc" / "growth"
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    measured = [line for line in lines if line.startswith("|")]
    page = (ROOT / "docs" / "growth.md").read_text(encoding="utf-8")
    assert len(measured) > 30
    assert not [line for line in measured if line not in page.splitlines()]
    (table,) = re.findall(r"^\| claim \|.*\n(?:\|.*\n)+", README, re.MULTILINE)
    assert not [line for line in table.splitlines() if line not in measured]
    # A claim that was not held is told where the others are.
    missed = [line for line in measured if line.endswith("| **no** |")]
    assert not [line for line in missed if line not in table]


def study_of(name: str) -> dict:
    return read_results(ROOT / "benchmarks" / "results" / "study" / name / "results.json")


@pytest.mark.parametrize(
    ("name", "page"), [("growth", "study.md"), ("growth-per-stage", "study_per_stage.md")]
)
def test_a_studys_tables_are_on_its_page(name: str, page: str) -> None:
    results = study_of(name)
    assert results["seeds"] == [1, 2, 3]
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    for header, rows in (
        difference_table(results),
        depth_of_study(results),
        cost_table(results),
        budget_table(results),
    ):
        for row in (header, *rows) if rows else ():
            assert f"| {' | '.join(row)} |" in lines


def test_what_is_told_of_growing_is_what_the_study_found() -> None:
    results = study_of("growth")
    header, rows = difference_table(results)
    told = markdown_table(header[0])
    assert told[0] == header
    assert len(told) > 10
    assert not [row for row in told if row not in (header, *rows)]
    # Where it loses is told beside where it wins, in the rows that the text speaks of.
    named = {row[0] for row in told[1:]}
    assert {"grown", "monolith", "monolith-slower", "monolith-flops", "window-3-from-two"} <= named
    bits = {row[0]: float(row[1].split()[0]) for row in rows}
    cost = {row[0]: row[3].removesuffix(" ×") for row in rows}
    seconds = {row[0]: row[4].removesuffix(" ×") for row in rows}
    memory = {row[0]: row[6].removesuffix(" ×") for row in rows}
    monoliths = [
        name
        for name, training in results["settings"]["trainings"].items()
        if training.get("control") == "monolith" and len(results["trainings"][name]) == 3
        and "flops" not in name
    ]  # fmt: skip
    best = min(bits[name] for name in monoliths)
    text = " ".join(README.split())
    for sentence in (
        f"reaches {bits['grown']:.2f} bits a character",
        f"the best monolith {best:.2f}",
        f"at {cost['grown']} × its operations and {seconds['grown']} × its processor seconds",
        f"a monolith of as many operations {bits['monolith-flops']:.2f}",
        f"at {cost['window-3-from-two']} × the operations and {memory['window-3-from-two']} × the "
        f"memory {bits['window-3-from-two']:.2f}",
    ):
        assert sentence in text, sentence


def test_what_is_told_of_composing_is_what_the_study_found() -> None:
    folder = ROOT / "benchmarks" / "results" / "study" / "composition"
    results = read_results(folder / "results.json")
    assert markdown_table("rule") == flat(*rules_table(results))
    bits = {name: row[-1] for name, *row in bits_table(results)[1]}
    text = " ".join(README.split())
    ensembles = results["settings"]["ensembles"]
    alone = [
        # "6.47", or "6.47 ± 0.02" over several seeds.
        min((bits[name] for name in ensembles[of]["experts"]), key=lambda b: float(b.split()[0]))
        for of in ("experts", "shared", "random-split")
    ]
    assert f"reach {alone[0]}, {alone[1]} and {alone[2]}." in text
    assert f"reaches {bits['union-grown']} grown and {bits['union-monolith']} as a" in text
    assert f"a unigram model {bits['unigram']}." in text
    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8").splitlines()
    for header, rows in (bits_table(results), depth_of_study(results), cost_table(results)):
        for row in (header, *rows):
            assert f"| {' | '.join(row)} |" in page
