"""A cache gives the same logits as a full pass; ids that do not fit raise an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_model import TinySubstrate, small_config

from fastgrow.errors import ArgumentError
from fastgrow.nn import Cache, Decoder, repeat_cache


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 1}, {"n_kv_head": 2}])
@pytest.mark.parametrize("steps", [[17], [1] * 17, [5, 1, 1, 7, 3]])
def test_same_logits_as_without(
    changes: dict[str, Any], steps: list[int], substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    # Large weights: attention far from uniform.
    model = Decoder(small_config(init_std=0.3, **changes), substrate, dtype=torch.float64)
    cache = model.new_cache(2)
    parts = [model(part, cache) for part in ids.split(steps, dim=1)]
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-12, rtol=1e-10)


def test_memory_is_allocated_as_needed(substrate: TinySubstrate) -> None:
    model = Decoder(small_config(max_seq_len=300, n_layer=1), substrate, dtype=torch.float64)
    ids = torch.randint(0, 260, (1, 300))
    cache = model.new_cache(1)
    parts = [model(part, cache) for part in ids.split(29, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-12, rtol=1e-10)


def test_limits(model: Decoder, ids: torch.Tensor) -> None:
    model = model.double()
    cache = model.new_cache(2, max_len=10)
    assert isinstance(cache, Cache)
    model(ids[:, :8], cache)
    with pytest.raises(ArgumentError, match="holds at most 10 tokens, got 3 after 8"):
        model(ids[:, :3], cache)
    with pytest.raises(ArgumentError, match="made for a batch of 2, got a batch of 1"):
        model(ids[:1, :1], cache)
    # A call that raises does not change the cache.
    torch.testing.assert_close(
        model(ids[:, 8:10], cache), model(ids[:, :10])[:, 8:], atol=1e-12, rtol=1e-10
    )
    long = model.new_cache(2, max_len=100)
    model(ids, long)
    with pytest.raises(ArgumentError, match="max_seq_len is 24 tokens, got 8 after 17 in the"):
        model(ids[:, :8], long)


def test_cache_of_another_depth(model: Decoder, ids: torch.Tensor) -> None:
    cache = model.new_cache(2)
    model.append_blocks(1)
    with pytest.raises(ArgumentError, match="made for 3 blocks, but the model has 4"):
        model(ids, cache)


def test_a_repeated_cache_continues_each_copy(substrate: TinySubstrate, ids: torch.Tensor) -> None:
    model = Decoder(small_config(init_std=0.3), substrate, dtype=torch.float64)
    cache = model.new_cache(2)
    model(ids[:, :9], cache)
    copies = repeat_cache(cache, 3)
    assert copies is not None
    assert (copies.length, copies.batch_size, copies.max_len) == (9, 6, cache.max_len)
    more = torch.randint(4, 260, (6, 5), generator=torch.Generator().manual_seed(2))
    whole = torch.cat([ids[:, :9].repeat_interleave(3, dim=0), more], dim=1)
    expected = model(whole)[:, 9:]
    torch.testing.assert_close(model(more[:, :2], copies), expected[:, :2], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(model(more[:, 2:], copies), expected[:, 2:], atol=1e-12, rtol=1e-10)
    # The original is unchanged.
    torch.testing.assert_close(model(ids[:, 9:], cache), model(ids)[:, 9:], atol=1e-12, rtol=1e-10)
    empty = repeat_cache(model.new_cache(2), 2)
    torch.testing.assert_close(model(whole[:4], empty), model(whole[:4]), atol=1e-12, rtol=1e-10)
    assert repeat_cache(object(), 2) is None
