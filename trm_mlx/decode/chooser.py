"""What a text's next token is chosen by: how it is drawn, and what of the text so far has a say in it.

Shapes: V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from trm_mlx.decode.constrain import Constraint
from trm_mlx.decode.penalties import History
from trm_mlx.decode.sampling import SamplingConfig, adjusted, distribution, doubles, sample
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.words import Words


class Chooser:
    """Chooses the tokens of one text, one by one; tokens that were only tried can be taken back."""

    def __init__(
        self,
        sampling: SamplingConfig,
        steered: Words,
        vocabulary: int,
        prompt: Sequence[int],
        constraint: Constraint | None = None,
        most: int = 0,
    ) -> None:
        """most: tokens that a text of the constraint has to end within."""
        self.sampling, self.steered, self.constraint, self.most = sampling, steered, constraint, most
        self.states = [0 if constraint is None else constraint.start]  # like tails
        self.history = History(vocabulary, prompt) if sampling.remembers else None
        self.prompt = prompt
        self.tokens: list[int] = []  # written so far
        self.tails = [steered.tail(prompt)]  # before each of them, and after the last

    @property
    def likeliest(self) -> bool:
        """Whether a token is that of the highest score and nothing else matters."""
        free = self.history is None and self.constraint is None and not self.steered.steers
        return self.sampling.temperature == 0 and free

    @property
    def over(self) -> bool:
        """Whether the constraint lets nothing follow."""
        return self.constraint is not None and self.constraint.over(self.states[-1])

    def token(self, logits: np.ndarray) -> int:
        """The next token from (V,) logits: draw number n for the n-th, from 0."""
        return sample(logits, self.sampling, len(self.tokens), *self._steering())

    def chances(self, logits: np.ndarray) -> np.ndarray:
        """(V,) float64: how likely `token` gives each id, over all draws."""
        return distribution(logits, self.sampling, *self._steering())

    def lead(self, logits: np.ndarray) -> float:
        """By how much the highest of (V,) logits is above the next, in parts of the largest absolute one."""
        with np.errstate(all="ignore"):
            values = adjusted(logits, self.sampling, *self._steering())
        second, first = np.partition(values, -2)[-2:] if values.size > 1 else (-math.inf, values[0])
        return float(first - second) / max(abs(float(logits.max())), abs(float(logits.min())), 1e-30)

    def add(self, token: int) -> None:
        """Count a token as written."""
        if self.history is not None:
            self.history.add(token)
        self.tokens.append(token)
        self.tails.append(self.steered.grown(self.tails[-1], token))
        if self.constraint is not None:
            self.states.append(self.constraint.grown(self.states[-1], token))

    def take_back(self, count: int) -> None:
        """Forget the last tokens added."""
        for _ in range(count):
            token = self.tokens.pop()
            self.tails.pop()
            if self.constraint is not None:
                self.states.pop()
            if self.history is not None:
                self.history.take_back(token)

    def _steering(self):
        allowed = None
        if self.constraint is not None:
            allowed = self.constraint.allowed(self.states[-1], self.most - len(self.tokens))
        biases = self.steered.biases([*self.prompt, *self.tokens])
        return self.history or (), biases, self.steered.banned(self.tails[-1]), allowed


def plainly(text: StepModel, ids: Sequence[int], most: int, chooser: Chooser) -> Iterator[int]:
    """At most so many tokens that go on from these ids, which are yet to be read; each is counted as written."""
    if chooser.likeliest and type(text) is StepModel and not text.folded:
        for token in greedy(text, ids, most):
            chooser.add(token)
            yield token
        return
    for step in range(most):
        token = chooser.token(text.follow(chooser.tokens[-1]) if step else text.scores(ids))
        chooser.add(token)
        yield token


def greedy(text: StepModel, ids: Sequence[int], most: int) -> Iterator[int]:
    """The likeliest token, again and again: chosen where the scores are, the next step begun before it is told."""
    logits = text.append(ids)
    for left in range(most, 0, -1):
        token, sound = logits.argmax(-1), (logits < math.inf).all()  # NaN is not below anything
        following = text.append(token[:, None]) if left > 1 else logits
        mx.async_eval(token, sound, following)
        if not sound.item():
            doubles(np.array(logits[0]))  # names what is wrong
        yield int(np.array(token)[0])
        logits = following
