"""Tiny random models of transformers as experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from fastgrow.compose import Ensemble, Posterior, ProbabilityMean  # noqa: E402
from fastgrow.errors import ArgumentError, ConfigError, SubstrateError  # noqa: E402
from fastgrow.evaluation import bits_per_character  # noqa: E402
from fastgrow.interop.hub_expert import HubExpert  # noqa: E402
from fastgrow.interop.hub_vocabulary import HubVocabulary  # noqa: E402
from fastgrow.nn import LanguageModel  # noqa: E402
from fastgrow.substrate import Substrate  # noqa: E402
from fastgrow.training import TextData  # noqa: E402

TEXTS = ["the cat sat on the mat", "кот сидел на коврике", "the dog sat, too"] * 3


def make_tokenizer(texts: list[str] = TEXTS, **special: str) -> Any:
    """A byte-level tokenizer like GPT-2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **({"eos_token": "<|end|>"} | special)
    )


def make_model(seed: int, vocab_size: int = 304, kind: str = "gpt2") -> Any:
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=32
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval().double()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_is_a_language_model(kind: str) -> None:
    model = make_model(0, kind=kind)
    expert = HubExpert(model, make_tokenizer())
    assert isinstance(expert, LanguageModel)
    assert (expert.vocab_size, expert.max_seq_len) == (304, 32)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits
    torch.testing.assert_close(expert(ids), logits)
    torch.testing.assert_close(expert(ids, last_only=True), logits[:, -1:])
    cache = expert.new_cache(2)
    pieces = [expert(ids[:, :5], cache), expert(ids[:, 5:6], cache), expert(ids[:, 6:], cache)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(pieces, 1), logits)
    short = expert.new_cache(2)
    expert(ids[:, :5], short)
    more = expert(ids[:, 5:].repeat_interleave(3, dim=0), short.repeated(3))
    torch.testing.assert_close(more, logits[:, 5:].repeat_interleave(3, dim=0))
    torch.testing.assert_close(expert(ids[:, 5:], short), logits[:, 5:])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:])
    torch.testing.assert_close(expert.loss(ids[:, :-1], ids[:, 1:]), expected)


def test_with_a_cache_each_token_is_processed_once() -> None:
    expert = HubExpert(make_model(0))
    lengths = []
    expert.call.register_forward_hook(  # type: ignore[operator]
        lambda module, args, output: lengths.append(args[0].shape[1])
    )
    expert.generate([1, 2, 3], max_new_tokens=4)
    assert lengths == [3, 1, 1, 1]


def test_greedy_text_is_what_transformers_generates() -> None:
    model, tokenizer = make_model(1), make_tokenizer()
    prompt = torch.tensor([tokenizer.encode("the cat")])
    theirs = model.generate(
        prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ours = HubExpert(model).generate(prompt, max_new_tokens=8, temperature=0.0)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("rule", [None, ProbabilityMean(), Posterior()], ids=str)
def test_two_of_them_compose(rule: Any) -> None:
    tokenizer = make_tokenizer()
    experts = {
        "gpt": HubExpert(make_model(2), tokenizer),
        "llama": HubExpert(make_model(3, kind="llama"), tokenizer),
    }
    duo = Ensemble(experts, rule)
    ids = torch.tensor([tokenizer.encode("the dog sat on the mat, too")])
    each = [expert(ids).log_softmax(-1) for expert in experts.values()]
    if rule is None:
        expected = torch.stack([experts[name](ids) for name in experts]).mean(0)
        torch.testing.assert_close(duo(ids), expected)
    elif rule == ProbabilityMean():
        expected = torch.stack(each).logsumexp(0) - torch.tensor(2.0).log()
        torch.testing.assert_close(duo(ids), expected.to(duo(ids).dtype))
    text = duo.generate("the ", max_new_tokens=6, seed=0)
    assert text.startswith("the ")
    stream = TextData.from_splits(
        train=TEXTS, validation=TEXTS[:1], test=TEXTS[:2], substrate=duo.substrate
    ).test
    measured = bits_per_character(duo, stream)
    assert measured.characters == sum(len(text) for text in TEXTS[:2])


def test_a_vocabulary_that_differs_is_rejected_with_the_difference() -> None:
    one = HubExpert(make_model(4), make_tokenizer())
    other = HubExpert(make_model(5), make_tokenizer([text[::-1] for text in TEXTS]))
    with pytest.raises(SubstrateError, match=r"id \d+ is '.+' against '.+'"):
        Ensemble({"one": one, "other": other})
    with pytest.raises(ConfigError, match="has a vocabulary of 310 tokens"):
        Ensemble({"one": one, "other": HubExpert(make_model(5, 310), make_tokenizer())})


def test_a_substrate_and_a_tokenizer_are_different_vocabularies() -> None:
    substrate = Substrate.build(characters="abc", n_ngrams=0, n_components=4)
    from fastgrow.compose import CallableExpert

    size = len(make_tokenizer())
    guest = CallableExpert(
        lambda ids: torch.zeros(*ids.shape, size), vocab_size=size, max_seq_len=8,
        vocabulary=substrate,
    )  # fmt: skip
    expert = HubExpert(make_model(4, size), make_tokenizer())
    with pytest.raises(SubstrateError, match="a HubVocabulary against a Substrate"):
        Ensemble({"one": expert, "two": guest})


def test_characters_are_counted_by_their_first_bytes() -> None:
    vocabulary = HubVocabulary(make_tokenizer(["ab"]))
    counts = vocabulary.n_characters
    for text in ("the cat", "кот 中文 🐈 é", "naïve\n"):
        ids = vocabulary.encode(text)
        assert int(counts[ids].sum()) == len(text)
        assert vocabulary.decode(ids) == text
    assert counts[vocabulary.eos_id] == 0


def test_unsupported_models_are_rejected() -> None:
    with pytest.raises(ConfigError, match="Linear has no head over a vocabulary"):
        HubExpert(torch.nn.Linear(2, 2))
    config = transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    with pytest.raises(ConfigError, match="GPT2Model has no head"):
        HubExpert(transformers.GPT2Model(config))
    with pytest.raises(ConfigError, match="has the id 299, but the model's head has 200 entries"):
        HubExpert(make_model(0, 200), make_tokenizer())
    with pytest.raises(ArgumentError, match="accepts at most 32 tokens, got 33 after 0"):
        HubExpert(make_model(0))(torch.zeros(1, 33, dtype=torch.int64))
