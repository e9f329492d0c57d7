"""What training costs in memory and messages, by arithmetic, and what one step takes here.

    python benchmarks/scale.py
    python benchmarks/scale.py --rounds 2 --preset large --length 1024 --batch 1 --recompute
    mlx.launch -n 2 python benchmarks/scale.py --rounds 10 --preset nano --depth-schedule fixed

Launched on several ranks, it takes the same steps on rank 0 alone and on all of them, in turns.
"""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from trials import place, random_batch, stepper

from trm_mlx import config

# isort: split
import mlx.core as mx

from trm_mlx.loop import FitConfig, Run, is_matrix
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.ranks import Ranks, join

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Print what training each preset costs; with rounds, also measure steps."""

    rounds: Annotated[int, "steps to measure; 0: print the arithmetic"] = 0
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["tiny"])
    fit: FitConfig = field(default_factory=lambda: FitConfig(depth_schedule="fixed"))


def kept_per_token(shape: ModelConfig, length: int, recompute: bool) -> int:
    """About how many float32 numbers a token leaves behind for the backward pass, without the scores of the words.

    A block keeps its 7 inputs and results of width D, queries, keys and values twice (before and after norm and
    RoPE), two hidden layers, and its share of the attention matrix. With recompute, a pass keeps its two inputs, and
    one pass at a time the rest.
    """
    D, hidden = shape.width, shape.linears()["feed_forward.up"][0]
    qkv = shape.linears()["attention.qkv"][0]
    block = 7 * D + 2 * qkv + 2 * hidden + shape.heads * min(length, shape.window or length)
    passes = shape.core * block + 2 * D
    core = shape.depth * 2 * D + passes if recompute else shape.depth * passes
    return (shape.prelude + shape.coda) * block + core


def table(settings: ScaleConfig) -> None:
    length = settings.fit.length
    print(f"float32, length {length}. MB held by a rank; kB a token for backward; MB sent by each of 2 and 4 ranks")
    print("preset  weights  gradients  muon  adamw  kept_kb  recompute_kb  scores_kb  sent_2  sent_4")
    for name, shape in ModelConfig.PRESETS.items():
        arrays = named(TinyRecursiveLM(shape).parameters())
        every = sum(array.size for array in arrays.values()) * 4 / MB
        matrices = sum(array.size for key, array in arrays.items() if is_matrix(key, array)) * 4 / MB
        kept = [kept_per_token(shape, length, again) * 4 / 1e3 for again in (False, True)]
        sent = [2 * (n - 1) / n * every for n in (2, 4)]  # each rank's share of a ring's all-reduce
        figures = [
            every,
            every,
            matrices + 2 * (every - matrices),
            2 * every,
            *kept,
            shape.vocabulary * 4 / 1e3,
            *sent,
        ]
        print(f"{name:6}", *(f"{figure:8.1f}" for figure in figures))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def measure(settings: ScaleConfig, ranks: Ranks) -> None:
    tokens, batch = settings.fit.tokens_per_step, random_batch(settings.model, settings.fit)
    together = stepper(Run(TinyRecursiveLM(settings.model), settings.fit), batch, ranks)
    parameters = named(TinyRecursiveLM(settings.model).parameters())
    alone = None
    if ranks.size > 1 and ranks.rank == 0:
        alone = stepper(Run(TinyRecursiveLM(settings.model), settings.fit), batch)
    speeds: dict[str, list[float]] = {"alone": [], "together": [], "sum_ms": []}
    nap = 0.0
    for turn in range(settings.rounds + 1):
        if ranks.rank:
            time.sleep(nap)  # a rank that waits keeps a core busy, which rank 0 alone would not have beside it
        single, _ = ranks.lead(lambda: alone().seconds if alone else 0.0)
        several = together().seconds
        nap = 0.9 * ranks.send({"nap": mx.array(single or 0.0)})["nap"].item()
        began = time.perf_counter()
        mx.eval(ranks.sum(parameters))
        if turn and not ranks.rank:  # the first step compiles
            speeds["alone"].append(tokens / float(single or 1.0))
            speeds["together"].append(tokens / several)
            speeds["sum_ms"].append(1e3 * (time.perf_counter() - began))
    if ranks.rank:
        return
    print(f"ranks {ranks.size}  tokens_per_s {spread(speeds['together'])}")
    if ranks.size > 1:
        ratios = [b / a for a, b in zip(speeds["alone"], speeds["together"], strict=True)]
        megabytes = sum(array.nbytes for array in parameters.values()) / MB
        print(f"rank 0 alone  tokens_per_s {spread(speeds['alone'])}  ratio {spread(ratios)}")
        print(f"sum of {megabytes:.1f} MB of gradients  ms {spread(speeds['sum_ms'])}")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak_mb of arrays {mx.get_peak_memory() / MB:.0f}  of the process {largest / MB:.0f}")


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ScaleConfig, argv, program="benchmarks/scale.py")
    with config.door("benchmarks/scale.py"):
        if not settings.rounds:
            table(settings)
            return
        ranks = join()
        if not ranks.rank:
            print("  ".join(f"{name} {value}" for name, value in place().items()), file=sys.stderr)
        measure(settings, ranks)


if __name__ == "__main__":
    main()
