"""Build vocabularies by recipe: the default, those of bvv241, and compact ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastgrow.errors import SubstrateError
from fastgrow.substrate import ngrams as lists
from fastgrow.substrate.unicode_sets import characters_of
from fastgrow.substrate.vocabulary import REQUIRED_SPECIALS, Vocabulary

# A file of n-grams, a folder with the author's files, several files, or a list of n-grams.
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

    With `scripts`, `blocks` or `characters` it has the compact layout: only those characters and
    n-grams of them. Otherwise it has the full layout of the recipe:

    - "default": 65,536 tokens, with n-grams of the bundled declarations of human rights.
    - "bvv241-2-3": 65,536 tokens, with the author's 2- and 3-grams (top 338 of each language).
    - "bvv241-abs", "bvv241-max": 131,072 tokens, with the author's 2- to 5-grams (top 906) and the
      tokens that five public vocabularies share. Of 73,768 n-grams the last 41 are left out.

    Args:
        recipe: one of `RECIPES`; "default" for compact vocabularies.
        ngrams: source of the n-grams. The author's recipes require a folder with the files under
            their original names, or the files. For "default", a file (in the author's format, or
            one n-gram per line, best first) or a list of n-grams, best first, replaces the bundled
            ones.
        scripts, blocks, characters: characters of a compact vocabulary (`characters_of`).
        specials: names of special tokens of a compact vocabulary (`Vocabulary.compact`).
        n_ngrams, max_size: limits of a compact vocabulary (`Vocabulary.compact`). Without a limit,
            only those bundled n-grams are used that the default recipe has.

    Raises:
        SubstrateError: the recipe is unknown, options cannot be combined, n-gram files are missing
            or malformed, or there are more n-grams than ids for them.
    """
    if recipe not in RECIPES:
        raise SubstrateError(f"no recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
    compact = not (scripts is None and blocks is None and characters is None)
    if recipe != "default":
        if compact:
            raise SubstrateError(
                f"recipe {recipe!r} has fixed characters; remove scripts, blocks and characters"
            )
        if ngrams is None:
            raise SubstrateError(f"recipe {recipe!r} requires ngrams=, the author's n-gram files")
    unlimited = n_ngrams is None and max_size is None
    if not compact and not (unlimited and specials == REQUIRED_SPECIALS):
        raise SubstrateError(
            "specials, n_ngrams and max_size are options of compact vocabularies; they require "
            "scripts, blocks or characters"
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
        return [path / name for name in names] if path.is_dir() else _checked([path], recipe)
    return _checked([Path(file) for file in source], recipe)


def _checked(files: list[Path], recipe: str) -> list[Path]:
    names = _BVV_FILES[recipe]
    if len(files) != len(names):
        raise SubstrateError(
            f"recipe {recipe!r} requires {len(names)} n-gram files ({', '.join(names)}) or their "
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
