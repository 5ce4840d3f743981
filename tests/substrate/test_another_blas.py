"""The same substrate with several kinds of BLAS kernels, each in a separate process.

OpenBLAS selects kernels for the processor when it is loaded. OPENBLAS_CORETYPE selects others,
which sum in a different order.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fastgrow._cpu import cpu_flags
from fastgrow.substrate import Substrate

OPTIONS: dict[str, dict[str, Any]] = {
    "pictures": {"scripts": ["Latin", "Cyrillic", "Greek"], "n_ngrams": 0},
    "narrow": {"scripts": ["Latin", "Cyrillic", "Greek"], "n_ngrams": 0, "n_components": 8},
    # The lowest bits of these codes have equal variance, so their axes can be rotated.
    "ids": {"blocks": ["Basic Latin"], "codes": "id-16-float"},
    "more ids": {"scripts": ["Cyrillic"], "n_ngrams": 0, "codes": "id-16-float"},
}
# In single precision the sum of a bitmap's some hundred loadings, each below 1, is off by a few
# units of 2^-24 of its partial sums, which stay below 10; the vector is then divided by its length
# of 2 or more. An axis that turned, or changed its sign, would move vectors by 0.01 and more.
ROUNDING = 5e-6

_PROGRAM = f"""
import sys
import numpy as np
from threadpoolctl import threadpool_info
from fastgrow.substrate import Substrate
np.savez(sys.argv[1], **{{
    name: Substrate.build(**options).table for name, options in {OPTIONS!r}.items()
}})
print(*[library["architecture"] for library in threadpool_info()
        if library["internal_api"] == "openblas"])
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The tables of OPTIONS for each kind of kernels."""
    folder = tmp_path_factory.mktemp("tables")
    found = {}
    for core in _cores():
        file = folder / f"{core}.npz"
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(file)],
            env={**os.environ, "OPENBLAS_CORETYPE": core},
            capture_output=True,
            text=True,
            check=True,
        )
        with np.load(file) as content:
            found[run.stdout.strip()] = dict(content)
    if len(found) < 2:
        pytest.skip("numpy's BLAS has no other kernels that this processor can run")
    return found


def _cores() -> list[str]:
    """Core types whose instructions this processor has."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the core types named here are those of x86")
    flags = cpu_flags()
    needs = {"Prescott": "lm", "Haswell": "avx2", "SkylakeX": "avx512f"}
    return [core for core, flag in needs.items() if flag in flags]


@pytest.mark.parametrize("name", OPTIONS)
def test_values_are_equal_up_to_rounding(
    tables: dict[str, dict[str, np.ndarray]], name: str
) -> None:
    first, *others = tables.values()
    for other in others:
        np.testing.assert_allclose(other[name], first[name], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["pictures", "narrow"])
def test_tokens_that_look_the_same_have_the_same_vector(
    tables: dict[str, dict[str, np.ndarray]], name: str
) -> None:
    substrate = Substrate.build(**OPTIONS[name])
    groups = substrate.collisions()
    assert len(groups) == 74
    n_distinct = len(substrate) - sum(len(group) - 1 for group in groups)
    for table in tables.values():
        for group in groups:
            assert (table[name][group] == table[name][group[0]]).all()
        assert len(np.unique(table[name], axis=0)) == n_distinct
