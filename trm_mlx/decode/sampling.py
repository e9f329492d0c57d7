"""Picks the next token from logits, the same one on every machine and in every language.

Same bits of logits, settings, seed and step: the same token, bit for bit, as the specification in
`tests/golden/make_sampler.py`. Three rules make it so, and a change that breaks one changes texts:

- doubles, and only + - * / floor and compare: each a separate IEEE operation, never a fused one;
- candidates ordered by (logit descending, id ascending), every sum taken in that order, left to right
  (`np.cumsum` is; `np.sum` adds in pairs and is not); typical sampling alone has an order of its own;
- one draw a token, from a counter and not from a state, so a text resumes at any step.

The steps, in their order; one that is off leaves every bit as it was:

1. NaN and +inf are refused.          2. bias is added.             3. ids banned or not allowed get -inf.
4. repetition penalty.                5. presence and frequency.    6. temperature 0: the first maximum, no draw.
7. order, and the first top_k of it.  8. weight = e^((l - l_0) / temperature), l_0 the first logit in order.
9. typical_p.                         10. top_p.                    11. min_p, against the first weight left.
12. the draw.

Shapes: V vocabulary, N candidates left (N <= V).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from trm_mlx.decode.penalties import penalize
from trm_mlx.splitmix import WORD, splitmix64

TAYLOR = tuple(1 / math.factorial(power) for power in range(14))  # of exp around 0
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # the leading bits of ln 2: k * LN2_HIGH is exact for every k used here
LN2_LOW = 1.9082149292705877e-10
LARGEST = 100.0  # bias or penalty: e^100 decides any draw, and no sum of them overflows
NO_BIAS: Mapping[int, float] = {}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is picked. Temperature 0 takes the most likely token and draws nothing."""

    temperature: Annotated[float, "divides the logits; 0 is greedy"] = 0.8
    top_k: Annotated[int, "keep this many of the most likely tokens; 0 keeps all"] = 40
    top_p: Annotated[float, "keep the fewest tokens that hold this share of probability; 1 keeps all"] = 1.0
    min_p: Annotated[float, "keep tokens at least this likely relative to the likeliest; 0 keeps all"] = 0.0
    typical_p: Annotated[float, "keep the tokens of most usual surprise that hold this share; 1 keeps all"] = 1.0
    repetition_penalty: Annotated[
        float, "above 1 makes tokens of the text so far, prompt included, less likely; 1 is off"
    ] = 1.0
    presence_penalty: Annotated[float, "taken from the logit of each token of the text so far, once"] = 0.0
    frequency_penalty: Annotated[float, "taken from it for every time it came, in the prompt too"] = 0.0
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
        if not 0 < self.typical_p <= 1:
            raise ValueError(f"typical_p must be above 0 and at most 1, got {self.typical_p}; 1 keeps all tokens")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -LARGEST <= getattr(self, name) <= LARGEST:
                raise ValueError(
                    f"{name} must lie between {-LARGEST:g} and {LARGEST:g}, got {getattr(self, name)}; 0 is off"
                )
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be finite and above 0, got {self.repetition_penalty}; 1 is off"
            )
        if not 0 <= self.seed <= WORD:
            raise ValueError(f"seed must be at least 0 and below 2**64, got {self.seed}")

    @property
    def remembers(self) -> bool:
        """Whether the text so far has a say."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def uniform(seed: int, step: int) -> float:
    """The draw of one step: a multiple of 2**-53, at least 0 and below 1.

    Args:
        seed: from 0 to 2**64 - 1.
        step: index of the token in its text, at least 0; any order, nothing is kept in between.

    Source: SplitMix64, its output number `step`.
    """
    return (splitmix64(seed, step) >> 11) * 2.0**-53


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


def doubles(logits: np.ndarray) -> np.ndarray:
    """The same numbers as float64, a copy; a ValueError names the first that is NaN or +inf."""
    values = logits.astype(np.float64)
    if not values.max() < math.inf:  # NaN is not below anything, and max passes it on
        wrong = int(np.argmin(values < math.inf))
        found = "NaN" if math.isnan(values[wrong]) else "+inf"
        raise ValueError(f"logits must be finite, or -inf to forbid a token, got {found} at id {wrong}")
    return values


def steer(
    logits: np.ndarray,
    bias: Mapping[int, float],
    banned: Sequence[int] | np.ndarray,
    allowed: np.ndarray | None = None,
) -> None:
    """Add each bias to the logit of its id, then give ids that are banned or not allowed -inf, in place.

    Raises:
        ValueError: an id lies outside V, or no token is left.
    """
    ids = np.array([*bias, *banned], dtype=np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < logits.size:
        raise ValueError(f"bias and banned must hold ids from 0 to {logits.size - 1}, got {ids.min()} to {ids.max()}")
    logits[ids[: len(bias)]] += [*bias.values()]
    logits[ids[len(bias) :]] = -math.inf
    if allowed is not None:
        np.copyto(logits, -math.inf, where=~allowed)
    if (ids.size > len(bias) or allowed is not None) and logits.max() == -math.inf:
        raise ValueError("logits must allow at least one token that is not banned, got -inf at all of them")


def sample(
    logits: np.ndarray,
    settings: SamplingConfig,
    step: int,
    history: Collection[int] = (),
    bias: Mapping[int, float] = NO_BIAS,
    banned: Sequence[int] | np.ndarray = (),
    allowed: np.ndarray | None = None,
) -> int:
    """The next token.

    Args:
        logits: (V,) float16, float32 or float64, not changed; -inf forbids a token.
        step: index of this token in its text, which picks the draw; at least 0.
        history: ids to penalize, read only if `settings.remembers`. A `History` that the caller
            adds to costs the same at every step; any other collection is read whole each time.
        bias: what to add to the logit of an id.
        banned: ids that must not be taken.
        allowed: (V,) bool, the ids that may be taken; None for all.

    Returns:
        An id below V. Greedy with every token forbidden gives 0, as the specification does.

    Raises:
        ValueError: logits hold NaN or +inf, or forbid every token when a draw is wanted; ids of history, bias or
            banned lie outside V; what is banned leaves no token.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    with np.errstate(all="ignore"):  # overflow to -inf is meant: a tiny temperature leaves one token
        values = adjusted(logits, settings, history, bias, banned, allowed)
        if settings.temperature == 0:
            return int(np.argmax(values))
        return draw(values, settings, uniform(settings.seed, step))


def distribution(
    logits: np.ndarray,
    settings: SamplingConfig,
    history: Collection[int] = (),
    bias: Mapping[int, float] = NO_BIAS,
    banned: Sequence[int] | np.ndarray = (),
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """(V,) float64 chances of each id to be what `sample` gives, over all draws; arguments and errors as there."""
    with np.errstate(all="ignore"):
        values = adjusted(logits, settings, history, bias, banned, allowed)
        chances = np.zeros(values.size)
        if settings.temperature == 0:
            chances[np.argmax(values)] = 1
        else:
            order, running = candidates(values, settings)
            chances[order] = np.diff(running, prepend=0) / running[-1]
    return chances


def adjusted(
    logits: np.ndarray,
    settings: SamplingConfig,
    history: Collection[int],
    bias: Mapping[int, float],
    banned: Sequence[int] | np.ndarray,
    allowed: np.ndarray | None,
) -> np.ndarray:
    """(V,) float64: the logits after what changes them, steps 1 to 5; arguments and errors as of `sample`."""
    if logits.ndim != 1 or logits.size == 0 or logits.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"logits must be one float row (V,), got {logits.dtype} of shape {logits.shape}")
    values = doubles(logits)
    if bias or len(banned) or allowed is not None:
        steer(values, bias, banned, allowed)
    if settings.remembers:
        penalties = (settings.repetition_penalty, settings.presence_penalty, settings.frequency_penalty)
        penalize(values, history, *penalties)
    return values


def typical(steps: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Places of the fewest candidates, of information nearest to the mean information, that hold a share.

    With x = `steps` and probabilities p proportional to e^x, information is c - x and its mean, the entropy,
    c - sum(p x), with one and the same c: their distance needs no logarithm. Of equal distances the earlier
    place comes first; a weight of 0 is infinitely far.

    Args:
        steps: (N,) scaled logits, descending.
        weights: (N,) e to the steps.

    Returns:
        Ascending places, at least one; all of them if the weights are all 0.

    Source: locally typical sampling, arXiv 2202.00666, section 4, over the candidates that top_k left.
    """
    total = np.cumsum(weights)[-1]
    if not total > 0:
        return np.arange(weights.size)
    live = weights > 0
    mean = np.cumsum(np.where(live, weights * steps, 0.0))[-1] / total
    nearest = np.argsort(np.where(live, np.abs(steps - mean), math.inf), kind="stable")
    running = np.cumsum(weights[nearest])
    kept = int(running.searchsorted(share * running[-1], side="left")) + 1
    return np.sort(nearest[:kept])


def draw(logits: np.ndarray, settings: SamplingConfig, chance: float) -> int:
    """The token at which the running probability first passes chance, from 0 to below 1.

    Args:
        logits: (V,) float64 without NaN, what changes logits applied.
    """
    order, running = candidates(logits, settings)
    chosen = int(running.searchsorted(chance * running[-1], side="right"))
    return int(order[min(chosen, order.size - 1)])


def candidates(logits: np.ndarray, settings: SamplingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The ids that may be drawn, in their order, and the running sums of their weights: each (N,). See `draw`."""
    order = rank(logits, settings.top_k)
    ordered = logits[order]  # (N,)
    if ordered[0] == -math.inf:
        raise ValueError(f"logits must allow at least one token, got -inf at all {logits.size} ids")
    steps = (ordered - ordered[0]) / settings.temperature
    weights = exponential(steps)
    if settings.typical_p < 1:
        places = typical(steps, weights, settings.typical_p)
        order, weights = order[places], weights[places]
    running = np.cumsum(weights)
    kept = order.size
    if settings.top_p < 1:
        kept = int(running.searchsorted(settings.top_p * running[-1], side="left")) + 1
    if settings.min_p > 0:
        unlikely = weights[1:kept] < settings.min_p * weights[0]  # (kept - 1,)
        if unlikely.any():
            kept = 1 + int(np.argmax(unlikely))
    return order[:kept], running[:kept]
