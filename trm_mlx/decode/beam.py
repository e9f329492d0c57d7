"""The likeliest text that a search of a given width finds: beams instead of draws.

A text Y of |Y| tokens, an end token counted, has the score log P(Y | prompt) / lp(Y), lp(Y) = ((5 + |Y|) / 6)^a
with the length penalty a. Source: GNMT, arXiv 1609.08144, equation 14, without its coverage term.

At each step every live text is continued by every token, and of all these the likeliest fill the places that are
left, ties by place and then by id. One that ends keeps its place, so that the beam narrows. The search ends when
no place is left, or no live text can overtake the best that has ended: the score of one is at most its
log-probability now over lp of the longest text allowed. That loses nothing, as log P only falls. Width 1 is greedy.

Shapes: W live texts, the rows of one batch; V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.constrain import Constraint
from trm_mlx.decode.sampling import doubles, rank
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.stream import Reason, Scanner, StreamConfig, opened
from trm_mlx.decode.words import NO_WORDS, Words, WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """One text of a search; `reason` as of `stream.Event`, None while it is live."""

    tokens: tuple[int, ...] = ()
    log_probability: float = 0.0
    tail: bytes = b""
    state: int = 0
    reason: Reason | None = None


def divisor(length: int, penalty: float) -> float:
    """lp of a text of this many tokens."""
    return ((5 + length) / 6) ** penalty


def score(text: Text, penalty: float) -> float:
    """What texts are compared by; higher is better."""
    return text.log_probability / divisor(len(text.tokens), penalty)


def search(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: StreamConfig,
    width: int,
    penalty: float,
    words: WordsConfig = NO_WORDS,
    kind: CacheConfig = EVERYTHING,
    constraint: Constraint | None = None,
) -> list[Text]:
    """The texts found, best score first; of equal ones the one that ended first.

    Args:
        prompt: ids, bos first.
        settings: when a text ends, and the depth.
        width: places in the beam, at least 1.
        penalty: a, at least 0; with 0 the score is the log-probability itself, more favours longer texts.
        kind: what is kept of the texts.
        words: biases change the probabilities; a banned text has none, and its share goes to no other.
        constraint: likewise, a text that is not of this form has no probability.

    Raises:
        ValueError: as `stream.events`; also when what is banned leaves no text.
    """
    reader = opened(model, prompt, settings.depth, kind)
    steered = Words(words, tokenizer)
    longest = min(settings.max_tokens, model.config.context - len(prompt))
    if constraint is not None:
        constraint.check(longest)
    live, ended = [Text(tail=steered.tail(prompt))], []
    logits = np.array(reader.append(prompt))  # (W, V), W = 1 as yet
    while live and len(ended) < width:
        continued, parents = [], []
        places = width - len(ended)
        for text, parent, token, total in _likeliest(live, logits, prompt, steered, constraint, longest, places):
            tokens = (*text.tokens, token)
            state = constraint.grown(text.state, token) if constraint is not None else 0
            reason = _reason(tokens, tokenizer, settings.stop, longest, settings.max_tokens)
            if constraint is not None and constraint.over(state):
                reason = "end"
            new = Text(tokens, total, steered.grown(text.tail, token), state, reason)
            if reason:
                ended.append(new)
            else:
                continued.append(new)
                parents.append(parent)
        live = continued
        if settled(live, ended, longest, penalty):
            break
        if live:
            reader.cache.select(parents)
            logits = following(reader, [text.tokens[-1] for text in live])
    return sorted(ended, key=lambda text: -score(text, penalty))


def following(reader: StepModel, tokens: list[int]) -> np.ndarray:
    """(W, V) float32 logits of what follows each token, the next of its row."""
    return np.array(reader.append(mx.array(tokens)[:, None]))


def settled(live: list[Text], ended: list[Text], longest: int, penalty: float) -> bool:
    """Whether no live text can come to score more than the best that has ended."""
    if not live or not ended:
        return False
    most = max(text.log_probability for text in live) / divisor(longest, penalty)
    return max(score(text, penalty) for text in ended) >= most


def _likeliest(
    live: list[Text],
    logits: np.ndarray,
    prompt: Sequence[int],
    words: Words,
    constraint: Constraint | None,
    longest: int,
    places: int,
) -> list[tuple[Text, int, int, float]]:
    """(text, its row, next token, log-probability with it) of the likeliest continuations, best first."""
    totals = np.stack([doubles(row) for row in logits])  # (W, V)
    for text, row in zip(live, totals, strict=True):
        for token, amount in words.biases([*prompt, *text.tokens]).items():
            row[token] += amount
    totals = logarithms(totals) + np.array([[text.log_probability] for text in live])
    for text, row in zip(live, totals, strict=True):
        row[words.banned(text.tail)] = -np.inf
        if constraint is not None:
            row[~constraint.allowed(text.state, longest - len(text.tokens))] = -np.inf
    flat, V = totals.ravel(), logits.shape[1]
    order = [int(each) for each in rank(flat, places) if flat[each] > -np.inf]
    if not order:
        raise ValueError("logits must allow at least one token that is not banned, got -inf at all of them")
    return [(live[each // V], each // V, each % V, float(flat[each])) for each in order]


def logarithms(logits: np.ndarray) -> np.ndarray:
    """(..., V) float64 log-probabilities of (..., V) logits of any float type."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def _reason(
    tokens: tuple[int, ...], tokenizer: Tokenizer, stops: Sequence[str], longest: int, most: int
) -> Reason | None:
    """Why a text ends with its last token, if it does."""
    if tokens[-1] in (tokenizer.eos, tokenizer.end):
        return "end"
    if stops and spoken(tokens, tokenizer, stops, certain=True)[1]:
        return "stop"
    if len(tokens) == longest:
        return "length" if longest == most else "context"
    return None


def spoken(
    tokens: Sequence[int], tokenizer: Tokenizer, stops: Sequence[str], *, certain: bool = False
) -> tuple[str, bool]:
    """The text of tokens up to the first stop text, and whether there was one.

    Args:
        certain: leave out what the next token may still change: half a character, the beginning of a stop text.
    """
    decoder, scanner = tokenizer.stream(), Scanner(stops)
    text = "".join(scanner.push(decoder.push(token)) for token in tokens)
    if not certain:
        text += scanner.push(decoder.finish()) + scanner.finish()
    return text, scanner.found
