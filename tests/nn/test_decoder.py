"""The decoder: published sizes, causality, growth of the stack, cost of a frozen prefix."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_model import TinySubstrate, small_config

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Block, Decoder, DecoderConfig, LanguageModel
from fastgrow.ops import use_impl


def sketch(n_layer: int, n_embed: int, vocab_size: int = 65536) -> Decoder:
    """A model of the papers' width, on the meta device."""
    with torch.device("meta"):
        config = DecoderConfig(vocab_size, n_layer=n_layer, n_embed=n_embed)
        return Decoder(config, table=torch.empty(vocab_size, n_embed))


def numel(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts() -> None:
    nine = sketch(9, 1024)
    assert numel(nine.blocks[0]) == 12 * 1024**2 + 9 * 1024 == 12_592_128
    assert numel(nine.lm_head) == 67_174_400
    assert numel(nine.final_norm) == 2_048
    assert nine.num_parameters() == 247_614_464
    assert nine.num_parameters(include_table=False) == 180_505_600
    assert sketch(9, 16).num_parameters() == 181_554_176
    assert sketch(16, 16).num_parameters() == 269_699_072
    nine.blocks[:6].requires_grad_(False)
    assert nine.num_parameters(active=True) == 104_952_832


def test_trainable_table_counts_as_active() -> None:
    with torch.device("meta"):
        config = DecoderConfig(65536, n_layer=9, n_embed=1024, embedding="trainable")
        model = Decoder(config)
    assert model.num_parameters(active=True) == 247_614_464
    assert model.num_parameters(active=True, include_table=False) == 180_505_600
    assert "embedding.table" in model.state_dict()


def test_state_dict_has_plain_names_and_no_constants(model: Decoder) -> None:
    names = set(model.state_dict())
    assert {name for name in names if not name.startswith("blocks.")} == {
        "final_norm.weight",
        "final_norm.bias",
        "lm_head.weight",
        "lm_head.bias",
    }
    assert {name for name in names if name.startswith("blocks.1.")} == {
        f"blocks.1.{name}"
        for name in (
            "attention_norm.weight",
            "attention_norm.bias",
            "attention.qkv.weight",
            "attention.out.weight",
            "mlp_norm.weight",
            "mlp_norm.bias",
            "mlp.up.weight",
            "mlp.up.bias",
            "mlp.down.weight",
            "mlp.down.bias",
        )
    }


def written_out(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """The decoder's formulas in float64, one head at a time, from the state dict."""
    p = {name: t.double() for name, t in model.state_dict().items()}
    width, heads = model.config.d_model, model.config.n_head
    dim = width // heads
    table = model.embedding.table.double()
    x = table[ids].repeat_interleave(width // table.shape[1], -1)
    length = ids.shape[1]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    angle = torch.outer(torch.arange(length).double(), frequency).repeat(1, 2)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"])

    def rotate(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
        return x * angle.cos() + half * angle.sin()

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for n in range(model.n_layer):
        block = f"blocks.{n}"
        qkv = norm(x, f"{block}.attention_norm") @ p[f"{block}.attention.qkv.weight"].T
        outputs = []
        for h in range(heads):
            q, k, v = (qkv[..., s * width + h * dim :][..., :dim] for s in range(3))
            scores = rotate(q) @ rotate(k).mT / math.sqrt(dim)
            outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        x = x + torch.cat(outputs, -1) @ p[f"{block}.attention.out.weight"].T
        y = norm(x, f"{block}.mlp_norm") @ p[f"{block}.mlp.up.weight"].T
        y = F.gelu(y + p[f"{block}.mlp.up.bias"]) @ p[f"{block}.mlp.down.weight"].T
        x = x + y + p[f"{block}.mlp.down.bias"]
    return norm(x, "final_norm") @ p["lm_head.weight"].T + p["lm_head.bias"]


@pytest.fixture
def rough_model(model: Decoder) -> Decoder:
    """A decoder with weights large enough that every layer affects the logits."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("impl", ["eager", "vendor"])
def test_agrees_with_the_formulas(rough_model: Decoder, ids: torch.Tensor, impl: str) -> None:
    # In double precision the order of sums hardly matters; the rotations' angles are float32.
    model, expected = rough_model.double(), written_out(rough_model, ids)
    with use_impl(impl):
        logits = model(ids)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(ids, last_only=True), logits[:, -1:], atol=1e-11, rtol=1e-11)
    loss = F.cross_entropy(expected.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(model.loss(ids, ids), loss, atol=1e-6, rtol=1e-6)


def test_loss_passes_its_options_on(model: Decoder, ids: torch.Tensor) -> None:
    rows = model.loss(ids, ids, reduction="none")
    assert rows.shape == ids.shape
    kept = rows[ids != ids[0, 0]]
    total = model.loss(ids, ids, ignore_index=int(ids[0, 0]), reduction="sum")
    torch.testing.assert_close(total, kept.sum())


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"n_kv_head": 2},
    "swiglu, rms_norm": {"activation": "swiglu", "norm": "rms_norm"},
    "biases": {"attention_bias": True, "mlp_bias": False, "head_bias": False},
    "trainable": {"embedding": "trainable", "n_embed": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_tokens_do_not_change_earlier_logits(
    variant: str, substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    model = Decoder(small_config(**VARIANTS[variant]), substrate)
    changed = ids.clone()
    changed[:, 9:] = 7
    before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :9], before[:, :9], atol=1e-6, rtol=0)
    assert (after[:, 9:] - before[:, 9:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_active_parameters_get_a_gradient(
    variant: str, substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    model = Decoder(small_config(**VARIANTS[variant]), substrate)
    model.loss(ids, ids).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_appended_identity_blocks_keep_logits_bitwise_equal(
    model: Decoder, ids: torch.Tensor
) -> None:
    before, state = model(ids), copy.deepcopy(model.state_dict())
    assert model.append_blocks(2, "identity") == range(3, 5)
    assert torch.equal(model(ids), before)
    assert model.n_layer == model.config.n_layer == 5
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor)
    model.loss(ids, ids).backward()
    for projection in model.blocks[4].residual_projections:  # type: ignore[operator, union-attr]
        assert projection.weight.grad.abs().max() > 0


def test_any_block_can_be_made_the_identity() -> None:
    block = Block(small_config(attention_bias=True))
    torch.nn.init.ones_(block.attention.out.bias)
    torch.nn.init.ones_(block.mlp.down.bias)
    x = torch.randn(1, 5, 32)
    assert not torch.equal(block(x), x)
    block.make_identity()
    assert torch.equal(block(x), x)


def test_appended_random_blocks_follow_the_generator(
    config: DecoderConfig, substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    def grown(seed: int) -> Decoder:
        model = Decoder(config, substrate, generator=torch.Generator().manual_seed(0))
        model.append_blocks(1, generator=torch.Generator().manual_seed(seed))
        return model

    assert torch.equal(grown(1)(ids), grown(1)(ids))
    assert not torch.equal(grown(1)(ids), grown(2)(ids))


def test_stack_grows_from_nothing(substrate: TinySubstrate, ids: torch.Tensor) -> None:
    model = Decoder(small_config(n_layer=0), substrate)
    assert model(ids).shape == (2, 17, 260)
    model.append_blocks(1)
    assert model.n_layer == 1
    with pytest.raises(ConfigError, match="'random', 'identity' or 'copy', got 'zero'"):
        model.append_blocks(1, "zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n must be 0 or more"):
        model.append_blocks(-1)


def test_appended_blocks_are_like_the_model(substrate: TinySubstrate) -> None:
    model = Decoder(small_config(), substrate, dtype=torch.float64).eval()
    model.append_blocks(1)
    assert model.blocks[3].mlp.up.weight.dtype == torch.float64  # type: ignore[union-attr]
    assert not model.blocks[3].training


def test_initial_weights_fit_the_width() -> None:
    for width, std in ((1024, 0.0198), (64, 0.0791)):
        config = DecoderConfig(50, d_model=width, n_head=4, n_layer=1)
        model = Decoder(config, table=torch.randn(50, width))
        assert model.lm_head.weight.std().item() == pytest.approx(std, rel=0.05)
        assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(std, rel=0.05)  # type: ignore[union-attr]
    assert DecoderConfig(50, d_model=64, n_head=4, init_std=0.03).initial_std == 0.03


def test_initial_weights() -> None:
    config = DecoderConfig(50, d_model=256, n_head=4, n_layer=8, init_std=0.03)
    model = Decoder(config, table=torch.randn(50, 256))
    block = model.blocks[2]
    assert isinstance(block, Block)
    for layer in (block.attention.qkv, block.mlp.up, model.lm_head):
        assert layer.weight.std().item() == pytest.approx(0.03, rel=0.03)
    for layer in block.residual_projections:
        assert layer.weight.std().item() == pytest.approx(0.03 / 4, rel=0.03)
    for bias in (block.mlp.up.bias, block.mlp.down.bias, model.lm_head.bias):
        assert torch.equal(bias, torch.zeros_like(bias))
    # Initial logits are near zero, so the first loss is that of the uniform distribution.
    ids = torch.arange(50)[None]
    assert model.loss(ids, ids).item() == pytest.approx(math.log(50), abs=0.3)


def test_a_seed_gives_the_same_weights_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a linear layer were created on a GPU, it would use the GPU's random numbers, and the
    layers after it would get other numbers of the CPU's generator."""
    moved: list[tuple[torch.nn.Module, torch.device]] = []

    def to(module: torch.nn.Module, device: Any = None, dtype: Any = None) -> torch.nn.Module:
        if device is not None:
            moved.append((module, torch.device(device)))
        return module

    made = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "to", to)
            config = DecoderConfig(50, d_model=32, n_head=2, n_layer=2)
            made.append(Decoder(config, table=torch.ones(50, 32), device=device))
    assert (made[1], torch.device("cuda")) in moved
    others = made[1].state_dict()
    assert all(torch.equal(weight, others[name]) for name, weight in made[0].state_dict().items())


def saved_for_backward(run: Any) -> int:
    """Count the tensors that autograd saves while `run` runs."""
    count = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return count


def test_frozen_prefix_saves_nothing_for_backward(model: Decoder, ids: torch.Tensor) -> None:
    everything = saved_for_backward(lambda: model.hidden(ids))
    model.blocks.requires_grad_(False)
    model.final_norm.requires_grad_(False)
    assert saved_for_backward(lambda: model.hidden(ids)) == 0
    model.blocks[2].requires_grad_(True)
    newest = saved_for_backward(lambda: model.hidden(ids))
    assert 0 < newest < everything / 2
    deeper = copy.deepcopy(model)
    deeper.blocks.insert(0, copy.deepcopy(deeper.blocks[0]))
    assert saved_for_backward(lambda: deeper.hidden(ids)) == newest


def test_frozen_prefix_gets_no_gradient_and_the_other_parameters_do(
    model: Decoder, ids: torch.Tensor
) -> None:
    model.blocks[:2].requires_grad_(False)
    inputs: list[torch.Tensor] = []
    model.blocks[2].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.loss(ids, ids).backward()
    assert not inputs[0].requires_grad
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("blocks.0.", "blocks.1."))
        assert (parameter.grad is None) == frozen, name


def test_width_follows_the_substrate(substrate: TinySubstrate) -> None:
    assert Decoder(small_config(), substrate).config.n_embed == 8
    lifted = Decoder(small_config(), substrate).embedding(torch.tensor([[5]]))
    assert torch.equal(lifted[0, 0, ::4], torch.from_numpy(substrate.table[5]))
    assert torch.equal(lifted[0, 0, 3::4], torch.from_numpy(substrate.table[5]))
    narrow = Decoder(small_config(d_model=4, n_head=2), substrate).embedding.table
    leading = torch.from_numpy(substrate.table[:, :4])
    torch.testing.assert_close(narrow, leading / leading.norm(dim=1, keepdim=True))


def test_mismatches_are_rejected(substrate: TinySubstrate) -> None:
    for changes, message in (
        ({"vocab_size": 99}, "vocab_size is 99, but the substrate has 260 tokens"),
        ({"n_embed": 16}, "n_embed is 16, but the substrate's table has only 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            Decoder(small_config(**changes), substrate)
    codes = TinySubstrate()
    codes.table = (codes.table > 0).astype("float32")
    with pytest.raises(ConfigError, match="has codes of 8 bits, which cannot be truncated"):
        Decoder(small_config(d_model=4, n_head=2), codes)
    with pytest.raises(ConfigError, match="requires a substrate or a table"):
        Decoder(small_config())
    with pytest.raises(ConfigError, match=r"table must be of shape \[260, 'n_embed'\]"):
        Decoder(small_config(), table=torch.zeros(4, 32))
    with pytest.raises(ConfigError, match="n_embed: expected a divisor of d_model 32, got 20"):
        Decoder(small_config(), table=torch.zeros(260, 20))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"ids must be of shape \[B, T\], got \[5\]"),
        (torch.full((1, 3), 260), r"ids must be in \[0, 260\), got 260 at \[0, 0\]"),
        (torch.full((1, 3), -1), "got -1"),
        (torch.zeros(1, 25, dtype=torch.int64), "max_seq_len is 24 tokens, got 25"),
        (torch.zeros(1, 3), "int64 or int32"),
    ],
)
def test_bad_ids(model: Decoder, ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model(ids)


def test_bad_target(model: Decoder, ids: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"targets must be in \[0, 260\), got 300"):
        model.loss(ids, torch.full_like(ids, 300))


def test_blocks_compile_one_by_one(model: Decoder, ids: torch.Tensor) -> None:
    expected = model(ids)
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), expected)
    compiled.loss(ids, ids).backward()
    model.loss(ids, ids).backward()
    for got, want in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_trains_under_autocast(model: Decoder, ids: torch.Tensor) -> None:
    expected = model.loss(ids, ids)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids, ids)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert all(p.grad is not None for p in model.parameters())


def test_is_a_language_model(model: Decoder) -> None:
    assert isinstance(model, LanguageModel)
