"""The forward pass over a text's next positions in parts, so that it can stop after any pass, and go on later.

On the Linux CPU each part is compiled apart, from folded weights; elsewhere they are the model's own.

Shapes: T tokens of one text, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from trm_mlx import fused
from trm_mlx.cache import Cache, CacheConfig
from trm_mlx.decode.folded import Folded, Held, Place
from trm_mlx.decode.step import StepModel

Name = str | int  # "prelude", the number of a pass from 0, "coda"


class Passes:
    """The parts of one text's forward pass over T tokens: `begin`, then `run` for each pass, and `read` after any.

    Each writes keys and values of the T positions from `text.position` on, a later reading over an earlier one; they
    are the text's once `text.cache.advance(T)` counts them. A state is (T, 1, 1, D) or (1, T, D): see `joined`.
    """

    def __init__(self, text: StepModel) -> None:
        self.text, self.parts = text, Parts.of(text)

    def begin(self, ids: Sequence[int]) -> mx.array:
        """The anchor of these tokens, which is also their state before the first pass."""
        self.stand(len(ids))
        cache, array = self.text.cache, mx.array([list(ids)])
        if self.parts:
            return self.parts.call("prelude", cache, self.place, array, mx.array([cache.length]))
        with fused.uncompiled():
            return self.text.model.run_prelude(array, cache.length, self.visible, cache.prelude)

    def stand(self, T: int) -> None:
        """Be at the next T positions, as `begin` does by itself."""
        cache = self.text.cache
        if self.parts:
            cache.reserve(1, T)
            self.place = self.parts.place(cache, T)
        else:
            self.visible = cache.visible(T)

    def run(self, h: mx.array, anchor: mx.array, index: int) -> mx.array:
        """The state after pass `index`, from 0."""
        cache = self.text.cache
        if self.parts:
            return self.parts.call(index, cache, self.place, h, anchor)
        with fused.uncompiled():
            return self.text.model.run_pass(h, anchor, index, self.visible, cache.core[index])

    def read(self, h: mx.array, anchor: mx.array) -> mx.array:
        """(T, V) float32 scores from these states."""
        cache = self.text.cache
        if self.parts:
            return self.parts.call("coda", cache, self.place, h, anchor)[0]
        with fused.uncompiled():
            return self.text.model.read(h, anchor, self.visible, cache.coda)[0].astype(mx.float32)

    def joined(self, states: Sequence[mx.array]) -> mx.array:
        """States of consecutive positions as one."""
        return mx.concatenate(list(states), axis=0 if self.parts else 1)


class Parts:
    """Folded weights in parts, for one kind and depth of cache, each compiled for each shape it is called with."""

    @staticmethod
    def of(text: StepModel) -> "Parts | None":
        """Those of a text's model, made once; None where its weights are not folded."""
        if text.folded is None:
            return None
        made: dict[tuple[int, CacheConfig], Parts] = vars(text.folded).setdefault("parts", {})
        key = (text.depth, text.kind)
        if key not in made:
            made[key] = Parts(text.folded, Cache(text.model.config, *key))
        return made[key]

    def __init__(self, weights: Folded, empty: Cache) -> None:
        """empty: tells how a cache is laid out."""
        self.weights, self.empty = weights, empty
        slots, prelude, core = empty.slots, len(empty.prelude), len(empty.core[0])
        ranges: dict[Name, range] = {
            "prelude": range(prelude),
            "coda": range(len(slots) - len(empty.coda), len(slots)),
        }
        for index in range(empty.depth):
            ranges[index] = range(prelude + index * core, prelude + (index + 1) * core)
        self.slots = {  # those whose arrays a part reads or writes
            name: sorted({slots.index(slots[number].lender or slots[number]) for number in each})
            for name, each in ranges.items()
        }
        self.compiled: dict[object, Callable] = {}

    def place(self, cache: Cache, T: int) -> list[mx.array]:
        """The arrays of `folded.Place` for the next T positions."""
        places = cache.arrays[0].shape[2]
        key = (T, places)
        if key not in self.compiled:

            def found(position: mx.array) -> list[mx.array]:
                place = self.weights.place(self.empty, position, None, 1, T, places)
                return [*place.starts, place.cosines, place.sines, place.mask]

            self.compiled[key] = mx.compile(found)
        return self.compiled[key](mx.array([cache.length]))

    def call(self, name: Name, cache: Cache, place: list[mx.array], *inputs: mx.array) -> mx.array:
        """What a part gives; what it writes to the cache is then there."""
        if name not in self.compiled:
            self.compiled[name] = mx.compile(self._part(name))
        slots = [cache.slots[number] for number in self.slots[name]]
        result, *arrays = self.compiled[name](place, [part for slot in slots for part in slot.parts], *inputs)
        left = iter(arrays)
        for slot in slots:
            slot.parts = [next(left) for _ in slot.parts]
        return result

    def _part(self, name: Name) -> Callable[..., list[mx.array]]:
        def run(place: list[mx.array], arrays: list[mx.array], first: mx.array, second: mx.array) -> list[mx.array]:
            where, weights = Place(place[:-3], *place[-3:], 1), self.weights
            held = Held(self.empty, where, arrays, self.slots[name])
            if name == "prelude":
                result = weights.run_prelude(first, second, None, held)
            elif name == "coda":
                result = weights.read(first, second, held)
            else:
                result = weights.run_pass(first, second, int(name), held)
            return [result, *held.arrays]

        return run
