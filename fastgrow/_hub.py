"""Datasets of the Hugging Face Hub, with a short time limit if the Hub cannot be reached."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from fastgrow.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SECONDS = 2.0
T = TypeVar("T")


def is_dataset_name(text: str) -> bool:
    """Whether the text has the form "owner/name" of a Hub dataset."""
    return _NAME.fullmatch(text) is not None


def open_dataset(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    revision: str | None = None,
    streaming: bool = False,
) -> tuple[Any, str | None]:
    """Load a dataset and resolve its commit.

    If the Hub cannot be reached, an error is raised after two seconds.

    Args:
        name: dataset name, "owner/name".
        config: name of the dataset configuration, if it has several.
        split: name of the split.
        revision: branch, tag or commit.
        streaming: stream rows over the network instead of storing the dataset.

    Returns:
        The dataset object of the `datasets` library, and the commit; the commit is None in offline
        mode (HF_HUB_OFFLINE=1).

    Raises:
        DataError: the Hub or the dataset cannot be reached, or the dataset has no such
            configuration or split.
    """
    import datasets
    from huggingface_hub import HfApi, constants

    title = f"Hub dataset {name!r}"
    commit = None
    if not constants.HF_HUB_OFFLINE:
        # `datasets` would retry for half a minute, so one request first checks the connection.
        try:
            info = _within(
                _SECONDS,
                lambda: HfApi().dataset_info(name, revision=revision, timeout=_SECONDS),
            )
        except Exception as error:
            raise DataError(
                f"{title}: cannot be loaded from {constants.ENDPOINT} ({first_line(error)}). Give "
                "the path of a local copy, or set HF_HUB_OFFLINE=1 to use a copy in the Hub's cache"
            ) from error
        revision = commit = info.sha
    try:
        rows = datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=streaming
        )
    except Exception as error:
        raise DataError(f"{title}: cannot be loaded ({first_line(error)})") from error
    return rows, commit


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of `call`, run in a thread because host name look-ups have no timeout.

    Raises:
        TimeoutError: the call took longer than `seconds`.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
