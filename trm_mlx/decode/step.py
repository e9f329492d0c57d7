"""A model in the middle of texts: reads tokens, and gives the scores of the next.

On the Linux CPU few tokens at a time run in NumPy (`decode.folded`); everything else, and every other device, runs
the model itself.

Shapes: B rows, T tokens, V vocabulary.
"""

import threading
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trm_mlx import fused
from trm_mlx.cache import EVERYTHING, SPARE, Cache, CacheConfig
from trm_mlx.decode.folded import Folded, foldable
from trm_mlx.model import TinyRecursiveLM

PREFILL = 512  # prompt tokens at a time: scores of T x S are what takes memory
LONG = 128  # tokens at a time from which compiled forms are worth their compiling, which is once for each thread


class StepModel:
    """One text, or several of the same length, read token by token at one depth.

    Its scores are lazy where the model runs; `folded` is None there. Not for several threads at once.
    """

    def __init__(self, model: TinyRecursiveLM, depth: int | None = None, kind: CacheConfig = EVERYTHING) -> None:
        self.model, self.kind = model, kind
        self.cache: Cache = model.cache(depth, kind)
        self.folded = folded(model)

    @property
    def depth(self) -> int:
        return self.cache.depth

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return self.cache.length

    def reset(self) -> None:
        """Begin new texts."""
        self.cache = self.model.cache(self.depth, self.kind)

    def trim(self, position: int) -> None:
        """Forget the tokens from `position` on; see `Cache.trim`."""
        self.cache.trim(position)

    def scores(self, ids: Sequence[int]) -> np.ndarray:
        """(V,) float32 scores of the token after these of one text."""
        if self.folded and len(ids) == 1:
            return self.folded.step(np.array([ids]), self.cache)[0, -1]
        return np.array(self.append(ids)[0])

    def append(self, ids: Sequence[int] | mx.array, *, every: bool = False) -> mx.array:
        """Read tokens.

        Args:
            ids: T of one text, or (B, T); at least one.
            every: give the scores after each token and not after the last alone.

        Returns:
            (B, V) float32, or with `every` (B, T, V).
        """
        ids = ids if isinstance(ids, mx.array) else mx.array([list(ids)])
        T = ids.shape[1]
        if self.folded and (T == 1 or (every and T <= SPARE)):
            logits = mx.array(self.folded.step(np.array(ids), self.cache))
            return logits if every else logits[:, -1]
        parts = []
        for start in range(0, T, PREFILL):
            end = min(start + PREFILL, T)
            compiling = end - start >= LONG and threading.current_thread() is threading.main_thread()
            with fused.use(fused.active()) if compiling else fused.uncompiled():
                logits = self.model(ids[:, start:end], depth=self.depth, cache=self.cache, last=not every)
            parts = [*parts, logits] if every else [logits]
            if end < T:
                mx.eval(self.cache.arrays)
        logits = mx.concatenate(parts, axis=1).astype(mx.float32)
        if self.folded:
            mx.eval(logits, self.cache.arrays)  # before NumPy writes to what they are computed from
        return logits if every else logits[:, -1]

    def follow(self, token: int) -> np.ndarray:
        """(V,) float32: read a token that was written, which may take fewer passes than one of a prompt."""
        return self.scores([token])


def folded(model: TinyRecursiveLM) -> Folded | None:
    """The model's folded weights, made once; None where its own form is the one to run."""
    if not foldable(model):
        return None
    kept = getattr(model, "_folded", None)  # a plain attribute, which is no parameter
    if kept is None or not kept.fits(model):
        kept = model._folded = Folded(model)
    return kept
