"""Text from a model, token by token: prefill, choose, decode, and know when to stop.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import mlx.core as mx
import numpy as np

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.penalties import History
from trm_mlx.decode.sampling import SamplingConfig, doubles, sample
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.words import NO_WORDS, Words, WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

Reason = Literal["end", "stop", "length", "context"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How much is written, and how deep the model thinks."""

    max_tokens: Annotated[int, "most tokens to write"] = 256
    depth: Annotated[int | None, "passes through the core, none for all"] = None
    stop: Annotated[tuple[str, ...], "texts at which to stop; they are not written"] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if isinstance(self.stop, str):
            raise ValueError(f"stop must be a tuple of texts, got the text {self.stop!r}")
        if "" in self.stop:
            raise ValueError("a stop text must not be empty")


@dataclass(frozen=True)
class Event:
    """One token written, and the text it made certain; `reason` is set on the last one.

    Reasons: "end" an end token was chosen, "stop" a stop text came, "length" max_tokens are written, "context"
    the model has no more positions. `trm_mlx.stream` sets `reply` beside the reason: all that was written.
    """

    token: int
    text: str
    reason: Reason | None = None
    reply: "Reply | None" = None


def events(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: StreamConfig,
    sampling: SamplingConfig,
    words: WordsConfig = NO_WORDS,
    kind: CacheConfig = EVERYTHING,
    text: StepModel | None = None,
) -> Iterator[Event]:
    """Write on from a prompt.

    Args:
        prompt: ids, bos first.
        settings: when to stop, and the depth.
        sampling: how each token is chosen; the draw of the n-th token is number n, from 0.
        words: what is favoured, and what the prompt with what is written on must not come to hold.
        kind: what is kept of the text.
        text: what has read the beginning of the prompt already, at this depth and with this kind of cache.

    Raises:
        ValueError: the prompt is empty or fills the context, the depth is above the model's, the logits
            are not numbers, or a word to favour is not one token.
    """
    text = opened(model, prompt, settings.depth, kind) if text is None else text
    steered = Words(words, tokenizer)
    ends, decoder, scanner = (tokenizer.eos, tokenizer.end), tokenizer.stream(), Scanner(settings.stop)
    room = model.config.context - len(prompt)
    most = min(settings.max_tokens, room)
    for count, token in enumerate(picks(text, prompt, most, sampling, steered), 1):
        if token in ends:
            yield Event(token, scanner.push(decoder.finish()) + scanner.finish(), "end")
            return
        said = scanner.push(decoder.push(token))
        reason: Reason | None = None
        if scanner.found:
            reason = "stop"
        elif count == most:
            reason = "length" if count == settings.max_tokens else "context"
        if reason:
            said += scanner.push(decoder.finish()) + scanner.finish()
            yield Event(token, said, "stop" if scanner.found else reason)
            return
        yield Event(token, said)


def picks(
    text: StepModel, prompt: Sequence[int], most: int, sampling: SamplingConfig, steered: Words
) -> Iterator[int]:
    """At most so many tokens that go on from a prompt, whose beginning the text may have read already.

    They are chosen one by one; ends of text are tokens as any.
    """
    if sampling.temperature == 0 and not sampling.remembers and not steered.steers:
        yield from greedy(text, prompt, most)
        return
    history = History(text.model.config.vocabulary, prompt) if sampling.remembers else None
    ids, tail = prompt[text.position :], steered.tail(prompt)
    for step in range(most):
        logits = np.array(text.append(ids)[0])
        token = sample(logits, sampling, step, history or (), steered.bias, steered.banned(tail))
        yield token
        if history is not None:
            history.add(token)
        ids, tail = [token], steered.grown(tail, token)


def greedy(text: StepModel, prompt: Sequence[int], most: int) -> Iterator[int]:
    """The likeliest token, again and again: chosen where the scores are, the next step begun before it is told."""
    logits = text.append(prompt[text.position :])
    for left in range(most, 0, -1):
        token, sound = logits.argmax(-1), (logits < math.inf).all()  # NaN is not below anything
        following = text.append(token[:, None]) if left > 1 else logits
        mx.async_eval(token, sound, following)
        if not sound.item():
            doubles(np.array(logits[0]))  # names what is wrong
        yield int(np.array(token)[0])
        logits = following


def opened(
    model: TinyRecursiveLM, prompt: Sequence[int], depth: int | None, kind: CacheConfig, **options: bool
) -> StepModel:
    """A text to go on from a prompt that is yet to be read; options: as of `StepModel`.

    Raises:
        ValueError: the prompt is empty or fills the context, or the depth is above the model's.
    """
    check_room(model, prompt)
    return StepModel(model, depth, kind, **options)


def check_room(model: TinyRecursiveLM, prompt: Sequence[int]) -> None:
    """Refuse a prompt that is empty or fills the context: nothing of it is left out to make it fit."""
    context = model.config.context
    if not 0 < len(prompt) < context:
        long = "; shorten it, or take a model of a longer context" if prompt else ""
        raise ValueError(
            f"the prompt must have 1 to {context - 1} tokens, as the context is {context}, got {len(prompt)}{long}"
        )


class Scanner:
    """Passes text on up to the first stop text, holding back what may yet become one.

    The first is the one that ends first, so that it does not matter how the text comes in pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def push(self, text: str) -> str:
        """The text that is certainly not part of a stop text."""
        if self.found:
            return ""
        self.held += text
        places = [(place + len(stop), place) for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            text, self.held, self.found = self.held[: min(places)[1]], "", True
            return text
        return self._release(max((self._overlap(stop) for stop in self.stops), default=0))

    def finish(self) -> str:
        """The text still held back."""
        return self._release(0)

    def _release(self, kept: int) -> str:
        cut = len(self.held) - kept
        text, self.held = self.held[:cut], self.held[cut:]
        return text

    def _overlap(self, stop: str) -> int:
        """Longest end of the held text that begins the stop text."""
        longest = min(len(self.held), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if stop.startswith(self.held[-n:])), 0)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer, with its times in seconds from the call; `score` is what a search ranked it by.

    Of the prompt's tokens, `cached_tokens` were in a prompt cache, and not read again.
    """

    text: str
    tokens: tuple[int, ...]
    reason: Reason
    prompt_tokens: int
    seconds_to_first: float
    seconds: float
    score: float | None = None
    cached_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over the time since the first; of a search, which gives all at once, of all."""
        if self.score is not None:
            return len(self.tokens) / max(self.seconds, 1e-9)
        return max(len(self.tokens) - 1, 0) / max(self.seconds - self.seconds_to_first, 1e-9)


class Timed:
    """Runs through events, and adds up the reply and its times."""

    def __init__(self, source: Iterator[Event], prompt_tokens: int, cached_tokens: int = 0) -> None:
        self.source, self.prompt_tokens, self.cached_tokens = source, prompt_tokens, cached_tokens
        self.text, self.tokens, self.reason = "", [], None
        self.start, self.first = time.perf_counter(), 0.0

    def __iter__(self) -> Iterator[Event]:
        for event in self.source:
            self.first = self.first or time.perf_counter() - self.start
            self.text += event.text
            self.tokens.append(event.token)
            self.reason = event.reason
            yield event

    def whole(self) -> Reply:
        """Run to the end, and give what was written."""
        for _ in self:
            pass
        return self.reply()

    def reply(self) -> Reply:
        """What was written, once the events have run out."""
        return Reply(
            text=self.text,
            tokens=tuple(self.tokens),
            reason=self.reason or "length",
            prompt_tokens=self.prompt_tokens,
            seconds_to_first=self.first,
            seconds=time.perf_counter() - self.start,
            cached_tokens=self.cached_tokens,
        )
