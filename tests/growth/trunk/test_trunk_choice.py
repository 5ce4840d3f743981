"""When keeping the trunk's output pays, and where there is room for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgrow.errors import ConfigError
from fastgrow.growth import Trunk
from fastgrow.growth.trunk.choice import StageLoad, break_even, weigh
from fastgrow.growth.trunk.costs import Costs
from fastgrow.growth.trunk.placing import Room, asked_for, cheapest

# A block takes 1 s for a micro-batch; memory is read and written in 0.1 s, the disk in 0.5 s.
COSTS = Costs(block=1.0, places={"ram": (0.1, 0.1), "disk": (0.5, 0.5)})
ROOM = Room(need=1000, limit=2000, free=lambda place: 10_000)


def load(n: int, reads: float, rows: float, *, share: float = 1.0, grown: bool = True):
    return StageLoad(n, reads, rows, share, grown)


def test_several_passes_in_one_stage_pay() -> None:
    verdict = weigh([load(3, 40, 10)], COSTS, "ram")
    # 10 batches through 3 blocks, 10 writes, 40 reads; or 40 batches through 3 blocks.
    assert verdict.cached == pytest.approx(30 + 1 + 4)
    assert verdict.recomputed == pytest.approx(120)
    assert verdict.pays


def test_a_single_pass_does_not_pay_in_the_last_stage() -> None:
    verdict = weigh([load(3, 10, 10)], COSTS, "ram")
    assert verdict.cached == pytest.approx(30 + 1 + 1)
    assert not verdict.pays


def test_a_single_pass_pays_where_the_next_stage_goes_on_from_it() -> None:
    stages = [load(3, 10, 10, grown=False), load(4, 10, 10)]
    verdict = weigh(stages, COSTS, "ram")
    assert verdict.cached == pytest.approx((30 + 2) + (10 + 2))
    assert verdict.recomputed == pytest.approx(30 + 40)
    # Not where the trunk changes in between.
    assert not weigh([stages[0], replace(stages[1], grown=False)], COSTS, "ram").pays


def test_windows_that_rarely_come_again_do_not_pay() -> None:
    often = [load(3, 10, 10, share=0.5, grown=False), load(4, 10, 10, share=0.5)]
    rarely = [load(3, 10, 10, share=0.05, grown=False), load(4, 10, 10, share=0.05)]
    assert weigh(often, COSTS, "ram").pays
    assert not weigh(rarely, COSTS, "ram").pays


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_stage_by_itself_gains_from_the_break_even_on(n: int) -> None:
    for place in COSTS.places:
        passes = break_even(n, COSTS, place)
        assert passes is not None
        assert weigh([load(n, 10 * passes * 1.01, 10)], COSTS, place).pays
        assert not weigh([load(n, 10 * passes * 0.99, 10)], COSTS, place).pays
    assert break_even(n, Costs(0.1 / n, COSTS.places), "ram") is None


def test_rows_at_hand_are_advanced() -> None:
    verdict = weigh([load(3, 10, 10)], COSTS, "ram", known=1.0, n_known=2)
    assert verdict.cached == pytest.approx(10 + 2)
    assert verdict.pays


def test_the_place_that_saves_most_is_taken() -> None:
    assert cheapest([load(3, 40, 10)], COSTS, ROOM).place == "ram"
    small = replace(ROOM, free=lambda place: 500 if place == "ram" else 10_000)
    assert cheapest([load(3, 40, 10)], COSTS, small).place == "disk"


def test_the_reason_against_a_cache_is_told() -> None:
    once = cheapest([load(3, 10, 10)], COSTS, ROOM)
    assert once.place is None
    assert "reads each of its windows 1 times and is the last" in once.reason
    too_large = cheapest([load(3, 40, 10)], COSTS, replace(ROOM, limit=999))
    assert too_large.place is None
    assert "the limit is" in too_large.reason
    assert asked_for("disk", replace(ROOM, free=lambda place: 10)).place is None


def test_old_rows_go_first_where_both_do_not_fit() -> None:
    other = replace(ROOM, old_place="ram", old_bytes=1500, known=1.0, n_known=2)
    assert asked_for("ram", other).drop_old
    assert not asked_for("ram", replace(other, same_windows=True)).drop_old
    # A file is never overwritten: cut short, it would be neither the old nor the new one.
    on_disk = replace(other, old_place="disk", same_windows=True)
    assert asked_for("disk", on_disk).drop_old
    assert not asked_for("disk", replace(on_disk, limit=2500)).drop_old


def test_settings_are_checked() -> None:
    for wrong in ({"cache": "tape"}, {"dtype": "int4"}, {"limit": -1}, {"limit": 1.5}):
        with pytest.raises(ConfigError, match=f"Trunk.{next(iter(wrong))}"):
            Trunk(**wrong)
