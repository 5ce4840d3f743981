"""A study small enough for tests: two alphabets, models of a few thousand parameters."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fastgrow.study.plan import Study
from fastgrow.study.settings import StudySettings, changed

MakeStudy = Callable[..., Study]


def words(alphabet: str, seed: int, lines: int = 220) -> str:
    """Lines of words of a small stock over an alphabet, so that there is something to learn."""
    draw = random.Random(seed)
    stock = ["".join(draw.choices(alphabet, k=draw.randint(2, 5))) for _ in range(12)]
    return "\n".join(" ".join(draw.choices(stock, k=8)) for _ in range(lines)) + "\n"


TREE: dict[str, Any] = {
    "name": "small",
    "seeds": [1],
    "texts": {"latin": {"files": ["latin.txt"]}, "greek": {"files": ["greek.txt"]}},
    "documents": {"characters": 100, "validation": 400, "test": 600, "tuning": 800},
    "evaluate": ["latin", "greek"],
    "substrate": {"max_size": 40, "n_components": 16},
    "model": {"d_model": 16, "n_head": 2, "max_seq_len": 16},
    "train": {"batch_size": 4, "lr": 1e-2, "eval_every": 2},
    "schedule": {"stages": [{"blocks": 1, "tokens": 256}, {"blocks": 1, "tokens": 256}]},
    "trainings": {"a": {"texts": {"latin": 1}}, "b": {"texts": {"greek": 1}}},
}


def settings(**entries: Any) -> StudySettings:
    """The tree above with some of its entries replaced."""
    return changed(StudySettings, "study", TREE, entries)
