"""Run one training or ensemble of a study in a separate process.

python -m fastgrow.study.worker STUDY_FOLDER training|ensemble NAME SEED
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastgrow import _files
from fastgrow.errors import FastgrowError, Interrupted
from fastgrow.growth import grow
from fastgrow.nn import Decoder
from fastgrow.study.compose import compose
from fastgrow.study.plan import Run, Study
from fastgrow.study.record import read_record
from fastgrow.training.run_folder import sole_user


def train(study: Study, run: Run, *, quiet: bool = False) -> None:
    """Train one run, or resume it, and write its result.

    Raises:
        ConfigError: another process uses the run's folder.
        Interrupted: the run was stopped; its state is saved.
    """
    if run.result.exists():
        return
    corpus = study.corpus(run.training)
    with sole_user(run.folder, "study.lock"), _process_seconds(run.folder / "seconds.json"):
        torch.manual_seed(run.seed)
        result = grow(
            Decoder(run.model, corpus.substrate),
            corpus.mixture(run.training.texts, run.training.part),
            run.plan.schedule,
            train=run.train,
            out=run.folder,
            evaluate_on={name: corpus.text(name).test for name in study.settings.evaluate},
            name=f"{run.name}, seed {run.seed}",
            quiet=quiet,
        )
    _files.write_json(
        run.result,
        {
            "training": run.name,
            "seed": run.seed,
            "key": run.key,
            "torch": torch.__version__,
            "stages": [
                {
                    "depth": stage.depth,
                    "tokens": stage.tokens,
                    "active_parameters": stage.active_parameters,
                    "total_parameters": stage.total_parameters,
                    "seconds": round(stage.seconds, 1),
                    "bits": {name: stage.bits[name] for name in study.settings.evaluate},
                }
                for stage in result.stages
            ],
            "process_seconds": _files.read_json(run.folder / "seconds.json"),
            "curve": _curve(run),
        },
    )


def _curve(run: Run) -> list[list[float]]:
    """Return [tokens, validation bits per character] over the run, from its log."""
    per_step = run.train.batch_size * run.train.accumulate * run.seq_len
    key = "validation_bits_per_character"
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if key in row]
    return [[row["global_step"] * per_step, row[key]] for row in rows]


@contextmanager
def _process_seconds(path: Path) -> Iterator[None]:
    """Add this process's CPU seconds to those of earlier processes of the run."""
    before = _files.read_json(path) if path.exists() else 0.0
    started = time.process_time()
    try:
        yield
    finally:
        _files.write_json(path, round(before + time.process_time() - started, 1))


def main(arguments: list[str]) -> int:
    """Run the job that the arguments name; an error is printed as one line on standard error."""
    folder, kind, name, seed = arguments
    # Two jobs with one thread each are faster than one job with two threads, and the number of
    # threads must not change a result.
    torch.set_num_threads(1)
    try:
        study = read_record(Path(folder))
        if kind == "training":
            train(study, study.run(name, int(seed)))
        else:
            compose(study, study.composition(name, int(seed)))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except (FastgrowError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
