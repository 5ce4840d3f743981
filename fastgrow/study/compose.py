"""An ensemble of a study's experts under each of its rules."""

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

# What a rule's option of this name gives by expert; a list stands for the experts in order.
_BY_EXPERT = ("weights", "temperatures")


def compose(study: Study, composition: Composition) -> None:
    """Measure an ensemble under each rule that has not been measured yet; write a file for each."""
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
    # Read anew for every rule: tuning the heads changes the experts.
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
    """The experts under the rule, chosen or fitted on the tuning text."""
    names = list(experts)
    if settings.choose is not None:
        ensemble = Ensemble(experts)

        def tuning_bits(rule: Rule) -> float:
            ensemble.reweight(rule)
            return mixed(bits_per_character(ensemble, part) for part, _ in tuning.validation.parts)

        ensemble.reweight(min((make_rule(c, names) for c in settings.choose), key=tuning_bits))
        return ensemble
    assert settings.rule is not None
    # An adapter begins at random.
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
    """Bits per character of several texts taken together."""
    return BitsPerCharacter.over_all(parts).bits_per_character


def make_rule(options: Mapping[str, Any], names: Sequence[str]) -> Rule:
    """The rule that a study's file describes, for experts of these names.

    Raises:
        ConfigError: there is no such rule or option, or a list is not as long as the experts'.
    """
    named = dict(options)
    for option in _BY_EXPERT:
        values = named.get(option)
        if isinstance(values, list):
            if len(values) != len(names):
                raise ConfigError(
                    f"rule {named.get('kind')}: {len(values)} {option} for {len(names)} experts"
                )
            named[option] = dict(zip(names, values, strict=True))
    against = named.get("against")
    if isinstance(against, int):
        if not 0 <= against < len(names):
            raise ConfigError(f"rule {named.get('kind')}: against is {against}, of {len(names)}")
        named["against"] = names[against]
    return Rule.from_config(named)


def check_ensembles(study: Study) -> None:
    """Refuse what would fail only after all experts are trained.

    Raises:
        ConfigError: a rule that is none or does not go with the experts, or experts on different
            substrates.
    """
    for name, ensemble in study.settings.ensembles.items():
        where = f"ensembles.{name}"
        substrates = {
            study.corpus(study.settings.trainings[expert]).substrate.fingerprint
            for expert in ensemble.experts
        }
        if len(substrates) > 1:
            raise ConfigError(f"{where}.experts: they have {len(substrates)} different substrates")
        for rule, settings in ensemble.rules.items():
            for options in settings.choose or [settings.rule or {}]:
                try:
                    make_rule(options, ensemble.experts).check(ensemble.experts)
                except ConfigError as error:
                    raise ConfigError(f"{where}.rules.{rule}: {error}") from None
            if settings.tune is not None:
                changed(TrainConfig, f"{where}.rules.{rule}.tune.train", settings.tune.train)


def _taken(rule: Rule) -> dict[str, Any]:
    """The rule as it was measured, its numbers short enough to read."""
    config = rule.to_config()
    return {
        name: {k: round(v, 4) for k, v in value.items()} if isinstance(value, dict) else value
        for name, value in config.items()
    }


def baseline_bits(corpus: Corpus, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Bits per character of each text's own character frequencies, and of no knowledge at all."""
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
