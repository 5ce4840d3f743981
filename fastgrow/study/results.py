"""results.json: the results of a study's finished runs, small enough to be committed to git."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgrow import _files
from fastgrow.study.compose import baseline_bits
from fastgrow.study.cost import forward_flops, peak_bytes, stage_flops
from fastgrow.study.plan import Run, Study, stated
from fastgrow.training.environment import describe_environment

RESULTS = "results.json"
MIX = "mix"
_DIGITS = 5
_LINE = 100


def collect(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the results of all finished runs of a study for the given seeds, as JSON values.

    Bits per character are reported for each text and, under "mix", for all texts together, each
    weighted by its length.
    """
    settings = study.settings
    some = next(iter(settings.trainings.values()))
    corpus = study.corpus(some)
    characters = {name: corpus.text(name).test.n_characters for name in settings.evaluate}
    trainings: dict[str, dict[str, Any]] = {}
    for name in settings.trainings:
        runs = [study.run(name, seed) for seed in seeds]
        trainings[name] = {
            str(run.seed): _training(run, characters) for run in runs if run.result.exists()
        }
    ensembles: dict[str, dict[str, dict[str, Any]]] = {}
    for name, ensemble in settings.ensembles.items():
        ensembles[name] = {rule: {} for rule in ensemble.rules}
        for seed in seeds:
            for rule, path in study.composition(name, seed).results.items():
                if path.exists():
                    record = _files.read_json(path)
                    ensembles[name][rule][str(seed)] = {
                        "taken": record["taken"],
                        "parameters": record["parameters"],
                        "bits": _with_mix(record["bits"], characters),
                    }
    baselines = {
        name: _with_mix(bits, characters)
        for name, bits in baseline_bits(corpus, settings.evaluate).items()
    }
    content = {
        "environment": describe_environment(torch.device("cpu")),
        "settings": stated(settings),
        "seeds": list(seeds),
        "vocabulary": len(corpus.substrate),
        "substrate": corpus.substrate.fingerprint,
        "test_characters": characters,
        "baselines": baselines,
        "trainings": trainings,
        "ensembles": ensembles,
    }
    return _rounded(content)


def _training(run: Run, characters: Mapping[str, int]) -> dict[str, Any]:
    """Return a finished run's record together with its cost."""
    record = _files.read_json(run.result)
    stages = record["stages"]
    per_token = stage_flops(run.model, run.plan, run.seq_len)
    ends, spent = [0], [0.0]
    for stage, flops in zip(stages, per_token, strict=True):
        stage["bits"] = _with_mix(stage["bits"], characters)
        stage["flops"] = flops * stage["tokens"]
        ends.append(ends[-1] + stage["tokens"])
        spent.append(spent[-1] + stage["flops"])
    return {
        "key": record["key"],
        "stages": stages,
        "process_seconds": record["process_seconds"],
        "table_parameters": run.model.vocab_size * run.model.embed_width,
        "peak_bytes": peak_bytes(run.model, run.plan, run.train),
        "forward_flops": forward_flops(run.model, stages[-1]["depth"], run.seq_len),
        # Tokens, FLOPs, bits per character; within a stage, FLOPs grow linearly with tokens.
        "curve": [
            [tokens, float(np.interp(tokens, ends, spent)), bits]
            for tokens, bits in record["curve"]
        ],
    }


def write_results(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """Collect and write results.json into the study's folder."""
    content = collect(study, seeds)
    _files.write_text(study.out / RESULTS, compact_json(content))
    return content


def read_results(path: Path) -> dict[str, Any]:
    """Read the results from a file, or from a study's folder.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return _files.read_json(path / RESULTS if path.is_dir() else path)


def _with_mix(bits: Mapping[str, float], characters: Mapping[str, int]) -> dict[str, float]:
    whole = sum(characters[name] for name in bits)
    return {**bits, MIX: math.fsum(bits[name] * characters[name] for name in bits) / whole}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if abs(value) < 1e5 else round(value)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def compact_json(value: Any, indent: str = "") -> str:
    """Format JSON: an object or a list of objects is on one line, or one line per entry if long."""
    flat = json.dumps(value, ensure_ascii=False)
    end = "" if indent else "\n"
    inner = indent + " "
    if len(indent) + len(flat) > _LINE and isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {compact_json(item, inner)}" for key, item in value.items()]
        first, last = "{}"
    elif len(indent) + len(flat) > _LINE and _holds_objects(value):
        lines = [compact_json(item, inner) for item in value]
        first, last = "[]"
    else:
        return flat + end
    return f"{first}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{last}{end}"


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)
