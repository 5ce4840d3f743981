"""Samples by depth: what the lowest blocks of a finished model say by themselves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from fastgrow.errors import FastgrowError
from fastgrow.nn import Decoder
from fastgrow.report.inside.excerpts import Excerpt
from fastgrow.report.page import Report

_NEW_TOKENS = 48
_MOST_DEPTHS = 6
CAVEAT = (
    "Below full depth a model is cut to its lowest blocks under the same final norm and head. "
    "These were last trained for the full depth: a shallow sample shows what the upper blocks add "
    "for this head, not what the model wrote when it was that shallow."
)


@contextlib.contextmanager
def lowest_blocks(model: Decoder, n: int) -> Iterator[Decoder]:
    """The model with its lowest n blocks alone; all are back when the block of code ends."""
    whole = model.blocks
    model.blocks = whole[:n]
    try:
        yield model
    finally:
        model.blocks = whole


def add_samples(
    report: Report, model: Decoder, excerpt: Excerpt | None, seed: int, *, name: str = ""
) -> None:
    """A sample and the bits of the text at each depth.

    Args:
        report: to add to.
        model: on a substrate.
        excerpt: gives prompt and text; without it samples begin a document.
        seed: of the samples.
        name: of the model, where the page has several.
    """
    if name:
        report.heading(name, level=3)
    if model.n_layer == 0:
        report.note("The model has no block.")
        return
    prompt, whole = "" if excerpt is None else excerpt.prompt, model.n_layer
    if excerpt is not None:
        report.paragraph(f"Prompt “{prompt.strip()}”, of {excerpt.origin}.")
    for depth in depths(whole):
        with lowest_blocks(model, depth) as shallow:
            try:
                text = shallow.generate(
                    prompt, max_new_tokens=_NEW_TOKENS, temperature=0.7, top_k=40, seed=seed
                )
                bits = text_bits(shallow, excerpt.text) if excerpt is not None else None
            except FastgrowError as error:
                report.note(f"No sample: {error}.")
                return
        blocks = f"{depth} of {whole} blocks" if depth < whole else f"all {whole} blocks"
        said = "" if bits is None else f" · {bits:.2f} bits a token on the text of the prompt"
        report.sample(text, prompt, f"{blocks}{said}")


def depths(whole: int) -> list[int]:
    """1 to `whole`, or as many evenly among them as a page has room for; `whole` is the last."""
    if whole <= _MOST_DEPTHS:
        return list(range(1, whole + 1))
    steps = _MOST_DEPTHS - 1
    return sorted({1 + round(i * (whole - 1) / steps) for i in range(steps + 1)})


@torch.no_grad()
def text_bits(model: Decoder, text: str) -> float:
    """Mean bits a token of a text, as far as it fits the context.

    Raises:
        SubstrateError: the text has characters that the substrate lacks.
    """
    assert model.substrate is not None
    tokens = model.substrate.encode(text)[: model.max_seq_len]
    ids = torch.tensor([[model.substrate.bos_id, *tokens[:-1]]], device=model.device)
    targets = torch.tensor([tokens], device=model.device)
    return float(model.loss(ids, targets)) / math.log(2)
