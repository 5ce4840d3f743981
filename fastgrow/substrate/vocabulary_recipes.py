"""Vocabularies by name: the default, the author's two, and compact ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastgrow.errors import SubstrateError
from fastgrow.substrate import ngrams as lists
from fastgrow.substrate.unicode_sets import characters_of
from fastgrow.substrate.vocabulary import REQUIRED_SPECIALS, Vocabulary

# A file of n-grams, a folder of the author's files, several files, or the n-grams themselves.
NgramSource = Path | str | Sequence[Path] | Sequence[str]

RECIPES = ("default", "bvv241-2-3", "bvv241-abs", "bvv241-max")
_BVV_FILES = {
    "bvv241-2-3": ("ngrams-2-3.txt.xz",),
    "bvv241-abs": ("ngrams-2-3-4-5.txt.xz", "ngrams-intersection.txt.xz"),
    "bvv241-max": ("ngrams-2-3-4-5.txt.xz", "ngrams-intersection.txt.xz"),
}
_FULL_PLACES = 8192


def build_vocabulary(
    recipe: str = "default",
    *,
    ngrams: NgramSource | None = None,
    scripts: Iterable[str] | None = None,
    blocks: Iterable[str] | None = None,
    characters: Iterable[str] | None = None,
    specials: Sequence[str] = REQUIRED_SPECIALS,
    n_ngrams: int | None = None,
    max_size: int | None = None,
) -> Vocabulary:
    """Build a vocabulary.

    With `scripts`, `blocks` or `characters` it is compact: only those characters, and the n-grams
    made of them. Otherwise it is the full layout that the recipe names:

    - "default": 65,536 tokens, n-grams of the bundled declarations of human rights.
    - "bvv241-2-3": 65,536 tokens of the author's 2- and 3-grams (top 338 a language).
    - "bvv241-abs", "bvv241-max": 131,072 tokens of the author's 2- to 5-grams (top 906) and of the
      tokens that five public vocabularies share. Of 73,768 n-grams the last 41 find no place.

    Args:
        recipe: one of `RECIPES`; compact vocabularies take "default".
        ngrams: where the n-grams come from. The author's recipes need it: a folder with the files
            under their names, or the files. Elsewhere a file (the author's form, or one n-gram a
            line, best first) or a list of n-grams, best first, replaces the bundled ones.
        scripts, blocks, characters: what a compact vocabulary holds (`characters_of`).
        specials: names of special tokens of a compact vocabulary (`Vocabulary.compact`).
        n_ngrams, max_size: limits of a compact vocabulary (`Vocabulary.compact`). Without one it
            takes no bundled n-grams beyond those of the default recipe.

    Raises:
        SubstrateError: an unknown recipe, options that do not go together, n-gram files that are
            missing or malformed, or n-grams that do not fit.
    """
    if recipe not in RECIPES:
        raise SubstrateError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    compact = not (scripts is None and blocks is None and characters is None)
    if recipe != "default":
        if compact:
            raise SubstrateError(f"recipe {recipe!r} has its own characters; choose none")
        if ngrams is None:
            raise SubstrateError(f"recipe {recipe!r} needs ngrams=, the author's n-gram files")
    unlimited = n_ngrams is None and max_size is None
    if not compact and not (unlimited and specials == REQUIRED_SPECIALS):
        raise SubstrateError(
            "specials, n_ngrams and max_size belong to compact vocabularies: choose scripts, "
            "blocks or characters"
        )
    if compact:
        return Vocabulary.compact(
            characters_of(scripts=scripts, blocks=blocks, characters=characters),
            _default_ngrams() if ngrams is None and unlimited else _best_first(ngrams),
            specials=specials,
            n_ngrams=n_ngrams,
            max_size=max_size,
        )
    if recipe == "default":
        return Vocabulary.full(_default_ngrams() if ngrams is None else _best_first(ngrams))
    assert ngrams is not None
    return _author_vocabulary(recipe, _author_files(recipe, ngrams))


def _default_ngrams() -> list[str]:
    bundled = lists.bundled()
    chosen = lists.top(bundled, lists.largest_k(bundled, _FULL_PLACES, (2, 3)), (2, 3))
    return [ngram for ngram in lists.ranked(bundled) if ngram in chosen]


def _author_vocabulary(recipe: str, files: Sequence[Path]) -> Vocabulary:
    by_language = lists.read_lists(files[0])
    if recipe == "bvv241-2-3":
        return Vocabulary.full(lists.top(by_language, 338, (2, 3)))
    shared = lists.read_lines(files[1])
    return Vocabulary.full(
        lists.top(by_language, 906, (2, 3, 4, 5)).union(shared), size=0x20000, truncate=True
    )


def _author_files(recipe: str, source: NgramSource) -> list[Path]:
    names = _BVV_FILES[recipe]
    if isinstance(source, Path | str):
        path = Path(source)
        return [path / name for name in names] if path.is_dir() else _enough([path], recipe)
    return _enough([Path(file) for file in source], recipe)


def _enough(files: list[Path], recipe: str) -> list[Path]:
    names = _BVV_FILES[recipe]
    if len(files) != len(names):
        raise SubstrateError(
            f"recipe {recipe!r} needs {len(names)} n-gram files ({', '.join(names)}) or their "
            f"folder, got {len(files)}: {', '.join(map(str, files))}"
        )
    return files


def _best_first(source: NgramSource | None) -> list[str]:
    if source is None:
        return lists.ranked(lists.bundled())
    if not isinstance(source, Path | str):
        return [str(ngram) for ngram in source]
    path = Path(source)
    if lists.read_text(path).lstrip().startswith("[{"):
        return lists.ranked(lists.read_lists(path))
    return lists.read_lines(path)
