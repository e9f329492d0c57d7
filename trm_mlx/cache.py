"""Keys and values kept while generating: one slot per (layer, pass), preallocated, grown in chunks.

Shapes: B batch, N key-value heads, S positions, K head width.
"""

from collections.abc import Sequence

import mlx.core as mx

CHUNK = 256  # positions added at a time; a longer chunk wastes memory, a shorter one copies more often


class Slot:
    """Keys and values of one attention in one pass."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None  # (B, N, capacity, K)
        self.values: mx.array | None = None
        self.length = 0

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Everything seen so far, the new positions last.

        Args:
            keys, values: (B, N, T, K), those of the new positions.

        Returns:
            keys and values, each (B, N, length + T, K).
        """
        start, self.length = self.length, self.length + keys.shape[2]
        if self.keys is None or self.values is None or self.length > self.keys.shape[2]:
            capacity = -(-self.length // CHUNK) * CHUNK
            self.keys, self.values = _grown(self.keys, keys, capacity), _grown(self.values, values, capacity)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, rows: mx.array) -> None:
        """Keep these rows of the batch, in this order; a row may come several times, or not at all."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = mx.take(self.keys, rows, axis=0), mx.take(self.values, rows, axis=0)


def _grown(old: mx.array | None, new: mx.array, capacity: int) -> mx.array:
    B, N, _, K = new.shape
    if old is None:
        return mx.zeros((B, N, capacity, K), new.dtype)
    return mx.concatenate([old, mx.zeros((B, N, capacity - old.shape[2], K), old.dtype)], axis=2)


class Cache:
    """One slot for each attention of prelude, core (once per pass) and coda; made by `TinyRecursiveLM.cache`."""

    def __init__(self, depth: int, prelude: int, core: int, coda: int) -> None:
        self.depth = depth
        self.prelude = [Slot() for _ in range(prelude)]
        self.core = [[Slot() for _ in range(core)] for _ in range(depth)]
        self.coda = [Slot() for _ in range(coda)]

    @property
    def slots(self) -> list[Slot]:
        """All slots, in the order in which a forward pass fills them."""
        return [*self.prelude, *(slot for one in self.core for slot in one), *self.coda]

    @property
    def length(self) -> int:
        """Positions held."""
        return self.slots[0].length

    @property
    def bytes(self) -> int:
        """Bytes of the arrays held, spare capacity included."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        """Every key and value array, for `mx.eval`."""
        return [array for slot in self.slots for array in (slot.keys, slot.values) if array is not None]

    def trim(self, length: int) -> None:
        """Forget the positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache is trimmed to between 0 and its {self.length} positions, got {length}")
        for slot in self.slots:
            slot.length = length

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order; a row may come several times, or not at all.

        Raises:
            ValueError: there is no such row, or none is kept.
        """
        held = self.arrays[0].shape[0] if self.arrays else 0
        if not rows or not 0 <= min(rows) <= max(rows) < held:
            raise ValueError(f"rows must be some of the {held} that the cache holds, got {list(rows)}")
        if list(rows) != list(range(held)):
            for slot in self.slots:
                slot.select(mx.array(list(rows)))
