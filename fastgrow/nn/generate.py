"""Text generation: continue a prompt with any `LanguageModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, overload

import torch
from msgspec import Meta
from torch import Tensor

from fastgrow._checked import NonNegativeFloat, NonNegativeInt, PositiveInt, check_types
from fastgrow.errors import ArgumentError, ConfigError, describe
from fastgrow.nn.language_model import Cache, LanguageModel, SubstrateLike
from fastgrow.nn.sampling import Sampler

Piece = TypeVar("Piece", str, Tensor)


@dataclass(frozen=True)
class GenerationOptions:
    """Options of text generation.

    Attributes:
        max_new_tokens: maximum number of tokens to generate.
        temperature: divides the logits; 0 for greedy decoding (always the most likely token).
        top_k: sample only from the k most likely tokens.
        top_p: sample only from the smallest set of most likely tokens whose probabilities add up to
            at least p.
        stop: token ids, or for text prompts also strings, at which generation ends. It always ends
            at the substrate's end-of-document token.
        seed: random seed; None for torch's global generator.

    Raises:
        ConfigError: a value is out of range; the message names it.
    """

    max_new_tokens: NonNegativeInt = 64
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: str | int | Sequence[str | int] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        check_types(self, where="generate: ")
        if "" in self._stops:
            raise ConfigError("generate: an empty stop string would end every continuation")

    @property
    def _stops(self) -> tuple[str | int, ...]:
        return (self.stop,) if isinstance(self.stop, str | int) else tuple(self.stop)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings in `stop`."""
        return tuple(stop for stop in self._stops if isinstance(stop, str))

    def stop_ids(self, substrate: SubstrateLike | None) -> tuple[int, ...]:
        """Return the token ids in `stop`, and the substrate's end-of-document token."""
        ids = tuple(stop for stop in self._stops if isinstance(stop, int))
        return ids if substrate is None else (*ids, substrate.eos_id)


@overload
def stream(model: LanguageModel, prompt: str, **options: Any) -> Iterator[str]: ...
@overload
def stream(
    model: LanguageModel, prompt: Tensor | Sequence[int], **options: Any
) -> Iterator[Tensor]: ...
def stream(
    model: LanguageModel, prompt: str | Tensor | Sequence[int], **options: Any
) -> Iterator[str] | Iterator[Tensor]:
    """Continue a prompt and yield each new piece as soon as it is generated.

    Args:
        model: any `LanguageModel`. If the model has a method `next_tokens(ids, cache, sampler)`,
            which returns the next ids [B] sampled with a `fastgrow.nn.sampling.Sampler`, it is
            called instead of computing logits.
        prompt: text, which starts a document, or ids [T] or [B, T].
        options: fields of `GenerationOptions`.

    Returns:
        An iterator over pieces of text, or over the next ids [B] int64. If the prompt is longer
        than the model's context, its last max_seq_len tokens are used; whenever the context is
        full, generation continues with the second half of it.

    Raises:
        ConfigError: an option is out of range.
        ArgumentError: the prompt is empty, or it is text and the model has no substrate.
    """
    settings = GenerationOptions(**options)
    if isinstance(prompt, str):
        return _stream_text(model, _require_substrate(model), prompt, settings)
    if settings.stop_strings:
        raise ConfigError(
            "generate: stop strings require a text prompt; pass token ids to `stop` instead"
        )
    return _stream_ids(model, _as_ids(model, prompt), settings)


@overload
def generate(
    model: LanguageModel,
    prompt: str,
    *,
    on_piece: Callable[[Any], object] | None = None,
    **options: Any,
) -> str: ...
@overload
def generate(
    model: LanguageModel,
    prompt: Tensor | Sequence[int],
    *,
    on_piece: Callable[[Any], object] | None = None,
    **options: Any,
) -> Tensor: ...
def generate(
    model: LanguageModel,
    prompt: str | Tensor | Sequence[int],
    *,
    on_piece: Callable[[Any], object] | None = None,
    **options: Any,
) -> str | Tensor:
    """Continue a prompt.

    Args:
        model: any `LanguageModel`.
        prompt: text, or ids [T] or [B, T].
        on_piece: called with each new piece that `stream` yields.
        options: fields of `GenerationOptions`.

    Returns:
        The prompt and its continuation: text without the stop string or token; or ids
        [B, T + n] int64 with stop tokens. Rows that end early are padded with the substrate's
        pad_id (with the stop token if there is no substrate).

    Raises:
        ConfigError, ArgumentError: as for `stream`.
    """
    if isinstance(prompt, str):
        return prompt + "".join(_collect(stream(model, prompt, **options), on_piece))
    steps = _collect(stream(model, prompt, **options), on_piece)
    return torch.cat([_as_ids(model, prompt), *(step[:, None] for step in steps)], dim=1)


class GenerationMixin:
    """Adds the methods `generate` and `stream` to a `LanguageModel`."""

    def generate(self: Any, prompt: Any, **options: Any) -> Any:
        """Continue a prompt; see `fastgrow.nn.generate`."""
        return generate(self, prompt, **options)

    def stream(self: Any, prompt: Any, **options: Any) -> Any:
        """Continue a prompt piece by piece; see `fastgrow.nn.stream`."""
        return stream(self, prompt, **options)


def _collect(pieces: Iterator[Piece], on_piece: Callable[[Any], object] | None) -> list[Piece]:
    collected = []
    for piece in pieces:
        collected.append(piece)
        if on_piece is not None:
            on_piece(piece)
    return collected


def _stream_text(
    model: LanguageModel, substrate: SubstrateLike, prompt: str, options: GenerationOptions
) -> Iterator[str]:
    ids = torch.tensor([[substrate.bos_id, *substrate.encode(prompt)]], device=model.device)
    stop_ids = options.stop_ids(substrate)
    new_ids: list[int] = []
    text, sent = "", 0
    for step in _stream_ids(model, ids, options):
        token = int(step[0])
        if token in stop_ids:
            break
        new_ids.append(token)
        text = substrate.decode(new_ids)
        ends = [place for stop in options.stop_strings if (place := text.find(stop)) >= 0]
        if ends:
            text = text[: min(ends)]
            break
        ready = len(text) - _held_back(text, options.stop_strings)
        if ready > sent:
            yield text[sent:ready]
            sent = ready
    if len(text) > sent:
        yield text[sent:]


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Return the number of last characters of `text` that may be the start of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


def _stream_ids(model: LanguageModel, ids: Tensor, options: GenerationOptions) -> Iterator[Tensor]:
    stop_ids = options.stop_ids(model.substrate)
    if not stop_ids:
        yield from _next_ids(model, ids, options)
        return
    stops = torch.tensor(stop_ids, device=ids.device)
    filler = stop_ids[-1] if model.substrate is None else model.substrate.pad_id
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for step in _next_ids(model, ids, options):
        tokens = step.masked_fill(ended, filler)
        yield tokens
        ended |= torch.isin(tokens, stops)
        if bool(ended.all()):
            return


def _next_ids(model: LanguageModel, ids: Tensor, options: GenerationOptions) -> Iterator[Tensor]:
    """Yield max_new_tokens tokens for each sequence, without regard to stop tokens."""
    limit = model.max_seq_len
    batch, length = ids.shape
    capacity = min(limit, length + options.max_new_tokens)
    generator = None
    if options.seed is not None:
        generator = torch.Generator(ids.device).manual_seed(options.seed)
    sampler = Sampler(options.temperature, options.top_k, options.top_p, generator)
    # A model may choose tokens itself, for example without computing all logits.
    choose = getattr(model, "next_tokens", partial(_choose, model))
    history = [ids]
    unread = ids[:, -limit:]
    cache = None
    for _ in range(options.max_new_tokens):
        if cache is not None and cache.length == limit:
            unread = torch.cat(history, dim=1)[:, -max(1, limit // 2) :]
            cache = None
        # Not around the `yield`, or the caller's code would run without gradients as well.
        with torch.no_grad():
            if cache is None:
                cache = model.new_cache(batch, capacity)
            tokens = choose(unread, cache, sampler)
        yield tokens
        unread = tokens[:, None]
        history.append(unread)


def _choose(model: LanguageModel, ids: Tensor, cache: Cache, sampler: Sampler) -> Tensor:
    return sampler(model(ids, cache, last_only=True)[:, -1])


def _require_substrate(model: LanguageModel) -> SubstrateLike:
    if model.substrate is None:
        raise ArgumentError("generate: the model has no substrate; prompt must be token ids")
    return model.substrate


def _as_ids(model: LanguageModel, prompt: Tensor | Sequence[int]) -> Tensor:
    ids = prompt if isinstance(prompt, Tensor) else torch.tensor(list(prompt), dtype=torch.int64)
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2 or ids.shape[1] == 0 or ids.dtype not in (torch.int64, torch.int32):
        raise ArgumentError(
            f"generate: prompt must be text or integer ids [T] or [B, T] with T ≥ 1, "
            f"got {describe(ids)}"
        )
    return ids.to(model.device, torch.int64)
