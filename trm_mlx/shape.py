"""The shape of a model: its settings, presets, and what they cost in numbers, work and memory.

Shapes: D width, V vocabulary, K head width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

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
    depth: Annotated[int, "most passes through the core"] = 2
    context: Annotated[int, "positions the model is made for"] = 1024
    window: Annotated[int, "positions a token looks back on, itself included; 0: all"] = 0
    position: Annotated[Position, "how positions are told apart"] = "rope"
    rope_base: Annotated[float, "longest RoPE wavelength, divided by 2 pi"] = 10_000.0
    feed_forward: Annotated[Literal["relu2", "swiglu"], "ReLU^2 with 3 x width inside, or SwiGLU with 2 x width"] = (
        "relu2"
    )
    qk_norm: Annotated[bool, "normalise queries and keys"] = True
    injection: Annotated[bool, "add the prelude's output before every pass"] = True
    pass_scale: Annotated[bool, "a learned scale per channel for each pass and branch of the core"] = True
    pass_lora: Annotated[int, "rank of low-rank corrections for each pass; 0: none"] = 0
    dropout: Annotated[float, "share of branch outputs dropped in training"] = 0.0
    halting: Annotated[bool, "a head that learns after which pass reading gives what full depth would"] = False

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

    def trained_at(self, length: int) -> "ModelConfig":
        """The shape of a model trained on sequences of this length, which must not be asked for distances beyond.

        A model that never saw a distance reads nonsense there (0.17 bits per byte worse at twice the length, see
        docs/choices.md). So RoPE gets a window of the length and can go on for as long as the context; positions
        from a table end with the length; ALiBi extrapolates by design (arXiv 2108.12409).
        """
        if length >= self.context or self.position == "alibi":
            return self
        if self.position in ("learned", "sinusoidal"):
            return replace(self, context=length)
        return replace(self, window=min(self.window or length, length))

    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (outputs, inputs) of each matrix of one block, by its name."""
        D, qkv = self.width, self.width + 2 * self.kv_heads * self.head_width
        up, down = (3 * D, 3 * D) if self.feed_forward == "relu2" else (4 * D, 2 * D)  # 6 D^2 weights in both
        shapes = [(qkv, D), (D, D), (up, D), (D, down)]
        return dict(
            zip(("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"), shapes, strict=True)
        )

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shape (outputs, inputs) of each matrix of the model, the embedding first, by the name of its tensor."""
        counts = {"prelude": self.prelude, "core": self.core, "coda": self.coda}
        blocks = [f"{part}.{place}" for part, count in counts.items() for place in range(count)]
        found = {f"{block}.{name}.weight": shape for block in blocks for name, shape in self.linears().items()}
        return {"embedding.weight": (self.vocabulary, self.width), **found}

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
        total += self.width + 1 if self.halting else 0
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
    "large": ModelConfig(vocabulary=16384, width=576, heads=9, kv_heads=3, prelude=3, core=6, coda=3),
}
