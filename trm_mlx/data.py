"""Token files to batches: mapped and never read whole, seeded, resumable at any step.

Text becomes a token file in `sources` (files to documents) and `corpus` (documents to token files); their
public names are here too, so that a caller needs one import.

Shapes: B batch, T window in tokens, N tokens in a file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trm_mlx.corpus import Corpus, Split, prepare
from trm_mlx.sources import Document, documents, find
from trm_mlx.vocabulary import PAD

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "Split",
    "documents",
    "find",
    "held_out_windows",
    "prepare",
    "read_tokens",
]


def read_tokens(path: str | Path) -> np.ndarray:
    """(N,) uint16: a token file, mapped and not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its size is odd, or it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no token file at {path}; make one with prepare")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise ValueError(f"a token file must hold 2 bytes a token and at least one token, got {size} bytes in {path}")
    return np.asarray(np.memmap(path, dtype="<u2", mode="r"))


class Batches:
    """Batches of windows: `batches[step]` depends on seed and step alone, so a run resumes at any step.

    An epoch cuts the file into windows of T + 1 tokens, T apart, from a place of its own, and visits them in
    an order of its own; batches run on over its end. Fewer than 2 T tokens at the file's ends miss an epoch.

    Args:
        tokens: (N,) a token file or its tokens.
        window: T, the tokens a model reads; each window has one more, the last target.
        batch: B, windows a step.
        seed: at least 0.

    Raises:
        ValueError: the file is shorter than one window.
    """

    def __init__(
        self,
        tokens: str | Path | np.ndarray,
        *,
        window: int,
        batch: int,
        seed: int,
    ):
        self.tokens = tokens if isinstance(tokens, np.ndarray) else read_tokens(tokens)
        if window < 1 or batch < 1 or seed < 0:
            raise ValueError(f"window and batch must be at least 1, seed 0, got {window}, {batch}, {seed}")
        if len(self.tokens) < window + 1:
            raise ValueError(
                f"a corpus must hold at least window + 1 tokens, got {len(self.tokens)} for window {window};"
                f" give more text or a window of at most {len(self.tokens) - 1}"
            )
        self.window, self.batch, self.seed = window, batch, seed
        self._cuts: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def windows_per_epoch(self) -> int:
        return max(1, (len(self.tokens) - self.window) // self.window)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets seen in an epoch."""
        return self.windows_per_epoch * self.window

    def epoch(self, step: int) -> int:
        """The epoch of the first window of a step."""
        return step * self.batch // self.windows_per_epoch

    def __getitem__(self, step: int) -> np.ndarray:
        """(B, T + 1) int32: the windows of a step."""
        if step < 0:
            raise IndexError(f"steps count from 0, got {step}")
        rows = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            epoch, position = divmod(number, self.windows_per_epoch)
            first, order = self._cut(epoch)
            start = first + int(order[position]) * self.window
            rows.append(self.tokens[start : start + self.window + 1])
        return np.stack(rows).astype(np.int32)

    def _cut(self, epoch: int) -> tuple[int, np.ndarray]:
        """Where the first window of an epoch starts, and the order of its windows; two epochs are kept."""
        if epoch not in self._cuts:
            random = np.random.default_rng([self.seed, epoch])
            spare = len(self.tokens) - 1 - self.tokens_per_epoch
            first = int(random.integers(spare + 1))
            order = random.permutation(self.windows_per_epoch)
            self._cuts = dict([*self._cuts.items(), (epoch, (first, order))][-2:])
        return self._cuts[epoch]


def held_out_windows(tokens: str | Path | np.ndarray, window: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(T + 1,) int32 tokens and (T,) float32 weights of their targets, in order, T apart.

    Every token but the first is a target of weight 1 once; pad, of weight 0, fills up the last window.

    Raises:
        ValueError: there are not two tokens, or window is not positive.
    """
    tokens = tokens if isinstance(tokens, np.ndarray) else read_tokens(tokens)
    if len(tokens) < 2 or window < 1:
        raise ValueError(f"needs 2 tokens and a window of 1 at least, got {len(tokens)} tokens and window {window}")
    for start in range(0, len(tokens) - 1, window):
        taken = tokens[start : start + window + 1]
        padded = np.full(window + 1, PAD, dtype=np.int32)
        padded[: len(taken)] = taken
        yield padded, (np.arange(1, window + 1) < len(taken)).astype(np.float32)
