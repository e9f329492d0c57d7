"""Many texts at once, each the one that its prompt gives alone; a text that has ended makes place for the next.

Scores of a batch are those of a text alone to 1e-4, as products of many rows add up in another order: only where two
tokens are so near to each other, or a draw to the border between them, can a text differ.

Shapes: B rows, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode import draws
from trm_mlx.decode.penalties import History, penalize
from trm_mlx.decode.rows import Rows
from trm_mlx.decode.sampling import SamplingConfig, doubles, steer
from trm_mlx.decode.stream import Event, Reply, StreamConfig, Writer, check_prompt
from trm_mlx.decode.words import NO_WORDS, Words, WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One text to write; what is None is as the settings have it.

    prompt: ids, bos first.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    seed: int | None = None


def replies(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    rows: int,
    settings: StreamConfig,
    sampling: SamplingConfig,
    words: WordsConfig = NO_WORDS,
    kind: CacheConfig = EVERYTHING,
) -> Iterator[tuple[int, Reply]]:
    """(index of the request, its text) in the order in which texts end.

    Args:
        rows: texts at work at once, at least 1.
        settings, sampling, words, kind: as of `stream.events`, for all texts.

    Raises:
        ValueError: as `stream.events`, for any request, before there is a text; or there are no rows.
    """
    if rows < 1:
        raise ValueError(f"batch must be at least 1, got {rows}")
    steered = Words(words, tokenizer)
    for request in requests:
        check_prompt(request.prompt, model.config.context)
        told(request, settings, sampling)
    held = Rows(model, min(rows, max(len(requests), 1)), settings.depth, kind)
    return _replies(model, tokenizer, requests, held, settings, sampling, steered)


def told(request: Request, settings: StreamConfig, sampling: SamplingConfig) -> tuple[StreamConfig, SamplingConfig]:
    """The settings with what the request has to say of them.

    Raises:
        ValueError: it is out of range.
    """
    if request.max_tokens is not None:
        settings = replace(settings, max_tokens=request.max_tokens)
    return settings, sampling if request.seed is None else replace(sampling, seed=request.seed)


class Text:
    """A text at work."""

    def __init__(
        self, index: int, request: Request, writer: Writer, seed: int, history: History | None, tail: bytes
    ) -> None:
        self.index, self.request, self.writer, self.seed = index, request, writer, seed
        self.history, self.tail = history, tail
        self.events: list[Event] = []
        self.start, self.first = time.perf_counter(), 0.0

    def reply(self) -> Reply:
        """What was written, once it has ended."""
        return Reply(
            text="".join(event.text for event in self.events),
            tokens=tuple(event.token for event in self.events),
            reason=self.events[-1].reason or "length",
            prompt_tokens=len(self.request.prompt),
            seconds_to_first=self.first,
            seconds=time.perf_counter() - self.start,
        )


def _replies(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    held: Rows,
    settings: StreamConfig,
    sampling: SamplingConfig,
    steered: Words,
) -> Iterator[tuple[int, Reply]]:
    waiting = deque(enumerate(requests))
    texts: list[Text | None] = [None] * len(held.lengths)
    remembers = sampling.remembers

    def begun(index: int, request: Request) -> Text:
        own, drawing = told(request, settings, sampling)
        writer = Writer(tokenizer, own, model.config.context - len(request.prompt))
        history = History(model.config.vocabulary, request.prompt) if remembers else None
        return Text(index, request, writer, drawing.seed, history, steered.tail(request.prompt))

    def written(logits: mx.array, places: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        """Go on with the texts in these rows; those that end are given, and leave their rows."""
        group = [text for place in places if (text := texts[place])]
        for place, text, token in zip(places, group, chosen(logits, group, sampling, steered), strict=True):
            event = text.writer.event(token)
            text.events.append(event)
            text.first = text.first or time.perf_counter() - text.start
            text.tail = steered.grown(text.tail, token)
            if text.history is not None:
                text.history.add(token)
            if event.reason:
                texts[place] = None
                held.forget(place)
                yield text.index, text.reply()

    while True:
        free = [place for place, text in enumerate(texts) if text is None]
        if waiting and free:
            places = free[: len(waiting)]
            for place in places:
                texts[place] = begun(*waiting.popleft())
            prompts = {place: text.request.prompt for place in places if (text := texts[place])}
            yield from written(held.read(prompts), places)
            continue
        live = [place for place, text in enumerate(texts) if text]
        if not live:
            return
        if 2 * len(live) <= len(texts):
            kept = _fewer(live, len(texts))
            held.select(kept)
            texts = [texts[place] for place in kept]
            continue
        logits = held.append([text.events[-1].token if text else 0 for text in texts])
        yield from written(logits if len(live) == len(texts) else logits[mx.array(live)], live)


def _fewer(live: Sequence[int], count: int) -> list[int]:
    """The rows to keep when half of them or more have no text: a power of two, so that it changes seldom."""
    size = 1 << (len(live) - 1).bit_length()
    empty = [place for place in range(count) if place not in {*live}]
    return sorted([*live, *empty[: size - len(live)]])


def chosen(logits: mx.array, texts: Sequence[Text], sampling: SamplingConfig, steered: Words) -> list[int]:
    """The next token of each text, as `stream.picks` gives it.

    Args:
        logits: (B, V) of the texts.
    """
    if sampling.temperature == 0 and not sampling.remembers and not steered.steers:
        tokens, sound = logits.argmax(-1), (logits < mx.inf).all()  # NaN is not below anything
        mx.eval(tokens, sound)
        if sound.item():
            return np.array(tokens).tolist()
    rows = np.array(logits)
    if sampling.remembers or steered.steers:
        rows = np.stack([_changed(row, text, sampling, steered) for row, text in zip(rows, texts, strict=True)])
    seeds, steps = [text.seed for text in texts], [len(text.events) for text in texts]
    return draws.picks(rows, sampling, seeds, steps)


def _changed(row: np.ndarray, text: Text, sampling: SamplingConfig, steered: Words) -> np.ndarray:
    """(V,) float64: steps 1 to 5 of `sampling`."""
    values, banned = doubles(row), steered.banned(text.tail)
    biases = steered.biases([*text.request.prompt, *(event.token for event in text.events)])
    with np.errstate(all="ignore"):  # as in `sample`
        if biases or len(banned):
            steer(values, biases, banned)
        if text.history is not None:
            penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
            penalize(values, text.history, *penalties)
    return values
