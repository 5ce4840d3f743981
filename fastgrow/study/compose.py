"""Build an ensemble of a study's experts under each of its rules, and measure it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastgrow import _files
from fastgrow.compose import Ensemble, Rule, load, tune
from fastgrow.errors import ConfigError
from fastgrow.evaluation import BitsPerCharacter, bits_per_character
from fastgrow.nn import LanguageModel
from fastgrow.study.plan import Composition, Study
from fastgrow.study.settings import RuleSettings, changed
from fastgrow.study.texts import Corpus
from fastgrow.training import Mixture, TokenStream, TrainConfig

# Options of a rule with one value for each expert; a list has the values in the experts' order.
_BY_EXPERT = ("weights", "temperatures")


def compose(study: Study, composition: Composition) -> None:
    """Measure an ensemble under each rule not measured yet, and write a file for each rule."""
    settings = study.settings
    corpus = study.corpus(composition.experts[0].training)
    tests = {name: corpus.text(name).test for name in settings.evaluate}
    tuning = corpus.tuning(settings.evaluate)
    for name, path in composition.results.items():
        if path.exists():
            continue
        rule = composition.rules[name]
        ensemble = _fitted(rule, _experts(composition, corpus), tuning, study, composition.seed)
        bits = {text: bits_per_character(ensemble, test) for text, test in tests.items()}
        _files.write_json(
            path,
            {
                "ensemble": composition.name,
                "rule": name,
                "seed": composition.seed,
                "taken": _taken(ensemble.rule),
                "parameters": ensemble.num_parameters(include_table=False),
                "bits": {text: b.bits_per_character for text, b in bits.items()},
            },
        )


def _experts(composition: Composition, corpus: Corpus) -> dict[str, LanguageModel]:
    # Loaded again for every rule, because tuning the heads changes the experts.
    return {
        run.name: load(run.folder / "model", substrate=corpus.substrate)
        for run in composition.experts
    }


def _fitted(
    settings: RuleSettings,
    experts: Mapping[str, LanguageModel],
    tuning: Mixture,
    study: Study,
    seed: int,
) -> Ensemble:
    """Return the ensemble under a rule, which is chosen or fitted on the tuning text if needed."""
    names = list(experts)
    if settings.choose is not None:
        ensemble = Ensemble(experts)

        def tuning_bits(rule: Rule) -> float:
            ensemble.reweight(rule)
            return mixed(bits_per_character(ensemble, part) for part, _ in tuning.validation.parts)

        ensemble.reweight(min((make_rule(c, names) for c in settings.choose), key=tuning_bits))
        return ensemble
    assert settings.rule is not None
    # An adapter is initialised randomly.
    torch.manual_seed(seed)
    ensemble = Ensemble(experts, make_rule(settings.rule, names))
    if settings.tune is not None:
        train = changed(
            TrainConfig, "tune.train", study.settings.train, settings.tune.train, {"seed": seed}
        )
        tune(
            ensemble,
            tuning,
            what=settings.tune.what,
            tokens=settings.tune.tokens,
            train=train,
            quiet=True,
        )
    return ensemble


def mixed(parts: Any) -> float:
    """Return the bits per character over several texts together."""
    return BitsPerCharacter.over_all(parts).bits_per_character


def make_rule(options: Mapping[str, Any], names: Sequence[str]) -> Rule:
    """Build the rule that a study's file describes, for experts with these names.

    Raises:
        ConfigError: there is no such rule or option, or a list's length is not the number of
            experts.
    """
    named = dict(options)
    for option in _BY_EXPERT:
        values = named.get(option)
        if isinstance(values, list):
            if len(values) != len(names):
                raise ConfigError(
                    f"rule {named.get('kind')}: {option}: expected {len(names)} values, one for "
                    f"each expert, got {len(values)}"
                )
            named[option] = dict(zip(names, values, strict=True))
    against = named.get("against")
    if isinstance(against, int):
        if not 0 <= against < len(names):
            raise ConfigError(
                f"rule {named.get('kind')}: against: expected an expert's index from 0 to "
                f"{len(names) - 1}, got {against}"
            )
        named["against"] = names[against]
    return Rule.from_config(named)


def check_ensembles(study: Study) -> None:
    """Check the ensembles' settings before training, as they would fail only after it.

    Raises:
        ConfigError: a rule does not exist or cannot be used with its experts, or experts have
            different substrates.
    """
    for name, ensemble in study.settings.ensembles.items():
        where = f"ensembles.{name}"
        substrates = {
            study.corpus(study.settings.trainings[expert]).substrate.fingerprint
            for expert in ensemble.experts
        }
        if len(substrates) > 1:
            raise ConfigError(
                f"{where}.experts: expected experts on one substrate, got {len(substrates)} "
                "different substrates"
            )
        for rule, settings in ensemble.rules.items():
            for options in settings.choose or [settings.rule or {}]:
                try:
                    make_rule(options, ensemble.experts).check(ensemble.experts)
                except ConfigError as error:
                    raise ConfigError(f"{where}.rules.{rule}: {error}") from None
            if settings.tune is not None:
                changed(TrainConfig, f"{where}.rules.{rule}.tune.train", settings.tune.train)


def _taken(rule: Rule) -> dict[str, Any]:
    """Return the configuration of a measured rule, with its numbers rounded to four digits."""
    config = rule.to_config()
    return {
        name: {k: round(v, 4) for k, v in value.items()} if isinstance(value, dict) else value
        for name, value in config.items()
    }


def baseline_bits(corpus: Corpus, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the bits per character of a unigram model and of a uniform distribution."""
    from fastgrow.evaluation import uniform_bits, unigram_bits

    def test(name: str) -> TokenStream:
        return corpus.text(name).test

    return {
        "unigram": {
            name: unigram_bits(corpus.text(name).train, test(name)).bits_per_character
            for name in names
        },
        "uniform": {name: uniform_bits(test(name)).bits_per_character for name in names},
    }
