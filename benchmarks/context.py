"""What a token costs after so many others, and what is kept for it, for each kind of cache.

    python benchmarks/context.py
    python benchmarks/context.py --model runs/mine --lengths 128 512 1024 --data text.txt

Without --model random weights of width 256, 1 + 3 x 2 + 1 blocks and a context of 4,608. The kinds take turns at
every length. With --data also bits per byte of that text, each token seen through the cache, so that what a kind
leaves out is counted.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from trm_mlx import checkpoint, config

# isort: split
import mlx.core as mx
import numpy as np
from decode import quartiles
from decoders import shape

from trm_mlx import fused
from trm_mlx.cache import CacheConfig
from trm_mlx.decode.step import StepModel
from trm_mlx.model import TinyRecursiveLM

KINDS = {
    "full": CacheConfig(),
    "window": CacheConfig(cache_window=256),
    "shared": CacheConfig(cache_shared=True),
    "8 bits": CacheConfig(cache_bits=8),
    "all three": CacheConfig(cache_window=256, cache_shared=True, cache_bits=8),
}
NEW = 16  # tokens timed at once


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Time a token over the length of its text, for each kind of cache."""

    model: Annotated[Path | None, "model folder; none: random weights"] = None
    lengths: Annotated[tuple[int, ...], "tokens before the timed ones"] = (128, 256, 512, 1024, 2048, 4096)
    rounds: Annotated[int, "turns of each kind at each length"] = 7
    data: Annotated[Path | None, "text to measure bits per byte on; needs --model"] = None
    json: Annotated[bool, "print one JSON object"] = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.lengths or min(self.lengths) < 1:
            raise ValueError("rounds and lengths must be at least 1")
        if self.data and not self.model:
            raise ValueError("--data needs --model, as random weights know no text")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kind of cache: milliseconds a token at each length (median, quartiles), and bytes that a token adds."""

    kind: str
    ms: dict[int, tuple[float, float, float]]
    bytes_per_token: int
    bytes_at_end: int
    bits_per_byte: float | None = None


def timed(text: StepModel) -> float:
    """Milliseconds a token of the next few, which are then taken back."""
    start, position = time.perf_counter(), text.position
    for _ in range(NEW):
        text.scores([7])
    spent = time.perf_counter() - start
    text.trim(position)
    return 1e3 * spent / NEW


def bits_per_byte(model: TinyRecursiveLM, ids: Sequence[int], size: int, kind: CacheConfig) -> float:
    """Of one text of as many bytes, read in pieces no longer than a ring can take."""
    text, nats = StepModel(model, kind=kind), 0.0
    for start in range(0, len(ids) - 1, 16):
        piece = ids[start : min(start + 16, len(ids) - 1)]
        logits = text.append(piece, every=True)
        told = fused.cross_entropy(logits, mx.array([ids[start + 1 : start + 1 + len(piece)]]))
        nats += float(told.sum())
    return nats / np.log(2) / size


def measure(settings: ContextConfig) -> list[Cost]:
    """Each kind of cache."""
    tokenizer = None
    if settings.model:
        model, tokenizer = checkpoint.load(settings.model)
    else:
        model = TinyRecursiveLM(shape())
    longest = max(settings.lengths) + NEW
    if longest > model.config.context:
        raise ValueError(f"lengths must leave {NEW} tokens of the context of {model.config.context}")
    ids = np.random.default_rng(0).integers(7, model.config.vocabulary, longest).tolist()
    texts, ms = {name: StepModel(model, kind=kind) for name, kind in KINDS.items()}, {name: {} for name in KINDS}
    for length in sorted(settings.lengths):
        for text in texts.values():
            text.scores(ids[text.position : length])
            timed(text)
        rounds = [{name: timed(text) for name, text in texts.items()} for _ in range(settings.rounds)]
        for name in KINDS:
            values = [each[name] for each in rounds]
            ms[name][length] = quartiles(values)
        print(f"length {length} done", file=sys.stderr)
    bits = {}
    if settings.data and tokenizer:
        content = settings.data.read_text()[: 3 * model.config.context]
        known = [tokenizer.bos, *tokenizer.encode(content)][: model.config.context]
        size = len(tokenizer.decode(known[1:]).encode())
        bits = {name: bits_per_byte(model, known, size, kind) for name, kind in KINDS.items()}
    return [
        Cost(
            kind=name,
            ms=ms[name],
            bytes_per_token=text.cache.bytes_per_token(),
            bytes_at_end=text.cache.bytes,
            bits_per_byte=bits.get(name),
        )
        for name, text in texts.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ContextConfig, argv, program="benchmarks/context.py")
    with config.door("benchmarks/context.py"):
        found = measure(settings)
        if settings.json:
            print(json.dumps([asdict(each) for each in found]))
            return
        for each in found:
            times = "  ".join(f"{length}: {middle:.2f}" for length, (middle, _, _) in each.ms.items())
            kept = f"bytes_per_token {each.bytes_per_token}  mb_at_end {each.bytes_at_end / 1e6:.2f}"
            bits = "" if each.bits_per_byte is None else f"  bits_per_byte {each.bits_per_byte:.4f}"
            print(f"{each.kind:10} ms_per_token  {times}  {kept}{bits}")


if __name__ == "__main__":
    main()
