"""The frozen trunk's settings in a configuration file and on the command line."""

from __future__ import annotations

import pytest

from fastgrow.cli.settings import read_growth
from fastgrow.errors import ConfigError
from fastgrow.growth import Trunk


def test_a_file_and_an_override_say_how_the_trunk_is_run() -> None:
    assert read_growth("nine-layers-unicode", []).trunk is None
    overrides = ["trunk.cache=disk", "trunk.limit=1_000_000", "trunk.dtype=int8"]
    trunk = read_growth("nine-layers-unicode", overrides).trunk
    assert trunk == Trunk(cache="disk", limit=1_000_000, dtype="int8")


@pytest.mark.parametrize(
    ("override", "message"),
    [("trunk.cach=disk", "did you mean 'cache'"), ("trunk.cache=tape", "trunk")],
)
def test_an_error_names_a_wrong_setting(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_growth("nine-layers-unicode", [override])


def test_off_is_a_place_though_yaml_reads_it_as_false() -> None:
    assert read_growth("nine-layers-unicode", ["trunk.cache=off"]).trunk == Trunk(cache="off")
