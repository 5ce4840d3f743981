"""When caching the trunk's output pays, and where it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgrow.errors import ConfigError
from fastgrow.growth import Trunk
from fastgrow.growth.trunk.costs import Costs
from fastgrow.growth.trunk.placement import (
    CacheBudget,
    StageLoad,
    break_even,
    estimate,
    fastest_place,
    requested_place,
)

# A block takes 1 s per micro-batch; memory is read and written in 0.1 s, the disk in 0.5 s.
COSTS = Costs(block=1.0, places={"ram": (0.1, 0.1), "disk": (0.5, 0.5)})
BUDGET = CacheBudget(need=1000, limit=2000, free=lambda place: 10_000)


def load(n: int, reads: float, distinct: float, *, share: float = 1.0, grown: bool = True):
    return StageLoad(n, reads, distinct, share, grown)


def test_several_passes_in_one_stage_pay() -> None:
    seconds = estimate([load(3, 40, 10)], COSTS, "ram")
    # 10 batches through 3 blocks, 10 writes, 40 reads; or 40 batches through 3 blocks.
    assert seconds.cached == pytest.approx(30 + 1 + 4)
    assert seconds.recomputed == pytest.approx(120)
    assert seconds.pays


def test_a_single_pass_does_not_pay_in_the_last_stage() -> None:
    seconds = estimate([load(3, 10, 10)], COSTS, "ram")
    assert seconds.cached == pytest.approx(30 + 1 + 1)
    assert not seconds.pays


def test_a_single_pass_pays_if_the_next_stage_advances_its_activations() -> None:
    stages = [load(3, 10, 10, grown=False), load(4, 10, 10)]
    seconds = estimate(stages, COSTS, "ram")
    assert seconds.cached == pytest.approx((30 + 2) + (10 + 2))
    assert seconds.recomputed == pytest.approx(30 + 40)
    # Not if the trunk changes in between.
    assert not estimate([stages[0], replace(stages[1], grown=False)], COSTS, "ram").pays


def test_windows_that_are_rarely_read_again_do_not_pay() -> None:
    often = [load(3, 10, 10, share=0.5, grown=False), load(4, 10, 10, share=0.5)]
    rarely = [load(3, 10, 10, share=0.05, grown=False), load(4, 10, 10, share=0.05)]
    assert estimate(often, COSTS, "ram").pays
    assert not estimate(rarely, COSTS, "ram").pays


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_stage_by_itself_gains_from_the_break_even_on(n: int) -> None:
    for place in COSTS.places:
        passes = break_even(n, COSTS, place)
        assert passes is not None
        assert estimate([load(n, 10 * passes * 1.01, 10)], COSTS, place).pays
        assert not estimate([load(n, 10 * passes * 0.99, 10)], COSTS, place).pays
    assert break_even(n, Costs(0.1 / n, COSTS.places), "ram") is None


def test_available_activations_are_advanced() -> None:
    seconds = estimate([load(3, 10, 10)], COSTS, "ram", available=1.0, available_depth=2)
    assert seconds.cached == pytest.approx(10 + 2)
    assert seconds.pays


def test_the_place_that_saves_most_is_chosen() -> None:
    assert fastest_place([load(3, 40, 10)], COSTS, BUDGET).place == "ram"
    small = replace(BUDGET, free=lambda place: 500 if place == "ram" else 10_000)
    assert fastest_place([load(3, 40, 10)], COSTS, small).place == "disk"


def test_the_reason_against_a_cache_is_reported() -> None:
    once = fastest_place([load(3, 10, 10)], COSTS, BUDGET)
    assert once.place is None
    assert "reads each of its windows 1 times and is the last" in once.reason
    too_large = fastest_place([load(3, 40, 10)], COSTS, replace(BUDGET, limit=999))
    assert too_large.place is None
    assert "the limit is" in too_large.reason
    assert requested_place("disk", replace(BUDGET, free=lambda place: 10)).place is None


def test_old_activations_are_dropped_first_if_both_do_not_fit() -> None:
    other = replace(BUDGET, old_place="ram", old_bytes=1500, available=1.0, available_depth=2)
    assert requested_place("ram", other).drop_old
    assert not requested_place("ram", replace(other, same_windows=True)).drop_old
    # A file is never overwritten: partly overwritten, it would be neither the old nor the new one.
    on_disk = replace(other, old_place="disk", same_windows=True)
    assert requested_place("disk", on_disk).drop_old
    assert not requested_place("disk", replace(on_disk, limit=2500)).drop_old


def test_settings_are_checked() -> None:
    for wrong in ({"cache": "tape"}, {"dtype": "int4"}, {"limit": -1}, {"limit": 1.5}):
        with pytest.raises(ConfigError, match=f"Trunk.{next(iter(wrong))}"):
            Trunk(**wrong)
