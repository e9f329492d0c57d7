"""Picks the next token from logits, the same one on every machine and in every language.

Same bits of logits, settings, seed and step: the same token, bit for bit, as the specification in
`tests/golden/make_sampler.py`. Three rules make it so, and a change that breaks one changes texts:

- doubles, and only + - * / floor and compare: each a separate IEEE operation, never a fused one;
- candidates ordered by (logit descending, id ascending), every sum taken in that order, left to right
  (`np.cumsum` is; `np.sum` adds in pairs and is not);
- one draw a token, from a counter and not from a state, so a text resumes at any step.

Shapes: V vocabulary, N candidates left (N <= V).
"""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

TAYLOR = tuple(1 / math.factorial(power) for power in range(14))  # of exp around 0
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # the leading bits of ln 2: k * LN2_HIGH is exact for every k used here
LN2_LOW = 1.9082149292705877e-10
WORD = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is picked. Temperature 0 takes the most likely token and draws nothing."""

    temperature: Annotated[float, "divides the logits; 0 is greedy"] = 0.8
    top_k: Annotated[int, "keep this many of the most likely tokens; 0 keeps all"] = 40
    top_p: Annotated[float, "keep the fewest tokens that hold this share of probability; 1 keeps all"] = 1.0
    min_p: Annotated[float, "keep tokens at least this likely relative to the likeliest; 0 keeps all"] = 0.0
    repetition_penalty: Annotated[float, "above 1 makes tokens of the history less likely; 1 is off"] = 1.0
    seed: Annotated[int, "64-bit number that fixes every draw"] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}; 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie between 0 and 1, got {self.min_p}; 0 keeps all tokens")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be finite and above 0, got {self.repetition_penalty}; 1 is off"
            )
        if not 0 <= self.seed <= WORD:
            raise ValueError(f"seed must be at least 0 and below 2**64, got {self.seed}")


class History(Collection[int]):
    """The distinct ids of a text so far; adding one costs the same however long the text.

    Args:
        vocabulary: V; every id must lie below it.
        ids: tokens to begin with, repeats welcome.

    Raises:
        ValueError: an id, here or in `add`, lies outside the vocabulary.
    """

    def __init__(self, vocabulary: int, ids: Iterable[int] = ()) -> None:
        self.vocabulary = vocabulary
        self._seen = np.zeros(vocabulary, dtype=bool)
        self._ids = np.empty(vocabulary, dtype=np.int64)
        self._count = 0
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Remember one token of the text."""
        if not 0 <= token < self.vocabulary:
            raise ValueError(f"history must hold ids from 0 to {self.vocabulary - 1}, got {token}")
        if not self._seen[token]:
            self._seen[token] = True
            self._ids[self._count] = token
            self._count += 1

    @property
    def ids(self) -> np.ndarray:
        """The distinct ids, int64, in order of first appearance; a view, not a copy."""
        return self._ids[: self._count]

    def __contains__(self, token: object) -> bool:
        return isinstance(token, int) and 0 <= token < self.vocabulary and bool(self._seen[token])

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __len__(self) -> int:
        return self._count


def uniform(seed: int, step: int) -> float:
    """The draw of one step: a multiple of 2**-53, at least 0 and below 1.

    Args:
        seed: from 0 to 2**64 - 1.
        step: index of the token in its text, at least 0; any order, nothing is kept in between.

    Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014: its output number `step`.
    """
    z = (int(seed) + (int(step) + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def exponential(x: np.ndarray) -> np.ndarray:
    """e to the x with the same bits everywhere, within one unit in the last place.

    Args:
        x: float64, any shape, at most 700; at or below -700 and NaN give 0.

    Returns:
        float64, the shape of x.
    """
    live = x > -700.0
    x = np.where(live, x, 0.0)
    k = np.floor(x * LOG2_E + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    total = TAYLOR[-1] * r
    for coefficient in TAYLOR[-2:0:-1]:
        total += coefficient
        total *= r
    total += TAYLOR[0]
    return np.where(live, np.ldexp(total, k.astype(np.int32)), 0.0)


def rank(logits: np.ndarray, top_k: int) -> np.ndarray:
    """Ids by (logit descending, id ascending), only the first top_k of them unless top_k is 0.

    Args:
        logits: (V,) without NaN. Zero and minus zero are equal, so their ids decide.

    Returns:
        (N,) int64.
    """
    lowered = -logits  # partition is several times slower where equal values, as of a mask, come first
    if not 0 < top_k < logits.size:
        return np.argsort(lowered, kind="stable")
    last = np.partition(lowered, top_k - 1)[top_k - 1]
    above = np.flatnonzero(lowered < last)
    level = np.flatnonzero(lowered == last)[: top_k - above.size]  # lowest ids win the places left
    return np.concatenate([above[np.argsort(lowered[above], kind="stable")], level])


def penalize(logits: np.ndarray, penalty: float, history: Collection[int]) -> None:
    """Make each distinct id of the history less likely, once, in place (more likely if penalty < 1).

    Source: CTRL, arXiv 1909.05858, section 4.1; negative logits are multiplied, as is usual since.
    """
    if not isinstance(history, History):
        history = History(logits.size, history)
    if history.vocabulary != logits.size:
        raise ValueError(f"history must have the vocabulary of the logits, {logits.size}, got {history.vocabulary}")
    old = logits[history.ids]
    logits[history.ids] = np.where(old > 0, old / penalty, old * penalty)


def sample(logits: np.ndarray, settings: SamplingConfig, step: int, history: Collection[int] = ()) -> int:
    """The next token.

    Args:
        logits: (V,) float16, float32 or float64, not changed; -inf forbids a token.
        step: index of this token in its text, which picks the draw; at least 0.
        history: ids to penalize, read only if `repetition_penalty` is not 1. A `History` that the caller
            adds to costs the same at every step; any other collection is read whole each time.

    Returns:
        An id below V. Greedy with every token forbidden gives 0, as the specification does.

    Raises:
        ValueError: logits hold NaN or +inf, or forbid every token when a draw is wanted; an id of the
            history lies outside V.
    """
    if logits.ndim != 1 or logits.size == 0 or logits.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"logits must be one float row (V,), got {logits.dtype} of shape {logits.shape}")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    with np.errstate(all="ignore"):  # overflow to -inf is meant: a tiny temperature leaves one token
        values = logits.astype(np.float64)
        if not values.max() < math.inf:  # NaN is not below anything, and max passes it on
            wrong = int(np.argmin(values < math.inf))
            found = "NaN" if math.isnan(values[wrong]) else "+inf"
            raise ValueError(f"logits must be finite, or -inf to forbid a token, got {found} at id {wrong}")
        if settings.repetition_penalty != 1:
            penalize(values, settings.repetition_penalty, history)
        if settings.temperature == 0:
            return int(np.argmax(values))
        return draw(values, settings, uniform(settings.seed, step))


def draw(logits: np.ndarray, settings: SamplingConfig, chance: float) -> int:
    """The token at which the running probability first passes chance, from 0 to below 1.

    Args:
        logits: (V,) float64 without NaN, penalty applied.
    """
    order = rank(logits, settings.top_k)
    ordered = logits[order]  # (N,)
    if ordered[0] == -math.inf:
        raise ValueError(f"logits must allow at least one token, got -inf at all {logits.size} ids")
    weights = exponential((ordered - ordered[0]) / settings.temperature)
    running = np.cumsum(weights)
    kept = order.size
    if settings.top_p < 1:
        kept = int(running.searchsorted(settings.top_p * running[-1], side="left")) + 1
    if settings.min_p > 0:
        unlikely = weights[1:kept] < settings.min_p * weights[0]  # (kept - 1,)
        if unlikely.any():
            kept = 1 + int(np.argmax(unlikely))
    chosen = int(running[:kept].searchsorted(chance * running[kept - 1], side="right"))
    return int(order[min(chosen, kept - 1)])
