"""What drafts tokens for `speculative`: fewer passes of the text's own model, or another model.

Shapes: V vocabulary, k drafts.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from trm_mlx.cache import SPARE
from trm_mlx.decode.passes import Passes, State
from trm_mlx.decode.step import StepModel


class Drafter(Protocol):
    """Drafts for a text, from where the text is; `verify` follows k calls of `read`."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Read a prompt, where the text's reading of it is not enough."""
        ...

    def read(self, known: Sequence[int]) -> np.ndarray:
        """(V,) scores of the token after all known ones, the last of which is yet to be read."""
        ...

    def verify(self, known: Sequence[int], drafts: Sequence[int]) -> np.ndarray:
        """(k + 1, V) scores of the text after the last known token and after each draft, which are all read then."""
        ...

    def trim(self, position: int) -> None:
        """Forget the positions from here on; so does the caller's text."""
        ...

    def owed(self, known: int) -> int:
        """Tokens to catch up with; -1 if there is no room to draft."""
        ...


class Shallow:
    """Drafts with the first passes of the text's own model; verification does the rest of them, for all at once."""

    def __init__(self, text: StepModel, depth: int) -> None:
        self.text, self.depth, self.passes = text, depth, Passes(text)
        self.states: list[tuple[State, State]] = []  # and anchors, of the tokens read since the last verification

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def _first(self, token: int) -> tuple[State, State]:
        h = anchor = self.passes.begin([token])
        for index in range(self.depth):
            h = self.passes.run(h, anchor, index)
        self.states.append((h, anchor))
        return h, anchor

    def read(self, known: Sequence[int]) -> np.ndarray:
        logits = self.passes.read(*self._first(known[-1]))[0]
        self.text.cache.advance(1)
        return logits

    def verify(self, known: Sequence[int], drafts: Sequence[int]) -> np.ndarray:
        self._first(drafts[-1])
        count, cache = len(self.states), self.text.cache
        cache.trim(cache.length - count + 1)
        self.passes.stand(count)
        h, anchor = (self.passes.joined(each) for each in zip(*self.states, strict=True))
        self.states.clear()
        for index in range(self.depth, self.text.depth):
            h = self.passes.run(h, anchor, index)
        logits = self.passes.read(h, anchor)
        cache.advance(count)
        return logits

    def trim(self, position: int) -> None:
        pass  # there is one cache, which is the text's

    def owed(self, known: int) -> int:
        return 0


class Other:
    """Drafts with another model, whose cache follows the text's."""

    def __init__(self, text: StepModel, draft: StepModel) -> None:
        self.text, self.draft = text, draft

    def begin(self, prompt: Sequence[int]) -> None:
        if self.owed(len(prompt)) >= 0:
            self.draft.scores(prompt)

    def read(self, known: Sequence[int]) -> np.ndarray:
        missing = known[self.draft.position :]
        every = len(missing) <= SPARE
        logits = np.array(self.draft.append(missing, every=every)[0])
        return logits[-1] if every else logits

    def verify(self, known: Sequence[int], drafts: Sequence[int]) -> np.ndarray:
        return np.array(self.text.append([known[-1], *drafts], every=True)[0])

    def trim(self, position: int) -> None:
        if position < self.draft.position:
            self.draft.trim(position)

    def owed(self, known: int) -> int:
        return max(0, known - 1 - self.draft.position) if known + SPARE < self.draft.model.config.context else -1
