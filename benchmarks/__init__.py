"""The benchmark suite: time and memory of fastgrow's operations beside what a user would pick.

    python -m benchmarks --quick            a minute on this machine
    python -m benchmarks --op attention     one operation, its whole grid
    python -m benchmarks gpu --out DIR      everything that a GPU machine is asked, nine minutes
    python -m benchmarks overhead           host time of a call, without a GPU
    python -m benchmarks report FILE        Markdown tables of a recorded result
    python -m benchmarks ship DIR           puts the tuning table of a GPU's results in place
    pytest benchmarks --benchmark-only      the same cases under pytest-benchmark

An operation takes part through one file in `benchmarks/cases/` (see `benchmarks.case.Family`).
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
