"""The model: a decoder whose middle blocks are one set of weights, run several times.

    x = embedding(ids)        e = rms(prelude(x))        h_0 = e
    h_r = core(rms(h_{r-1}) + injection * e)      r = 1..R, the same weights each pass
    logits_r = embedding^T rms(coda(rms(h_r) + recall * e))

`docs/model.md` states every equation and tensor name. Sources: looped transformers with a re-injected prelude
(Huginn, arXiv 2502.05171; 2609.19107), residual branches scaled for the number of passes (arXiv 2606.18524).

Shapes: B batch, T tokens, D width, H heads, N key-value heads, K = D / H head width, V vocabulary, E exits.
"""

import math
import sys
from collections.abc import Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from trm_mlx import fused, recompute
from trm_mlx.attention import Mask, attention, visible_keys
from trm_mlx.cache import EVERYTHING, Cache, CacheConfig, Slot
from trm_mlx.shape import LIMIT, ModelConfig
from trm_mlx.tokenizer import Tokenizer

EPSILON = 1e-5  # of every RMS normalisation; float16 cannot hold squares of much less


class Linear(nn.Module):
    """A matrix without bias; with a rank, plus a low-rank correction of its own for each pass.

    `packed` puts whole numbers and scales in place of the matrix (see `adapt.grid`).
    """

    def __init__(self, shape: tuple[int, int], passes: int = 0, rank: int = 0) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)
        if rank:
            self.lora_a = mx.zeros((passes, rank, shape[1]))
            self.lora_b = mx.zeros((passes, shape[0], rank))

    def __call__(self, x: mx.array, index: int = 0) -> mx.array:
        """(..., inputs) -> (..., outputs); index: the pass, from 0."""
        if "scales" in self:
            y = mx.quantized_matmul(
                x, self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits
            )
        else:
            y = x @ self.weight.T
        return y + (x @ self.lora_a[index].T) @ self.lora_b[index].T if "lora_a" in self else y


class Norm(nn.Module):
    """RMS normalisation with a gain for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = mx.ones((width,))

    def __call__(self, x: mx.array) -> mx.array:
        """(..., width) -> the same."""
        return fused.rms(x, self.weight, EPSILON)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys. Source: arXiv 2305.13245, 2010.04245."""

    def __init__(self, config: ModelConfig, passes: int, rank: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.window = config.window
        self.rope_base = config.rope_base if config.position == "rope" else None
        self.qkv = Linear(config.linears()["attention.qkv"], passes, rank)
        self.out = Linear(config.linears()["attention.out"], passes, rank)
        if config.qk_norm:
            self.query_norm = Norm(config.head_width)
            self.key_norm = Norm(config.head_width)

    def __call__(self, x: mx.array, index: int, mask: mx.array | None, slot: Slot | None) -> mx.array:
        """(B, T, D) -> (B, T, D); mask as in `attention.attention`."""
        B, T, _ = x.shape
        H, N, K = self.heads, self.kv_heads, self.head_width
        qkv = self.qkv(x, index).reshape(B, T, H + 2 * N, K)
        q, k, v = mx.split(qkv, [H, H + N], axis=2)
        if "query_norm" in self:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # (B, H or N, T, K)
        if self.rope_base:
            start, end = (slot.cache.starts(), slot.length + T) if slot else (0, T)
            q, k = fused.rope(q, self.rope_base, start, end), fused.rope(k, self.rope_base, start, end)
        if slot:
            k, v = slot.append(k, v)
        y = attention(q, k, v, 1 / math.sqrt(K), mask, self.window)
        return self.out(y.transpose(0, 2, 1, 3).reshape(B, T, H * K), index)


class FeedForward(nn.Module):
    """Two matrices with ReLU^2 or SwiGLU between them."""

    def __init__(self, config: ModelConfig, passes: int, rank: int) -> None:
        super().__init__()
        self.gated = config.feed_forward == "swiglu"
        self.up = Linear(config.linears()["feed_forward.up"], passes, rank)
        self.down = Linear(config.linears()["feed_forward.down"], passes, rank)

    def __call__(self, x: mx.array, index: int) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        h = self.up(x, index)
        h = fused.swiglu(*mx.split(h, 2, axis=-1)) if self.gated else fused.relu_squared(h)
        return self.down(h, index)


class Block(nn.Module):
    """x + s a * attention(norm x), then x + s b * feed_forward(norm x); a and b are learned for each pass."""

    def __init__(self, config: ModelConfig, scale: float, passes: int = 0) -> None:
        super().__init__()
        rank = config.pass_lora if passes else 0
        self.scale, self.dropout = scale, config.dropout
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config, passes, rank)
        self.feed_forward_norm = Norm(config.width)
        self.feed_forward = FeedForward(config, passes, rank)
        if passes and config.pass_scale:
            self.attention_scale = mx.ones((passes, config.width))
            self.feed_forward_scale = mx.ones((passes, config.width))

    def __call__(
        self, x: mx.array, index: int, mask: mx.array | None, slot: Slot | None, key: mx.array | None = None
    ) -> mx.array:
        """(B, T, D) -> (B, T, D); index: the pass, from 0; key: what dropout draws from, None for no dropout."""
        first, second = (None, None) if key is None else mx.random.split(key)
        y = self.attention(self.attention_norm(x), index, mask, slot)
        x = x + self._branch(y, "attention_scale", index, first)
        y = self.feed_forward(self.feed_forward_norm(x), index)
        return x + self._branch(y, "feed_forward_scale", index, second)

    def _branch(self, y: mx.array, scale: str, index: int, key: mx.array | None) -> mx.array:
        y = y * (self.scale * self[scale][index] if scale in self else self.scale)
        return (
            y if key is None else y * mx.random.bernoulli(1 - self.dropout, y.shape, key) * (1 / (1 - self.dropout))
        )


class Halting(nn.Module):
    """Tells from a state whether reading it gives the likeliest token of full depth; it changes no scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((width,)), mx.zeros((1,))

    def __call__(self, h: mx.array) -> mx.array:
        """(..., D) -> (...): log-odds of it."""
        return _rms(h) @ self.weight + self.bias


class TinyRecursiveLM(nn.Module):
    """A language model of fewer than 50 million stored parameters, deeper than it is large."""

    tokenizer: Tokenizer | None = None  # this and `revision` are of the folder that it was loaded from
    revision: str | None = None

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.stored_parameters() > LIMIT:
            million = config.stored_parameters() / 1e6
            line = f"trm_mlx: this model stores {million:.1f}M parameters; a tiny one stores at most 50M"
            print(line, file=sys.stderr)
        self.config = config
        self.recompute = False  # gradient checkpointing: keep no activations inside a pass
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.prelude = [Block(config, 1 / math.sqrt(config.prelude)) for _ in range(config.prelude)]
        inner = 1 / (config.depth * math.sqrt(config.core))
        self.core = [Block(config, inner, config.depth) for _ in range(config.core)]
        self.coda = [Block(config, 1 / math.sqrt(config.coda)) for _ in range(config.coda)]
        self.final_norm = Norm(config.width)
        if config.injection:
            self.injection = mx.full((config.width,), 0.7)
            self.recall = mx.full((config.width,), 0.7)
        if config.position == "learned":
            self.positions = mx.zeros((config.context, config.width))
        if config.halting:
            self.halting = Halting(config.width)
        self.update(tree_unflatten(_initial(named(self.parameters()), seed)))

    def __call__(
        self,
        ids: mx.array,
        *,
        depth: int | None = None,
        exits: Sequence[int] | None = None,
        mask: Mask = "causal",
        segments: mx.array | None = None,
        cache: Cache | None = None,
        last: bool = False,
        halts: list[mx.array] | None = None,
    ) -> mx.array:
        """Scores of the next token (with a bidirectional mask: of the token itself).

        Args:
            ids: (B, T) integers below V.
            depth: passes through the core, 1 to config.depth; None: all.
            exits: instead of depth, the passes after which to read scores, ascending; the last ends the run.
            mask: "causal", "bidirectional", or (B,) lengths of a prefix that is seen from everywhere.
            segments: (B, T) integers; tokens see only their own segment.
            cache: keys and values of the positions before `ids`, extended in place; made by `cache(depth)`.
            last: scores of the last position only (T = 1 in the result).
            halts: gets, for each exit, the halting head's (B, T) log-odds, whose gradient ends at the state.

        Returns:
            (B, T, V), or (E, B, T, V) when `exits` is given.

        Raises:
            ValueError: a depth or exit the model was not made for, or a cache of another depth.
        """
        ends = [self.config.at_depth(depth)] if exits is None else list(exits)
        if exits is not None and (depth is not None or not ends or ends != sorted({*ends} - {0})):
            raise ValueError(f"exits must be ascending passes from 1, and stand for depth, got {exits} and {depth}")
        depth = self.config.at_depth(ends[-1])
        if cache is not None and (cache.depth != depth or len(ends) > 1):
            raise ValueError(f"this cache serves {cache.depth} passes and one exit, got {depth} and {len(ends)}")
        start, T = cache.length if cache else 0, ids.shape[1]
        alibi = self.config.heads if self.config.position == "alibi" else 0
        if cache is None:
            visible = visible_keys(T, T, mask, segments, self.config.window, alibi)
        elif isinstance(mask, str) and mask == "causal" and segments is None:
            visible = cache.visible(T)
        else:
            raise ValueError("a cache is of causal text: mask must be causal, and segments None")
        keys = [None] * (depth + 2)
        if self.training and self.config.dropout:
            keys = mx.random.split(mx.random.randint(0, 1 << 31, (2,)).astype(mx.uint32), depth + 2)
        slots, lead = (cache.prelude, cache.lead) if cache else (None, None)
        h = anchor = self.run_prelude(ids, start, visible, slots, keys[depth], lead)
        run = self._recomputed if self.recompute else self.run_pass
        states = []
        for index in range(depth):
            h = run(h, anchor, index, visible, cache.core[index] if cache else None, keys[index])
            if index + 1 in ends:
                states.append(h)
        logits = [self.read(h, anchor, visible, cache.coda if cache else None, keys[-1], last) for h in states]
        if halts is not None:
            halts += [self.halting(mx.stop_gradient(h)) for h in states]
        if cache is not None:
            cache.advance(T)
        return logits[0] if exits is None else mx.stack(logits)

    def cache(self, depth: int | None = None, kind: CacheConfig = EVERYTHING) -> Cache:
        """An empty cache for `depth` passes; None: all."""
        return Cache(self.config, self.config.at_depth(depth), kind)

    def run_prelude(
        self, ids: mx.array, start: int, visible, slots: list[Slot] | None, key=None, lead: mx.array | None = None
    ) -> mx.array:
        """(B, T) ids, the first at position `start` -> (B, T, D): the anchor, and the state before the first pass."""
        return _rms(_through(self.prelude, self._embed(ids, start, lead), 0, visible, slots, key))

    def run_pass(
        self, h: mx.array, anchor: mx.array, index: int, visible, slots: list[Slot] | None, key=None
    ) -> mx.array:
        """(B, T, D) after pass `index`, from 0."""
        h = _rms(h) + self.injection * anchor if self.config.injection else _rms(h)
        return _through(self.core, h, index, visible, slots, key)

    def read(
        self, h: mx.array, anchor: mx.array, visible, slots: list[Slot] | None, key=None, last: bool = False
    ) -> mx.array:
        """(B, T, V) scores of a state after any pass; with `last` (B, 1, V)."""
        h = _rms(h) + self.recall * anchor if self.config.injection else _rms(h)
        h = _through(self.coda, h, 0, visible, slots, key)
        return self.embedding.as_linear(self.final_norm(h[:, -1:] if last else h))

    def _embed(self, ids: mx.array, start: int, lead: mx.array | None) -> mx.array:
        x, end, position = _rms(self.embedding(ids)), start + ids.shape[1], self.config.position
        if position in ("learned", "sinusoidal") and end > self.config.context:
            raise ValueError(f"{position} positions end at {self.config.context}, got {end} tokens")
        at = mx.arange(start, end) if lead is None else mx.maximum(mx.arange(start, end) - lead[:, None], 0)
        if position == "learned":
            return x + (self.positions[start:end] if lead is None else self.positions[at])
        return x + waves(at, self.config.width) if position == "sinusoidal" else x

    def _recomputed(self, h: mx.array, anchor: mx.array, index: int, visible, slots, key) -> mx.array:
        weights = {name: array for name, array in named(self).items() if name.startswith(("core.", "injection"))}

        def one(h: mx.array, anchor: mx.array, key) -> mx.array:
            return self.run_pass(h, anchor, index, visible, slots, key)

        return recompute.call(self, one, weights, (h, anchor), key)


def _rms(x: mx.array) -> mx.array:
    return fused.rms(x, None, EPSILON)


def _through(blocks: list[Block], x: mx.array, index: int, visible, slots: list[Slot] | None, key) -> mx.array:
    keys = [None] * len(blocks) if key is None else mx.random.split(key, len(blocks))
    for place, block in enumerate(blocks):
        x = block(x, index, visible, slots[place] if slots else None, keys[place])
    return x


def waves(at: mx.array, width: int) -> mx.array:
    """(..., width) of (...) positions: sines in the first half, cosines in the second.

    Source: arXiv 1706.03762, 3.5.
    """
    rates = 10_000.0 ** (-mx.arange(0, width, 2) / width)
    angles = at[..., None] * rates
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)


def named(tree: object) -> dict[str, mx.array]:
    """The arrays of a tree by dotted name, as a model folder names them."""
    return {name: array for name, array in tree_flatten(tree) if isinstance(array, mx.array)}


def _initial(parameters: dict[str, mx.array], seed: int) -> list[tuple[str, mx.array]]:
    """Matrices truncated normal of deviation sqrt(2 / 5 D), those that end a branch zero; the rest as made."""
    trunk = {name: value for name, value in parameters.items() if not name.startswith("halting.")}  # drawn as without
    drawn, keys = [], mx.random.split(mx.random.key(seed), len(trunk))
    for (name, value), key in zip(sorted(trunk.items()), keys, strict=True):
        if name.endswith("lora_a") or name == "positions" or (value.ndim == 2 and name.endswith("weight")):
            ending = name.endswith(("out.weight", "down.weight"))
            deviation = 0.0 if ending else math.sqrt(2 / (5 * value.shape[-1]))
            value = deviation * mx.random.truncated_normal(-3, 3, value.shape, key=key)
        drawn.append((name, value))
    return drawn
