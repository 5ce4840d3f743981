"""The figures of an evaluation: scores compared with published scores, and against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgrow.report.plots import new_figure, save_figure

_PUBLISHED = "0.55"


@dataclass(frozen=True)
class TaskScores:
    """Scores on one task, in per cent.

    Attributes:
        title: title of the task.
        models: score and half width of its confidence interval, by model.
        published: published scores.
        chance: score of guessing; None if answers cannot be guessed.
    """

    title: str
    models: Mapping[str, tuple[float, float]]
    published: Sequence[float]
    chance: float | None


@dataclass(frozen=True)
class DepthScores:
    """Scores on one task against the number of blocks, in per cent."""

    title: str
    models: Sequence[tuple[int, float]]
    published: Sequence[tuple[int, float]]
    chance: float | None


def scores_with_published(tasks: Sequence[TaskScores], path: Path) -> None:
    """Draw a group of bars for each task, a bar for each model. Published scores are grey dots.

    Args:
        tasks: tasks in the order of the groups. All have the same models.
        path: path of the PNG.
    """
    names = list(tasks[0].models)
    figure = new_figure(max(5.0, 1.6 + len(tasks) * (0.7 + 0.35 * len(names))), 3.8)
    axis = figure.subplots()
    places = np.arange(len(tasks))
    width = 0.8 / (len(names) + 1)
    for number, name in enumerate(names):
        scores = np.array([task.models[name] for task in tasks])
        axis.bar(
            places + (number - len(names) / 2) * width,
            scores[:, 0],
            width * 0.9,
            yerr=scores[:, 1],
            label=name,
            capsize=2,
        )
    for place, task in zip(places, tasks, strict=True):
        axis.plot(
            [place + len(names) / 2 * width] * len(task.published),
            task.published,
            "o",
            color=_PUBLISHED,
            markersize=4,
            label="published" if place == 0 else None,
        )
        if task.chance is not None:
            axis.plot(
                [place - 0.45, place + 0.45],
                [task.chance] * 2,
                color="black",
                linestyle="--",
                linewidth=0.8,
                label="guessing" if place == 0 else None,
            )
    axis.set_xticks(places, [task.title for task in tasks])
    axis.set_ylabel("score, %")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, path)


def scores_against_depth(tasks: Sequence[DepthScores], path: Path) -> None:
    """Draw a panel for each task: scores by number of blocks, also of published grown models.

    Args:
        tasks: tasks in the order of the panels.
        path: path of the PNG.
    """
    figure = new_figure(1.0 + 3.0 * len(tasks), 3.4)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        for points, color, label in (
            (task.published, _PUBLISHED, "published (abs-bvv)"),
            (task.models, "C0", "evaluated"),
        ):
            if points:
                depths, scores = zip(*sorted(points), strict=True)
                axis.plot(depths, scores, "o-", color=color, label=label, markersize=4)
        if task.chance is not None:
            axis.axhline(
                task.chance, color="black", linestyle="--", linewidth=0.8, label="guessing"
            )
        axis.set_title(task.title)
        axis.set_xlabel("blocks")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("score, %")
    axes[0].legend(frameon=False)
    save_figure(figure, path)
