"""The numbers in the README and on the documentation's pages are those of the result files.

tests/test_docs.py runs the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastgrow.demo.measure import Matrix
from fastgrow.demo.run import depth_table, matrix_table
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


def test_it_is_short() -> None:
    assert len(README.split()) <= 1200


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def markdown_table(first_cell: str, text: str = README) -> list[list[str]]:
    """Header and rows of the table whose header begins with `first_cell`."""
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
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
    text = page("demo.md")
    assert markdown_table("specialist", text) == flat(*depth_table(growth_of(record)))
    assert markdown_table("", text) == flat(*matrix_table(Matrix(**record["matrix"])))
    assert f"{record['seconds']:.0f} s" in text
    for sentence in record["findings"]:
        assert " ".join(sentence.split()) in " ".join(text.split()), sentence


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
    ("experts", "logit_mean-into", FOUR, "fp32", "forward", "sum, add in place"),
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
    """docs/growth.md has every line of the benchmark's tables."""
    folder = ROOT / "benchmarks" / "results" / "cpu-amd-epyc" / "growth"
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    measured = [line for line in lines if line.startswith("|")]
    assert len(measured) > 30
    assert not [line for line in measured if line not in page("growth.md").splitlines()]


def study_of(name: str) -> dict:
    return read_results(ROOT / "benchmarks" / "results" / "study" / name / "results.json")


@pytest.mark.parametrize(
    ("name", "file"), [("growth", "study.md"), ("growth-per-stage", "study_per_stage.md")]
)
def test_a_studys_tables_are_on_its_page(name: str, file: str) -> None:
    results = study_of(name)
    assert results["seeds"] == [1, 2, 3]
    lines = page(file).splitlines()
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
    assert not [row for row in told if row not in (header, *rows)]
    # Also the comparisons that growing loses.
    named = {row[0] for row in told[1:]}
    assert {"grown", "monolith", "monolith-slower", "monolith-flops", "window-3-from-two"} <= named
    assert {"grown-muon", "monolith-muon"} <= named
    bits = {row[0]: float(row[1].split()[0]) for row in rows}
    cost = {row[0]: row[3].removesuffix(" ×") for row in rows}
    seconds = {row[0]: row[4].removesuffix(" ×") for row in rows}
    monoliths = [
        name
        for name, training in results["settings"]["trainings"].items()
        if training.get("control") == "monolith" and len(results["trainings"][name]) == 3
        and "flops" not in name
    ]  # fmt: skip
    best = min(bits[name] for name in monoliths)
    text = " ".join(README.split())
    for sentence in (
        f"reaches {bits['grown']:.2f} bits per character",
        f"the best monolith {best:.2f}",
        f"at {cost['grown']} × its operations and {seconds['grown']} × its processor seconds",
        f"a monolith of as many operations {bits['monolith-flops']:.2f}",
    ):
        assert sentence in text, sentence


def test_what_is_told_of_composing_is_what_the_study_found() -> None:
    folder = ROOT / "benchmarks" / "results" / "study" / "composition"
    results = read_results(folder / "results.json")
    header, *rows = flat(*rules_table(results))
    told = markdown_table("rule")
    assert told[0] == header
    assert not [row for row in told[1:] if row not in rows]
    assert {row[0] for row in told[1:]} >= {"mean", "posterior"}
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
    lines = page("composition.md").splitlines()
    tables = (rules_table, bits_table, depth_of_study, cost_table)
    for header, rows in (table(results) for table in tables):
        for row in (header, *rows):
            assert f"| {' | '.join(row)} |" in lines
