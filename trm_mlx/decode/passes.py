"""The forward pass over a text's next positions in parts, so that it can stop after any pass, and go on later.

Shapes: T tokens of one text, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from trm_mlx import fused
from trm_mlx.decode.step import StepModel

State = Any  # (T, D) of NumPy where the step is folded, (1, T, D) of MLX elsewhere


class Passes:
    """The parts of one text's forward pass over T tokens: `begin`, then `run` for each pass, and `read` after any.

    Each writes keys and values of the T positions from `text.position` on, a later reading over an earlier one; they
    are the text's once `text.cache.advance(T)` counts them.
    """

    def __init__(self, text: StepModel) -> None:
        self.text, self.folded = text, text.folded

    def begin(self, ids: Sequence[int]) -> State:
        """The anchor of these tokens, which is also their state before the first pass."""
        self.stand(len(ids))
        cache = self.text.cache
        if self.folded:
            return self.folded.run_prelude(np.array([list(ids)]), self.place)
        with fused.uncompiled():
            return self.text.model.run_prelude(mx.array([list(ids)]), cache.length, self.visible, cache.prelude)

    def stand(self, T: int) -> None:
        """Be at the next T positions, as `begin` does by itself."""
        if self.folded:
            self.place = self.folded.place(self.text.cache, 1, T)
        else:
            self.visible = self.text.cache.visible(T)

    def run(self, h: State, anchor: State, index: int) -> State:
        """The state after pass `index`, from 0."""
        if self.folded:
            return self.folded.run_pass(h, anchor, index, self.place)
        with fused.uncompiled():
            return self.text.model.run_pass(h, anchor, index, self.visible, self.text.cache.core[index])

    def read(self, h: State, anchor: State) -> np.ndarray:
        """(T, V) float32 scores from these states."""
        if self.folded:
            return self.folded.read(h, anchor, self.place)[0]
        with fused.uncompiled():
            logits = self.text.model.read(h, anchor, self.visible, self.text.cache.coda)[0]
        return np.array(logits.astype(mx.float32))

    def joined(self, states: Sequence[State]) -> State:
        """States of consecutive positions as one."""
        return np.concatenate(states) if self.folded else mx.concatenate(list(states), axis=1)
