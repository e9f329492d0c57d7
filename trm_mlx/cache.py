"""Keys and values kept while generating: one slot per (layer, pass), in arrays of fixed sizes that grow in steps.

By default every position that the model can see is kept. `CacheConfig` keeps fewer (a window of the newest, and the
first few: arXiv 2309.17453), keeps the first pass's for all passes, or keeps them in 8 bits.

A cache of a window is a ring: position p lies in place p until the ring is full, and then in the place of the oldest.
The ring is SPARE positions larger than its window, so that as many can be read at once, or taken back.

Rows of different lengths end in one place: `Cache.lead` is how many places at the beginning of each hold nothing.

Shapes: B batch, N key-value heads, S places, T tokens, K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import mlx.core as mx
import numpy as np

from trm_mlx.attention import NEVER, slopes
from trm_mlx.shape import ModelConfig

SPARE = 16  # places of a ring beyond its window
SMALLEST = 128  # places to begin with; they grow by a third at least, so that few sizes have to be compiled


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is kept of the text while generating; less than everything is faster or smaller, and changes the text."""

    cache_window: Annotated[int, "newest positions kept; 0: all that the model can see"] = 0
    cache_sinks: Annotated[int, "first positions kept beside such a window"] = 4
    cache_shared: Annotated[bool, "keep keys and values of the first pass, and let every pass read those"] = False
    cache_bits: Annotated[int, "8: whole numbers, a scale for each position and head; 0: as computed"] = 0

    def __post_init__(self) -> None:
        if self.cache_window < 0 or self.cache_sinks < 0:
            raise ValueError(
                f"cache_window and cache_sinks must be at least 0, got {self.cache_window} and {self.cache_sinks}"
            )
        if self.cache_bits not in (0, 8):
            raise ValueError(f"cache_bits must be 8, or 0 for numbers as computed, got {self.cache_bits}")


EVERYTHING = CacheConfig()


class Slot:
    """Keys and values of one attention in one pass.

    `parts` is one array (B, 2 N, S, K), keys before values, or with 8 bits whole numbers of that shape and their
    scales (B, 2 N, S, 1). `lender` is the slot of the first pass, where passes share.
    """

    def __init__(self, cache: "Cache", lender: "Slot | None" = None) -> None:
        self.cache, self.lender = cache, lender
        self.parts: list[mx.array] = []
        self.seen: tuple[mx.array, mx.array] | None = None  # what was given last, until the cache advances

    @property
    def length(self) -> int:
        """Positions held."""
        return self.cache.length

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Everything there is to see, the new positions included; who sees what of it is `Cache.visible`.

        Args:
            keys, values: (B, N, T, K), those of the new positions.

        Returns:
            keys and values, each (B, N, S, K).
        """
        if self.lender is not None:
            return self.lender.seen or self.lender.written(keys.shape[2], keys.dtype)
        cache, T, dtype = self.cache, keys.shape[2], keys.dtype
        coded = encoded(mx.concatenate([keys, values], axis=1), cache.kind.cache_bits)
        apart = cache.apart(T)
        before = [self.kept(dtype)[:, :, : cache.length]] if apart and cache.length else []
        self.reserve(cache.capacity(cache.length + T), coded)
        for new, part in zip(coded, self.parts, strict=True):
            if not cache.ring or cache.length + T <= cache.ring:
                part[:, :, cache.length : cache.length + T] = new
            else:
                rows = cache.staying(T)
                part[:, :, mx.array([cache.place(cache.length + row) for row in rows])] = new[:, :, mx.array(rows)]
        if apart:
            kv = mx.concatenate([*before, decoded(coded).astype(dtype)], axis=2)
            seen = kv[:, : keys.shape[1]], kv[:, keys.shape[1] :]
        else:
            seen = self.written(T, dtype)
        if cache.kind.cache_shared:
            self.seen = seen
        return seen

    def written(self, T: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """What `append` gave for the next T positions, which are written but not counted; at most SPARE of a ring."""
        kv = self.kept(dtype)
        kv, N = (kv if self.cache.ring else kv[:, :, : self.cache.length + T]), kv.shape[1] // 2
        return kv[:, :N], kv[:, N:]

    def kept(self, dtype: mx.Dtype) -> mx.array:
        """(B, 2 N, S, K): what `parts` stand for."""
        return decoded(self.parts).astype(dtype)

    def reserve(self, capacity: int, like: Sequence[mx.array]) -> None:
        """Make room for `capacity` positions; like: parts of any number of positions, for the other sizes."""
        if not self.parts:
            self.parts = [mx.zeros((*each.shape[:2], capacity, each.shape[3]), each.dtype) for each in like]
        elif (missing := capacity - self.parts[0].shape[2]) > 0:
            self.parts = [mx.pad(part, [(0, 0), (0, 0), (0, missing), (0, 0)]) for part in self.parts]


def encoded(kv: mx.array, bits: int) -> list[mx.array]:
    """(B, 2 N, T, K) as it is kept: itself, or int8 and a float16 scale for each position and head."""
    if not bits:
        return [kv]
    scales = mx.maximum(mx.abs(kv).max(-1, keepdims=True) / 127, 1e-7).astype(mx.float16)
    return [mx.clip(mx.round(kv / scales), -127, 127).astype(mx.int8), scales]


def decoded(parts: Sequence[mx.array]) -> mx.array:
    """What `encoded` stands for."""
    return parts[0] if len(parts) == 1 else parts[0].astype(mx.float32) * parts[1].astype(mx.float32)


class Cache:
    """One slot for each attention of prelude, core (once per pass) and coda; made by `TinyRecursiveLM.cache`."""

    def __init__(self, config: ModelConfig, depth: int, kind: CacheConfig = EVERYTHING) -> None:
        self.config, self.depth, self.kind, self.length = config, depth, kind, 0
        self.reach = 0  # most positions ever held, which is how far a ring has been written
        self.lead: mx.array | None = None  # (B,) places at the beginning of each row that hold nothing; no ring then
        widths = [width for width in (config.window, kind.cache_window) if width]
        self.window = min(widths, default=0)  # 0: a position sees all before it
        narrowed = kind.cache_window and kind.cache_window == self.window != config.window
        self.sinks = kind.cache_sinks if narrowed else 0
        ring = -(-(self.window + self.sinks + SPARE) // 8) * 8
        self.ring = ring if self.window and ring < config.context else 0  # 0: never full
        self.prelude = [Slot(self) for _ in range(config.prelude)]
        first = [Slot(self) for _ in range(config.core)]
        later = range(depth - 1)
        self.core = [first, *([Slot(self, lender if kind.cache_shared else None) for lender in first] for _ in later)]
        self.coda = [Slot(self) for _ in range(config.coda)]
        # All slots, in the order in which a forward pass fills them, and of each the one whose keys it reads.
        self.slots = [*self.prelude, *(slot for one in self.core for slot in one), *self.coda]
        self.lenders = [self.slots.index(slot.lender or slot) for slot in self.slots]

    @property
    def bytes(self) -> int:
        """Bytes of the arrays held, spare capacity included."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        """Every array held, for `mx.eval`."""
        return [part for slot in self.slots for part in slot.parts]

    def bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """Bytes that one position takes up."""
        c, kept = self.config, sum(slot.lender is None for slot in self.slots)
        row = c.head_width + 2 if self.kind.cache_bits else c.head_width * bytes_per_number
        return kept * 2 * c.kv_heads * row

    def capacity(self, length: int) -> int:
        """Places to have for so many positions, those that are there already included."""
        power = max(SMALLEST, 1 << (length - 1).bit_length())
        places = power * 3 // 4 if power > 4 * SMALLEST and length <= power * 3 // 4 else power
        return max(self.places, min(places, self.ring or max(self.config.context, length)))

    @property
    def places(self) -> int:
        """Places that there are."""
        parts = self.slots[0].parts
        return parts[0].shape[2] if parts else 0

    def place(self, position: int) -> int:
        """Where a position lies."""
        if not self.ring or position < self.ring:
            return position
        return self.sinks + (position - self.sinks) % (self.ring - self.sinks)

    def staying(self, T: int) -> list[int]:
        """Which of the next T positions are still held after the last of them."""
        oldest = self.length + T - (self.ring - self.sinks)
        return [row for row in range(T) if self.length + row < self.sinks or self.length + row >= oldest]

    def apart(self, T: int) -> bool:
        """Whether T new positions are read beside the ring, because it could not hold them and all that they see."""
        return bool(self.ring) and T > SPARE and self.length + T > self.ring

    def held(self, last: int, places: int) -> np.ndarray:
        """(S,) the position in each place once `last` is written; negative or above `last`: none."""
        place = np.arange(places)
        if not self.ring or last < self.ring:
            return place
        span = self.ring - self.sinks
        turned = (last - self.sinks) // span * span + place
        return np.where(place < self.sinks, place, np.where(turned > last, turned - span, turned))

    def visible(self, T: int) -> mx.array | None:
        """Who of the next T positions sees what `Slot.append` gives, as `attention.attention` takes it."""
        alibi = self.config.heads if self.config.position == "alibi" else 0
        plain = not self.ring and not self.sinks and self.window == self.config.window
        if plain and not alibi and self.lead is None:
            return None
        end = self.length + T
        query = np.arange(self.length, end)
        if self.apart(T):
            if not self.length and not alibi and self.window == self.config.window:
                return None
            key = np.concatenate([self.held(self.length - 1, self.capacity(self.length))[: self.length], query])
        elif self.ring:
            key = self.held(end - 1, self.capacity(end))
        else:
            key = np.arange(end)
        return mx.array(self.mask(query, key))

    def mask(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """(1 or B, 1 or H, T, S) float32 numbers to add to the scores of queries and keys at these positions.

        Args:
            query, key: (T,) and (S,) integers; keys above a query, and negative ones, are not seen by it.
        """
        lead = 0 if self.lead is None else np.array(self.lead)[:, None, None, None]
        query, key = query[:, None] - lead, key - lead
        seen = (key <= query) & (
            (key >= 0) | (key == query)
        )  # what holds nothing sees itself: no row may see nothing
        if self.window:
            near = key > query - self.window
            seen = seen & (near | (key < self.sinks) if self.sinks else near)
        seen = seen.reshape(-1, 1, *seen.shape[-2:])
        if self.config.position != "alibi":
            return np.where(seen, np.float32(0), np.float32(NEVER))
        falling = -np.array(slopes(self.config.heads))[:, None, None] * np.abs(query - key)
        return np.where(seen, falling, NEVER).astype(np.float32)

    def advance(self, T: int) -> None:
        """Count T positions that every slot has taken in."""
        self.length += T
        self.reach = max(self.reach, self.length)
        for slot in self.slots:
            slot.seen = None

    def trim(self, length: int) -> None:
        """Forget the positions from `length` on.

        Raises:
            ValueError: there are not so many, or a window has since let go what they would see.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache is trimmed to between 0 and its {self.length} positions, got {length}")
        if not self.can_trim(length):
            raise ValueError(
                f"a cache of {self.window} positions must be trimmed by at most {SPARE}, or to 0, "
                f"got {self.reach - length}"
            )
        self.length = length
        self.reach = self.reach if length else 0

    def can_trim(self, length: int) -> bool:
        """Whether all that position `length` would see is still there."""
        return length == 0 or not self.ring or self.reach <= self.ring or length + SPARE >= self.reach

    def starts(self) -> int | mx.array:
        """The position of the next token: of all rows, or (B,) of each where they have a lead."""
        return self.length if self.lead is None else self.length - self.lead

    def reserve(self, B: int, T: int) -> None:
        """Make room for T more positions of B float32 rows, for who writes to `arrays` himself."""
        c, capacity = self.config, self.capacity(self.length + T)
        like = encoded(mx.zeros((B, 2 * c.kv_heads, 1, c.head_width)), self.kind.cache_bits)
        for slot in self.slots:
            if slot.lender is None:
                slot.reserve(capacity, like)

    def replace(self, arrays: Sequence[mx.array]) -> None:
        """Take these in place of `arrays`."""
        left = iter(arrays)
        for slot in self.slots:
            slot.parts = [next(left) for _ in slot.parts]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order; a row may come several times, or not at all.

        Raises:
            ValueError: there is no such row, or none is kept.
        """
        count = self.arrays[0].shape[0] if self.arrays else 0
        if not rows or not 0 <= min(rows) <= max(rows) < count:
            raise ValueError(f"rows must be some of the {count} that the cache holds, got {list(rows)}")
        if list(rows) != list(range(count)):
            for slot in self.slots:
                slot.parts = [mx.take(part, mx.array(list(rows)), axis=0) for part in slot.parts]
