"""Tables have the numbers of results.json."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from fastgrow.cli import main
from fastgrow.study.page import write_page
from fastgrow.study.results import compact_json
from fastgrow.study.tables import (
    bits_table,
    budget_table,
    cost_table,
    depth_table,
    difference_table,
    mean_sd,
    rules_table,
    taken_table,
)


def training(bits: list[float], seconds: float) -> dict[str, Any]:
    stages = [
        {
            "depth": depth,
            "tokens": 1000,
            "flops": 2e12,
            "active_parameters": 5000 + depth,
            "total_parameters": 9000 * depth,
            "bits": {"en": b, "ru": 2 * b, "mix": 1.5 * b},
        }
        for depth, b in zip((1, 2, 2), bits, strict=True)
    ]
    curve = [[1000 * i, 2e12 * i, b] for i, b in enumerate(bits, start=1)]
    return {
        "key": "k",
        "stages": stages,
        "process_seconds": seconds,
        "table_parameters": 2000,
        "forward_flops": 3.21e6,
        "curve": curve,
    }


def rule(bits: float, **taken: Any) -> dict[str, Any]:
    return {"taken": taken, "parameters": 7, "bits": {"en": bits, "ru": bits, "mix": bits}}


RESULTS: dict[str, Any] = {
    "settings": {
        "name": "made-up",
        "evaluate": ["en", "ru"],
        "trainings": {"grown": {"texts": {"en": 1}}, "missing": {"texts": {"en": 1}}},
        "ensembles": {
            "duo": {
                "experts": ["grown", "missing"],
                "rules": {
                    "mean": {"rule": {"kind": "mean"}},
                    "fitted": {"choose": [{"kind": "weighted", "weights": [2, 1]}]},
                },
            }
        },
    },
    "seeds": [1, 2],
    "vocabulary": 40,
    "baselines": {"uniform": {"en": 5.0, "ru": 5.0, "mix": 5.0}},
    "trainings": {
        "grown": {"1": training([4.0, 3.0, 2.0], 10), "2": training([4.5, 3.5, 2.5], 20)},
        "missing": {},
    },
    "ensembles": {
        "duo": {
            "mean": {"1": rule(1.0), "2": rule(1.5)},
            "fitted": {"1": rule(0.9, kind="weighted", weights={"a": 2.0, "b": 1.0})},
        }
    },
}


def test_mean_and_standard_deviation_over_seeds() -> None:
    assert mean_sd([]) == "—"
    assert mean_sd([1.234]) == "1.23"
    assert mean_sd([1.0, 2.0, 4.0]) == f"2.33 ± {statistics.stdev([1, 2, 4]):.2f}"


def test_bits_are_those_after_the_last_stage() -> None:
    header, rows = bits_table(RESULTS)
    assert header == ["bits per character", "en", "ru", "mix"]
    assert rows == [
        ["uniform", "5.00", "5.00", "5.00"],
        ["grown", "2.25 ± 0.35", "4.50 ± 0.71", "3.38 ± 0.53"],
        ["missing", "—", "—", "—"],
        ["duo: mean", "1.25 ± 0.35", "1.25 ± 0.35", "1.25 ± 0.35"],
        ["duo: fitted", "0.90", "0.90", "0.90"],
    ]


def test_a_mix_of_one_text_is_not_told_twice() -> None:
    one = {**RESULTS, "settings": {**RESULTS["settings"], "evaluate": ["en"]}}
    header, rows = bits_table(one)
    assert header == ["bits per character", "en"]
    assert rows[0] == ["uniform", "5.00"]


def test_of_several_stages_at_one_depth_the_last_counts() -> None:
    header, rows = depth_table(RESULTS)
    assert header == ["training", "depth 1", "depth 2"]
    assert rows[0] == ["grown", "6.38 ± 0.53", "3.38 ± 0.53"]
    assert rows[1] == ["missing", "—", "—"]


def test_rules_stand_side_by_side_for_every_ensemble() -> None:
    more = {**RESULTS["ensembles"], "trio": {"mean": {"1": rule(3.0)}, "other": {}}}
    assert rules_table({**RESULTS, "ensembles": more}) == (
        ["rule", "duo", "trio"],
        [["mean", "1.25 ± 0.35", "3.00"], ["fitted", "0.90", "—"], ["other", "—", "—"]],
    )
    assert rules_table(RESULTS, "ru")[1][0] == ["mean", "1.25 ± 0.35"]


def test_differences_are_taken_within_a_seed() -> None:
    better = {"1": training([9.0, 9.0, 1.0], 5), "2": training([9.0, 9.0, 2.5], 5)}
    for run in better.values():
        run["stages"][0]["active_parameters"] = 2 * 5002
    results = {
        **RESULTS,
        "settings": {**RESULTS["settings"], "reference": "grown"},
        "trainings": {**RESULTS["trainings"], "other": better},
    }
    header, rows = difference_table(results)
    assert header[0] == "against grown"
    assert rows == [
        ["grown", "3.38 ± 0.53", "0", "1.00 ×", "1.00 ×", "1.00 ×"],
        ["missing", "—", "—", "—", "—", "—"],
        # 1.5 · (1 − 2) and 1.5 · (2.5 − 2.5); 10 seconds in all against 30.
        ["other", "2.62 ± 1.59", "-0.75 ± 1.06", "1.00 ×", "0.33 ×", "2.00 ×"],
        ["duo: mean", "1.25 ± 0.35", "-2.12 ± 0.18", "—", "—", "—"],
        ["duo: fitted", "0.90", "-2.10", "—", "—", "—"],
    ]


def test_peak_memory_is_told_where_every_run_has_it() -> None:
    grown = {
        seed: {**run, "peak_bytes": 300} for seed, run in RESULTS["trainings"]["grown"].items()
    }
    other = {"1": {**training([9.0, 9.0, 1.0], 5), "peak_bytes": 150}}
    results = {
        **RESULTS,
        "settings": {**RESULTS["settings"], "reference": "grown"},
        "trainings": {"grown": grown, "other": other},
        "ensembles": {},
    }
    header, rows = difference_table(results)
    assert header[-2:] == ["active", "peak memory"]
    assert [row[-1] for row in rows] == ["1.00 ×", "0.50 ×"]


def test_lines_of_bits_against_operations(tmp_path: Path) -> None:
    lines = {"growing": ["grown", "missing"], "none": ["missing"]}
    results = {
        **RESULTS,
        "environment": {},
        "settings": {**RESULTS["settings"], "lines": lines},
    }
    assert budget_table(results) == (
        ["line", "training", "seed", "TFLOP", "bits per character"],
        [
            ["growing", "grown", "1", "6.00", "3.000"],
            ["growing", "grown", "2", "6.00", "3.750"],
        ],
    )
    write_page(results, tmp_path)
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    assert "| growing | grown | 1 | 6.00 | 3.000 |" in (tmp_path / "report.md").read_text()


def test_cost_is_of_all_stages() -> None:
    _, rows = cost_table(RESULTS)
    assert rows == [["grown", "3", "6.00", "15 ± 7", "5", "16", "3.21"]]


def test_an_ensemble_costs_what_its_experts_cost_together() -> None:
    other = {"2": training([1.0, 1.0, 1.0], 5)}
    results = {**RESULTS, "trainings": {**RESULTS["trainings"], "missing": other}}
    # Of seed 2 alone, which both have.
    assert cost_table(results)[1][-1] == ["duo, together", "6", "12.00", "25", "5", "32", "6.42"]


def test_rules_that_were_fitted_are_told() -> None:
    assert taken_table(RESULTS)[1] == [["duo: fitted", "1", "weights 2.00, 1.00"]]


def test_the_command_prints_the_table_as_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    for argument in (tmp_path, tmp_path / "results.json"):
        assert main(["study", "--table", "bits", str(argument)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "| bits per character | en | ru | mix |"
        assert lines[1] == "| --- | ---: | ---: | ---: |"
        assert lines[3] == "| grown | 2.25 ± 0.35 | 4.50 ± 0.71 | 3.38 ± 0.53 |"
        assert len(lines) == 7
    assert main(["study", "--table", "bits", "--rules", "mean", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| duo: mean |")
    assert main(["study", "--table", "rules", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "| mean | 1.25 ± 0.35 |"
    for wrong, message in (
        (["--table", "bist"], "--table: expected one of"),
        (["--table", "difference"], "--table difference: "),
        (["--table", "cost", "--rules", "mean"], "--rules: "),
    ):
        assert main(["study", *wrong, str(tmp_path)]) == 1
        assert capsys.readouterr().err.startswith(f"fastgrow: {message}")


def test_the_page_holds_tables_and_figures(tmp_path: Path) -> None:
    write_page(RESULTS, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| grown | 2.25 ± 0.35 |" in text
    for name in ("curves-tokens.png", "curves-flops.png"):
        assert name in text
        assert (tmp_path / name).stat().st_size > 5000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") == 2


def test_compact_json_is_json_in_lines() -> None:
    text = compact_json(RESULTS)
    assert json.loads(text) == RESULTS
    assert text.endswith("}\n")
    # One stage per line, so that a diff shows what changed.
    assert sum(line.count('"depth"') == 1 for line in text.splitlines()) == 6
    assert json.loads(compact_json({"a": 1})) == {"a": 1}
