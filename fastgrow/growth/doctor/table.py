"""Check that the frozen token table matches the substrate's fingerprint."""

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

# Tolerance: the principal axes are saved, but the projection onto them may be rounded differently.
ROUNDING = 1e-5
ROWS = 4096


class TableExam:
    """Compare a model's token table with one that is rebuilt from the substrate's files.

    It is not compared with the substrate's table in memory, which the model shares.
    """

    def __init__(self, model: Decoder, data: TextData | Mixture, folder: Path) -> None:
        self.model = model
        self.problem = ""
        self.rebuilt: FrozenEmbedding | None = None
        substrate = model.substrate
        if substrate is None:
            return
        theirs = data.train.substrate.fingerprint
        if theirs != substrate.fingerprint:
            self.problem = (
                f"the data was encoded with the substrate {theirs[:12]}…, expected that of the "
                f"model, {substrate.fingerprint[:12]}…"
            )
            return
        if isinstance(substrate, Substrate) and not model.embedding.trainable:
            self._rebuild(substrate, folder)

    def _rebuild(self, substrate: Substrate, folder: Path) -> None:
        config = self.model.config
        try:
            substrate.save(folder)
            loaded = Substrate.load(folder)
        except FastgrowError as error:
            self.problem = str(error)
            return
        if loaded.fingerprint != substrate.fingerprint:
            self.problem = (
                f"the rebuilt substrate has the fingerprint {loaded.fingerprint[:12]}…, "
                f"expected {substrate.fingerprint[:12]}…"
            )
            return
        self.rebuilt = substrate_embedding(loaded, config.embed_width, config.d_model)

    def check(self, stage: int, *, trains: bool) -> Finding:
        """Return the finding after a stage."""
        if self.problem:
            return Finding(stage, "substrate", False, self.problem)
        if trains or self.rebuilt is None:
            why = "the token table is active" if trains else "no frozen token table of a substrate"
            return Finding(stage, "substrate", None, why)
        wrong = self._rows_that_differ(self.rebuilt)
        if not wrong:
            return Finding(stage, "substrate", True)
        return Finding(
            stage,
            "substrate",
            False,
            f"{wrong:,} rows of the token table differ from those of the rebuilt substrate",
        )

    def _rows_that_differ(self, rebuilt: FrozenEmbedding) -> int:
        mine = self.model.embedding
        wrong = 0
        for first in range(0, mine.vocab_size, ROWS):
            ids = torch.arange(first, min(first + ROWS, mine.vocab_size))
            expected: Tensor = rebuilt(ids)
            found = mine(ids.to(self.model.device)).to(expected.device, expected.dtype)
            wrong += int(((found - expected).abs() > ROUNDING).any(-1).sum())
        return wrong
