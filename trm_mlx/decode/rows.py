"""Texts of different lengths, each a row of one batch: they end in the same place and begin in different ones.

All rows write to one place, the column, so that one step of fixed shapes serves them all. A text that is read into a
row ends at the column, and its `lead`, the places before it, is not seen. When the places run out, rows move left by
the shortest lead, or there come to be more places.

Shapes: B rows, T tokens of the longest prompt, S places, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.step import StepModel
from trm_mlx.model import TinyRecursiveLM

SPACE = 32  # places that moving rows must leave or make at least: it copies the cache, which is as long as two steps
TOGETHER = 4096  # prompt tokens read at a time, filling included


class Rows:
    """B texts, of which some may be missing."""

    def __init__(
        self, model: TinyRecursiveLM, count: int, depth: int | None = None, kind: CacheConfig = EVERYTHING
    ) -> None:
        self.model, self.kind = model, kind
        self.step = self._reader(depth)
        self.sizes = self._reader(depth).cache  # stays empty, and tells how many places there should be
        self.lengths = np.zeros(count, np.int64)  # (B,) tokens of each text; 0: there is none

    def _reader(self, depth: int | None) -> StepModel:
        reader = StepModel(self.model, depth, self.kind)
        reader.cache.ring = 0  # a ring would turn in each row at another time; the mask alone forgets
        return reader

    @property
    def column(self) -> int:
        """The place that is written to next."""
        return self.step.position

    @property
    def places(self) -> int:
        """S, 0 before there is a text."""
        return self.step.cache.places

    def read(self, prompts: Mapping[int, Sequence[int]]) -> mx.array:
        """Begin a text in each of these rows, in place of any that is there.

        Args:
            prompts: by row; at least one, each of at least one token.

        Returns:
            (len(prompts), V) float32 scores of what follows, in the order of `prompts`.
        """
        for row, prompt in prompts.items():
            self.lengths[row] = len(prompt)
        self._arrange(int(self.lengths.max()))
        scores: dict[int, mx.array] = {}
        for rows in _alike(prompts):
            longest = max(len(prompts[row]) for row in rows)
            reader = self._reader(self.step.depth)
            leads = [longest - len(prompts[row]) for row in rows]
            reader.cache.lead = mx.array(leads) if any(leads) else None
            ids = [[0] * lead + list(prompts[row]) for row, lead in zip(rows, leads, strict=True)]
            logits = reader.append(mx.array(ids))
            self._take(rows, reader)
            mx.eval(logits, self.step.cache.arrays)
            scores |= dict(zip(rows, logits, strict=True))
        return mx.stack([scores[row] for row in prompts])

    def append(self, tokens: Sequence[int]) -> mx.array:
        """Read the next token of each row; that of a row without a text may be any.

        Returns:
            (B, V) float32 scores of what follows.
        """
        if self.column == self.places:
            self._arrange(int(self.lengths.max()) + 1)
        self.step.cache.lead = mx.array((self.column - self.lengths).astype(np.int32))
        logits = self.step.append(mx.array(list(tokens))[:, None])
        self.lengths += self.lengths > 0
        return logits

    def forget(self, row: int) -> None:
        """End the text of a row."""
        self.lengths[row] = 0

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.step.cache.select(rows)
        self.lengths = self.lengths[list(rows)]

    def _arrange(self, longest: int) -> None:
        """Have as many places as a text of this length needs, one token more included, and the column among them."""
        cache, places, column = self.step.cache, self._wanted(longest), int(self.lengths.max())
        if self.column >= column and places == self.places and self.column < places:
            return
        left, right = max(self.column - column, 0), max(column - self.column, 0)
        shares = [(0, 0), (0, 0), (right, places - column), (0, 0)]
        cache.replace([mx.pad(part[:, :, left : self.column], shares) for part in cache.arrays])
        cache.length = column

    def _wanted(self, longest: int) -> int:
        return self.sizes.capacity(min(longest + SPACE, self.model.config.context))

    def _take(self, rows: Sequence[int], reader: StepModel) -> None:
        """Put what was read into these rows, so that it ends at the column."""
        for slot, read in zip(self.step.cache.slots, reader.cache.slots, strict=True):
            if not slot.parts and read.parts:
                B = len(self.lengths)
                like = [mx.zeros((B, part.shape[1], 1, part.shape[3]), part.dtype) for part in read.parts]
                slot.reserve(self._wanted(self.column), like)
            for number, part in enumerate(read.parts):
                kept = slot.parts[number]
                for index, row in enumerate(rows):
                    length = int(self.lengths[row])
                    piece = part[index : index + 1, :, reader.position - length : reader.position]
                    kept = mx.slice_update(kept, piece, mx.array([row, self.column - length]), axes=[0, 2])
                slot.parts[number] = kept


def _alike(prompts: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """The rows in groups that are read together, of which at most half is filling, and not too much in all."""
    groups: list[list[int]] = []
    for row in sorted(prompts, key=lambda row: -len(prompts[row])):
        longest = len(prompts[groups[-1][0]]) if groups else 0
        if groups and 2 * len(prompts[row]) >= longest and longest * (len(groups[-1]) + 1) <= TOGETHER:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
