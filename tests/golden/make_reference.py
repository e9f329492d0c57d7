"""Model folders of a few kilobytes and their logits, for engines in other languages.

`python tests/golden/make_reference.py` writes `reference/NAME/` for each entry of `FOLDERS`, and
`reference/shipped.json` for the model in trm_mlx/pretrained. The weights are drawn from SplitMix64 and rounded by
nothing but their type, so they are the same bytes on every machine. The logits are those of MLX in float32, whose
last bits are the machine's own. `tokenizer.model` is kept where it is: another SentencePiece may learn other pieces.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trm_mlx  # isort: skip  (before MLX)
import mlx.core as mx
import numpy as np

from trm_mlx import benchmark, checkpoint, trials
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.splitmix import splitmix64
from trm_mlx.tokenizer import Tokenizer

OUT = Path(__file__).with_name("reference")
BASE: dict[str, Any] = {
    "vocabulary": 320, "width": 16, "heads": 4, "kv_heads": 2, "prelude": 1, "core": 1, "coda": 1, "depth": 2,
    "context": 32,
}  # fmt: skip
ROUNDED = {**BASE, "width": 32, "prelude": 0, "coda": 0, "core": 2}
AFFINE = {
    "embedding.weight": Grid(bits=8),
    "core.0.attention.qkv.weight": Grid(bits=6, group=16),
    "core.0.feed_forward.up.weight": Grid(bits=4),
    "core.0.feed_forward.down.weight": Grid(bits=6, group=32),
    "core.1.attention.out.weight": Grid(bits=8, group=8),
    "core.1.feed_forward.down.weight": Grid(bits=4, group=12),
}
LUT = {
    "embedding.weight": Grid(method="lut", bits=6, group=80),
    "core.0.attention.qkv.weight": Grid(method="lut", bits=4, group=16),
    "core.0.feed_forward.up.weight": Grid(method="lut", bits=4),
    "core.0.feed_forward.down.weight": Grid(method="lut", bits=6),
    "core.1.attention.out.weight": Grid(method="lut", bits=8),
}
FOLDERS: dict[str, tuple[dict[str, Any], mx.Dtype, dict[str, Grid]]] = {
    "rope": ({**BASE, "rope_base": 100.0, "window": 5, "core": 2, "depth": 3}, mx.float16, {}),
    "alibi": ({**BASE, "position": "alibi", "feed_forward": "swiglu", "qk_norm": False}, mx.float32, {}),
    "learned": ({**BASE, "position": "learned", "pass_lora": 3, "coda": 0, "kv_heads": 1}, mx.bfloat16, {}),
    "sinusoidal": (
        {**BASE, "position": "sinusoidal", "injection": False, "pass_scale": False, "prelude": 0},
        mx.float16,
        {},
    ),
    "none": (
        {**BASE, "position": "none", "feed_forward": "swiglu", "pass_lora": 2, "width": 18, "heads": 2, "window": 9},
        mx.float16,
        {},
    ),
    "affine": (ROUNDED, mx.float16, AFFINE),
    "lut": ({**ROUNDED, "position": "alibi", "window": 6}, mx.bfloat16, LUT),
}
IDS = [1, *(7 + splitmix64(9, place) % 313 for place in range(23))]
SHIPPED = "Once upon a time a little fox lived near the river."
BENCH = {"prompt_tokens": 12, "new_tokens": 12, "seed": 3}
TEXTS = [f"{name} walked {n} miles and saw {n * 37} birds." for n in range(60) for name in ("Ann", "Ben", "Eve")]


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Numbers from -1 to 1, multiples of 2^-10."""
    count = int(np.prod(shape))
    numbers = [(splitmix64(seed, place) >> 53) / 1024 - 1 for place in range(count)]
    return np.array(numbers, np.float32).reshape(shape)


def rounded(seed: int, name: str, shape: tuple[int, int], each: Grid) -> dict[str, mx.array]:
    """Tensors of a matrix on a grid, drawn and not fitted."""
    (rows, columns), count = shape, each.groups(shape)
    whole = np.array([splitmix64(seed, place) >> (64 - each.bits) for place in range(rows * columns)])
    packed, second = each.names(name)
    if each.method == "lut":
        held = 0.2 * np.sort(drawn(seed + 1, count, 1 << each.bits))
    else:
        held = grid.coarse((1.5 + drawn(seed + 1, rows, count)) * 2.0 ** -(each.bits + 2), each.significant)
    numbers = grid.pack(whole.reshape(shape), each.bits)
    return {packed: numbers, second: mx.array(held.astype(np.float16))}


def weights(config: ModelConfig, grids: dict[str, Grid]) -> dict[str, mx.array]:
    """Of every tensor, none of them as a new model has it."""
    found: dict[str, mx.array] = {}
    for number, (name, array) in enumerate(sorted(named(TinyRecursiveLM(config).parameters()).items())):
        seed = 1000 * number
        if name in grids:
            found |= rounded(seed, name, (array.shape[0], array.shape[1]), grids[name])
        elif name.endswith(("norm.weight", "scale")) or name in ("injection", "recall"):
            found[name] = mx.array(1 + 0.5 * drawn(seed, *array.shape))
        else:
            found[name] = mx.array(0.75 * drawn(seed, *array.shape))
    return found


def tokenizer() -> Tokenizer:
    kept = OUT / next(iter(FOLDERS)) / checkpoint.TOKENIZER
    return Tokenizer.load(kept) if kept.is_file() else Tokenizer.train(TEXTS, BASE["vocabulary"])


def scores(model: TinyRecursiveLM, ids: list[int], depth: int) -> np.ndarray:
    """(T, V) float32."""
    return np.array(model(mx.array([ids]), depth=depth)[0].astype(mx.float32))


def packed(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def logits(folder: Path) -> Iterator[dict[str, Any]]:
    """At each depth, of the token after 5 tokens and after all."""
    model, _ = checkpoint.load(folder, mx.float32, packed=False)
    for depth in range(1, model.config.depth + 1):
        rows = scores(model, IDS, depth)
        yield from ({"depth": depth, "tokens": n, "logits": packed(rows[n - 1])} for n in (5, len(IDS)))


def shipped() -> dict[str, Any]:
    """What the model that ships makes of a text, and of the drawn prompt of a benchmark."""
    folder = trm_mlx.PRETRAINED
    model, words = checkpoint.load(folder, mx.float32, packed=False)
    ids, plan = [words.bos, *words.encode(SHIPPED)], trials.Procedure(**BENCH, trials=1, warmup=0)
    prompt = trials.synthetic(plan.seed, plan.prompt_tokens, words.vocabulary)
    found: list[dict[str, Any]] = []
    for depth in range(1, model.config.depth + 1):
        trial = trials.measure_text(benchmark.Text(model, depth), prompt, plan.new_tokens, lambda: 0, lambda: 0)
        row = packed(scores(model, ids, depth)[-1])
        found.append({"depth": depth, "tokens_sha256": trial.tokens_sha256, "logits": row})
    held = checkpoint.contents(folder)
    told = {"name": folder.name, "revision": held.revision, "manifest_sha256": benchmark.fingerprint(folder)}
    return {**told, "parameters": held.config.stored_parameters(), "ids": ids, **BENCH, "depths": found}


def write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


def make(out: Path) -> None:
    """Write every folder below `out`."""
    words = tokenizer()
    for name, (options, dtype, grids) in FOLDERS.items():
        config = ModelConfig(**options)
        folder = out / name
        if (folder / checkpoint.CONFIG).exists():  # or one of another config is refused
            for file in folder.iterdir():
                file.unlink()
        checkpoint.save(folder, config, words, weights(config, grids), dtype, grids)
        held = checkpoint.contents(folder)
        told = {"revision": held.revision, "manifest_sha256": benchmark.fingerprint(folder)}
        told |= {"parameters": config.stored_parameters(), "ids": IDS}
        write(folder / "logits.json", {**told, "rows": list(logits(folder))})
    write(out / "shipped.json", shipped())


if __name__ == "__main__":
    make(OUT)
