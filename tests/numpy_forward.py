"""docs/model.md in NumPy: the logits of a model folder, without MLX and without trm_mlx.

Written from that page alone. Everything is float64. Shapes: T tokens, D width, H heads, N key-value heads,
K = D / H head width, V vocabulary, R depth in the config.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def logits(folder: Path, ids: Sequence[int], depth: int, mask: str | int = "causal") -> np.ndarray:
    """The logits after `depth` passes.

    Args:
        folder: a model folder.
        ids: T token ids.
        depth: from 1 to R.
        mask: "causal", "bidirectional", or the length of a prefix that every token sees.

    Returns:
        (T, V) float64.
    """
    return Forward(folder)(ids, depth, mask)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], bytes]:
    """The tensors of a safetensors file as float64, its metadata, and its data as they stand in the file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    metadata = header.pop("__metadata__")
    tensors = {
        name: _numbers(data[slice(*entry["data_offsets"])], entry["dtype"]).reshape(entry["shape"])
        for name, entry in header.items()
    }
    return tensors, metadata, data


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "U32": "<u4"}[dtype]).astype(np.float64)


def spread(packed: np.ndarray, second: np.ndarray, grid: dict) -> np.ndarray:
    """The matrix that a quantized one stands for, from its two tensors."""
    bits, rows = grid["bits"], len(packed)
    single = (packed.astype(np.uint64)[..., None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    numbers = (single.reshape(rows, -1, bits) << np.arange(bits, dtype=np.uint64)).sum(-1)
    if grid["method"] == "lut":
        return np.stack([second[o * len(second) // rows][row.astype(int)] for o, row in enumerate(numbers)])
    scales = np.repeat(second, numbers.shape[1] // second.shape[1], axis=1)
    return scales * (numbers.astype(np.float64) - 2 ** (bits - 1))


class Forward:
    """One model folder, read once.

    Args:
        folder: holds config.json and model.safetensors; the tokenizer is not needed.
    """

    def __init__(self, folder: Path):
        record = json.loads((folder / "config.json").read_bytes())
        self.config, self.weights = record["model"], read_tensors(folder / "model.safetensors")[0]
        for name, grid in record.get("grids", {}).items():
            second = self.weights.pop(name[: -len("weight")] + ("scales" if grid["method"] == "affine" else "table"))
            self.weights[name] = spread(self.weights[name], second, grid)

    def __call__(self, ids: Sequence[int], depth: int, mask: str | int = "causal") -> np.ndarray:
        """(T, V) as `logits`."""
        config, weights = self.config, self.weights
        seen = visible(len(ids), config["window"], mask)
        x = rms(weights["embedding.weight"][list(ids)])  # (T, D)
        if config["position"] == "learned":
            x = x + weights["positions"][: len(ids)]
        if config["position"] == "sinusoidal":
            x = x + sinusoids(*x.shape)
        e = rms(self.blocks("prelude", x, seen))
        h = e
        for r in range(depth):
            h = self.blocks("core", rms(h) + weights.get("injection", 0) * e, seen, r)
        y = self.blocks("coda", rms(h) + weights.get("recall", 0) * e, seen)
        return (rms(y) * weights["final_norm.weight"]) @ weights["embedding.weight"].T

    def blocks(self, part: str, x: np.ndarray, seen: np.ndarray, r: int | None = None) -> np.ndarray:
        """(T, D) after every block of the prelude, core or coda; r is the pass, None outside the core."""
        count = self.config[part]
        for i in range(count):
            scale = 1 / math.sqrt(count) / (self.config["depth"] if part == "core" else 1)
            block = f"{part}.{i}"
            inner = rms(x) * self.weights[f"{block}.attention_norm.weight"]
            x = x + scale * self.row(f"{block}.attention_scale", r) * self.attention(block, inner, seen, r)
            inner = rms(x) * self.weights[f"{block}.feed_forward_norm.weight"]
            x = x + scale * self.row(f"{block}.feed_forward_scale", r) * self.feed_forward(block, inner, r)
        return x

    def attention(self, block: str, x: np.ndarray, seen: np.ndarray, r: int | None) -> np.ndarray:
        """(T, D) from (T, D); seen (T, T) is true where token i sees token j."""
        T, D = x.shape
        H, N = self.config["heads"], self.config["kv_heads"]
        K = D // H
        qkv = self.linear(f"{block}.attention.qkv", x, r).reshape(T, H + 2 * N, K)
        q, k, v = np.split(qkv, [H, H + N], axis=1)  # (T, H, K), (T, N, K), (T, N, K)
        if self.config["qk_norm"]:
            q = rms(q) * self.weights[f"{block}.attention.query_norm.weight"]
            k = rms(k) * self.weights[f"{block}.attention.key_norm.weight"]
        if self.config["position"] == "rope":
            q, k = rotate(q, self.config["rope_base"]), rotate(k, self.config["rope_base"])
        distance = np.abs(np.arange(T)[:, None] - np.arange(T))  # (T, T)
        heads = []
        for h in range(H):
            shared = h // (H // N)
            scores = q[:, h] @ k[:, shared].T / math.sqrt(K)  # (T, T)
            if self.config["position"] == "alibi":
                scores = scores - 2 ** (-8 * (h + 1) / H) * distance
            heads.append(softmax(np.where(seen, scores, -np.inf)) @ v[:, shared])
        return self.linear(f"{block}.attention.out", np.concatenate(heads, axis=1), r)

    def feed_forward(self, block: str, x: np.ndarray, r: int | None) -> np.ndarray:
        """(T, D) from (T, D)."""
        inner = self.linear(f"{block}.feed_forward.up", x, r)
        if self.config["feed_forward"] == "swiglu":
            g, u = np.split(inner, 2, axis=1)
            inner = g / (1 + np.exp(-g)) * u
        else:
            inner = np.maximum(inner, 0) ** 2
        return self.linear(f"{block}.feed_forward.down", inner, r)

    def linear(self, name: str, x: np.ndarray, r: int | None) -> np.ndarray:
        """(T, outputs) from (T, inputs), in the core with the correction of pass r if the model has one."""
        y = x @ self.weights[f"{name}.weight"].T
        if r is not None and self.config["pass_lora"] > 0:
            y = y + (x @ self.weights[f"{name}.lora_a"][r].T) @ self.weights[f"{name}.lora_b"][r].T
        return y

    def row(self, name: str, r: int | None) -> np.ndarray | float:
        """(D,) the learned scale of pass r; 1 outside the core or if the model has none."""
        return self.weights[name][r] if r is not None and self.config["pass_scale"] else 1.0


def rms(x: np.ndarray) -> np.ndarray:
    """x with a root mean square of about 1 over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.00001)


def softmax(x: np.ndarray) -> np.ndarray:
    """Weights that add up to 1 over the last axis."""
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    """(T, heads, K) with feature m turned with feature m + K/2 by the angle of position and m."""
    T, _, K = x.shape
    angle = np.arange(T)[:, None] * base ** (-2 * np.arange(K // 2) / K)  # (T, K/2)
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    u, w = np.split(x, 2, axis=-1)
    return np.concatenate([u * cosine - w * sine, u * sine + w * cosine], axis=-1)


def sinusoids(T: int, D: int) -> np.ndarray:
    """(T, D): the sines of every frequency, then the cosines."""
    angle = np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def visible(T: int, window: int, mask: str | int) -> np.ndarray:
    """(T, T) true where token i sees token j; mask as in `logits`."""
    i, j = np.indices((T, T))
    if mask == "bidirectional":
        seen = np.ones((T, T), bool)
    else:
        seen = (j <= i) | (j < (0 if mask == "causal" else int(mask)))
    return seen & (np.abs(i - j) < window) if window > 0 else seen
