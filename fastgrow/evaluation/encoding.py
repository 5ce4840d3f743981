"""Prompts as token ids that fit a model's context; what did not fit or was unknown is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrow.errors import ConfigError
from fastgrow.nn import LanguageModel, SubstrateLike


@dataclass(frozen=True)
class Encoded:
    """A text's ids.

    Attributes:
        ids: the tokens.
        unknown: how many of its characters the substrate lacks; each became `<unk>`.
    """

    ids: list[int]
    unknown: int


def require_substrate(model: LanguageModel) -> SubstrateLike:
    """The model's substrate.

    Raises:
        ConfigError: it has none.
    """
    if model.substrate is None:
        raise ConfigError("the model has no substrate, so it cannot read text")
    return model.substrate


def encode_texts(
    substrate: SubstrateLike, texts: Sequence[str], *, document_start: bool
) -> list[Encoded]:
    """The texts' ids; a character outside the vocabulary becomes `<unk>`.

    Args:
        substrate: encodes them.
        texts: what to encode.
        document_start: begin each with `<s>`.
    """
    begin = [substrate.bos_id] if document_start else []
    unknown = getattr(substrate, "unk_id", None)
    return [
        Encoded(begin + ids, 0 if unknown is None else ids.count(unknown))
        for ids in substrate.encode_batch(list(texts), unknown="unk")
    ]


def cut_left(ids: list[int], room: int) -> list[int]:
    """The last `room` tokens, at least one."""
    return ids[-max(1, room) :]
