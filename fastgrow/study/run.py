"""Run a study: its jobs, then its results and its report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastgrow.errors import ConfigError
from fastgrow.study.page import write_page
from fastgrow.study.plan import Composition, Study
from fastgrow.study.pool import Job, run_jobs, worker
from fastgrow.study.record import claim_study
from fastgrow.study.results import write_results
from fastgrow.study.settings import StudySettings


@dataclass(frozen=True)
class StudyReport:
    """A finished study: its folder and its results, as in results.json."""

    out: Path
    results: Mapping[str, Any]


def run_study(
    settings: StudySettings,
    out: Path,
    *,
    folders: Sequence[Path] = (),
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    only: Collection[str] | None = None,
    run: bool = True,
    extend: bool = False,
    quiet: bool = False,
) -> StudyReport:
    """Run the unfinished jobs of a study, then write results.json, report.md and report.html.

    The name of every run's folder has a hash of all settings that affect the run: finished runs are
    kept and reused. A stopped study resumes where it stopped.

    Args:
        settings: settings of the study.
        out: folder of the study.
        folders: folders in which the texts' files are searched.
        seeds: random seeds to use instead of the study's.
        jobs: number of parallel processes, each with one thread.
        only: names of the trainings and ensembles to run; an ensemble's experts are run as well.
        run: if False, run nothing and report what is finished.
        extend: continue in the folder of a study with other settings, see `claim_study`.
        quiet: print nothing.

    Raises:
        ConfigError: `out` holds a study with other settings, a text's file is missing, or `only`
            has an unknown name.
        Interrupted: the user stopped the study; the same call resumes it.
        FastgrowError: a run failed.
    """
    if seeds is not None:
        settings = replace(settings, seeds=list(seeds))
    study = claim_study(settings, folders, out, extend=extend)

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    if run:
        todo = plan_jobs(study, only)
        say(f"{settings.name}: {len(todo)} jobs to run, in {out}")
        run_jobs(todo, jobs, say)
    results = write_results(study, settings.seeds)
    write_page(results, out)
    say(f"report: {out / 'report.html'}")
    return StudyReport(out, results)


def plan_jobs(study: Study, only: Collection[str] | None = None) -> list[Job]:
    """Return the unfinished jobs by seed; within a seed, ensembles follow their experts."""
    settings, jobs = study.settings, list[Job]()
    out = str(study.out)
    trainings, ensembles_named = _selected(settings, only)
    for training in (settings.trainings[name] for name in trainings):
        # Tokenize the texts here once; otherwise several workers would do so at the same time.
        corpus = study.corpus(training)
        for text in training.texts:
            corpus.text(text, training.part)
        for text in settings.evaluate:
            corpus.text(text)
        if ensembles_named:
            corpus.tuning(settings.evaluate)
    for number, seed in enumerate(settings.seeds):
        ensembles = [study.composition(name, seed) for name in ensembles_named]
        planned = set[str]()
        for name in trainings:
            limit = settings.trainings[name].seeds
            if limit is not None and number >= limit:
                continue
            run = study.run(name, seed)
            planned.add(name)
            if not run.result.exists():
                command = worker(out, "training", name, str(seed))
                jobs.append(Job(_label(name, seed), command, run.folder / "log.txt"))
            # An ensemble follows its last expert directly, so that first results are early.
            due = [c for c in ensembles if {run.name for run in c.experts} <= planned]
            ensembles = [c for c in ensembles if c not in due]
            jobs += [_ensemble_job(study, c) for c in due if not c.finished]
    return jobs


def _selected(settings: StudySettings, only: Collection[str] | None) -> tuple[list[str], list[str]]:
    """Return the trainings and ensembles to run, in the study's order."""
    if only is None:
        return list(settings.trainings), list(settings.ensembles)
    known = [*settings.trainings, *settings.ensembles]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only: there is no {name!r}; expected one of {', '.join(known)}")
    ensembles = [name for name in settings.ensembles if name in only]
    needed = {expert for name in ensembles for expert in settings.ensembles[name].experts}
    return [name for name in settings.trainings if name in needed.union(only)], ensembles


def _label(training: str, seed: int) -> str:
    return f"{training}, seed {seed}"


def _ensemble_job(study: Study, composition: Composition) -> Job:
    name, seed = composition.name, composition.seed
    return Job(
        f"ensemble {name}, seed {seed}",
        worker(str(study.out), "ensemble", name, str(seed)),
        study.out / "ensembles" / f"{name}-{seed}.log",
        frozenset(_label(run.name, seed) for run in composition.experts),
    )
