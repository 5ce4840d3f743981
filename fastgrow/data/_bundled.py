"""Read the data files that ship with the package."""

from __future__ import annotations

import functools
import hashlib
import lzma
from importlib import resources

from fastgrow.errors import DataError

SUMS = "SHA256SUMS"


def read(name: str) -> bytes:
    """Return the decompressed content of a bundled `.xz` file.

    Raises:
        DataError: the file is missing, or its SHA-256 is not that of the shipped file.
    """
    compressed = _bytes(name)
    expected = _sums().get(name)
    found = hashlib.sha256(compressed).hexdigest()
    if found != expected:
        raise DataError(f"fastgrow/data/{name}: SHA-256 is {found}, expected {expected}")
    return lzma.decompress(compressed)


@functools.cache
def _sums() -> dict[str, str]:
    lines = _bytes(SUMS).decode("ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _bytes(name: str) -> bytes:
    try:
        return resources.files("fastgrow.data").joinpath(name).read_bytes()
    except FileNotFoundError:
        raise DataError(f"fastgrow/data/{name}: no such file in this installation") from None
