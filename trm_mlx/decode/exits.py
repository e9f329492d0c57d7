"""Depth as a dial that each token turns: passes end as soon as a rule holds.

A rule is asked after each pass but the last, and the scores are read after the pass where it holds:

    entropy:X   of the scores just read, in nats, is below X
    kl:X        from the scores after the pass before to those just read, in nats, is below X
    stable:N    the likeliest token has stayed the same over the last N passes
    change:X    root mean square of the difference that the pass made to the normalised state is below X
    halt:X      the model's halting head gives a chance above X that reading now gives the token of full depth

The first three read the scores after every pass, which costs the coda and the head each time. In a prompt all passes
run. In the slots of passes that a token did not run stand its keys and values of the last pass that it did; they are
put there when a later token runs that pass (docs/speed.md has the other way, state propagation as in CALM, arXiv
2207.07061, against it). The slots of the coda hold what the last reading wrote.

Shapes: D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import mlx.core as mx
import numpy as np

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.passes import Passes, State
from trm_mlx.decode.step import StepModel
from trm_mlx.model import EPSILON, TinyRecursiveLM
from trm_mlx.shape import ModelConfig

KINDS = ("entropy", "kl", "stable", "change", "halt")
READING = ("entropy", "kl", "stable")  # rules on scores


@dataclass(frozen=True, kw_only=True)
class ExitConfig:
    """Whether a token may leave before the last pass."""

    exit: Annotated[
        str,
        "leave after the pass where a rule holds, all passes at most: entropy:X below X nats; kl:X from the pass "
        "before, below X nats; stable:N same likeliest token for N passes; change:X of the state below X; halt:X "
        "chance above X, of a model with a halting head; empty: never",
    ] = ""

    def __post_init__(self) -> None:
        if not self.exit:
            return
        kind, colon, number = self.exit.partition(":")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if kind not in KINDS or not colon or not 0 < limit < math.inf:
            raise ValueError(f"exit must be {', '.join(f'{each}:X' for each in KINDS)}, X above 0, got {self.exit!r}")
        if kind == "stable" and limit != int(limit):
            raise ValueError(f"exit stable:N must have a whole number of passes, got {self.exit!r}")
        if kind == "halt" and limit >= 1:
            raise ValueError(f"exit halt:X must be a chance below 1, got {self.exit!r}")

    @property
    def rule(self) -> str:
        return self.exit.partition(":")[0]

    @property
    def limit(self) -> float:
        return float(self.exit.partition(":")[2])

    def check(self, shape: ModelConfig, depth: int | None) -> None:
        """Refuse a rule that could never hold before the last pass of so many."""
        if not self.exit:
            return
        if self.rule == "halt" and not shape.halting:
            raise ValueError("exit halt:X is for a model trained with --halting; this one has no halting head")
        least = {"kl": 3, "stable": 2 + int(self.limit)}.get(self.rule, 2)
        if (depth := shape.at_depth(depth)) < least:
            raise ValueError(f"exit {self.exit} can end no pass early below depth {least}, got depth {depth}")


ALL_PASSES = ExitConfig()


class ExitModel(StepModel):
    """A text each of whose tokens leaves when a rule says so; `append` reads a prompt, `follow` a token written."""

    def __init__(
        self,
        model: TinyRecursiveLM,
        depth: int | None = None,
        kind: CacheConfig = EVERYTHING,
        exits: ExitConfig = ALL_PASSES,
    ) -> None:
        exits.check(model.config, depth)
        super().__init__(model, depth, kind)
        self.passes, self.holds = Passes(self), _rule(exits, model)
        self.reads = exits.rule in READING
        self.depths: list[
            tuple[int, int]
        ] = []  # positions read when scores were given, and the passes that made them
        self.upto = [0] * self.depth  # positions whose slots of each pass are filled

    @property
    def mean_depth(self) -> float:
        """Passes for each token: its scores are those after the token before, or after the prompt."""
        return sum(passes for _, passes in self.depths) / max(1, len(self.depths))

    def reset(self) -> None:
        super().reset()
        self.depths, self.upto = [], [0] * self.depth

    def trim(self, position: int) -> None:
        super().trim(position)
        self.upto = [min(each, position) for each in self.upto]
        self.depths = [each for each in self.depths if each[0] <= position]

    def append(self, ids: Sequence[int] | mx.array, *, every: bool = False) -> mx.array:
        for index in range(1, self.depth):
            self._fill(index)
        logits = super().append(ids, every=every)
        self._count(self.depth)
        self.upto = [self.position] * self.depth
        return logits

    def scores(self, ids: Sequence[int]) -> np.ndarray:
        return np.array(self.append(ids)[0])

    def follow(self, token: int) -> np.ndarray:
        passes = self.passes
        h = anchor = passes.begin([token])
        states, read = [h], []
        for index in range(self.depth):
            self._fill(index)
            h = passes.run(h, anchor, index)
            self.upto[index] = self.position + 1
            states.append(h)
            last = index + 1 == self.depth
            if self.reads and not last:
                read.append(passes.read(h, anchor))
            if last or self.holds(states, read):
                break
        logits = passes.read(h, anchor) if last or not self.reads else read[-1]
        self.cache.advance(1)
        self._count(len(states) - 1)
        return logits[0]

    def _count(self, passes: int) -> None:
        self.depths.append((self.position, passes))

    def _fill(self, index: int) -> None:
        """Give a pass the keys and values of tokens that left before it: those of the pass before, filled alike."""
        cache, start, end = self.cache, self.upto[index], self.position
        if start >= end or not index:
            return
        first = end + 1 - (cache.ring - cache.sinks) if cache.ring else 0  # older ones have been written over
        kept = [position for position in range(start, end) if position < cache.sinks or position >= first]
        places: Any = slice(start, end)
        if cache.ring:
            spots = [cache.place(position) for position in kept]
            places = np.array(spots) if self.folded else mx.array(spots)
        for lender, slot in zip(cache.core[index - 1], cache.core[index], strict=True):
            if slot.lender is None:
                slot.reserve(lender.parts[0].shape[2], lender.parts)
                for here, there in zip(slot.parts, lender.parts, strict=True):
                    if self.folded:  # in place: the step under way holds views of these
                        here, there = np.asarray(here), np.asarray(there)
                    here[:, :, places] = there[:, :, places]


Rule = Callable[[list[State], list[np.ndarray]], bool]  # of the states from the anchor on, and the scores read


def _rule(exits: ExitConfig, model: TinyRecursiveLM) -> Rule:
    limit = exits.limit if exits.exit else 0.0
    if exits.rule == "entropy":
        return lambda states, read: entropy(_row(read[-1])) < limit
    if exits.rule == "kl":
        return lambda states, read: len(read) > 1 and divergence(_row(read[-1]), _row(read[-2])) < limit
    if exits.rule == "stable":
        count = int(limit) + 1
        return lambda states, read: (
            len(read) >= count and len({int(_row(each).argmax()) for each in read[-count:]}) == 1
        )
    if exits.rule == "change":
        return lambda states, read: change(_row(states[-1]), _row(states[-2])) < limit
    if exits.rule == "halt":
        weight, bias = _row(model.halting.weight), float(_row(model.halting.bias)[0])
        return lambda states, read: chance(_row(states[-1]), weight, bias) > limit
    return lambda states, read: False


def entropy(logits: np.ndarray) -> float:
    """Of the distribution of (V,) logits, in nats."""
    logs = _logarithms(logits)
    return float(-(np.exp(logs) * logs).sum())


def divergence(new: np.ndarray, old: np.ndarray) -> float:
    """Kullback-Leibler divergence of the distribution of `new` from that of `old`, both (V,) logits, in nats."""
    logs = _logarithms(new)
    return float((np.exp(logs) * (logs - _logarithms(old))).sum())


def change(new: np.ndarray, old: np.ndarray) -> float:
    """Root mean square of the difference of two (D,) states, each normalised; at most 2."""
    return float(np.sqrt(np.mean((_normed(new) - _normed(old)) ** 2)))


def chance(state: np.ndarray, weight: np.ndarray, bias: float) -> float:
    """What a halting head gives for a (D,) state."""
    return float(1 / (1 + np.exp(-np.clip(_normed(state) @ weight + bias, -60, 60))))


def _row(array: mx.array | np.ndarray) -> np.ndarray:
    array = array if isinstance(array, np.ndarray) else np.array(array.astype(mx.float32))
    return array.reshape(-1).astype(np.float64)


def _normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + EPSILON)


def _logarithms(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
