"""A model's step in NumPy, for the Linux CPU, where an MLX operation costs more to arrange than one row to compute.

Gains of norms are multiplied into the matrices, which are transposed; keys and values are written where MLX keeps
them. It computes what `model.TinyRecursiveLM` does, in another order. Compiled by MLX the same step takes 1.4 times
as long, and seconds of a compiler before the first token (docs/speed.md).

Shapes: B rows, T new positions of each, X = B T, D width, H heads, N key-value heads, K head width, S places seen.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trm_mlx import fused
from trm_mlx.cache import Cache
from trm_mlx.model import EPSILON, Attention, Block, Linear, TinyRecursiveLM, named


class Weights(NamedTuple):
    """One block in one pass."""

    qkv: np.ndarray  # (D, (H + 2 N) K)
    gain: np.ndarray  # (H + N, 2, K / 2), of queries and keys, with the scale of their products
    out: np.ndarray
    attention_scale: np.ndarray  # (D,)
    up: np.ndarray
    down: np.ndarray
    feed_forward_scale: np.ndarray
    bound: float  # no score of attention can be larger, by the gains of normalised queries and keys


class Place(NamedTuple):
    """Where the new positions of one step are, the same for all blocks."""

    B: int
    T: int
    at: np.ndarray  # (X,) positions in the text
    spots: slice | np.ndarray  # places to write to
    seen: slice  # places to look at
    mask: np.ndarray | None  # (1 or B, N, H / N T, S), to be added; None: all are seen
    cosines: np.ndarray | None  # (X, 1, 1, K / 2)
    sines: np.ndarray | None  # (X, 1, 2, K / 2), the first half negative
    parts: list[list[np.ndarray]]  # of each slot of the cache, as `cache.Slot.parts`
    lenders: list[int]  # the slot whose keys a slot reads


SAFE = 60.0  # e to as much, summed over any text, is far from what float32 can hold


def foldable(model: TinyRecursiveLM) -> bool:
    """Whether this form is the fast one here, and can say what the model computes."""
    return (
        fused.active() == "fused"
        and type(model) is TinyRecursiveLM
        and not model.config.pass_lora
        and all(array.dtype == mx.float32 for array in named(model.parameters()).values())
    )


class Folded:
    """The folded weights of a model, and its forward pass in parts. They do not follow later changes of the model.

    Used by several threads at once it is safe, as long as each has a cache of its own.
    """

    def __init__(self, model: TinyRecursiveLM) -> None:
        c = self.config = model.config
        self.source = list(named(model.parameters()).values())
        parts = [(model.prelude, 1), (model.core, c.depth), (model.coda, 1)]
        self.prelude, self.core, self.coda = [[_folded(block, passes) for block in part] for part, passes in parts]
        self.embedding = np.array(model.embedding.weight)
        self.head = np.ascontiguousarray((self.embedding * np.array(model.final_norm.weight)).T)
        self.injection = np.array(model.injection) if c.injection else np.float32(0)
        self.recall = np.array(model.recall) if c.injection else np.float32(0)
        self.positions = np.array(model.positions) if c.position == "learned" else None
        self.cosines = self.sines = np.zeros((0, 1, 1, c.head_width // 2), np.float32)

    def fits(self, model: TinyRecursiveLM) -> bool:
        """Whether the model's weights are still those that were folded."""
        now = list(named(model.parameters()).values())
        return len(now) == len(self.source) and all(a is b for a, b in zip(now, self.source, strict=True))

    def step(self, ids: np.ndarray, cache: Cache) -> np.ndarray:
        """Scores after each of the ids, which the cache then holds.

        Args:
            ids: (B, T) integers below V.

        Returns:
            (B, T, V) float32.
        """
        place = self.place(cache, *ids.shape)
        h = anchor = self.run_prelude(ids, place)
        for index in range(cache.depth):
            h = self.run_pass(h, anchor, index, place)
        logits = self.read(h, anchor, place)
        cache.advance(ids.shape[1])
        return logits

    def place(self, cache: Cache, B: int, T: int) -> Place:
        """Where the next T positions of B rows are; makes room for them in the cache."""
        c, lead = self.config, None if cache.lead is None else np.array(cache.lead)
        start, end = cache.length, cache.length + T
        if end > cache.places and cache.places < (cache.ring or end):
            cache.reserve(B, T)
        query = np.arange(start, end)
        spots, seen, key = slice(start, end), slice(0, end), np.arange(end)
        if cache.ring and end > cache.ring:
            spots = np.array([cache.place(each) for each in query])
        if cache.ring and cache.reach + T > cache.ring:
            key = cache.held(end - 1, cache.places)
            seen = slice(0, cache.places)
        elif cache.window and not cache.sinks and T == 1:
            seen = slice(max(0, end - cache.window), end)
            key = key[seen]
        mask = None
        if T > 1 or lead is not None or cache.ring or cache.sinks or c.position == "alibi":
            mask = cache.mask(query, key)
            mask = np.broadcast_to(mask, (len(mask), c.heads, *mask.shape[2:])) if mask.any() else None
            mask = None if mask is None else mask.reshape(len(mask), c.kv_heads, -1, key.size)
        at = np.broadcast_to(query, (B, T)) if lead is None else query - lead[:, None]
        at = at.reshape(-1)
        cosines = sines = None
        if c.position == "rope":
            self._turn(end)
            cosines, sines = self.cosines[at], self.sines[at]
        parts = [[np.asarray(part) for part in slot.parts] for slot in cache.slots]
        return Place(B, T, at, spots, seen, mask, cosines, sines, parts, cache.lenders)

    def _turn(self, end: int) -> None:
        """Have cosines and sines of at least so many positions."""
        if end > len(self.cosines):
            K = self.config.head_width
            rates = self.config.rope_base ** (-2 * np.arange(K // 2) / K)
            angles = np.arange(max(end, self.config.context))[:, None, None, None] * rates
            signs = np.array([[-1.0], [1.0]])
            self.sines = (np.sin(angles) * signs).astype(np.float32)
            self.cosines = np.cos(angles).astype(np.float32)

    def run_prelude(self, ids: np.ndarray, place: Place) -> np.ndarray:
        """(B, T) ids -> (X, D): the anchor, which is also the state before the first pass."""
        x = normed(self.embedding[ids.reshape(-1)])
        if self.positions is not None:
            x = x + self.positions[place.at]
        elif self.config.position == "sinusoidal":
            x = x + _waves(place.at, self.config.width)
        return normed(self._through(self.prelude, 0, x, 0, place))

    def run_pass(self, h: np.ndarray, anchor: np.ndarray, index: int, place: Place) -> np.ndarray:
        """(X, D) after pass `index`, from 0."""
        first = len(self.prelude) + index * len(self.core)
        return self._through(self.core, index, normed(h) + self.injection * anchor, first, place)

    def read(self, h: np.ndarray, anchor: np.ndarray, place: Place) -> np.ndarray:
        """(B, T, V) scores of the state after a pass."""
        first = len(place.parts) - len(self.coda)
        y = self._through(self.coda, 0, normed(h) + self.recall * anchor, first, place)
        return (normed(y) @ self.head).reshape(place.B, place.T, -1)

    def _through(self, blocks: list[list[Weights]], index: int, x: np.ndarray, slot: int, place: Place) -> np.ndarray:
        for number, block in enumerate(blocks, slot):
            x = self._block(block[index], x, number, place)
        return x

    def _block(self, w: Weights, x: np.ndarray, slot: int, place: Place) -> np.ndarray:
        c, B, T = self.config, place.B, place.T
        H, N, K, X = c.heads, c.kv_heads, c.head_width, len(x)
        lender = place.lenders[slot]
        borrows = lender != slot
        z = (normed(x) @ (w.qkv[:, : H * K] if borrows else w.qkv)).reshape(X, -1, 2, K // 2)
        turning = z[:, : H if borrows else H + N]  # queries and keys
        y = turning * w.gain[: turning.shape[1]]
        if place.cosines is not None:
            other = y[:, :, ::-1] * place.sines
            y *= place.cosines
            y += other
        if c.qk_norm:
            y /= np.sqrt(np.einsum("xhik,xhik->xh", turning, turning) * (1 / K) + EPSILON)[..., None, None]
        turning[...] = y
        if not borrows:
            new = z[:, H:].reshape(B, T, 2 * N, K)
            write(place.parts[slot], place.spots, new.swapaxes(1, 2))
        kv = read(place.parts[lender], place.seen)  # (B, 2 N, S, K)
        q = z[:, :H]
        if T > 1:
            q = q.reshape(B, T, N, H // N, K).transpose(0, 2, 3, 1, 4)
        q = q.reshape(B, N, -1, K)
        scores = q @ kv[:, :N].swapaxes(-1, -2)
        if place.mask is not None:
            scores += place.mask
        if w.bound > SAFE:
            scores -= scores.max(-1, keepdims=True)
        e = np.exp(scores, out=scores)
        mean = (e @ kv[:, N:]) / e.sum(-1, keepdims=True)  # (B, N, H / N T, K)
        if T > 1:
            mean = mean.reshape(B, N, H // N, T, K).transpose(0, 3, 1, 2, 4)
        y = mean.reshape(X, H * K) @ w.out
        y *= w.attention_scale
        x = x + y
        h = normed(x) @ w.up
        if c.feed_forward == "swiglu":
            gate, up = np.split(h, 2, axis=-1)
            h = gate / (1 + np.exp(-gate)) * up
        else:
            np.maximum(h, 0, out=h)
            h *= h
        y = h @ w.down
        y *= w.feed_forward_scale
        y += x
        return y


def write(parts: list[np.ndarray], spots: slice | np.ndarray, new: np.ndarray) -> None:
    """Put (B, 2 N, T, K) into these places of a slot, as `cache.encoded` has it."""
    if len(parts) == 1:
        parts[0][:, :, spots] = new
        return
    scales = np.maximum(np.abs(new).max(-1, keepdims=True) / 127, 1e-7).astype(np.float16)
    parts[0][:, :, spots] = np.clip(np.round(new / scales), -127, 127).astype(np.int8)
    parts[1][:, :, spots] = scales


def read(parts: list[np.ndarray], seen: slice) -> np.ndarray:
    """(B, 2 N, S, K) what the places of a slot hold."""
    kept = parts[0][:, :, seen]
    return kept if len(parts) == 1 else kept * parts[1][:, :, seen].astype(np.float32)


def normed(x: np.ndarray) -> np.ndarray:
    """RMS norm without a gain of (X, D)."""
    if len(x) == 1:
        return x * np.float32(1 / math.sqrt(x[0] @ x[0] / x.shape[1] + EPSILON))
    return x / np.sqrt(np.einsum("xd,xd->x", x, x)[:, None] * np.float32(1 / x.shape[1]) + np.float32(EPSILON))


def _waves(at: np.ndarray, width: int) -> np.ndarray:
    angles = at[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _folded(block: Block, passes: int) -> list[Weights]:
    """The block's weights for each pass; all but the scales are the same arrays."""
    a, f = block.attention, block.feed_forward
    shared = {
        "qkv": _transposed(a.qkv, block.attention_norm.weight),
        "gain": _gain(a),
        "out": _transposed(a.out),
        "up": _transposed(f.up, block.feed_forward_norm.weight),
        "down": _transposed(f.down),
    }
    gain = np.abs(shared["gain"]).reshape(a.heads + a.kv_heads, -1).max(-1)
    largest = a.head_width * float(gain[: a.heads].max()) * float(gain[a.heads :].max())
    bound = largest if "query_norm" in a else math.inf

    def scale(name: str, index: int) -> np.ndarray:
        return block.scale * np.array(block[name][index] if name in block else mx.ones(a.out.weight.shape[:1]))

    scales = ("attention_scale", "feed_forward_scale")
    return [
        Weights(**shared, **{name: scale(name, index) for name in scales}, bound=bound) for index in range(passes)
    ]


def _gain(a: Attention) -> np.ndarray:
    ones = np.ones(a.head_width, np.float32)
    query, key = (np.array(a[name].weight) if name in a else ones for name in ("query_norm", "key_norm"))
    gain = np.stack([query / np.float32(math.sqrt(a.head_width))] * a.heads + [key] * a.kv_heads)
    return gain.reshape(len(gain), 2, -1)


def _transposed(linear: Linear, gain: mx.array | float = 1.0) -> np.ndarray:
    return np.ascontiguousarray(np.array(linear.weight * gain).T)
