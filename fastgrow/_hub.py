"""Datasets of the Hugging Face Hub; one that cannot be had is known at once."""

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
    """Whether it could be the "owner/name" of a dataset."""
    return _NAME.fullmatch(text) is not None


def open_dataset(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    revision: str | None = None,
    streaming: bool = False,
) -> tuple[Any, str | None]:
    """A dataset's rows and the commit they are of; a Hub out of reach is known after two seconds.

    Args:
        name: "owner/name".
        config: its configuration, where it has several.
        split: which of its splits.
        revision: branch, tag or commit.
        streaming: read over the network as it goes, without storing the dataset.

    Returns:
        The rows of `datasets`, and the commit; None in offline mode (HF_HUB_OFFLINE=1).

    Raises:
        DataError: the Hub or the dataset cannot be reached, or has no such configuration or split.
    """
    import datasets
    from huggingface_hub import HfApi, constants

    title = f"Hub dataset {name!r}"
    commit = None
    if not constants.HF_HUB_OFFLINE:
        # `datasets` would retry for half a minute; one question first settles whether it can work.
        try:
            info = _within(
                _SECONDS,
                lambda: HfApi().dataset_info(name, revision=revision, timeout=_SECONDS),
            )
        except Exception as error:
            raise DataError(
                f"{title}: cannot be had from {constants.ENDPOINT} ({first_line(error)}). For a "
                "local copy give its path; HF_HUB_OFFLINE=1 uses a copy in the Hub's cache"
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
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result; a look-up of a host name has no time limit of its own.

    Raises:
        TimeoutError: it took longer.
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
