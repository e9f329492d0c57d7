"""Where the tokens of a call stand, worked out in the graph: who sees whom, RoPE's turns and ALiBi's biases.

Shapes: T tokens of a call, C context, H heads, K head width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Var

from trm_mlx.shape import ModelConfig

mb: Any = Builder  # which makes its operations at run time
MASKED = -1e4  # added to a score, leaves no probability, and is far from what float16 holds
TURN = 32  # positions that the finer of two tables of angles holds


@dataclass(frozen=True)
class Positions:
    """Those of one call's tokens."""

    config: ModelConfig
    context: int
    start: Var  # (1,) int32: tokens in the cache
    places: Var  # (T,) int32: the position of each token
    dtype: type[np.float16] | type[np.float32]

    @property
    def tokens(self) -> int:
        return self.places.shape[0]

    @property
    def word(self) -> str:
        """The type as casts name it."""
        return "fp16" if self.dtype is np.float16 else "fp32"

    def turns(self) -> tuple[Var, Var] | None:
        """Cosines, and sines with the first half negative, of the call's positions: each (1, 1, T, K).

        From two small tables, by the sums of angles: one of all positions would be a good part of a small package.
        """
        if self.config.position != "rope":
            return None
        coarse = mb.floor_div(x=self.places, y=np.int32(TURN), name="places_coarse")
        fine = mb.sub(x=self.places, y=mb.mul(x=coarse, y=np.int32(TURN), name="places_floor"), name="places_fine")
        rates = self.config.rope_base ** (-np.arange(0, self.config.head_width, 2) / self.config.head_width)
        read = {}
        for which, index, step in (("coarse", coarse, TURN), ("fine", fine, 1)):
            count = TURN if step == 1 else -(-self.context // TURN)
            angles = step * np.arange(count)[:, None] * rates
            for name, table in (("cosines", np.cos(angles)), ("sines", np.sin(angles))):
                held = mb.const(val=table.astype(np.float32), name=f"{name}_{which}")
                read[name, which] = mb.gather(
                    x=held, indices=index, axis=0, validate_indices=False, name=f"{name}_{which}_read"
                )

        def product(first: str, second: str) -> Var:
            x, y = read[first, "coarse"], read[second, "fine"]
            return mb.mul(x=x, y=y, name=f"{first}_by_{second}")

        cosines = mb.sub(x=product("cosines", "cosines"), y=product("sines", "sines"), name="cosines_half")
        sines = mb.add(x=product("sines", "cosines"), y=product("cosines", "sines"), name="sines_half")
        negative = mb.mul(x=sines, y=np.float32(-1), name="sines_negative")
        found = []
        for name, halves in (("cosines", (cosines, cosines)), ("sines", (negative, sines))):
            whole = mb.concat(values=list(halves), axis=1, name=f"{name}_whole")
            if self.word == "fp16":
                whole = mb.cast(x=whole, dtype="fp16", name=f"{name}_cast")
            found.append(mb.expand_dims(x=whole, axes=[0, 1], name=name))
        return found[0], found[1]

    def mask(self) -> Var:
        """(1, 1, T, C), with alibi (1, H, T, C): added to the scores of the cache's keys, then of the call's own."""
        past, window = self.context - self.tokens, self.config.window
        rows = mb.expand_dims(x=self.places, axes=[0, 1, 3], name="row_places")  # (1, 1, T, 1)
        own = mb.expand_dims(x=self.places, axes=[0, 1, 2], name="own_places")  # (1, 1, 1, T)
        cached = np.arange(past, dtype=np.int32).reshape(1, 1, 1, past)
        zeros = np.zeros((1, 1, self.tokens, 1), np.int32)
        length = mb.add(x=zeros, y=self.start, name="cache_length")  # in every row
        seen = {"cached": mb.less(x=cached, y=length, name="cached_seen")}
        seen["own"] = mb.less_equal(x=own, y=rows, name="own_seen")
        masks = []
        if window:
            before = mb.sub(x=rows, y=np.int32(window), name="row_before_window")
        for name, keys in (("cached", cached), ("own", own)):
            if window:
                near = mb.greater(x=keys, y=before, name=f"{name}_near")
                seen[name] = mb.logical_and(x=seen[name], y=near, name=f"{name}_seen_near")
            real = mb.cast(x=seen[name], dtype=self.word, name=f"{name}_seen_real")
            unseen = mb.sub(x=real, y=self.dtype(1), name=f"{name}_unseen")
            mask = mb.mul(x=unseen, y=self.dtype(-MASKED), name=f"{name}_mask")  # 0 where seen
            if self.config.position == "alibi":
                mask = mb.add(x=mask, y=self._bias(rows, keys, real, name), name=f"{name}_biased")
            masks.append(mask)
        return mb.concat(values=masks, axis=3, name="mask")

    def _bias(self, rows: Var, keys: Var | np.ndarray, seen: Var, name: str) -> Var:
        """(1, H, T, keys): ALiBi's, falling with distance; 0 where nothing is seen, or it would outgrow the mask."""
        slopes = 2.0 ** (-8 * np.arange(1, self.config.heads + 1) / self.config.heads)
        apart = mb.sub(x=keys, y=rows, name=f"{name}_apart")  # negative where seen
        apart = mb.cast(x=apart, dtype=self.word, name=f"{name}_apart_real")
        apart = mb.mul(x=apart, y=seen, name=f"{name}_apart_seen")
        return mb.mul(x=apart, y=slopes.astype(self.dtype).reshape(1, -1, 1, 1), name=f"{name}_bias")
