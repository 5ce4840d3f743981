"""The benchmark suite: time and memory of fastgrow's operations and of the alternatives.

    python -m benchmarks --quick            a short run, about a minute
    python -m benchmarks --op attention     one operation on all shapes of its grid
    python -m benchmarks gpu --out DIR      all measurements on a GPU machine, nine minutes
    python -m benchmarks overhead           host time of a call, without a GPU
    python -m benchmarks report FILE        Markdown tables of a recorded result
    python -m benchmarks ship DIR           install the tuning table of a GPU's results
    pytest benchmarks --benchmark-only      the same cases under pytest-benchmark

An operation is added by one file in `benchmarks/cases/` (see `benchmarks.case.Family`).
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
