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
    report: Report, model: Decoder, excerpts: list[Excerpt], seed: int, *, name: str = ""
) -> None:
    """A sample and the bits of the text at each depth.

    Args:
        report: to add to.
        model: on a substrate, of one block or more.
        excerpts: the first gives prompt and text; without any, samples begin a document.
        seed: of the samples.
        name: of the model, where the page has several.
    """
    report.heading(f"Samples by depth{f', {name}' if name else ''}")
    if model.n_layer == 0:
        report.note("The model has no block.")
        return
    prompt = excerpts[0].prompt if excerpts else ""
    whole = model.n_layer
    report.paragraph(
        (f"Prompt “{prompt.strip()}”, of {excerpts[0].origin}. " if excerpts else "")
        + (
            f"Below full depth the model is cut to its lowest blocks under the same final norm and "
            f"head. These were last trained for all {whole} blocks: a shallow sample shows what "
            "the upper blocks add to this head, not what the model wrote when it was that shallow."
            if whole > 1
            else "The model has one block, so there is nothing to cut."
        )
    )
    for depth in depths(whole):
        with lowest_blocks(model, depth) as shallow:
            try:
                text = shallow.generate(
                    prompt, max_new_tokens=_NEW_TOKENS, temperature=0.7, top_k=40, seed=seed
                )
                bits = text_bits(shallow, excerpts[0].text) if excerpts else None
            except FastgrowError as error:
                report.note(f"No sample: {error}.")
                return
        blocks = f"{depth} of {whole} blocks" if depth < whole else f"all {whole} blocks"
        said = "" if bits is None else f" · {bits:.2f} bits a token on the text of the prompt"
        report.heading(f"{blocks}{said}", level=3)
        report.sample(text, prompt)


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
