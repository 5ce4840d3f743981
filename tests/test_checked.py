"""Settings carry their ranges in their types; construction, files and JSON schema read the same."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
import pytest
import torch
from msgspec import Meta

from fastgrow import _checked
from fastgrow._checked import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Proportion,
    check_types,
    convert,
)
from fastgrow.cli.settings import GrowthSettings, SourceSettings, SubstrateSettings
from fastgrow.compose.adapter import Adapter
from fastgrow.compose.logit_rules import Contrast, Temperature
from fastgrow.compose.posterior import Posterior
from fastgrow.compose.top_k import TopK
from fastgrow.demo import DemoSettings
from fastgrow.errors import ConfigError, SubstrateError
from fastgrow.evaluation import EvaluationSettings
from fastgrow.growth import Budget, GrowthSchedule, LoRA, Moments, Plateau, Stage, Trunk
from fastgrow.growth.stage import PROJECTIONS
from fastgrow.nn import DecoderConfig
from fastgrow.nn.generate import GenerationOptions
from fastgrow.ops.feed_forward import ACTIVATIONS
from fastgrow.study.controls import CONTROLS, ControlName
from fastgrow.study.settings import (
    DocumentSettings,
    EnsembleSettings,
    RuleSettings,
    StudySettings,
    StudySubstrate,
    TextSettings,
    TrainingSettings,
    TuneSettings,
)
from fastgrow.substrate.drawing import Drawing
from fastgrow.substrate.recipe import Recipe
from fastgrow.training import TrainConfig
from fastgrow.training.optimizer import Rate


class End:
    """A plain class that stands for two dataclasses."""


@dataclass(frozen=True)
class After(End):
    steps: PositiveInt = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps == 13:
            raise ConfigError("steps and superstition do not go together")


class Later(After):
    """A subclass of a dataclass."""


@dataclass(frozen=True)
class At(End):
    hour: Annotated[int, Meta(ge=0, lt=24)] = 0


@dataclass(frozen=True)
class Settings:
    count: PositiveInt = 1
    index: NonNegativeInt | None = None
    share: Proportion = 0.5
    rate: PositiveFloat = 1.0
    mode: Literal["slow", "fast"] = "slow"
    on: bool = False
    name: str = "x"
    pair: tuple[Proportion, Proportion] = (0.0, 1.0)
    which: Literal["all"] | tuple[NonNegativeInt, ...] = "all"
    some: Annotated[Sequence[Literal["a", "b"]], Meta(min_length=1)] = ("a",)
    weights: Mapping[str, PositiveFloat] = field(default_factory=dict)
    tree: dict[str, Any] = field(default_factory=dict)
    hour: Annotated[int, Meta(ge=0, lt=24)] = 0
    momentum: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    end: End | None = None
    parts: list[After] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_types(self)


BIG = 10**400

FITTING = [
    {"count": 3},
    {"count": BIG},
    {"index": 0},
    {"index": None},
    {"share": 0},
    {"share": 1},
    {"rate": 2},
    {"mode": "fast"},
    {"on": True},
    {"pair": [0, 0.5]},
    {"which": ()},
    {"which": [0, 2]},
    {"some": {"a", "b"}},
    {"weights": {"a": 1, "b": 0.5}},
    {"tree": {"a": object()}},
    {"name": Path("x")},
    {"end": At(3)},
    {"parts": (After(), Later())},
]

# (what is given, what the message says of it after the class's name)
UNFIT = [
    ({"count": 0}, "count: expected an integer of at least 1, got 0"),
    ({"count": 1.0}, "count: expected an integer of at least 1, got 1.0"),
    ({"count": True}, "count: expected an integer of at least 1, got True"),
    ({"count": None}, "count: expected an integer of at least 1, got None"),
    ({"count": "1"}, "count: expected an integer of at least 1, got '1'"),
    ({"index": -1}, "index: expected an integer of at least 0, or None, got -1"),
    ({"share": 1.5}, "share: expected a number between 0 and 1, got 1.5"),
    ({"share": -0.1}, "share: expected a number between 0 and 1, got -0.1"),
    ({"share": False}, "share: expected a number between 0 and 1, got False"),
    ({"share": math.nan}, "share: expected a number between 0 and 1, got nan"),
    ({"rate": 0}, "rate: expected a finite number above 0, got 0"),
    ({"rate": math.inf}, "rate: expected a finite number above 0, got inf"),
    ({"rate": "fast"}, "rate: expected a finite number above 0, got 'fast'"),
    ({"rate": BIG}, f"rate: expected a finite number above 0, got {BIG}"),
    ({"hour": 24}, "hour: expected an integer of at least 0 and below 24, got 24"),
    ({"momentum": 1}, "momentum: expected a finite number above 0 and below 1, got 1"),
    ({"end": 3}, "end: expected End, or None, got 3"),
    ({"name": 3}, "name: expected a string, got 3"),
    ({"mode": "x"}, "mode: expected one of fast, slow, got 'x'"),
    ({"on": 1}, "on: expected true or false, got 1"),
    ({"pair": (1.0,)}, "pair: expected a list of length 2, got [1.0]"),
    ({"pair": (1.0, 2.0)}, "pair[1]: expected a number between 0 and 1, got 2.0"),
    ({"which": "none"}, "which: expected one of all, or a list, got 'none'"),
    ({"which": (0, -1)}, "which[1]: expected an integer of at least 0, got -1"),
    ({"which": (True,)}, "which[0]: expected an integer of at least 0, got True"),
    ({"some": ()}, "some: expected a list of length at least 1, got []"),
    ({"some": ["a", "c"]}, "some[1]: expected one of a, b, got 'c'"),
    ({"some": "ab"}, "some: expected a list of length at least 1, got 'ab'"),
    ({"weights": {"a": 1, "b": 0}}, "weights['b']: expected a finite number above 0, got 0"),
    ({"weights": [1]}, "weights: expected a mapping, got [1]"),
    ({"tree": 3}, "tree: expected a mapping, got 3"),
]  # fmt: skip


@pytest.mark.parametrize("values", FITTING, ids=str)
def test_what_fits_is_accepted_and_stays_as_it_is(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    assert getattr(Settings(**values), name) is value


@pytest.mark.parametrize(("values", "message"), UNFIT, ids=[str(v)[:40] for v, _ in UNFIT])
def test_what_does_not_fit_is_named_with_what_was_expected(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(**values)
    assert str(error.value) == f"Settings.{message}"


def test_scalars_of_numpy_and_torch_count_as_numbers_unless_json_is_written() -> None:
    scalars: list[dict[str, Any]] = [
        {"count": np.int64(2)},
        {"count": torch.tensor(2)},
        {"share": np.float32(0.5)},
        {"rate": torch.tensor(0.5)},
        {"on": np.bool_(True)},
        {"which": (np.int64(1),)},
    ]
    for values in scalars:
        with pytest.raises(ConfigError, match="expected"):
            check_types(Settings(**values), plain=True)
    # A float of NumPy is a float of Python.
    check_types(Settings(share=np.float64(0.5)), plain=True)
    for values in ({"count": np.int64(0)}, {"count": np.float32(1)}, {"share": np.bool_(True)}):
        with pytest.raises(ConfigError, match="expected"):
            Settings(**values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="share: expected"):
        Settings(share=torch.tensor([0.5]))  # type: ignore[arg-type]
    for indices in (np.array([0, 1]), torch.tensor([0, 1])):
        with pytest.raises(ConfigError, match="which: expected"):
            Settings(which=indices)  # type: ignore[arg-type]


def test_the_prefix_and_the_class_of_the_error_can_be_chosen() -> None:
    settings = object.__new__(After)
    object.__setattr__(settings, "steps", 0)
    with pytest.raises(SubstrateError) as error:
        check_types(settings, where="run: ", error=SubstrateError)
    assert str(error.value) == "run: steps: expected an integer of at least 1, got 0"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"count": 0}, "count: expected an integer of at least 1, got 0"),
        ({"count": "x"}, "count: expected an integer of at least 1, got 'x'"),
        ({"index": -1}, "index: expected an integer of at least 0, or null, got -1"),
        ({"share": 1.5}, "share: expected a number between 0 and 1, got 1.5"),
        ({"rate": math.inf}, "rate: expected a finite number above 0, got inf"),
        ({"rate": {}}, "rate: expected a finite number above 0, got {}"),
        ({"mode": "x"}, "mode: expected one of fast, slow, got 'x'"),
        ({"on": "maybe"}, "on: expected true or false, got 'maybe'"),
        ({"pair": [1, 2]}, "pair.1: expected a number between 0 and 1, got 2"),
        ({"weights": {"a": 1, "b": 0}}, "weights.b: expected a finite number above 0, got 0"),
        ({"some": []}, "some: expected a list of length at least 1, got []"),
        ({"parts": [{}, {"steps": 0}]}, "parts.1.steps: expected an integer of at least 1, got 0"),
        ({"parts": 3}, "parts: expected a list, got 3"),
        ({"parts": [3]}, "parts.0: expected a mapping with the keys {steps}, got 3"),
        ({"end": {"hour": 24}}, "end.hour: expected an integer of at least 0 and below 24, got 24"),
        (
            {"end": {"day": 1}},
            "end: expected a mapping with the keys {steps} or {hour}, or null, got {'day': 1}",
        ),
        ({"end": {}}, "end: expected a mapping with the keys {steps} or {hour}, or null, got {}"),
        ({"end": {"steps": 13}}, "end: steps and superstition do not go together"),
        ({"parts": [{"steps": 13}]}, "parts.0: steps and superstition do not go together"),
    ],
    ids=str,
)
def test_an_error_in_a_file_names_the_key_what_was_expected_and_the_value(
    tree: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        convert(tree, Settings, "f.yaml")
    assert str(error.value) == f"f.yaml: {message}"


def test_values_of_a_file_become_the_dataclass() -> None:
    tree = {"rate": "1e-3", "count": "2", "end": {"hour": 3}, "parts": [{"steps": 2}], "on": True}
    expected = Settings(rate=1e-3, count=2, end=At(3), parts=[After(2)], on=True)
    assert convert(tree, Settings, "f.yaml") == expected


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^f: .*missing required field vocab_size$"):
        convert({}, DecoderConfig, "f")


# -- all settings of fastgrow ----------------------------------------------------------------------

GOOD: dict[type[Any], dict[str, Any]] = {
    TrainConfig: {},
    Rate: {},
    LoRA: {"rank": 2},
    Plateau: {},
    Budget: {"flops": 1.0},
    Moments: {},
    Stage: {},
    GrowthSchedule: {"stages": [{}]},
    Trunk: {},
    DecoderConfig: {"vocab_size": 4, "d_model": 8, "n_head": 2},
    GenerationOptions: {},
    EvaluationSettings: {},
    Adapter: {"rank": 1},
    Temperature: {"temperatures": {"a": 1.0}},
    Contrast: {"against": "a"},
    Posterior: {},
    TopK: {"k": 1},
    DemoSettings: {
        "blocks": 2,
        "tokens": 1024,
        "d_model": 8,
        "n_head": 2,
        "seq_len": 8,
        "batch_size": 2,
        "lr": 1e-3,
        "eval_tokens": 8,
    },
    DocumentSettings: {},
    TextSettings: {"files": ["a"]},
    StudySubstrate: {},
    TrainingSettings: {"texts": {"a": 1.0}},
    TuneSettings: {"what": "head", "tokens": 1},
    RuleSettings: {"rule": {}},
    EnsembleSettings: {"experts": ["a"], "rules": {"m": {"rule": {}}}},
    SubstrateSettings: {},
    SourceSettings: {"source": "a"},
    Drawing: {},
}
# Without a range: random seeds, token ids to compare, and pixels that a drawing is shifted by.
ANY_NUMBER = {"seed", "seeds", "shift", "stop"}
# Checked when they are read from a file, and by what they are given to.
NOT_CHECKED = {TextSettings, StudySubstrate, TuneSettings, SubstrateSettings, SourceSettings}


def schema_of(kind: type[Any]) -> dict[str, Any]:
    def forms(base: type[Any]) -> dict[str, Any]:
        return {"anyOf": [{"title": form.__name__} for form in base.__subclasses__()]}

    schema = msgspec.json.schema(kind, schema_hook=forms)
    return schema["$defs"][kind.__name__]["properties"]


def limited(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of numbers and choices within the schema of a field, of items too."""
    if schema.get("type") in ("integer", "number") or "enum" in schema:
        yield schema
    nested = [*schema.get("anyOf", []), *schema.get("prefixItems", [])]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            nested.append(schema[key])
    for inner in nested:
        yield from limited(inner)


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind: type[Any]) -> None:
    bounds = {"minimum", "exclusiveMinimum"}
    for name, schema in schema_of(kind).items():
        for number in limited(schema):
            ranged = "enum" in number or bounds & set(number)
            assert ranged or name in ANY_NUMBER, f"{kind.__name__}.{name}"
            # The upper limit of a float excludes infinity.
            finite = {"maximum", "exclusiveMaximum"} & set(number)
            assert finite or number.get("type") != "number", f"{kind.__name__}.{name}"


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_every_number_and_choice_is_checked(kind: type[Any]) -> None:
    def construct(**values: Any) -> None:
        if kind is Drawing:
            Recipe(drawing=Drawing(**values))
        else:
            kind(**GOOD[kind] | values)

    convert(GOOD[kind], kind, "f")
    for name, schema in schema_of(kind).items():
        options = [schema, *schema.get("anyOf", [])]
        types = {"enum" if "enum" in option else option.get("type") for option in options}
        if types & {"integer", "number", "enum"} and "string" not in types:
            for value in (True, math.nan, math.inf, -math.inf, "many"):
                with pytest.raises(ConfigError, match=f"^f: {name}: expected .*, got "):
                    convert(GOOD[kind] | {name: value}, kind, "f")
                if kind not in NOT_CHECKED:
                    with pytest.raises((ConfigError, SubstrateError), match=f"{name}: expected "):
                        construct(**{name: value})


def test_choices_that_stand_in_two_places_agree() -> None:
    assert get_args(ControlName) == tuple(CONTROLS)
    hints = _checked._fields(DecoderConfig)
    assert get_args(hints["activation"]) == ACTIVATIONS
    assert LoRA(rank=1).targets == PROJECTIONS


def test_all_settings_are_in_this_list() -> None:
    listed = {*GOOD, GrowthSettings, StudySettings}
    for kind in list(listed):
        for hint in _checked._fields(kind).values():
            for part in parts(hint):
                if dataclasses.is_dataclass(part) and part not in listed:
                    schemas = schema_of(part).values()  # type: ignore[arg-type]
                    assert not [found for schema in schemas for found in limited(schema)], part


def parts(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from parts(argument)


def test_the_helper_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, fastgrow._checked\n"
        "print([name for name in ('torch', 'numpy', 'yaml') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
