"""The optimizer: which parameter is in which part, its rates, and its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.nn.lora import LoRALinear
from fastgrow.training import TrainConfig
from fastgrow.training.optimizer import Optimizer, Rate

MUON = TrainConfig(optimizer="muon", lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)


def model() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=11, d_model=8, n_layer=2, n_head=2, max_seq_len=8)
    return Decoder(config, table=torch.randn(11, 8))


def active(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def test_muon_has_the_matrices_of_blocks_and_adamw_all_others() -> None:
    parameters = active(model())
    optimizer = Optimizer(parameters, MUON)
    names = {id(p): name for name, p in parameters.items()}
    by_muon, *by_adamw = (
        {names[id(p)] for p in group["params"]} for group in optimizer.param_groups
    )
    matrices = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    assert by_muon == {f"blocks.{i}.{m}.weight" for i in (0, 1) for m in matrices}
    assert by_adamw[0] == {"lm_head.weight"}
    assert set.union(by_muon, *by_adamw) == set(parameters)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_factors_of_lora_adapters_are_not_updated_by_muon() -> None:
    layer = LoRALinear(nn.Linear(8, 8), rank=2)
    (group,) = Optimizer(active(layer), MUON).param_groups
    assert "betas" in group


def test_a_muon_step_equals_that_of_torch() -> None:
    ours, theirs = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(active(ours), MUON)
    reference = torch.optim.Muon(
        theirs.parameters(),
        lr=0.05,
        momentum=0.9,
        weight_decay=0.3,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(3):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        for layer in (ours, theirs):
            layer(x).square().sum().backward()
        optimizer.set_rate(0.05, step, 3)
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
        reference.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.grad is None


def test_groups_use_their_own_rates() -> None:
    parameters = active(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    rates = {"0.weight": Rate(0.5), "0.bias": Rate(2.0, warmup=0.5)}
    optimizer = Optimizer(parameters, TrainConfig(), rates)
    names = {id(p): name for name, p in parameters.items()}

    def now() -> dict[str, float]:
        return {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}

    optimizer.set_rate(0.1, 0, 8)
    assert now() == pytest.approx(
        {"0.weight": 0.05, "0.bias": 0.05, "1.weight": 0.1, "1.bias": 0.1}
    )
    optimizer.set_rate(0.1, 3, 8)
    assert now()["0.bias"] == pytest.approx(0.2)
    optimizer.set_rate(0.1, 7, 8)
    assert now()["0.bias"] == pytest.approx(0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_state_continues_bit_for_bit(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, lr=1e-2)
    first, second = model(), model()

    def train(of: Decoder, by: Optimizer, seeds: range) -> None:
        for seed in seeds:
            ids = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(seed))
            of.loss(ids[:, :-1], ids[:, 1:]).backward()
            by.step()
            by.zero_grad()

    whole = Optimizer(active(first), config)
    train(first, whole, range(3))
    second.load_state_dict(first.state_dict())
    resumed = Optimizer(active(second), config)
    saved = whole.state_dict()
    resumed.load_state_dict(saved)
    train(first, whole, range(3, 5))
    train(second, resumed, range(3, 5))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert saved["blocks.0.mlp.up.weight"].keys() == (
        {"momentum_buffer"} if optimizer == "muon" else {"step", "exp_avg", "exp_avg_sq"}
    )


def test_a_state_of_other_parameters_or_shapes_is_refused() -> None:
    optimizer = Optimizer(active(nn.Linear(3, 2)), TrainConfig())
    with pytest.raises(CheckpointError, match=r"not active \['lost'\]"):
        optimizer.adopt({"lost": {}})
    with pytest.raises(CheckpointError, match=r"exp_avg of weight has shape \(3, 3\).* \(2, 3\)"):
        optimizer.adopt({"weight": {"exp_avg": torch.zeros(3, 3)}})
    with pytest.raises(CheckpointError, match=r"missing \['bias'\]"):
        optimizer.load_state_dict({"weight": {}})


def test_a_loaded_state_replaces_what_was_there() -> None:
    layer = nn.Linear(3, 2)
    optimizer = Optimizer(active(layer), TrainConfig())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()
    # The state of an optimizer that has made no step.
    optimizer.load_state_dict({})
    assert optimizer.state_dict() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rate(factor=0.0), r"Rate\.factor: expected a finite number above 0, got 0\.0"),
        (lambda: Rate(factor=float("inf")), r"Rate\.factor: expected a finite number above 0"),
        (lambda: Rate(warmup=1.5), r"Rate\.warmup: expected a number between 0 and 1, got 1\.5"),
        (lambda: TrainConfig(optimizer="sgd"), "expected one of adamw, muon, got 'sgd'"),  # type: ignore[arg-type]
        (lambda: TrainConfig(schedule="linear"), "expected one of cosine, per-stage, wsd"),  # type: ignore[arg-type]
        (
            lambda: TrainConfig(warmup=0.3, decay=0.8),
            r"decay: warmup and decay are shares of one run; expected at most 0\.7 with",
        ),
    ],
)
def test_invalid_settings_are_rejected(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
