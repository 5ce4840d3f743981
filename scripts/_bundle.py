"""Write a file of fastgrow/data together with its checksum."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "fastgrow" / "data"


def write(name: str, content: bytes) -> None:
    """Compress `content` into fastgrow/data/`name` and write its SHA-256 to SHA256SUMS."""
    compressed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    (DATA / name).write_bytes(compressed)
    sums = DATA / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.exists() else []
    digests = {file: digest for digest, file in (line.split() for line in lines)}
    digests[name] = hashlib.sha256(compressed).hexdigest()
    sums.write_text("".join(f"{digests[file]}  {file}\n" for file in sorted(digests)))
    print(f"{DATA / name}: {len(content):,} bytes, {len(compressed):,} compressed")
