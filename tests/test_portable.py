"""`make test-portable`: which settings are run on this machine, and that failures are reported."""

from __future__ import annotations

from pathlib import Path

import portable
import pytest
from portable import SETTINGS, Setting

from fastgrow.training.environment import INSTRUCTION_VARIABLES

FACTS = {
    "OPENBLAS_CORETYPE": "SkylakeX",
    "ATEN_CPU_CAPABILITY": "avx512",
    "OMP_NUM_THREADS": "1",
    "FASTGROW_CPU_CAPABILITY": "avx512",
    "MKL": "True",
    "ONEDNN": "True",
}


def names(facts: dict[str, str], flags: list[str]) -> set[str]:
    return {setting.name for setting in SETTINGS if not setting.missing(facts, flags)}


def test_all_but_what_this_machine_does_by_itself_is_run() -> None:
    everything = {setting.name for setting in SETTINGS}
    assert everything - names(FACTS, ["lm", "avx2", "avx512f"]) == {
        "OPENBLAS_CORETYPE=SkylakeX",
        "ATEN_CPU_CAPABILITY=avx512",
        "OMP_NUM_THREADS=1",
        "FASTGROW_CPU_CAPABILITY=avx512",
    }
    # A run records the number of threads, and these.
    variables = {setting.variable for setting in SETTINGS}
    assert variables - set(INSTRUCTION_VARIABLES) == {"OMP_NUM_THREADS"}


def test_what_a_processor_or_an_installation_lacks_is_left_out() -> None:
    bare = {"OPENBLAS_CORETYPE": "", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1",
            "FASTGROW_CPU_CAPABILITY": "", "MKL": "False", "ONEDNN": "True"}  # fmt: skip
    assert names(bare, []) == {
        "ONEDNN_MAX_CPU_ISA=SSE41", "OMP_NUM_THREADS=2", "OMP_NUM_THREADS=8"
    }  # fmt: skip
    reasons = {s.name: s.missing(bare, []) for s in SETTINGS}
    assert reasons["MKL_CBWR=AUTO"] == "torch has no MKL here"
    assert reasons["FASTGROW_CPU_CAPABILITY=avx2"] == "the extension is not built here"
    assert reasons["ATEN_CPU_CAPABILITY=avx2"] == "this processor has no avx2"
    assert reasons["OMP_NUM_THREADS=1"] == "what `make test` runs here"


def test_the_folders_of_tests_are_there() -> None:
    for setting in SETTINGS:
        for word in setting.tests:
            assert (portable.TESTS / word.removeprefix("-")).exists(), word


def test_a_setting_reaches_the_tests_and_their_failure_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\ndef test_it():\n    assert os.environ['OMP_NUM_THREADS'] == '2'\n"
    )
    monkeypatch.setattr(portable, "TESTS", tmp_path)
    monkeypatch.setattr(portable, "find_facts", lambda: FACTS)
    settings = [Setting("OMP_NUM_THREADS", threads, ("test_it.py",)) for threads in ("2", "3", "1")]
    assert portable.main([], settings) == 1
    printed = capsys.readouterr().out
    assert "OMP_NUM_THREADS=2: 1 passed" in printed
    assert "OMP_NUM_THREADS=3: 1 failed" in printed
    assert "OMP_NUM_THREADS=1: skipped: what `make test` runs here" in printed
    assert printed.endswith("failed under OMP_NUM_THREADS=3\n")
    assert portable.main([], settings[:1]) == 0
