"""Write fastgrow/data/unicode-sets.json.xz: scripts and blocks of the Basic Multilingual Plane.

    python scripts/build_unicode_sets.py /usr/share/unicode

The argument is a folder with Blocks.txt, Scripts.txt, ScriptExtensions.txt,
PropertyValueAliases.txt and UnicodeData.txt of the Unicode Character Database (Debian package
unicode-data; the committed file is from 15.0.0, the version of the bundled glyphs).
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import _bundle

LAST = 0xFFFF


def fields(path: Path) -> Iterator[list[str]]:
    """Yield the semicolon-separated fields of each line of a UCD file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        content = line.partition("#")[0].strip()
        if content:
            yield [field.strip() for field in content.split(";")]


def entries(path: Path) -> Iterator[tuple[range, str]]:
    """Yield the code points and value of each line about the Basic Multilingual Plane."""
    for points, value, *_ in fields(path):
        first, _, last = points.partition("..")
        code_points = range(int(first, 16), int(last or first, 16) + 1)
        if code_points[-1] <= LAST:
            yield code_points, value


def ranges(code_points: set[int]) -> list[list[int]]:
    """Return the sorted inclusive ranges of a set of code points."""
    result: list[list[int]] = []
    for point in sorted(code_points):
        if result and point == result[-1][1] + 1:
            result[-1][1] = point
        else:
            result.append([point, point])
    return result


def main() -> None:
    folder = Path(sys.argv[1])
    heading = (folder / "Scripts.txt").read_text(encoding="utf-8").splitlines()[0]
    version = re.search(r"\d+\.\d+\.\d+", heading)
    assert version is not None, heading

    scripts: dict[str, set[int]] = defaultdict(set)
    for points, script in entries(folder / "Scripts.txt"):
        scripts[script].update(points)

    aliases = fields(folder / "PropertyValueAliases.txt")
    names = {code: name for kind, code, name, *_ in aliases if kind == "sc"}
    extensions: dict[str, set[int]] = defaultdict(set)
    for points, codes in entries(folder / "ScriptExtensions.txt"):
        for code in codes.split():
            extensions[names[code]].update(set(points) - scripts[names[code]])

    controls = {
        int(point, 16)
        for point, _, category, *_ in fields(folder / "UnicodeData.txt")
        if category in ("Cc", "Cf") and int(point, 16) <= LAST
    }
    content = {
        "unicode": version[0],
        "blocks": {
            name: [points[0], points[-1]] for points, name in entries(folder / "Blocks.txt")
        },
        "scripts": {name: ranges(points) for name, points in sorted(scripts.items()) if points},
        "extensions": {name: ranges(points) for name, points in sorted(extensions.items())},
        "controls": ranges(controls),
    }
    _bundle.write("unicode-sets.json.xz", json.dumps(content, separators=(",", ":")).encode())


if __name__ == "__main__":
    main()
