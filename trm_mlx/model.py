"""The model: a decoder whose middle blocks are one set of weights, run several times.

    x = embedding(ids)        e = rms(prelude(x))        h_0 = e
    h_r = core(rms(h_{r-1}) + injection * e)      r = 1..R, the same weights each pass
    logits_r = embedding^T rms(coda(rms(h_r) + recall * e))

`docs/model.md` states every equation and tensor name. Sources: looped transformers with a re-injected prelude
(Huginn, arXiv 2502.05171; 2609.19107), residual branches scaled for the number of passes (arXiv 2606.18524).

Shapes: B batch, T tokens, D width, H heads, N key-value heads, K = D / H head width, V vocabulary, E exits.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from trm_mlx import fused
from trm_mlx.cache import Cache, Slot
from trm_mlx.fused import Mask

EPSILON = 1e-5  # of every RMS normalisation; float16 cannot hold squares of much less
LIMIT = 50_000_000  # stored parameters of a tiny model
LARGEST = {"vocabulary": 1 << 16, "depth": 64}  # what a token file can hold; what can still be unrolled

Position = Literal["rope", "alibi", "learned", "sinusoidal", "none"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the model."""

    vocabulary: Annotated[int, "tokens in the vocabulary"] = 8192
    width: Annotated[int, "features per token"] = 256
    heads: Annotated[int, "query heads"] = 4
    kv_heads: Annotated[int, "key-value heads; each serves heads / kv_heads query heads"] = 2
    prelude: Annotated[int, "blocks before the core"] = 2
    core: Annotated[int, "blocks of the core, shared by all passes"] = 2
    coda: Annotated[int, "blocks after the core"] = 2
    depth: Annotated[int, "most passes through the core"] = 3
    context: Annotated[int, "positions the model is made for"] = 1024
    window: Annotated[int, "positions a token looks back on, itself included; 0: all"] = 0
    position: Annotated[Position, "how positions are told apart"] = "rope"
    rope_base: Annotated[float, "longest RoPE wavelength, divided by 2 pi"] = 10_000.0
    feed_forward: Annotated[Literal["relu2", "swiglu"], "ReLU^2 of 3 width, or SwiGLU of 2 width"] = "relu2"
    qk_norm: Annotated[bool, "normalise queries and keys"] = True
    injection: Annotated[bool, "add the prelude's output before every pass"] = True
    pass_scale: Annotated[bool, "a learned scale per channel for each pass and branch of the core"] = True
    pass_lora: Annotated[int, "rank of low-rank corrections for each pass; 0: none"] = 0
    dropout: Annotated[float, "share of branch outputs dropped in training"] = 0.0

    PRESETS: ClassVar[Mapping[str, "ModelConfig"]] = {}

    def __post_init__(self) -> None:
        zero = ("prelude", "coda", "window", "pass_lora")
        for name in ("vocabulary", "width", "heads", "kv_heads", "core", "depth", "context", *zero):
            least, most = 0 if name in zero else 1, LARGEST.get(name, 1 << 20)
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, got {str(getattr(self, name))[:20]}")
        if self.width % self.heads or self.heads % self.kv_heads:
            found = f"{self.width}, {self.heads} and {self.kv_heads}"
            raise ValueError(f"width must be a multiple of heads, and heads of kv_heads, got {found}")
        if {"rope": self.head_width, "sinusoidal": self.width}.get(self.position, 0) % 2:
            raise ValueError(f"width (for rope, width / heads) must be even, got {self.width} and {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 1 < self.rope_base < math.inf:
            raise ValueError(f"rope_base must be above 1, got {self.rope_base}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def blocks(self, depth: int | None = None) -> int:
        """Blocks that a token runs through."""
        return self.prelude + self.core * self.at_depth(depth) + self.coda

    def at_depth(self, depth: int | None) -> int:
        """The number of passes asked for; None: all.

        Raises:
            ValueError: not between 1 and the depth the model was made for.
        """
        if depth is None:
            return self.depth
        if not 1 <= depth <= self.depth:
            raise ValueError(f"depth must be 1 to {self.depth}, the most this model was made for, got {depth}")
        return depth

    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (outputs, inputs) of each matrix of one block, by its name."""
        D, qkv = self.width, self.width + 2 * self.kv_heads * self.head_width
        up, down = (3 * D, 3 * D) if self.feed_forward == "relu2" else (4 * D, 2 * D)  # 6 D^2 weights in both
        shapes = [(qkv, D), (D, D), (up, D), (D, down)]
        return dict(
            zip(("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"), shapes, strict=True)
        )

    def _block(self) -> tuple[int, int, int]:
        """Numbers in a block's matrices, in its vectors, and in its low-rank corrections for one pass."""
        shapes = self.linears().values()
        vectors = 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        return sum(a * b for a, b in shapes), vectors, self.pass_lora * sum(a + b for a, b in shapes)

    def stored_parameters(self) -> int:
        """Numbers that the model file holds."""
        matrices, vectors, lora = self._block()
        total = (self.vocabulary + 1) * self.width + self.blocks(1) * (matrices + vectors)
        total += self.context * self.width if self.position == "learned" else 0
        total += 2 * self.width if self.injection else 0
        return total + self.core * self.depth * ((2 * self.width if self.pass_scale else 0) + lora)

    def effective_parameters(self, depth: int | None = None) -> int:
        """Numbers that a model without sharing would hold to compute the same: each pass has its own core."""
        matrices, vectors, _ = self._block()
        return self.stored_parameters() + self.core * (self.at_depth(depth) - 1) * (matrices + vectors)

    def flops_per_token(self, depth: int | None = None, length: int = 0) -> int:
        """Multiplications and additions in the matrix products of one token's forward pass.

        Args:
            depth: passes; None: all.
            length: positions that its attention looks at, itself included.
        """
        matrices, _, lora = self._block()
        attention = 2 * min(length, self.window or length) * self.width  # scores, and means of the values
        total = self.blocks(depth) * (matrices + attention) + self.core * self.at_depth(depth) * lora
        return 2 * (total + self.vocabulary * self.width)

    def cache_bytes_per_token(self, depth: int | None = None, bytes_per_number: int = 4) -> int:
        """Bytes that one position adds to the keys and values kept while generating."""
        return self.blocks(depth) * 2 * self.kv_heads * self.head_width * bytes_per_number


ModelConfig.PRESETS = {
    "nano": ModelConfig(vocabulary=4096, width=128, prelude=1, coda=1, context=512),
    "tiny": ModelConfig(),
    "small": ModelConfig(width=384, heads=6, core=4),
    "base": ModelConfig(vocabulary=12288, width=512, heads=8, prelude=3, core=5, coda=3),
    "large": ModelConfig(vocabulary=16384, width=576, heads=9, kv_heads=3, prelude=3, core=6, coda=3, depth=2),
}


class Linear(nn.Module):
    """A matrix without bias; with a rank, plus a low-rank correction of its own for each pass."""

    def __init__(self, shape: tuple[int, int], passes: int = 0, rank: int = 0) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)
        if rank:
            self.lora_a = mx.zeros((passes, rank, shape[1]))
            self.lora_b = mx.zeros((passes, shape[0], rank))

    def __call__(self, x: mx.array, index: int = 0) -> mx.array:
        """(..., inputs) -> (..., outputs); index: the pass, from 0."""
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
        """(B, T, D) -> (B, T, D); mask as in `fused.attention`."""
        B, T, _ = x.shape
        H, N, K = self.heads, self.kv_heads, self.head_width
        qkv = self.qkv(x, index).reshape(B, T, H + 2 * N, K)
        q, k, v = mx.split(qkv, [H, H + N], axis=2)
        if "query_norm" in self:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # (B, H or N, T, K)
        if self.rope_base:
            start = slot.length if slot else 0
            q, k = fused.rope(q, self.rope_base, start), fused.rope(k, self.rope_base, start)
        if slot:
            k, v = slot.append(k, v)
        y = fused.attention(q, k, v, 1 / math.sqrt(K), mask, self.window)
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

    def __call__(self, x: mx.array, index: int, mask: mx.array | None, slot: Slot | None) -> mx.array:
        """(B, T, D) -> (B, T, D); index: the pass, from 0."""
        x = x + self._branch(self.attention(self.attention_norm(x), index, mask, slot), "attention_scale", index)
        y = self.feed_forward(self.feed_forward_norm(x), index)
        return x + self._branch(y, "feed_forward_scale", index)

    def _branch(self, y: mx.array, scale: str, index: int) -> mx.array:
        y = y * (self.scale * self[scale][index] if scale in self else self.scale)
        if not (self.dropout and self.training):
            return y
        return y * mx.random.bernoulli(1 - self.dropout, y.shape) * (1 / (1 - self.dropout))


class TinyRecursiveLM(nn.Module):
    """A language model of fewer than 50 million stored parameters, deeper than it is large."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.stored_parameters() > LIMIT:
            million = config.stored_parameters() / 1e6
            warnings.warn(f"this model stores {million:.1f}M parameters; a tiny one stores at most 50M", stacklevel=2)
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
        start = cache.length if cache else 0
        alibi = self.config.heads if self.config.position == "alibi" else 0
        visible = fused.visible(ids.shape[1], start + ids.shape[1], mask, segments, self.config.window, alibi)
        x = self._embed(ids, start)
        x = _through(self.prelude, x, 0, visible, cache.prelude if cache else None)
        h = anchor = _rms(x)
        run = nn.utils.checkpoint(self, self._pass) if self.recompute else self._pass
        states = []
        for index in range(depth):
            h = run(h, anchor, index, visible, cache.core[index] if cache else None)
            if index + 1 in ends:
                states.append(h)
        logits = [self._read(h, anchor, visible, cache.coda if cache else None, last) for h in states]
        return logits[0] if exits is None else mx.stack(logits)

    def cache(self, depth: int | None = None) -> Cache:
        """An empty cache for `depth` passes; None: all."""
        return Cache(self.config.at_depth(depth), self.config.prelude, self.config.core, self.config.coda)

    def _embed(self, ids: mx.array, start: int) -> mx.array:
        x, end, position = _rms(self.embedding(ids)), start + ids.shape[1], self.config.position
        if position in ("learned", "sinusoidal") and end > self.config.context:
            raise ValueError(f"{position} positions end at {self.config.context}, got {end} tokens")
        if position == "learned":
            return x + self.positions[start:end]
        return x + _waves(start, end, self.config.width) if position == "sinusoidal" else x

    def _pass(self, h: mx.array, anchor: mx.array, index: int, visible, slots: list[Slot] | None) -> mx.array:
        h = _rms(h) + self.injection * anchor if self.config.injection else _rms(h)
        return _through(self.core, h, index, visible, slots)

    def _read(self, h: mx.array, anchor: mx.array, visible, slots: list[Slot] | None, last: bool) -> mx.array:
        h = _rms(h) + self.recall * anchor if self.config.injection else _rms(h)
        h = _through(self.coda, h, 0, visible, slots)
        return self.embedding.as_linear(self.final_norm(h[:, -1:] if last else h))


def _rms(x: mx.array) -> mx.array:
    return fused.rms(x, None, EPSILON)


def _through(blocks: list[Block], x: mx.array, index: int, visible, slots: list[Slot] | None) -> mx.array:
    for place, block in enumerate(blocks):
        x = block(x, index, visible, slots[place] if slots else None)
    return x


def _waves(start: int, end: int, width: int) -> mx.array:
    """(end - start, width): sines in the first half, cosines in the second. Source: arXiv 1706.03762, 3.5."""
    rates = 10_000.0 ** (-mx.arange(0, width, 2) / width)
    angles = mx.arange(start, end)[:, None] * rates
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)


def named(tree: object) -> dict[str, mx.array]:
    """The arrays of a tree by dotted name, as a model folder names them."""
    return {name: array for name, array in tree_flatten(tree) if isinstance(array, mx.array)}


def _initial(parameters: dict[str, mx.array], seed: int) -> list[tuple[str, mx.array]]:
    """Matrices truncated normal of deviation sqrt(2 / 5 D), those that end a branch zero; the rest as made."""
    drawn, keys = [], mx.random.split(mx.random.key(seed), len(parameters))
    for (name, value), key in zip(sorted(parameters.items()), keys, strict=True):
        if name.endswith("lora_a") or name == "positions" or (value.ndim == 2 and name.endswith("weight")):
            ending = name.endswith(("out.weight", "down.weight"))
            deviation = 0.0 if ending else math.sqrt(2 / (5 * value.shape[-1]))
            value = deviation * mx.random.truncated_normal(-3, 3, value.shape, key=key)
        drawn.append((name, value))
    return drawn
