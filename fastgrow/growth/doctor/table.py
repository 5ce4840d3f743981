"""Whether the frozen table is what the substrate's fingerprint stands for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastgrow.errors import FastgrowError
from fastgrow.growth.doctor.findings import Finding
from fastgrow.nn import Decoder
from fastgrow.nn.embedding import FrozenEmbedding
from fastgrow.nn.substrate_table import substrate_embedding
from fastgrow.substrate import Substrate
from fastgrow.training import Mixture, TextData

# The axes that the bits are turned by are saved; the product with them may round differently.
ROUNDING = 1e-5
ROWS = 4096


class TableExam:
    """Compares a model's table with one that is made again from the substrate's files.

    The table in memory may not be asked: the model and the substrate share it.
    """

    def __init__(self, model: Decoder, data: TextData | Mixture, folder: Path) -> None:
        self.model = model
        self.problem = ""
        self.again: FrozenEmbedding | None = None
        substrate = model.substrate
        if substrate is None:
            return
        theirs = data.train.substrate.fingerprint
        if theirs != substrate.fingerprint:
            self.problem = (
                f"the data is of the substrate {theirs[:12]}…, the model of "
                f"{substrate.fingerprint[:12]}…"
            )
            return
        if isinstance(substrate, Substrate) and not model.embedding.trainable:
            self._make_again(substrate, folder)

    def _make_again(self, substrate: Substrate, folder: Path) -> None:
        config = self.model.config
        try:
            substrate.save(folder)
            loaded = Substrate.load(folder)
        except FastgrowError as error:
            self.problem = str(error)
            return
        if loaded.fingerprint != substrate.fingerprint:
            self.problem = (
                f"made again its fingerprint is {loaded.fingerprint[:12]}…, "
                f"not {substrate.fingerprint[:12]}…"
            )
            return
        self.again = substrate_embedding(loaded, config.embed_width, config.d_model)

    def check(self, stage: int, *, trains: bool) -> Finding:
        """The finding after a stage."""
        if self.problem:
            return Finding(stage, "substrate", False, self.problem)
        if trains or self.again is None:
            why = "the table trains" if trains else "there is no frozen table of a substrate"
            return Finding(stage, "substrate", None, why)
        wrong = self._rows_that_differ(self.again)
        if not wrong:
            return Finding(stage, "substrate", True)
        return Finding(
            stage,
            "substrate",
            False,
            f"{wrong:,} rows of the table are not what the fingerprint stands for",
        )

    def _rows_that_differ(self, again: FrozenEmbedding) -> int:
        mine = self.model.embedding
        wrong = 0
        for first in range(0, mine.vocab_size, ROWS):
            ids = torch.arange(first, min(first + ROWS, mine.vocab_size))
            expected: Tensor = again(ids)
            found = mine(ids.to(self.model.device)).to(expected.device, expected.dtype)
            wrong += int(((found - expected).abs() > ROUNDING).any(-1).sum())
        return wrong
