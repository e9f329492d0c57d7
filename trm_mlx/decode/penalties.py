"""What a text so far makes less likely: every id of it once, or by how often it came.

The text so far is the prompt and what was written, alike for every penalty here.

Shapes: V vocabulary.
"""

from collections.abc import Collection, Iterable, Iterator

import numpy as np


class History(Collection[int]):
    """The distinct ids of a text so far, and how often each came; adding one costs the same in any text.

    Args:
        vocabulary: V; every id must lie below it.
        ids: tokens to begin with, repeats welcome.

    Raises:
        ValueError: an id, here or in `add`, lies outside the vocabulary.
    """

    def __init__(self, vocabulary: int, ids: Iterable[int] = ()) -> None:
        self.vocabulary = vocabulary
        self._counts = np.zeros(vocabulary, dtype=np.int64)
        self._ids = np.empty(vocabulary, dtype=np.int64)
        self._distinct = 0
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Remember one token of the text."""
        if not 0 <= token < self.vocabulary:
            raise ValueError(f"history must hold ids from 0 to {self.vocabulary - 1}, got {token}")
        if not self._counts[token]:
            self._ids[self._distinct] = token
            self._distinct += 1
        self._counts[token] += 1

    def take_back(self, token: int) -> None:
        """Forget the token that was added last."""
        self._counts[token] -= 1
        self._distinct -= not self._counts[token]  # ids stand in order of first appearance, so it is the last

    @property
    def ids(self) -> np.ndarray:
        """The distinct ids, int64, in order of first appearance; a view, not a copy."""
        return self._ids[: self._distinct]

    @property
    def counts(self) -> np.ndarray:
        """How often each of `ids` came, int64, at least 1."""
        return self._counts[self.ids]

    def __contains__(self, token: object) -> bool:
        return isinstance(token, int) and 0 <= token < self.vocabulary and bool(self._counts[token])

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __len__(self) -> int:
        return self._distinct


def penalize(
    logits: np.ndarray, history: Collection[int], repetition: float, presence: float, frequency: float
) -> None:
    """Make the ids of the history less likely, in place.

    A logit above 0 is divided by `repetition`, any other multiplied; then presence + frequency * count is
    taken from it. Repetition 1, presence 0 and frequency 0 change nothing; beyond them ids become likelier.

    Args:
        logits: (V,) float64.
        history: a `History`, or ids to make one of; each time an id comes counts.

    Source: repetition: CTRL, arXiv 1909.05858, section 4.1 (negative logits are multiplied, as is usual since);
    presence and frequency: the OpenAI API, "frequency and presence penalties", which leaves the prompt out.
    """
    if not isinstance(history, History):
        history = History(logits.size, history)
    if history.vocabulary != logits.size:
        raise ValueError(f"history must have the vocabulary of the logits, {logits.size}, got {history.vocabulary}")
    values = logits[history.ids]
    if repetition != 1:
        values = np.where(values > 0, values / repetition, values * repetition)
    if presence or frequency:
        values = values - (presence + frequency * history.counts)
    logits[history.ids] = values
