"""Encoding prompts to token ids, with a count of unknown characters, and cutting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrow.errors import ConfigError
from fastgrow.nn import LanguageModel, SubstrateLike


@dataclass(frozen=True)
class Encoded:
    """An encoded text.

    Attributes:
        ids: the token ids.
        unknown: number of characters that are not in the substrate; each is encoded as `<unk>`.
    """

    ids: list[int]
    unknown: int


def require_substrate(model: LanguageModel) -> SubstrateLike:
    """Return the model's substrate.

    Raises:
        ConfigError: the model has none.
    """
    if model.substrate is None:
        raise ConfigError("the model has no substrate, so it cannot encode text")
    return model.substrate


def encode_texts(
    substrate: SubstrateLike, texts: Sequence[str], *, document_start: bool
) -> list[Encoded]:
    """Encode texts; a character that is not in the substrate becomes `<unk>`.

    Args:
        substrate: the substrate.
        texts: the texts to encode.
        document_start: whether to start each with `<s>`.
    """
    begin = [substrate.bos_id] if document_start else []
    unknown = getattr(substrate, "unk_id", None)
    return [
        Encoded(begin + ids, 0 if unknown is None else ids.count(unknown))
        for ids in substrate.encode_batch(list(texts), unknown="unk")
    ]


def cut_left(ids: list[int], length: int) -> list[int]:
    """Return the last `length` tokens, at least one."""
    return ids[-max(1, length) :]
