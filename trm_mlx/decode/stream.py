"""Text from a model, token by token: prefill, choose, decode, and know when to stop.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.chooser import Chooser, plainly
from trm_mlx.decode.constrain import Constraint
from trm_mlx.decode.exits import ExitModel
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.speculative import Drafts, Speculative
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.words import NO_WORDS, Words, WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

Reason = Literal["end", "stop", "length", "context"]
Source = StepModel | Speculative  # what reads a text, and gives the scores or the tokens of what comes next


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

    Reasons: "end" an end token was chosen, or the text is whole and no text of its form goes on, "stop" a stop text
    came, "length" max_tokens are written, "context" the model has no more positions. `trm_mlx.stream` sets `reply`
    beside the reason: all that was written.
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
    constraint: Constraint | None = None,
    source: Source | None = None,
) -> Iterator[Event]:
    """Write on from a prompt.

    Args:
        prompt: ids, bos first.
        settings: when to stop, and the depth.
        sampling: how each token is chosen; the draw of the n-th token is number n, from 0.
        words: what is favoured, and what the prompt with what is written on must not come to hold.
        kind: what is kept of the text.
        constraint: the form of what is written, for the same words and prompt.
        source: what reads the text, if not every token is to run through all passes one by one, or what has read
            the beginning of the prompt already; of the same model, depth and kind.

    Raises:
        ValueError: the prompt is empty or fills the context, the depth is above the model's, the logits
            are not numbers, a word to favour is not one token, or no text of the form fits.
    """
    check_prompt(prompt, model.config.context)
    text = source or StepModel(model, settings.depth, kind)
    writer = Writer(tokenizer, settings, model.config.context - len(prompt))
    if constraint is not None:
        constraint.check(writer.most)
    chooser = Chooser(sampling, Words(words, tokenizer), tokenizer.vocabulary, prompt, constraint, writer.most)
    write = text.tokens if isinstance(text, Speculative) else partial(plainly, text)
    unread = prompt[text.position :] if isinstance(text, StepModel) else prompt
    for token in write(unread, writer.most, chooser):
        event = writer.event(token, over=chooser.over)
        yield event
        if event.reason:
            return


class Writer:
    """One text as its tokens come: what each of them makes certain, and why the last one is the last."""

    def __init__(self, tokenizer: Tokenizer, settings: StreamConfig, room: int) -> None:
        """room: positions that the model has left."""
        self.ends, self.decoder = (tokenizer.eos, tokenizer.end), tokenizer.stream()
        self.scanner, self.settings, self.count = Scanner(settings.stop), settings, 0
        self.most = min(settings.max_tokens, room)

    def event(self, token: int, *, over: bool = False) -> Event:
        """Of the next token; after one with a reason there must be none. over: nothing can follow it."""
        self.count += 1
        if token in self.ends:
            return Event(token, self._rest(), "end")
        said, reason = self.scanner.push(self.decoder.push(token)), None
        if over:
            reason = "end"
        elif self.count == self.most:
            reason = "length" if self.count == self.settings.max_tokens else "context"
        if reason or self.scanner.found:
            said += self._rest()
        return Event(token, said, "stop" if self.scanner.found else reason)

    def _rest(self) -> str:
        return self.scanner.push(self.decoder.finish()) + self.scanner.finish()


def opened(model: TinyRecursiveLM, prompt: Sequence[int], depth: int | None, kind: CacheConfig) -> StepModel:
    """A text to go on from a prompt that is yet to be read.

    Raises:
        ValueError: the prompt is empty or fills the context, or the depth is above the model's.
    """
    check_prompt(prompt, model.config.context)
    return StepModel(model, depth, kind)


def check_prompt(prompt: Sequence[int], context: int) -> None:
    """Refuse a prompt that is empty or fills the context: nothing of it is left out to make it fit."""
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
    """A whole answer, with its times in seconds from the call.

    `score` is what a search ranked it by, `mean_depth` the passes for each token where tokens could leave early,
    `drafts` what drafting came to where there was any. Of the prompt's tokens, `cached_tokens` were in a prompt
    cache, and not read again.
    """

    text: str
    tokens: tuple[int, ...]
    reason: Reason
    prompt_tokens: int
    seconds_to_first: float
    seconds: float
    score: float | None = None
    mean_depth: float | None = None
    drafts: Drafts | None = None
    cached_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over the time since the first; of a search, which gives all at once, of all."""
        if self.score is not None:
            return len(self.tokens) / max(self.seconds, 1e-9)
        return max(len(self.tokens) - 1, 0) / max(self.seconds - self.seconds_to_first, 1e-9)


class Timed:
    """Runs through events, and adds up the reply and its times."""

    def __init__(
        self, source: Iterator[Event], prompt_tokens: int, read: Source | None = None, cached_tokens: int = 0
    ) -> None:
        """read: what reads the text, and can tell how."""
        self.source, self.prompt_tokens, self.read = source, prompt_tokens, read
        self.cached_tokens = cached_tokens
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
            mean_depth=self.read.mean_depth if isinstance(self.read, ExitModel) else None,
            drafts=self.read.report() if isinstance(self.read, Speculative) else None,
            cached_tokens=self.cached_tokens,
        )
