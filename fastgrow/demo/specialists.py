"""Training of the demo's models: for each script a grown model and two controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgrow.data import demo_characters, demo_splits
from fastgrow.demo.settings import SCRIPTS, DemoSettings
from fastgrow.growth import GrowthResult, grow
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.training import Mixture, TextData

KINDS = GROWN, NEVER_GROWN, MONOLITH = "grown", "never grown", "monolith"


@dataclass(frozen=True)
class DemoTexts:
    """The texts of every script on one substrate, and the mix of all texts."""

    substrate: Substrate
    own: dict[str, TextData]
    mix: TextData

    def specialist(self, script: str, own_share: float) -> Mixture:
        """Return the training text of a specialist: mostly its script, else the mix."""
        return Mixture([(self.own[script], own_share), (self.mix, 1 - own_share)])


def prepare_texts(n_components: int, cache_dir: Path) -> DemoTexts:
    """Draw the substrate and tokenize the declarations and poems.

    Args:
        n_components: width of the token table.
        cache_dir: folder of the token files.
    """
    substrate = Substrate.build(characters=demo_characters(), n_ngrams=0, n_components=n_components)
    splits = {script: demo_splits(script) for script in SCRIPTS}

    def data(of: list[str], name: str) -> TextData:
        def documents(split: str) -> list[str]:
            return [text for script in of for text in getattr(splits[script], split)]

        return TextData.from_splits(
            train=documents("train"),
            validation=documents("validation"),
            test=documents("test"),
            substrate=substrate,
            cache_dir=cache_dir / name,
        )

    own = {script: data([script], script) for script in SCRIPTS}
    return DemoTexts(substrate, own, data(list(SCRIPTS), "mix"))


def train_specialist(
    script: str,
    texts: DemoTexts,
    settings: DemoSettings,
    out: Path,
    *,
    kinds: Sequence[str] = KINDS,
    quiet: bool = False,
) -> dict[str, GrowthResult]:
    """Grow the specialist of `script` and train its controls, at equal tokens and settings.

    Args:
        script: script of the specialist.
        texts: texts of all scripts.
        settings: sizes and seed.
        out: folder of the runs.
        kinds: kinds of models to train.
        quiet: print nothing.

    Returns:
        The runs by kind.
    """
    schedules = {
        GROWN: settings.schedule,
        NEVER_GROWN: settings.schedule.as_never_grown(),
        MONOLITH: settings.schedule.as_monolith(),
    }
    results = {}
    for kind in kinds:
        torch.manual_seed(settings.seed)
        config = DecoderConfig(
            vocab_size=len(texts.substrate),
            d_model=settings.d_model,
            n_layer=0,
            n_head=settings.n_head,
            max_seq_len=settings.seq_len,
        )
        results[kind] = grow(
            Decoder(config, texts.substrate),
            texts.specialist(script, settings.own_share),
            schedules[kind],
            train=settings.train,
            out=out / f"{script}-{kind}".lower().replace(" ", "-"),
            evaluate_on={"test": texts.own[script].test},
            name=f"{script} {kind}",
            quiet=quiet,
        )
    return results
