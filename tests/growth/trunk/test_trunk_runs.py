"""Growing with an activation cache: the results of recomputing, whatever happens to the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from growing import LETTERS, digest, make_model, make_train

from fastgrow.errors import ConfigError, Interrupted
from fastgrow.growth import GrowthResult, GrowthSchedule, LoRA, Stage, Trunk, grow
from fastgrow.growth.trunk.activations import CacheWriter
from fastgrow.growth.trunk.engine import TrunkEngine
from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.stores import DiskStore
from fastgrow.nn import Decoder
from fastgrow.training import TextData, Trainer, activations

# The first stages read some windows of the text twice, the last one not all.
WINDOWS = 29
SCHEDULE = GrowthSchedule([Stage(1, 512), Stage(1, 512), Stage(2, 512), Stage(1, 192)])
NO_SPACE = 1000


@pytest.fixture(scope="module")
def data(substrate) -> TextData:
    generator = np.random.default_rng(0)
    documents = ["".join(generator.choice(list(LETTERS), 40)) for _ in range(19)]
    return TextData.from_splits(
        train=documents[:16], validation=documents[16:], substrate=substrate
    )


@pytest.fixture(scope="module")
def grown(substrate, data) -> Callable[..., GrowthResult]:
    def run(trunk: Trunk | None, schedule=SCHEDULE, out: Path | None = None, **train):
        return grow(
            make_model(substrate),
            data,
            schedule,
            train=make_train(**train),
            quiet=True,
            trunk=trunk,
            out=out,
        )

    return run


@pytest.fixture(scope="module")
def plain(grown) -> list[object]:
    """Results of the run without trunk settings."""
    return measured(grown(None))


def trunk_events(out: Path) -> list[dict]:
    """The trunk's events in the log."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == "trunk"]


def measured(result: GrowthResult) -> list[object]:
    return [digest(result.model), [(s.bits, s.bits_at_start) for s in result.stages]]


Run = Callable[[FrozenTrunk, torch.Tensor, int], torch.Tensor]


def by_position(share: float) -> Run:
    """`FrozenTrunk._run` on a machine whose products round a row by its position in the batch."""

    def run(trunk: FrozenTrunk, x: torch.Tensor, first: int) -> torch.Tensor:
        rope = trunk.model.rope(x.shape[1])
        for block in trunk._blocks[first:]:
            x = block(x, rope) * (1 + share * torch.arange(len(x)))[:, None, None]
        return x

    return run


@pytest.fixture
def assert_same(substrate) -> Callable[[list[object], list[object]], None]:
    """Whether two runs are the same: bit for bit if products don't round a row by its position.

    Otherwise cached activations, which were computed at another position of a micro-batch, differ
    by rounding, and so does training.
    """

    def same(found: Any, expected: Any) -> None:
        model = make_model(substrate)
        model.append_blocks(4)
        trunk, order = FrozenTrunk(model, 4), torch.tensor([2, 0, 3, 1])
        ids = torch.arange(4 * 16).reshape(4, 16) % len(substrate)
        if torch.equal(trunk(ids)[order], trunk(ids[order])):
            assert found == expected
        for (bits, at_start), (other_bits, other_start) in zip(found[1], expected[1], strict=True):
            assert bits == pytest.approx(other_bits, abs=0.02)
            assert at_start == pytest.approx(other_start, abs=0.02)

    return same


@pytest.mark.parametrize("cache", ["off", "ram", "device", "disk", "auto"])
def test_cached_or_not_a_run_has_the_same_bits(grown, plain, cache, assert_same) -> None:
    assert_same(measured(grown(Trunk(cache=cache))), plain)


def test_if_products_round_by_position_runs_differ_by_rounding(
    grown, monkeypatch, assert_same
) -> None:
    monkeypatch.setattr(FrozenTrunk, "_run", by_position(1e-7))
    kept, recomputed = (measured(grown(Trunk(cache=cache))) for cache in ("ram", "off"))
    assert kept != recomputed
    assert_same(kept, recomputed)


def test_gradients_are_accumulated_over_cached_activations(grown, plain, assert_same) -> None:
    recomputed = measured(grown(None, accumulate=3))
    assert_same(measured(grown(Trunk(cache="disk"), accumulate=3)), recomputed)
    assert recomputed != plain


def test_a_stage_advances_the_activations_before(grown, monkeypatch, tmp_path: Path) -> None:
    computed: list[int] = []
    compute = CacheWriter.compute

    def counting(self: CacheWriter, windows):
        computed.append(self.trunk.n)
        return compute(self, windows)

    monkeypatch.setattr(CacheWriter, "compute", counting)
    grown(Trunk(cache="ram"), out=tmp_path)
    # All windows in micro-batches of 4.
    assert computed == [1] * 8
    assert all(event["maximum_error"] < 1e-5 for event in trunk_events(tmp_path))


def test_what_does_not_fit_is_recomputed_and_logged(grown, plain, tmp_path: Path) -> None:
    result = grown(Trunk(cache="disk", limit=NO_SPACE), out=tmp_path)
    assert measured(result) == plain
    assert all(event["cache"] == "off" for event in trunk_events(tmp_path))
    assert all("the limit is 0.0 MB" in event["message"] for event in trunk_events(tmp_path))


def test_files_stay_within_the_limit_and_are_removed_at_the_end(
    grown, plain, tmp_path, monkeypatch, assert_same
) -> None:
    row_bytes, sizes = 16 * 16 * 4, []
    limit = WINDOWS * (row_bytes + 12)
    run = Trainer.run

    def watch(trainer, *arguments):
        folder = tmp_path / "trunk"
        sizes.append(sum(f.stat().st_size for f in folder.glob("*.rows")))
        return run(trainer, *arguments)

    monkeypatch.setattr(Trainer, "run", watch)
    assert_same(measured(grown(Trunk(cache="disk", limit=limit), out=tmp_path)), plain)
    assert sizes[0] == 0
    assert sizes[1] == sizes[2] == limit
    assert 0 < sizes[3] < limit
    assert not (tmp_path / "trunk").exists()
    checkpoints = [f for f in (tmp_path / "checkpoints").rglob("*") if f.is_file()]
    assert not [f for f in checkpoints if "trunk" in f.name]


def test_nothing_is_cached_while_lora_adapts_the_lowest_block(
    grown, tmp_path: Path, assert_same
) -> None:
    schedule = GrowthSchedule(
        [
            Stage(2, 256),
            Stage(1, 256),
            Stage(0, 256, lora=LoRA(rank=2)),
            Stage(1, 256),
        ]
    )
    result = grown(Trunk(cache="ram"), schedule, out=tmp_path)
    assert_same(measured(result), measured(grown(None, schedule)))
    events = trunk_events(tmp_path)
    assert "no frozen trunk" in events[1]["message"]
    # Merging has changed the trunk: its activations are computed, not advanced.
    assert events[2]["cache"] == "ram"
    assert "advanced" not in events[2]["message"]


def test_a_quantized_trunk_logs_its_error_and_is_another_run(
    grown, plain, tmp_path: Path, assert_same
) -> None:
    for dtype, worst in (("bf16", 0.02), ("int8", 0.01), ("fp8", 0.05)):
        out = tmp_path / dtype
        kept = grown(Trunk(cache="ram", dtype=dtype), out=out)
        assert_same(measured(kept), measured(grown(Trunk(cache="off", dtype=dtype))))
        assert measured(kept) != plain
        errors = [e["relative_error"] for e in trunk_events(out) if e.get("dtype") == dtype]
        assert len(errors) == 3
        assert all(0 < error < worst for error in errors)
        with pytest.raises(ConfigError, match="another trunk"):
            grown(Trunk(cache="ram"), out=out)


def spoil_cache(folder: Path, how: str) -> None:
    (rows,), (header,) = folder.glob("*.rows"), folder.glob("*.json")
    if how == "damage":
        content = bytearray(rows.read_bytes())
        for row in range(0, WINDOWS, 7):
            content[row * 1024 + 100] ^= 1
        rows.write_bytes(content)
    if how == "other trunk":
        # Complete and with correct checksums, but of other weights.
        old = DiskStore.open(header)
        identity = {**old.identity, "trunk": "0" * 64}
        new = DiskStore.create(folder, identity, old.windows, (16, 16), torch.float32)
        new.write(np.arange(WINDOWS), torch.zeros(WINDOWS, 16, 16))
        new.finish()
    if how in ("remove", "other trunk"):
        rows.unlink()
        header.unlink()


@pytest.mark.parametrize("spoil", ["keep", "remove", "damage", "other trunk"])
def test_a_run_is_resumed_with_and_without_its_cache(
    grown, tmp_path: Path, monkeypatch, spoil: str
) -> None:
    """Stopped in the third stage between two checkpoints, with batches read ahead."""
    monkeypatch.setattr(FrozenTrunk, "_run", by_position(1e-3))
    whole = measured(grown(Trunk(cache="disk")))
    assert whole != measured(grown(Trunk(cache="off")))
    step = Trainer._train_step

    def stopping(trainer: Trainer, **options) -> None:
        if trainer.labels["stage"] == "3/4" and trainer.step == 5:
            raise Interrupted("here")
        step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(Interrupted):
            grown(Trunk(cache="disk"), out=tmp_path, checkpoint_every=3)
    spoil_cache(tmp_path / "trunk", spoil)
    messages: list[str] = []
    # Messages of a resumed run before its first step are not in the log, which continues from the
    # checkpoint.
    monkeypatch.setattr(TrunkEngine, "_report", lambda self, text, **v: messages.append(text))
    resumed = grown(Trunk(cache="disk"), out=tmp_path, checkpoint_every=3)
    assert measured(resumed) == whole
    logged = " | ".join(messages)
    assert ("found again" in logged) == (spoil in ("keep", "damage"))
    assert ("cached activations were damaged" in logged) == (spoil == "damage")
    assert ("is of another trunk or text" in logged) == (spoil == "other trunk")


def test_a_resumed_stage_keeps_its_choice(grown, tmp_path: Path, monkeypatch) -> None:
    step = Trainer._train_step

    def stopping(trainer: Trainer, **options) -> None:
        if trainer.labels["stage"] == "2/4" and trainer.step == 4:
            raise Interrupted("here")
        step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(Interrupted):
            grown(Trunk(cache="auto", limit=NO_SPACE), out=tmp_path, checkpoint_every=3)
    messages: list[str] = []
    monkeypatch.setattr(TrunkEngine, "_report", lambda self, text, **v: messages.append(text))
    grown(Trunk(cache="ram"), out=tmp_path, checkpoint_every=3)
    assert "as before the interruption" in messages[0]
    assert "cached in ram" in messages[1]


@pytest.mark.parametrize(
    ("overlap", "n_graphs"),
    # Frozen; active on what needs no gradient; with an overlap also active on active blocks.
    [(0, 2), (1, 3)],
)
def test_compiled_blocks_run_the_same_cached_or_not(
    grown, monkeypatch, overlap: int, n_graphs: int, assert_same
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(activations, "BACKEND", backend)
    schedule = GrowthSchedule.blocks(4, tokens=256, recipe="windows", overlap=overlap)
    recomputed = measured(grown(None, schedule, compile=True))
    assert len(graphs) == n_graphs
    assert_same(measured(grown(Trunk(cache="ram"), schedule, compile=True)), recomputed)
    assert len(graphs) == n_graphs
    torch._dynamo.reset()


class Doubled(Decoder):
    """A model with another loss than a plain decoder."""

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        return 2 * super().loss(ids, targets, **options)


def test_an_overridden_loss_is_still_called(substrate, data) -> None:
    ends = []
    for kind in (Decoder, Doubled):
        model = make_model(substrate)
        model.__class__ = kind
        schedule = GrowthSchedule.blocks(2, tokens=256)
        train = make_train(grad_clip=None)
        result = grow(model, data, schedule, train=train, quiet=True, trunk=Trunk(cache="ram"))
        ends.append([stage.bits["validation"] for stage in result.stages])
    plain, doubled = ends
    # The factor hardly changes Adam's steps, but it changes the measured loss.
    assert all(b > 1.5 * a for a, b in zip(plain, doubled, strict=True))
