"""The bitmaps of whole vocabularies: known digests, and the reference rendering.

golden.json contains digests of bitmaps that the reference renderer (literal.py) drew with Debian's
Unifont; `python tests/substrate/test_golden.py` writes it again. The quick test compares the
embedded glyphs with it on every machine; the acceptance tests repeat the reference rendering.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from literal import LiteralRecipe

from fastgrow.substrate import Recipe, Substrate, Tokenizer

GOLDEN = Path(__file__).with_name("golden.json")
FONT = Path("/usr/share/fonts/opentype/unifont/unifont.otf")
COMPACT = "abcЖж汉\n"

Draw = Callable[[Sequence[str]], np.ndarray]


def literal_drawer(font: Path) -> Draw:
    """Packed bitmaps of tokens by the reference renderer; each token is drawn once."""
    renderer = LiteralRecipe(font)
    drawn: dict[str, np.ndarray] = {}

    def draw(tokens: Sequence[str]) -> np.ndarray:
        for token in tokens:
            if token not in drawn:
                drawn[token] = np.packbits(renderer.bits([token]), axis=1)[0]
        return np.stack([drawn[token] for token in tokens])

    return draw


def digests(substrate: Substrate) -> dict[str, str]:
    bitmaps = hashlib.sha256(substrate.bitmaps.tobytes()).hexdigest()
    return {"bitmaps": bitmaps, "fingerprint": substrate.fingerprint}


def literal_digests(draw: Draw) -> dict[str, dict[str, str]]:
    """The content of golden.json: digests of substrates with reference bitmaps."""
    built = {"default": Substrate.build(), "compact": Substrate.build(characters=COMPACT)}
    return {
        name: digests(Substrate(Tokenizer(s.vocabulary), Recipe(), draw(s.vocabulary.tokens)))
        for name, s in built.items()
    }


@pytest.fixture(scope="module")
def draw(unifont_file: Path) -> Draw:
    return literal_drawer(unifont_file)


def test_substrates_have_the_golden_digests() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert digests(Substrate.build()) == golden["default"]
    assert digests(Substrate.build(characters=COMPACT)) == golden["compact"]


@pytest.mark.acceptance
def test_all_of_bvv241_is_bit_identical(draw: Draw, development_data: Path) -> None:
    substrate = Substrate.build("bvv241-2-3", ngrams=development_data / "bvv241")
    expected = draw(substrate.vocabulary.tokens)
    assert expected.shape == (65536, 128)
    differing = np.flatnonzero((substrate.bitmaps != expected).any(axis=1))
    assert [substrate.vocabulary.tokens[index] for index in differing] == []


@pytest.mark.acceptance
def test_font_file_gives_the_embedded_bitmaps(unifont_file: Path, development_data: Path) -> None:
    ngrams = development_data / "bvv241"
    embedded = Substrate.build("bvv241-2-3", ngrams=ngrams)
    assert (
        Substrate.build("bvv241-2-3", ngrams=ngrams, font=unifont_file).difference(embedded) == ""
    )


@pytest.mark.acceptance
def test_bvv241_abs_is_bit_identical_where_sampled(
    unifont_file: Path, development_data: Path
) -> None:
    substrate = Substrate.build("bvv241-abs", ngrams=development_data / "bvv241")
    sample = np.random.default_rng(0).choice(len(substrate), 1500, replace=False)
    renderer = LiteralRecipe(unifont_file, 64, 7, 3, 0.03)
    expected = np.packbits(
        renderer.bits(substrate.vocabulary.tokens[id_] for id_ in sample), axis=1
    )
    differing = np.flatnonzero((substrate.bitmaps[sample] != expected).any(axis=1))
    assert [substrate.vocabulary.tokens[sample[index]] for index in differing] == []


@pytest.mark.acceptance
def test_golden_digests_are_those_of_the_reference(draw: Draw) -> None:
    assert literal_digests(draw) == json.loads(GOLDEN.read_text())


@pytest.mark.slow
def test_default_is_built_in_1500_megabytes() -> None:
    # With two threads: each thread takes some more memory.
    program = (
        "import os, re\n"
        "os.cpu_count = lambda: 2\n"
        "from fastgrow.substrate import Substrate\n"
        "substrate = Substrate.build()\n"
        "assert substrate.table.shape == (65536, 1024)\n"
        # ru_maxrss would include the process that started this one.
        "status = open('/proc/self/status').read()\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024\n"
        "print(peak)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) <= 1.5e9


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(literal_digests(literal_drawer(FONT)), indent=2) + "\n")
