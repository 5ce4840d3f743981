"""The demo end to end, at the smallest size: its report contains the results of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgrow.cli.settings import read_demo
from fastgrow.demo import DemoResult, run_demo
from fastgrow.demo.findings import composition_findings, growth_findings
from fastgrow.demo.measure import MEAN, MIXED, Matrix, measure_matrix
from fastgrow.demo.settings import SCRIPTS, DemoSettings
from fastgrow.demo.specialists import GROWN, MONOLITH, NEVER_GROWN, prepare_texts, train_specialist
from fastgrow.errors import ConfigError
from fastgrow.growth import GrowthResult, StageResult

TINY = DemoSettings(
    blocks=2,
    tokens=1024,
    d_model=16,
    n_head=2,
    seq_len=32,
    batch_size=4,
    lr=1e-2,
    eval_tokens=256,
    test_tokens=512,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path]:
    out = tmp_path_factory.mktemp("demo")
    return run_demo(TINY, out, quiet=True), out


def test_all_results_are_written(finished: tuple[DemoResult, Path]) -> None:
    result, out = finished
    assert set(result.growth) == set(SCRIPTS)
    for runs in result.growth.values():
        assert [s.depth for s in runs[GROWN].stages] == [1, 2]
        assert [s.depth for s in runs[NEVER_GROWN].stages] == [1]
        assert [s.depth for s in runs[MONOLITH].stages] == [2]
        tokens = {kind: sum(s.tokens for s in run.stages) for kind, run in runs.items()}
        assert set(tokens.values()) == {1024}
    matrix = result.matrix
    assert matrix.columns == [*SCRIPTS, MIXED]
    assert [name for name in matrix.rows if name.startswith("expert ")] == [
        f"expert {script}" for script in SCRIPTS
    ]
    for name in (MEAN, "mean of probabilities", "posterior", "unigram", "uniform"):
        assert len(matrix.rows[name]) == 4
    for name in ("growth.png", "matrix.png", "glyphs.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_the_numbers_of_the_run(finished: tuple[DemoResult, Path]) -> None:
    result, out = finished
    record = json.loads((out / "demo.json").read_text())
    assert record["matrix"]["rows"] == result.matrix.rows
    for text in ((out / "report.md").read_text(), (out / "report.html").read_text()):
        for values in result.matrix.rows.values():
            for value in values:
                assert f"{value:.3f}" in text
        for runs in result.growth.values():
            for run in runs.values():
                for stage in run.stages:
                    assert f"{stage.bits['test']:.3f}" in text


def test_the_composed_model_is_saved(finished: tuple[DemoResult, Path]) -> None:
    import fastgrow

    result, out = finished
    composed = fastgrow.load(out / "composed")
    assert composed.names == SCRIPTS
    prompt = "Everyone has the right to "
    again = composed.generate(prompt, max_new_tokens=40, temperature=0.7, top_k=40, seed=0)
    assert again == result.samples["Latin"]["composed"]


def test_a_second_run_reuses_the_first(finished: tuple[DemoResult, Path], monkeypatch) -> None:
    from fastgrow.training import Trainer

    first, out = finished
    monkeypatch.setattr(Trainer, "run", lambda *a, **k: pytest.fail("trained again"))
    assert run_demo(TINY, out, quiet=True).matrix == first.matrix
    with pytest.raises(ConfigError, match="another"):
        run_demo(replace(TINY, lr=0.5), out, quiet=True)


def stage(depth: int, bits: float) -> StageResult:
    return StageResult(1, depth, 1, 1, 1, 1.0, {"test": bits}, None)


def growth(grown: float, never: float, monolith: float) -> dict[str, dict[str, GrowthResult]]:
    def run(*stages: StageResult) -> GrowthResult:
        return GrowthResult(model=None, stages=list(stages))  # type: ignore[arg-type]

    return {
        "Latin": {
            GROWN: run(stage(1, 5.0), stage(3, grown)),
            NEVER_GROWN: run(stage(1, never)),
            MONOLITH: run(stage(3, monolith)),
        }
    }


def test_findings_follow_from_the_numbers() -> None:
    (behind, verdict) = growth_findings(growth(4.50, 4.20, 4.00))
    assert "0.30 worse than never grown (4.20)" in behind
    assert "Training took grown 2 s, never grown 1 s, monolith 1 s." in behind
    assert "0.50 worse than the monolith (4.00)" in behind
    assert "growing beat what was never grown in 0 of 1" in verdict
    assert "level with the monolith or ahead of it in 0." in verdict
    (ahead, verdict) = growth_findings(growth(4.00, 4.20, 4.01))
    assert "0.20 better than never grown" in ahead
    assert "level with the monolith" in ahead
    assert "growing beat what was never grown in 1 of 1" in verdict
    assert "level with the monolith or ahead of it in 1." in verdict

    def matrix(mean: float) -> Matrix:
        rows = {"expert Latin": [4.0, 6.0], "expert Han": [8.0, 7.0], MEAN: [4.5, mean]}
        return Matrix(["Latin", "Han", MIXED], {
            **{name: [row[0], row[1], row[1]] for name, row in rows.items()},
            "posterior": [4.1, 7.1, 5.0],
            "unigram": [7.0, 9.0, 8.0],
            "uniform": [11.0, 11.0, 11.0],
        })  # fmt: skip

    sentences = composition_findings(matrix(5.5))
    assert "0.50 better than the best single expert (Latin) (6.00)" in sentences[0]
    assert "2.50 better than unigram" in sentences[0]
    assert "posterior does best there: 5.00" in sentences[1]
    assert "Latin expert's own 4.00 on Latin" in sentences[2]
    assert "costs: mean of logits +0.50, posterior +0.10." in sentences[2]
    assert "0.50 worse than the best single expert" in composition_findings(matrix(6.5))[0]


@pytest.fixture
def all_threads() -> Iterator[None]:
    """As many threads as processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_the_mean_beats_expert_unigram_and_uniform_on_the_mix(tmp_path: Path) -> None:
    """With three seeds at the size of the demo. Nothing is asserted about depth."""
    for seed in range(3):
        settings = read_demo("demo", [f"seed={seed}"])
        texts = prepare_texts(settings.d_model, tmp_path / "tokens")
        experts = {
            script: train_specialist(
                script, texts, settings, tmp_path / str(seed), kinds=[GROWN], quiet=True
            )[GROWN].model
            for script in SCRIPTS
        }
        matrix = measure_matrix(experts, texts, settings)
        mean = matrix.at(MEAN, MIXED)
        others = [matrix.at(f"expert {script}", MIXED) for script in SCRIPTS]
        others += [matrix.at("unigram", MIXED), matrix.at("uniform", MIXED)]
        assert mean < min(others), (seed, matrix)
        for script in SCRIPTS:
            own = matrix.at(f"expert {script}", script)
            assert matrix.at("posterior", script) < own + 0.1, (seed, script)
