"""The model as an ML Program: a pure function of a model folder's contents and a plan, built without tracing.

The passes are unrolled; every weight is one value of the program, whatever number of passes and functions use it.
Layout (1, channels, 1, tokens) with 1x1 convolutions, RMS norms as layer norms of [x, -x] and a finite mask are what
the Neural Engine runs well; see docs/export.md for the reasons and their sources.

Shapes: T tokens of a call, C context, D width, H heads, N key-value heads, K head width, V vocabulary, S slots.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import coremltools as ct
import mlx.core as mx
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, Program, Var, types

from convert.compress import constant, round_matrices, weight_id
from convert.manifest import Compression, FunctionPair, Precision, StateKind
from convert.positions import Positions
from trm_mlx.checkpoint import Contents
from trm_mlx.model import EPSILON
from trm_mlx.shape import ModelConfig

mb: Any = Builder  # which makes its operations at run time
OPSET = ct.target.iOS18


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to export of a model."""

    depths: tuple[int, ...]
    context: int
    chunk: int
    state: StateKind
    precision: Precision

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted({*self.depths} - {0}):
            raise ValueError(f"depths must be ascending passes from 1, got {self.depths}")
        if not 2 <= self.chunk < self.context:
            raise ValueError(f"chunk must be 2 to {self.context - 1}, below the context, got {self.chunk}")
        if self.precision == "float32" and self.state == "model":
            raise ValueError("a Core ML state holds float16 only; for --precision float32 give --state host")

    def slots(self, config: ModelConfig, depth: int) -> int:
        """Slots of the cache that a depth uses: prelude, coda, then the core's of each pass."""
        return config.prelude + config.coda + depth * config.core

    def pairs(self, config: ModelConfig) -> tuple[FunctionPair, ...]:
        """The functions of each depth."""
        found = []
        for depth in self.depths:
            end = "" if depth == self.depths[-1] else f"_r{depth}"
            names = {"decode": f"decode{end}", "prefill": f"prefill{end}"}
            found.append(FunctionPair(depth=depth, slots=self.slots(config, depth), **names))
        return tuple(found)

    def cache_shape(self, config: ModelConfig) -> tuple[int, int, int, int]:
        """(2 S, N, C, K)."""
        return 2 * self.slots(config, self.depths[-1]), config.kv_heads, self.context, config.head_width


def build(
    held: Contents, plan: Plan, how: Compression = "none", told: Callable[[str], None] = lambda what: None
) -> Program:
    """The program with all functions of the plan.

    Args:
        how: rounding by coremltools, of a model that is not quantized.
        told: is given the name of each function before it is built.
    """
    program = Program()
    for pair in plan.pairs(held.config):
        for name, tokens in ((pair.decode, 1), (pair.prefill, plan.chunk)):
            told(name)
            program.add_function(name, Step(held, plan, tokens, pair.depth).function())
    program.default_function_name = plan.pairs(held.config)[-1].decode
    program.export_as_multifunction = True
    if how != "none":
        told(f"rounding to {how}")
        round_matrices(program, held.config.matrices(), how)
    for function in program.functions.values():
        for op in function.operations:
            if op.op_type == "const" and isinstance(op.outputs[0].val, np.ndarray):
                op.weight_id = weight_id(op.outputs[0].val)  # equal constants are stored once, in all functions
    return program


class Step:
    """Builds one function: T tokens through `depth` passes."""

    def __init__(self, held: Contents, plan: Plan, tokens: int, depth: int) -> None:
        self.held, self.plan, self.config, self.T, self.depth = held, plan, held.config, tokens, depth
        self.type = np.float16 if plan.precision == "float16" else np.float32
        self.kind = types.fp16 if plan.precision == "float16" else types.fp32
        self.kept: dict[str, Var] = {}
        self.rows: dict[int, tuple[Var, Var]] = {}  # new keys and values by slot

    def function(self) -> Function:
        """The function, with inputs and outputs as docs/export.md names them."""
        shape, host = self.plan.cache_shape(self.config), self.plan.state == "host"
        inputs = {"input_ids": mb.TensorSpec((1, self.T), types.int32), "position": mb.TensorSpec((1,), types.int32)}
        if self.T > 1:
            inputs["last_index"] = mb.TensorSpec((1,), types.int32)
        inputs["kv_cache"] = mb.TensorSpec(shape, self.kind) if host else mb.StateTensorSpec(shape, self.kind)
        with Function(inputs, opset_version=OPSET) as function:
            given = function.inputs
            cache = given["kv_cache"] if host else mb.read_state(input=given["kv_cache"], name="cache")
            self.past, self.position = cache, given["position"]
            places = mb.add(x=np.arange(self.T, dtype=np.int32), y=self.position, name="places")  # (T,)
            positions = Positions(self.config, self.plan.context, self.position, places, self.type)
            self.mask, self.turns = positions.mask(), positions.turns()
            logits = self._logits(given, places)
            rows = mb.concat(values=list(self._in_order()), axis=0, name="kv_rows")  # (2 S_r, N, T, K)
            if host:
                function.set_outputs([logits, rows])
            else:
                self._store(given["kv_cache"], rows)
                function.set_outputs([logits])
        return function

    def _in_order(self) -> Iterator[Var]:
        for slot in range(self.plan.slots(self.config, self.depth)):
            yield from self.rows[slot]

    def _store(self, state: Var, rows: Var) -> None:
        """Write all new rows at once: reading a state again after a write is what compilers get wrong."""
        config, zero = self.config, np.zeros(1, np.int32)
        begin = mb.concat(values=[np.zeros(2, np.int32), self.position, zero], axis=0, name="cache_begin")
        after = mb.add(x=self.position, y=np.array([self.T], np.int32), name="position_after")
        sizes = np.array([2 * self.plan.slots(config, self.depth), config.kv_heads], np.int32)
        width = np.array([config.head_width], np.int32)
        end = mb.concat(values=[sizes, after, width], axis=0, name="cache_end")
        filled = mb.slice_update(x=self.past, update=rows, begin=begin, end=end, name="cache_filled")
        mb.coreml_update_state(state=state, value=filled, name="cache_update")

    def _logits(self, given: dict[str, Var], places: Var) -> Var:
        shape = self.config
        x = self._embed(given["input_ids"], places)
        for block in range(shape.prelude):
            x = self._block(x, f"prelude_{block}", f"prelude.{block}", block, 1 / math.sqrt(shape.prelude))
        h = anchor = self._rms(x, "anchor")
        inner = 1 / (shape.depth * math.sqrt(shape.core))
        first = shape.prelude + shape.coda
        for index in range(self.depth):
            h = self._injected(h, anchor, "injection", f"pass_{index + 1}")
            for block in range(shape.core):
                place, slot = f"core_{block}_pass_{index + 1}", first + index * shape.core + block
                h = self._block(h, place, f"core.{block}", slot, inner, index)
        h = self._injected(h, anchor, "recall", "recall")
        for block in range(shape.coda):
            slot = shape.prelude + block
            h = self._block(h, f"coda_{block}", f"coda.{block}", slot, 1 / math.sqrt(shape.coda))
        if self.T > 1:
            h = mb.gather(x=h, indices=given["last_index"], axis=3, validate_indices=False, name="last_row")
        h = self._rms(h, "final_norm", gain=self._plain("final_norm.weight"))
        scores = mb.conv(x=h, weight=self._weight("embedding.weight"), name="scores")  # (1, V, 1, 1)
        return mb.reshape(x=scores, shape=(1, 1, shape.vocabulary), name="logits")

    def _embed(self, ids: Var, places: Var) -> Var:
        ids = mb.squeeze(x=ids, axes=[0], name="ids")
        table = self._weight("embedding.weight")  # (V, D, 1, 1)
        x = mb.gather(x=table, indices=ids, axis=0, validate_indices=False, name="embedded")  # (T, D, 1, 1)
        x = self._rms(mb.transpose(x=x, perm=[2, 1, 3, 0], name="embedding_columns"), "embedding_norm")
        if self.config.position not in ("learned", "sinusoidal"):
            return x
        table = self._positions()
        added = mb.gather(x=table, indices=places, axis=0, validate_indices=False, name="positions_read")
        added = mb.reshape(x=added, shape=(self.T, self.config.width, 1, 1), name="positions_apart")
        added = mb.transpose(x=added, perm=[2, 1, 3, 0], name="positions_columns")
        return mb.add(x=x, y=added, name="placed")

    def _positions(self) -> np.ndarray:
        """(C, D): learned, or sines in the first half and cosines in the second."""
        if self.config.position == "learned":
            return self._plain("positions")[: self.plan.context].astype(self.type)
        rates = 10_000.0 ** (-np.arange(0, self.config.width, 2) / self.config.width)
        angles = np.arange(self.plan.context)[:, None] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(self.type)

    def _block(self, x: Var, place: str, name: str, slot: int, scale: float, index: int = 0) -> Var:
        for branch, run in (("attention", self._attention), ("feed_forward", self._feed_forward)):
            y = self._rms(x, f"{place}_{branch}_norm", gain=self._plain(f"{name}.{branch}_norm.weight"))
            y = run(y, f"{place}_{branch}", f"{name}.{branch}", slot, index)
            own = f"{name}.{branch}_scale"
            factor = scale * self._plain(own)[index] if own in self.held.arrays else np.full((1,), scale)
            factor = factor.astype(self.type).reshape(1, -1, 1, 1)
            if (factor != 1).any():
                y = mb.mul(x=y, y=factor, name=f"{place}_{branch}_scaled")
            x = mb.add(x=x, y=y, name=f"{place}_{branch}_added")
        return x

    def _attention(self, x: Var, place: str, name: str, slot: int, index: int) -> Var:
        T, (H, N, K) = self.T, (self.config.heads, self.config.kv_heads, self.config.head_width)
        qkv = self._linear(x, f"{place}_qkv", f"{name}.qkv", index)
        qkv = mb.reshape(x=qkv, shape=(1, H + 2 * N, K, T), name=f"{place}_heads")
        qkv = mb.transpose(x=qkv, perm=[0, 1, 3, 2], name=f"{place}_rows")  # (1, H + 2 N, T, K)
        q, k, v = mb.split(x=qkv, split_sizes=[H, N, N], axis=1, name=f"{place}_parts")
        scale = 1 / math.sqrt(K)
        if self.config.qk_norm:
            gains = scale * self._plain(f"{name}.query_norm.weight"), self._plain(f"{name}.key_norm.weight")
            q, k = (
                self._rms(part, f"{place}_{which}_norm", gain, axis=3)
                for part, which, gain in zip((q, k), ("query", "key"), gains, strict=True)
            )
        else:
            q = mb.mul(x=q, y=self.type(scale), name=f"{place}_query_scaled")
        q, k = self._turned(q, f"{place}_query"), self._turned(k, f"{place}_key")
        self.rows[slot] = k, v
        k, v = (self._all(new, f"{place}_{which}", 2 * slot + row) for row, (which, new) in
                enumerate((("keys", k), ("values", v))))  # fmt: skip
        q = mb.reshape(x=q, shape=(1, N, H // N * T, K), name=f"{place}_groups")
        scores = mb.matmul(x=q, y=k, transpose_y=True, name=f"{place}_scores")  # (1, N, H T / N, C)
        scores = mb.reshape(x=scores, shape=(1, H, T, self.plan.context), name=f"{place}_scores_apart")
        scores = mb.add(x=scores, y=self.mask, name=f"{place}_scores_masked")
        shares = mb.softmax(x=scores, axis=-1, name=f"{place}_shares")
        shares = mb.reshape(x=shares, shape=(1, N, H // N * T, self.plan.context), name=f"{place}_shares_grouped")
        y = mb.matmul(x=shares, y=v, name=f"{place}_means")  # (1, N, H T / N, K)
        y = mb.reshape(x=y, shape=(1, H, T, K), name=f"{place}_means_apart")
        y = mb.transpose(x=y, perm=[0, 1, 3, 2], name=f"{place}_means_columns")
        y = mb.reshape(x=y, shape=(1, H * K, 1, T), name=f"{place}_joined")
        return self._linear(y, f"{place}_out", f"{name}.out", index)

    def _all(self, new: Var, place: str, row: int) -> Var:
        """(1, N, C, K): the first C - T positions of a row of the cache, and the call's own."""
        N, past, K = self.config.kv_heads, self.plan.context - self.T, self.config.head_width
        held = mb.slice_by_size(x=self.past, begin=[row, 0, 0, 0], size=[1, N, past, K], name=f"{place}_cached")
        return mb.concat(values=[held, new], axis=2, name=place)

    def _turned(self, x: Var, place: str) -> Var:
        if self.turns is None:
            return x
        cosines, sines = self.turns
        low, high = mb.split(x=x, num_splits=2, axis=3, name=f"{place}_halves")
        other = mb.concat(values=[high, low], axis=3, name=f"{place}_exchanged")
        straight = mb.mul(x=x, y=cosines, name=f"{place}_straight")
        across = mb.mul(x=other, y=sines, name=f"{place}_across")
        return mb.add(x=straight, y=across, name=f"{place}_turned")

    def _feed_forward(self, x: Var, place: str, name: str, slot: int, index: int) -> Var:
        h = self._linear(x, f"{place}_up", f"{name}.up", index)
        if self.config.feed_forward == "swiglu":
            gate, up = mb.split(x=h, num_splits=2, axis=1, name=f"{place}_halves")
            h = mb.mul(x=mb.silu(x=gate, name=f"{place}_gate"), y=up, name=f"{place}_gated")
        else:
            h = mb.relu(x=h, name=f"{place}_positive")
            h = mb.mul(x=h, y=h, name=f"{place}_squared")
        return self._linear(h, f"{place}_down", f"{name}.down", index)

    def _linear(self, x: Var, place: str, name: str, index: int) -> Var:
        y = mb.conv(x=x, weight=self._weight(f"{name}.weight"), name=place)
        if f"{name}.lora_a" not in self.held.arrays:
            return y
        for part in ("a", "b"):
            matrix = self._plain(f"{name}.lora_{part}")[index].astype(self.type)[:, :, None, None]
            x = mb.conv(x=x, weight=self._constant(f"{place}_lora_{part}", matrix), name=f"{place}_correction_{part}")
        return mb.add(x=y, y=x, name=f"{place}_corrected")

    def _injected(self, h: Var, anchor: Var, name: str, place: str) -> Var:
        h = self._rms(h, f"{place}_norm")
        if not self.config.injection:
            return h
        factor = self._plain(name).astype(self.type).reshape(1, -1, 1, 1)
        return mb.add(x=h, y=mb.mul(x=anchor, y=factor, name=f"{place}_anchor"), name=f"{place}_start")

    def _rms(self, x: Var, place: str, gain: np.ndarray | None = None, axis: int = 1) -> Var:
        """x over its root mean square: the layer norm of [x, -x], whose mean is zero, does not square in float16."""
        both = mb.concat(
            values=[x, mb.mul(x=x, y=self.type(-1), name=f"{place}_negative")], axis=axis, name=f"{place}_both"
        )
        gamma = {} if gain is None else {"gamma": np.tile(gain, 2).astype(self.type)}
        both = mb.layer_norm(x=both, axes=[axis], epsilon=self.type(EPSILON), **gamma, name=f"{place}_pair")
        return mb.slice_by_size(x=both, begin=[0] * 4, size=x.shape, name=place)

    def _plain(self, name: str) -> np.ndarray:
        return np.array(self.held.arrays[name].astype(mx.float32))

    def _weight(self, name: str) -> Var:
        if name not in self.kept:
            self.kept[name] = constant(name, self.held, self.type)
        return self.kept[name]

    def _constant(self, name: str, value: np.ndarray) -> Var:
        if name not in self.kept:
            self.kept[name] = mb.const(val=value, name=name)
        return self.kept[name]
