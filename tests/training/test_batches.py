"""Windows in a seeded order: each once an epoch, resumable anywhere, mixed by weight."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from standin import LetterSubstrate, make_stream, random_text

from fastgrow.errors import CheckpointError, ConfigError, DataError
from fastgrow.training import Batches, Mixture, TextData, TokenStream
from fastgrow.training.data import batches as batches_module
from fastgrow.training.data.counter import derive_key, permutation, random_bits, uniform
from fastgrow.training.data.stream import MixedStream

SUBSTRATE = LetterSubstrate()


def counting_stream(length: int, substrate: LetterSubstrate = SUBSTRATE) -> TokenStream:
    """Ids 10, 11, 12, …: each position of the stream can be told from its id."""
    ids = np.arange(10, 10 + length, dtype=np.uint16)
    return TokenStream(ids, substrate, n_documents=0, n_characters=length, name="train")


def take(batches: Batches, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [next(batches) for _ in range(count)]


def same(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]):
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) for one, two in pairs for x, y in zip(one, two, strict=True))


def test_targets_follow_ids() -> None:
    ids, targets = next(Batches(counting_stream(1000), 4, 16))
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.shape == targets.shape == (4, 16)
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    assert torch.equal(targets, ids + 1)


@pytest.mark.parametrize("length", [17, 33, 40, 1001, 1009])
def test_an_epoch_has_each_target_once(length: int) -> None:
    seq_len = 16
    windows = -(-(length - 1) // seq_len)
    batches = Batches(counting_stream(length), 1, seq_len)
    for _ in range(2):
        seen = np.concatenate([targets.numpy().ravel() for _, targets in take(batches, windows)])
        assert set(seen) == set(range(11, 10 + length))
        # Only the last window, which is shifted back, repeats some targets.
        assert len(seen) - len(set(seen)) == windows * seq_len - (length - 1)
    assert batches.epochs == [2.0]


def test_epochs_and_seeds_have_different_orders() -> None:
    def order(batches: Batches) -> list[int]:
        return [int(ids[0, 0]) for ids, _ in take(batches, 50)]

    stream = counting_stream(50 * 8 + 1)
    batches = Batches(stream, 1, 8, seed=0)
    first, second = order(batches), order(batches)
    assert first != sorted(first)
    assert first != second
    assert sorted(first) == sorted(second)
    assert order(Batches(stream, 1, 8, seed=1)) != first
    assert order(Batches(stream, 1, 8, seed=0)) == first


def test_document_starts_and_padding_are_not_targets() -> None:
    stream = make_stream("ab\ncd", SUBSTRATE)
    ids, targets = next(Batches(stream, 1, 7))
    assert ids.tolist() == [[1, 4, 5, 2, 1, 6, 7]]
    assert targets.tolist() == [[4, 5, 2, -100, 6, 7, 2]]


def mixture(seed: int = 0) -> MixedStream:
    parts = [
        (make_stream(random_text(40, 1, "abcd"), SUBSTRATE), 0.75),
        (make_stream(random_text(10, 2, "wxyz"), SUBSTRATE), 0.25),
    ]
    return MixedStream(parts)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 7, 23, 64])
def test_resuming_anywhere_changes_nothing(mixed: bool, stop: int) -> None:
    stream = mixture() if mixed else mixture().parts[0][0]
    whole = Batches(stream, 3, 8, seed=5)
    expected = take(whole, 100)
    stopped = Batches(stream, 3, 8, seed=5)
    take(stopped, stop)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = Batches(stream, 3, 8, seed=5)
    resumed.load_state_dict(state)
    assert same(take(resumed, 100 - stop), expected[stop:])


def test_the_state_stays_small() -> None:
    state = Batches(counting_stream(60_000), 4, 2).state_dict()
    assert len(json.dumps(state)) < 500


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 2}, "batch_size"),
        ({"seq_len": 4}, "seq_len"),
        ({"stream": counting_stream(999)}, "data"),
        ({"stream": MixedStream([(counting_stream(1000), 1.0)] * 2)}, "data"),
        ({"stream": counting_stream(1000, LetterSubstrate("abc"))}, "substrate"),
    ],
)
def test_a_cursor_of_other_data_is_refused(change: dict[str, object], named: str) -> None:
    settings = {"stream": counting_stream(1000), "batch_size": 3, "seq_len": 8, "seed": 0}
    state = Batches(**settings).state_dict()  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"data cursor was saved with {named}="):
        Batches(**{**settings, **change}).load_state_dict(state)  # type: ignore[arg-type]


def test_windows_come_from_the_parts_by_weight() -> None:
    batches = Batches(mixture(), 10, 8, seed=0)
    second_alphabet = min(SUBSTRATE.encode_batch(["w"])[0])
    from_second = 0
    for ids, _ in take(batches, 400):
        letters = ids >= second_alphabet
        from_second += int((letters.sum(dim=1) > 4).sum())
    # Standard deviation of the share over 4,000 draws: 0.007.
    assert abs(from_second / 4000 - 0.25) < 0.03
    assert batches.epochs[1] > 5


def test_mixed_evaluation_keeps_proportions_and_whole_documents() -> None:
    one = make_stream("\n".join(["aaaa"] * 100), SUBSTRATE)
    two = make_stream("\n".join(["zz"] * 30), SUBSTRATE)
    mixed = MixedStream([(one, 3.0), (two, 1.0)])
    ids = mixed.ids
    # All 120 tokens of the second part, so 360 tokens, or 60 documents, of the first.
    assert len(ids) == 480
    assert mixed.n_documents == 90
    assert mixed.n_characters == 60 * 4 + 60
    assert (ids[:360] == one.ids[:360]).all()
    assert (ids[360:] == two.ids).all()
    assert mixed.tokens_per_character == pytest.approx(1 / (0.75 * 4 / 5 + 0.25 * 2 / 3))


def test_shares_are_the_same_on_every_python() -> None:
    # Added one after the other these weights are 0.9999999999999999.
    stream = counting_stream(1000)
    mixed = MixedStream([(stream, 0.7), (stream, 0.2), (stream, 0.1)])
    assert [share for _, share in mixed.parts] == [0.7, 0.2, 0.1]


def test_mixtures_of_corpora_and_of_mixtures() -> None:
    def corpus(letter: str) -> TextData:
        return TextData.from_splits(
            train=[letter * 9] * 20, validation=[letter * 4] * 5, test=[letter], substrate=SUBSTRATE
        )

    inner = Mixture([(corpus("a"), 1), (corpus("b"), 3)])
    outer = Mixture([(inner, 0.8), (corpus("c"), 0.2)])
    assert [weight for _, weight in outer.train.parts] == pytest.approx([0.2, 0.6, 0.2])
    assert outer.substrate is SUBSTRATE
    assert outer.validation.parts[1][0].n_documents == 5


def test_a_mixture_of_different_substrates_is_refused() -> None:
    other = make_stream("aaaa", LetterSubstrate("abc"))
    with pytest.raises(DataError, match="part 1 was encoded with a different substrate"):
        MixedStream([(make_stream("aaaa", SUBSTRATE), 1), (other, 1)])


def test_bad_weights_and_empty_mixtures_are_refused() -> None:
    stream = make_stream("aaaa", SUBSTRATE)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="a weight must be positive"):
            MixedStream([(stream, weight)])
    with pytest.raises(ConfigError, match="at least one part"):
        Mixture([])
    empty = TokenStream(np.zeros(0, np.uint16), SUBSTRATE, n_documents=0, n_characters=0)
    with pytest.raises(DataError, match="part 1 of the mixture is empty"):
        _ = MixedStream([(stream, 1), (empty, 1)]).ids


def test_a_text_shorter_than_the_context_is_named() -> None:
    with pytest.raises(DataError, match=r"train: 16 tokens are fewer than one window of .* = 17"):
        Batches(counting_stream(16), 1, 16)
    next(Batches(counting_stream(17), 1, 16))


def test_sizes_must_be_positive() -> None:
    for sizes in ((0, 8), (1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            Batches(counting_stream(100), *sizes)


def test_counter_based_numbers_are_pinned() -> None:
    """A checkpoint of one version must refer to the same windows in the next version."""
    # The first outputs of SplitMix64 with seed 0 in its authors' reference implementation.
    assert [int(x) for x in random_bits(np.uint64(0), np.arange(2))] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]
    key = derive_key(7, "order", 0, 1)
    assert sorted(permutation(key, 100)) == list(range(100))
    assert permutation(key, 6).tolist() == np.argsort(random_bits(key, np.arange(6))).tolist()
    draws = uniform(key, np.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert derive_key(1, 23) != derive_key(12, 3)
    assert derive_key(1, "2") != derive_key(1, 2)


@pytest.mark.parametrize("taken", [0, 5, 16, 40])
@pytest.mark.parametrize("batches", [1, 7, 30])
def test_the_windows_of_the_next_batches_are_known_beforehand(batches: int, taken: int) -> None:
    """From the beginning, within an epoch, and over its end."""
    for stream in (counting_stream(50 * 8 + 3), mixture()):
        reader = Batches(stream, 3, 8, seed=5)
        reader.skip(taken)
        expected = reader.windows_of(batches)
        seen = [reader.next_windows() for _ in range(batches)]
        assert sorted({int(w) for windows in seen for w in windows}) == expected.tolist()
        assert expected.max() < reader.n_windows


def test_skipping_is_taking(monkeypatch) -> None:
    for stream in (counting_stream(50 * 8 + 3), mixture()):
        taking, skipping = Batches(stream, 3, 8, seed=5), Batches(stream, 3, 8, seed=5)
        for _ in range(40):
            next(taking)
        skipping.skip(7)
        # In chunks, of which the last is not full.
        with monkeypatch.context() as patch:
            patch.setattr(batches_module, "_AT_ONCE", 10)
            skipping.skip(33)
        assert skipping.state_dict() == taking.state_dict()


def test_a_window_is_the_same_in_every_batch() -> None:
    for stream in (counting_stream(50 * 8 + 3), mixture()):
        reader = Batches(stream, 4, 8, seed=5)
        for _ in range(40):
            before = Batches(stream, 4, 8, seed=5)
            before.load_state_dict(reader.state_dict())
            windows = before.next_windows()
            ids, targets = next(reader)
            for row, window in enumerate(windows):
                alone = reader.read(np.array([window]))
                assert torch.equal(alone[0][0], ids[row])
                assert torch.equal(alone[1][0], targets[row])


def test_a_bound_on_a_stage_may_be_any_number(monkeypatch) -> None:
    for stream in (counting_stream(50 * 8 + 3), mixture()):
        reader = Batches(stream, 3, 8, seed=5)
        expected = [reader.windows_of(n).tolist() for n in (1, 7, 30)]
        monkeypatch.setattr(batches_module, "_AT_ONCE", 10)
        assert [reader.windows_of(n).tolist() for n in (1, 7, 30)] == expected
        assert reader.windows_of(10**15).tolist() == list(range(reader.n_windows))
        monkeypatch.undo()
