"""The folder of a run, and the settings that it was begun with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from fastgrow import _files
from fastgrow.errors import ConfigError

Resume = Literal["auto", "never"]
RECORD = "run.json"


def claim_folder(
    out: Path,
    settings: dict[str, Any],
    resume: Resume,
    environment: dict[str, Any] | None = None,
) -> None:
    """Begin a run in a folder, or make sure that the one there is this one.

    Args:
        out: the folder; made where it is missing.
        settings: all that decides what the run computes, in JSON values.
        resume: `"auto"` goes on with a run of the same settings; `"never"` wants none there.
        environment: what it is begun by and on (`describe_environment`); recorded, never compared.

    Raises:
        ConfigError: the folder holds a run of other settings, or one at all under `"never"`.
    """
    # As it will be read back: tuples become lists.
    settings = json.loads(json.dumps(settings))
    record = out / RECORD
    if not record.exists():
        recorded = settings if environment is None else {**settings, "environment": environment}
        _files.write_json(record, recorded)
        return
    if resume == "never":
        raise ConfigError(f"{out}: holds a run already; choose another folder or resume='auto'")
    there = _files.read_json(record)
    for key, value in settings.items():
        if there.get(key) != value:
            raise ConfigError(
                f"{out}: holds a run with another {key} ({there.get(key)!r}, now "
                f"{value!r}); choose another folder, or go on with the old settings"
            )
