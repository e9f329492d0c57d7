"""A model's weights as one token needs them, for the CPU, where every operation costs microseconds.

Gains of norms are multiplied into the matrices that follow them, matrices are transposed, and an RMS norm is a factor
that waits until after the product: x W / rms(x). What stays is about thirty operations a block, all of fixed shapes,
so that a whole step is compiled once for each size of the cache. It computes what `model.TinyRecursiveLM` does, in
another order.

Shapes: B rows, T new positions of each, X = B T, D width, H heads, N key-value heads, K head width, S places.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from trm_mlx import fused
from trm_mlx.cache import Cache, CacheConfig, added, decoded, encoded, held
from trm_mlx.model import EPSILON, Block, TinyRecursiveLM, named

Step = Callable[..., list[mx.array]]


class Weights(NamedTuple):
    """One block in one pass."""

    qkv: mx.array  # (D, (H + 2 N) K)
    gain: mx.array  # (1, H + 2 N, 2, K / 2), of queries and keys, with the scale of their products
    turned: mx.array  # the same with halves exchanged
    out: mx.array
    attention_scale: mx.array  # (D,)
    up: mx.array
    down: mx.array
    feed_forward_scale: mx.array


class Place(NamedTuple):
    """Where the new positions are, the same for all blocks."""

    starts: list[mx.array]  # (1,) each: places to write to, one for all T or one for each
    cosines: mx.array  # (X, H + 2 N, 2, K / 2), ones for values
    sines: mx.array  # zeros for values
    mask: mx.array  # (1 or B, N, H / N T, S), to be added
    rows: int  # B


def foldable(model: TinyRecursiveLM) -> bool:
    """Whether this form is the fast one here, and can say what the model computes."""
    return (
        fused.active() == "fused"
        and type(model) is TinyRecursiveLM
        and not model.config.pass_lora
        and all(array.dtype == mx.float32 for array in named(model.parameters()).values())
    )


class Steps(threading.local):
    """Compiled steps by depth and cache; each thread makes its own, which go when it ends.

    What MLX keeps of them it would let go of after the thread's end, and abort if Python is gone by then.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[int, CacheConfig], Step] = {}


class Folded:
    """The folded weights of a model, and its forward pass in parts. They do not follow later changes of the model."""

    def __init__(self, model: TinyRecursiveLM) -> None:
        c = self.config = model.config
        self.source = list(named(model.parameters()).values())
        blocks = [[_folded(block, passes) for block in part] for part, passes in self._parts(model)]
        self.prelude, self.core, self.coda = blocks  # each block a list of Weights, one a pass
        self.embedding = model.embedding.weight
        self.head = mx.contiguous((model.embedding.weight * model.final_norm.weight).T)
        zero = mx.zeros((c.width,))
        self.injection = model.injection if c.injection else zero
        self.recall = model.recall if c.injection else zero
        self.positions = model.positions if c.position == "learned" else None
        values = mx.array([0.0] * (c.heads + c.kv_heads) + [1.0] * c.kv_heads)[None, :, None, None]
        self.values = values if c.qk_norm else mx.ones_like(values)  # 1: no norm of its own
        self.still = values if c.position == "rope" else mx.ones_like(values)  # 1: is not turned
        self.rates = c.rope_base ** (-2 * mx.arange(c.head_width // 2) / c.head_width)
        self.steps = Steps()
        mx.eval([v for v in vars(self).values() if isinstance(v, mx.array)], blocks)

    def _parts(self, model: TinyRecursiveLM) -> list[tuple[list[Block], int]]:
        return [(model.prelude, 1), (model.core, self.config.depth), (model.coda, 1)]

    def fits(self, model: TinyRecursiveLM) -> bool:
        """Whether the model's weights are still those that were folded."""
        now = list(named(model.parameters()).values())
        return len(now) == len(self.source) and all(a is b for a, b in zip(now, self.source, strict=True))

    def step(self, cache: Cache) -> Step:
        """The whole forward pass for caches of this kind and depth, compiled for each shape it is called with.

        (ids (B, T), position (1,), lead (B,) or None, arrays of the cache) -> scores (B, T, V) and the arrays anew.
        """
        key = (cache.depth, cache.kind)
        steps = self.steps.made
        if key not in steps:
            empty = Cache(self.config, *key)  # tells how it is laid out, and holds no arrays

            def run(ids: mx.array, position: mx.array, lead: mx.array | None, *arrays: mx.array) -> list[mx.array]:
                held = Held(empty, self.place(empty, position, lead, *ids.shape, arrays[0].shape[2]), arrays)
                h = anchor = self.run_prelude(ids, position, lead, held)
                for index in range(empty.depth):
                    h = self.run_pass(h, anchor, index, held)
                return [self.read(h, anchor, held), *held.arrays]

            steps[key] = mx.compile(run)
        return steps[key]

    def place(self, cache: Cache, position: mx.array, lead: mx.array | None, rows: int, T: int, S: int) -> Place:
        """Where the next T positions are.

        Args:
            position: (1,) the first of them.
            lead: (B,) places at the beginning of each row that hold nothing; None: no such places.
        """
        c, N = self.config, self.config.kv_heads
        query = position + mx.arange(T)
        spots = query
        if cache.ring:
            sinks, span = cache.sinks, cache.ring - cache.sinks
            spots = mx.where(query < cache.ring, query, sinks + (query - sinks) % span)
        starts = [spots[t : t + 1] for t in range(T)] if cache.ring else [position]
        key = held(query[-1], S, cache.ring, cache.sinks)
        alibi = c.heads if c.position == "alibi" else 0
        mask = added(query, key, cache.window, cache.sinks, alibi)
        if lead is not None:
            mask = mx.where(key < lead[:, None, None, None], -1e30, mask)
        mask = mx.broadcast_to(mask, (mask.shape[0], c.heads, T, S)).reshape(-1, N, c.heads // N * T, S)
        at = mx.broadcast_to(query, (rows, T)) if lead is None else query - lead[:, None]
        at = at.reshape(-1, 1, 1, 1).astype(mx.float32)
        angles = at * self.rates  # (X, 1, 1, K / 2)
        cosines, sines = mx.cos(angles), mx.sin(angles)
        moving = 1 - self.still
        cosines = mx.concatenate([cosines, cosines], axis=2) * moving + self.still
        sines = mx.concatenate([-sines, sines], axis=2) * moving
        return Place(starts, cosines, sines, mask, rows)

    def begin(self, ids: mx.array, position: mx.array, lead: mx.array | None) -> mx.array:
        """(B, T) ids -> (X, 1, 1, D) what the prelude reads."""
        B, T = ids.shape
        x = normed(self.embedding[ids.reshape(-1)][:, None, None])
        if self.config.position in ("learned", "sinusoidal"):
            at = position + mx.arange(T) - (0 if lead is None else lead[:, None])
            at = mx.broadcast_to(at, (B, T)).reshape(-1)
            x = x + (_waves(at, self.config.width) if self.positions is None else self.positions[at])[:, None, None]
        return x

    def through(self, blocks: list[list[Weights]], index: int, x: mx.array, slots: range, held: "Held") -> mx.array:
        """(X, 1, 1, D) through these blocks, in pass `index`."""
        for block, slot in zip(blocks, slots, strict=True):
            x = self._block(block[index], x, slot, held)
        return x

    def run_prelude(self, ids: mx.array, position: mx.array, lead: mx.array | None, held: "Held") -> mx.array:
        """(B, T) ids -> (X, 1, 1, D): the anchor, which is also the state before the first pass."""
        x = self.through(self.prelude, 0, self.begin(ids, position, lead), range(len(self.prelude)), held)
        return normed(x)

    def run_pass(self, h: mx.array, anchor: mx.array, index: int, held: "Held") -> mx.array:
        """(X, 1, 1, D) after pass `index`, from 0."""
        start = len(self.prelude) + index * len(self.core)
        slots = range(start, start + len(self.core))
        return self.through(self.core, index, normed(h) + self.injection * anchor, slots, held)

    def read(self, h: mx.array, anchor: mx.array, held: "Held") -> mx.array:
        """(B, T, V) scores of the state after the last pass."""
        slots = range(len(held.parts) - len(self.coda), len(held.parts))
        y = self.through(self.coda, 0, normed(h) + self.recall * anchor, slots, held)
        return (normed(y) @ self.head).reshape(held.place.rows, -1, self.config.vocabulary)

    def _block(self, w: Weights, x: mx.array, slot: int, kept: "Held") -> mx.array:
        c, place = self.config, kept.place
        H, N, K, B = c.heads, c.kv_heads, c.head_width, place.rows
        X, D = x.shape[0], c.width
        square = (x * x).sum(-1, keepdims=True) * (1 / D) + EPSILON
        borrows = kept.lenders[slot] != slot
        rows = H if borrows else H + 2 * N
        z = (x @ (w.qkv[:, : H * K] if borrows else w.qkv)).reshape(X, rows, 2, K // 2)
        own = (z * z).sum((2, 3), keepdims=True)
        values = self.values[:, :rows]
        share = mx.rsqrt(own * ((1 - values) / K) + square * (EPSILON * (1 - values) + values))
        cosines, sines = place.cosines[:, :rows], place.sines[:, :rows]
        y = (z * w.gain[:, :rows] * cosines + z[:, :, ::-1] * w.turned[:, :rows] * sines) * share
        T = X // B
        if not borrows:
            new = y[:, H:].reshape(B, 2 * N, 1, K) if T == 1 else y[:, H:].reshape(B, T, 2 * N, K).swapaxes(1, 2)
            kept.write(slot, new)
        kv = decoded(kept.parts[kept.lenders[slot]])
        q = y[:, :H]
        q = q.reshape(B, N, H // N, K) if T == 1 else _heads(q, B, T, N, K)
        mask = mx.broadcast_to(place.mask, (B, *place.mask.shape[1:]))
        scores = mx.addmm(mask, q, kv[:, :N].swapaxes(-1, -2))
        e = fused.exponential(scores - scores.max(-1, keepdims=True))
        mean = (e @ kv[:, N:]) / e.sum(-1, keepdims=True)  # (B, N, H / N T, K)
        if T > 1:
            mean = mean.reshape(B, N, H // N, T, K).transpose(0, 3, 1, 2, 4)
        x = x + (mean.reshape(X, 1, 1, D) @ w.out) * w.attention_scale
        square = (x * x).sum(-1, keepdims=True) * (1 / D) + EPSILON
        h = x @ w.up
        if c.feed_forward == "swiglu":
            share = mx.rsqrt(square)
            gate, up = mx.split(h, 2, axis=-1)
            h = fused.silu(gate * share) * (up * share)
        else:
            h = h * mx.maximum(h, 0) / square  # the norm's factor, squared like the rest
        return x + (h @ w.down) * w.feed_forward_scale


class Held:
    """The arrays of a cache while one step is traced: `parts` of each slot, new ones after each write."""

    def __init__(self, cache: Cache, place: Place, arrays: Sequence[mx.array]) -> None:
        self.place, self.bits, slots, left = place, cache.kind.cache_bits, cache.slots, iter(arrays)
        each = 2 if self.bits else 1
        self.parts = [[] if slot.lender else [next(left) for _ in range(each)] for slot in slots]
        self.lenders = [slots.index(slot.lender) if slot.lender else number for number, slot in enumerate(slots)]

    def write(self, slot: int, new: mx.array) -> None:
        """Put (B, 2 N, T, K) into the slot."""
        for number, each in enumerate(encoded(new, self.bits)):
            part = self.parts[slot][number]
            for t, start in enumerate(self.place.starts):
                piece = each if len(self.place.starts) == 1 else each[:, :, t : t + 1]
                part = mx.slice_update(part, piece, start, axes=[2])
            self.parts[slot][number] = part

    @property
    def arrays(self) -> list[mx.array]:
        return [part for parts in self.parts for part in parts]


def normed(x: mx.array) -> mx.array:
    """RMS norm without a gain."""
    return x * mx.rsqrt((x * x).sum(-1, keepdims=True) * (1 / x.shape[-1]) + EPSILON)


def _heads(q: mx.array, B: int, T: int, N: int, K: int) -> mx.array:
    """(X, H, 2, K / 2) -> (B, N, H / N T, K), as `attention` groups them."""
    return q.reshape(B, T, N, -1, K).transpose(0, 2, 3, 1, 4).reshape(B, N, -1, K)


def _waves(at: mx.array, width: int) -> mx.array:
    rates = 10_000.0 ** (-mx.arange(0, width, 2) / width)
    angles = at[:, None] * rates
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)


def _folded(block: Block, passes: int) -> list[Weights]:
    """The block's weights for each pass; all but the scales are the same arrays."""
    a, f = block.attention, block.feed_forward
    H, N, K = a.heads, a.kv_heads, a.head_width
    query, key = (a.query_norm.weight, a.key_norm.weight) if "query_norm" in a else (mx.ones((K,)), mx.ones((K,)))
    gain = mx.stack([query / math.sqrt(K)] * H + [key] * N + [mx.ones((K,))] * N).reshape(1, -1, 2, K // 2)
    shared = {
        "qkv": _transposed(a.qkv, block.attention_norm.weight),
        "gain": gain,
        "turned": mx.contiguous(gain[:, :, ::-1]),
        "out": _transposed(a.out),
        "up": _transposed(f.up, block.feed_forward_norm.weight),
        "down": _transposed(f.down),
    }

    def scale(name: str, index: int) -> mx.array:
        return block.scale * (block[name][index] if name in block else mx.ones(a.out.weight.shape[:1]))

    scales = ("attention_scale", "feed_forward_scale")
    return [Weights(**shared, **{name: scale(name, index) for name in scales}) for index in range(passes)]


def _transposed(linear: nn.Module, gain: mx.array | float = 1.0) -> mx.array:
    return mx.contiguous((linear.weight * gain).T)
