"""Patched models compute, train, generate and save as unpatched ones do."""

from __future__ import annotations

import copy
import inspect
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers
from hf_models import IDS, KINDS, LAYERS, PADDED, VOCABULARY, assert_close, build

import fastgrow as fg
from fastgrow import ops
from fastgrow.errors import ArgumentError

each_kind = pytest.mark.parametrize("kind", KINDS)
NORMS = 2 * LAYERS + 1
ACTIVATION = {"gpt2": "act", "gpt_neox": "act", "llama": "act_fn"}
NORM = {"gpt2": "layer_norm", "gpt_neox": "layer_norm", "llama": "rms_norm"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of calls of each operation."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> Any:
        run = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return run(*args, **kwargs)

        return call

    for name in ("attention", "layer_norm", "rms_norm", "mlp", "linear_cross_entropy"):
        monkeypatch.setattr(ops, name, counting(name))
    return counted


@each_kind
def test_every_part_runs_on_its_operation(kind: str, calls: Counter[str]) -> None:
    model = build(kind)
    model(IDS)
    assert not calls
    report = fg.patch(model, loss=True)
    model(IDS, labels=IDS)
    expected = {"attention": LAYERS, "mlp": LAYERS, NORM[kind]: NORMS, "linear_cross_entropy": 1}
    assert calls == expected
    assert report.swapped == 2 * LAYERS + NORMS + 1
    parts = {one.part: one for one in report.treated if one.state == "swapped"}
    assert set(parts) == {"attention", "mlp", "norm", "loss"}
    assert len(parts["norm"].names) == NORMS
    for name in (*parts["mlp"].names, *parts["norm"].names):
        assert type(model.get_submodule(name)).__module__.startswith("fastgrow.")


@each_kind
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "left-padded"])
def test_logits_stay_the_same(kind: str, mask: torch.Tensor | None) -> None:
    model = build(kind)
    before = model(IDS, attention_mask=mask).logits
    fg.patch(model)
    after = model(IDS, attention_mask=mask).logits
    seen = torch.ones_like(IDS) if mask is None else mask
    assert_close(after[seen.bool()], before[seen.bool()])


@each_kind
def test_training_takes_the_same_course(kind: str) -> None:
    plain, patched = build(kind), build(kind)
    fg.patch(patched, loss=True)
    losses: list[list[float]] = []
    # Each row counts up in steps of three from a different number.
    starts = 7 * torch.arange(30 * 4).view(30, 4, 1)
    batches = (starts + 3 * torch.arange(16)) % (VOCABULARY - 1) + 1
    for model in (plain.train(), patched.train()):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses.append([])
        for ids in batches:
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][0] - losses[0][-1] > 1.5
    # 20 units in the last place of a loss of four: at most about one rounding per step.
    torch.testing.assert_close(losses[1], losses[0], atol=20 * 2**-21, rtol=0)


@each_kind
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_greedy_generation_is_the_same(kind: str, cache: str | None) -> None:
    model = build(kind)
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    settings |= {"use_cache": cache is not None, "cache_implementation": cache}
    before = model.generate(IDS, attention_mask=PADDED, **settings)
    fg.patch(model)
    after = model.generate(IDS, attention_mask=PADDED, **settings)
    assert after.shape == (2, 20)
    assert torch.equal(after, before)


@each_kind
def test_parameters_are_the_same_objects(kind: str) -> None:
    model = build(kind, tie_word_embeddings=True)
    parameters, state = dict(model.named_parameters()), model.state_dict()
    fg.patch(model, loss=True)
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in parameters)
    assert list(model.state_dict()) == list(state)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.load_state_dict(state)


@each_kind
def test_unpatch_restores_everything(kind: str) -> None:
    model = build(kind)
    classes = [type(m) for m in model.modules()]
    attributes = [list(vars(m)) for m in model.modules()]
    before = model(IDS, labels=IDS)
    patched = fg.patch(model, loss=True)
    report = fg.unpatch(model)
    assert report.restored == patched.swapped
    assert [type(m) for m in model.modules()] == classes
    assert [list(vars(m)) for m in model.modules()] == attributes
    assert model.config._attn_implementation == "sdpa"
    after = model(IDS, labels=IDS)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert not fg.unpatch(model).treated


def test_patching_twice_is_reported() -> None:
    model = build("llama")
    first = fg.patch(model)
    classes = [type(m) for m in model.modules()]
    second = fg.patch(model)
    assert (second.swapped, second.skipped) == (0, first.skipped)
    assert (
        sum(len(t.names) for t in second.treated if t.state == "already swapped") == first.swapped
    )
    assert [type(m) for m in model.modules()] == classes
    assert fg.patch(model, loss=True).swapped == 1
    fg.unpatch(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_report_is_a_table() -> None:
    text = str(fg.patch(build("gpt2", attn_pdrop=0.1)))
    title, header, _rule, *rows = text.splitlines()
    assert title == "GPT2LMHeadModel: 1 skipped, 9 swapped"
    assert header.split() == ["part", "class", "modules"]
    cells = {row.split()[0]: row.split(maxsplit=4) for row in rows}
    assert cells["norm"][1:] == ["LayerNorm", "5", "swapped", "runs on ops.layer_norm"]
    assert cells["attention"][4].endswith("with dropout 0.1 in training, on SDPA")
    assert cells["loss"][3:] == ["skipped", "only with patch(model, loss=True)"]


def test_unknown_models_are_reported_and_untouched() -> None:
    size = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=61, num_hidden_layers=1, **size)
    bert = transformers.BertModel(config).eval()
    classes = [type(m) for m in bert.modules()]
    before = bert(IDS).last_hidden_state
    report = fg.patch(bert)
    assert (report.swapped, report.skipped) == (0, 1)
    assert "not a GPT-2, GPT-NeoX or Llama model" in str(report)
    assert [type(m) for m in bert.modules()] == classes
    assert bert.config._attn_implementation == "sdpa"
    assert torch.equal(bert(IDS).last_hidden_state, before)
    assert fg.patch(nn.Linear(2, 2)).swapped == 0
    with pytest.raises(ArgumentError, match=r"patch: model must be a torch\.nn\.Module"):
        fg.patch("gpt2")  # type: ignore[arg-type]


def test_models_inside_others_are_found() -> None:
    outer = nn.ModuleDict({"reader": build("gpt2").transformer, "norm": nn.LayerNorm(4)})
    report = fg.patch(outer)
    names = {name for one in report.treated for name in one.names}
    assert "reader.h.0.ln_1" in names
    assert type(outer["norm"]) is nn.LayerNorm
    assert fg.unpatch(outer).restored == report.swapped


@pytest.mark.parametrize("version", ["4.57.1", "5.16.1"])
def test_old_transformers_are_skipped(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    report = fg.patch(build("gpt2"))
    assert report.swapped == 0
    assert f"transformers {version} is older than 5.17" in str(report)
    assert "not a GPT-2" in str(fg.patch(nn.Linear(2, 2)))
    assert not fg.unpatch(build("gpt2")).treated


def test_transformers_is_not_imported_for_others() -> None:
    code = (
        "import sys, torch, fastgrow as fg; print(fg.patch(torch.nn.Linear(2, 2)));"
        "fg.unpatch(torch.nn.Linear(2, 2)); assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Linear: 1 skipped")


class Adapter(nn.Linear):
    """A layer that adds something to its weight's product, as adapters do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def first_mlp(model: Any) -> Any:
    return next(m for m in model.modules() if type(m).__name__.endswith("MLP"))


def obstacle(report: Any, part: str) -> str:
    (note,) = {one.note for one in report.treated if (one.part, one.state) == (part, "skipped")}
    return note


def test_layers_that_are_not_original_are_skipped() -> None:
    model = build("llama")
    mlp = first_mlp(model)
    mlp.up_proj.__class__ = Adapter
    before = model(IDS).logits
    report = fg.patch(model)
    assert obstacle(report, "mlp") == "its up_proj is a Adapter"
    assert_close(model(IDS).logits, before)

    model = build("gpt2")
    first_mlp(model).c_fc.register_forward_hook(lambda *_: None)
    assert obstacle(fg.patch(model), "mlp") == "its c_fc has hooks or a replaced forward"

    for kind, name in ACTIVATION.items():
        model = build(kind)
        first_mlp(model).get_submodule(name).register_forward_hook(lambda *_: None)
        expected = f"its {name} has hooks or a replaced forward"
        assert obstacle(fg.patch(model), "mlp") == expected

    model = build("gpt_neox")
    first_mlp(model).forward = lambda x: x
    assert obstacle(fg.patch(model), "mlp") == "its forward has been replaced already"

    model = build("llama")
    first_mlp(model).__class__ = type("Other", (type(first_mlp(model)),), {})
    assert "a subclass of LlamaMLP" in obstacle(fg.patch(model), "mlp")


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda layer, args, y: 2 * y)


def hook_before(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda layer, args: 2 * args[0])


def another_forward(layer: nn.Module) -> None:
    run = layer.forward
    layer.forward = lambda x: 2 * run(x)


@each_kind
@pytest.mark.parametrize("change", [hook, hook_before, another_forward])
@pytest.mark.parametrize("layer", ["linear", "activation"])
def test_layers_changed_after_patching_are_called(
    kind: str, layer: str, change: Callable[[nn.Module], None]
) -> None:
    model, plain = build(kind), build(kind)
    fg.patch(model)
    linear = {"gpt2": "c_fc", "gpt_neox": "dense_h_to_4h", "llama": "gate_proj"}
    name = (linear if layer == "linear" else ACTIVATION)[kind]
    for m in (model, plain):
        change(first_mlp(m).get_submodule(name))
    assert_close(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "changes", "part", "reason"),
    [
        ("llama", {"mlp_bias": True}, "mlp", "its projections have biases"),
        ("llama", {"hidden_act": "gelu"}, "mlp", "its activation is GELUActivation, not SiLU"),
        ("gpt2", {"activation_function": "relu"}, "mlp", "its activation, ReLU"),
        ("gpt2", {"activation_function": "silu"}, "mlp", "its activation, SiLUActivation"),
        (
            "gpt2",
            {"reorder_and_upcast_attn": True, "attn_implementation": "eager"},
            "attention",
            "computed in float32",
        ),
        (
            "llama",
            {"attn_implementation": "eager", "output_attentions": True},
            "attention",
            "its configuration requests attention weights",
        ),
        ("llama", {"attn_implementation": "flex_attention"}, "attention", "runs on flex_attention"),
    ],
)
def test_unsupported_models_are_skipped(
    kind: str, changes: dict[str, Any], part: str, reason: str
) -> None:
    model = build(kind, **changes)
    implementation = model.config._attn_implementation
    assert reason in obstacle(fg.patch(model), part)
    if part == "attention":
        assert model.config._attn_implementation == implementation


@each_kind
@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_a_call_that_requests_weights_is_rejected(kind: str, before: str) -> None:
    model = build(kind, attn_implementation=before)
    fg.patch(model)
    with pytest.raises(ArgumentError, match="attention: output_attentions must be False"):
        model(IDS, output_attentions=True)
    model(IDS, output_attentions=False, output_hidden_states=True)
    fg.unpatch(model)
    assert len(model(IDS, output_attentions=True).attentions) == LAYERS * (before == "eager")


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu2"]
)
def test_activations_are_recognised(activation: str, calls: Counter[str]) -> None:
    model = build("gpt2", activation_function=activation)
    before = model(IDS).logits
    fg.patch(model)
    assert_close(model(IDS).logits, before)
    assert calls["mlp"] == LAYERS


@each_kind
@pytest.mark.parametrize(
    "extra", [{}, {"num_items_in_batch": 7}, {"shift_labels": IDS.roll(2, 1)}], ids=str
)
def test_loss_without_logits(kind: str, extra: dict[str, Any]) -> None:
    plain, patched = build(kind), build(kind)
    fg.patch(patched, loss=True)
    labels = IDS.masked_fill(PADDED == 0, -100)
    expected = plain(IDS, attention_mask=PADDED, labels=labels, **extra)
    got = patched(IDS, attention_mask=PADDED, labels=labels, output_hidden_states=True, **extra)
    assert got.logits is None
    assert len(got.hidden_states) == LAYERS + 1
    assert_close(got.loss, expected.loss)
    expected.loss.backward()
    got.loss.backward()
    for (name, a), b in zip(patched.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None, name
        assert_close(a.grad, b.grad)
    assert_close(patched(IDS).logits, plain(IDS).logits)
    as_tuple = patched(IDS, labels=IDS, return_dict=False)
    assert as_tuple[0].shape == ()


def test_the_loss_keeps_the_logits_if_required(calls: Counter[str]) -> None:
    model = build("llama")
    signature = inspect.signature(model.forward)
    fg.patch(model, loss=True)
    assert inspect.signature(model.forward) == signature
    by_position = model(IDS, None, None, None, None, IDS)
    assert by_position.logits is not None
    last = model(IDS, labels=IDS, shift_labels=IDS[:, :1], logits_to_keep=1)
    assert last.logits.shape == (2, 1, VOCABULARY)
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.sum()
    assert model(IDS, labels=IDS).logits is not None
    del model._loss_function
    model.lm_head.register_forward_hook(lambda *_: None)
    assert model(IDS, labels=IDS).logits is not None
    assert not calls["linear_cross_entropy"]


def test_saved_models_load_without_fastgrow(tmp_path: Path) -> None:
    model = build("gpt2")
    before = model(IDS).logits
    fg.patch(model, loss=True)
    model.save_pretrained(tmp_path)
    assert "fastgrow" not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is transformers.GPT2LMHeadModel
    assert torch.equal(loaded(IDS).logits, before)


@each_kind
def test_copies_and_pickles_are_patched_too(kind: str) -> None:
    model = build(kind)
    fg.patch(model, loss=True)
    expected = model(IDS).logits
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    for other in (twin, read):
        assert torch.equal(other(IDS).logits, expected)
        assert fg.unpatch(other).restored == 2 * LAYERS + NORMS + 1
        assert other.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "fastgrow"
    assert fg.patch(model, loss=True).swapped == 0


@pytest.mark.slow
def test_another_process_loads_a_pickled_model(tmp_path: Path) -> None:
    model = build("gpt2")
    fg.patch(model)
    expected = model(IDS).logits
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; model = torch.load(sys.argv[1] + '/model.pt', weights_only=False);"
        f"torch.save(model(torch.tensor({IDS.tolist()})).logits, sys.argv[1] + '/logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert_close(torch.load(tmp_path / "logits.pt"), expected)


@each_kind
def test_gradient_checkpointing(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(kind)
        fg.patch(model)
        model.train()
        if checkpointing:
            # Under its older name in transformers 5.17.
            old = model.gradient_checkpointing_enable
            getattr(model, "activation_checkpointing_enable", old)()
        model(IDS, attention_mask=PADDED, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_dropout_is_dropped_as_before() -> None:
    losses = []
    for patched in (False, True):
        model = build("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3).train()
        if patched:
            fg.patch(model)
        for seed in (1, 2):
            torch.manual_seed(seed)
            losses.append(model(IDS, labels=IDS).loss)
    assert abs(losses[0] - losses[1]) > 1e-3
    assert_close(losses[2], losses[0])
    assert_close(losses[3], losses[1])


@pytest.mark.parametrize("norms", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_norms_of_another_dtype_than_their_input(kind: str, norms: torch.dtype) -> None:
    model = build(kind).bfloat16()
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.to(norms)
    (norm,) = (m for n, m in model.named_modules() if n.endswith(("ln_f", "model.norm")))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = norm(x)
    fg.patch(model)
    after = norm(x)
    assert after.dtype == before.dtype
    # Rounding once instead of twice: one unit in the last place of bf16.
    torch.testing.assert_close(after, before, atol=0, rtol=2**-7 if norms == x.dtype else 1e-6)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] if kind != "llama" else []) for kind in KINDS],
)
def test_compiles_whole(kind: str) -> None:
    model = build(kind)
    fg.patch(model)
    expected = model(IDS).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [5, 12, 17])
def test_cross_attention(length: int, masked: bool) -> None:
    model = build("gpt2", add_cross_attention=True)
    states = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"encoder_hidden_states": states}
    if masked:
        given["encoder_attention_mask"] = torch.arange(length).expand(2, -1) < 3
    before = model(IDS, **given).logits
    fg.patch(model)
    assert_close(model(IDS, **given).logits, before)


@pytest.mark.parametrize("setting", ["scale_attn_by_inverse_layer_idx", "scale_attn_weights"])
def test_scales_of_its_own(setting: str) -> None:
    model = build("gpt2", **{setting: setting.endswith("idx")})
    before = model(IDS).logits
    fg.patch(model)
    assert_close(model(IDS).logits, before)


@each_kind
def test_autocast(kind: str) -> None:
    plain, patched = build(kind), build(kind)
    fg.patch(patched, loss=True)
    exact = plain(IDS, labels=IDS)
    with torch.autocast("cpu", torch.bfloat16):
        before, after = plain(IDS, labels=IDS), patched(IDS, labels=IDS)
        logits = patched(IDS).logits
    assert logits.dtype == before.logits.dtype
    # Matrix products round the same; the patched model may have one more rounding.
    size = exact.logits.abs().max()
    error = (logits - exact.logits).abs().max()
    assert 0 < error <= 2 * (before.logits - exact.logits).abs().max() + 2**-8 * size
    # Logits that are off by e change a cross-entropy by 2 e at most.
    assert abs(after.loss - exact.loss) <= 2 * (error + 2**-8 * size)
    after.loss.backward()
    for name, parameter in patched.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_frozen_layers_get_no_gradient() -> None:
    model = build("llama")
    fg.patch(model)
    frozen = model.model.layers[0].requires_grad_(False)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in model.model.layers[1].parameters())
