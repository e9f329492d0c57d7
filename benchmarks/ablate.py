"""One setting, several values, several seeds: what each does to quality and to training speed.

    python benchmarks/ablate.py --setting model.feed_forward --values relu2 swiglu --data stories.jsonl --seeds 0 1 2

Seeds run one after another with all values side by side in time, so that a machine that speeds up or slows down does
it to all of them. Differences are paired by seed: same data order, same held-out text.
"""

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from trm_mlx import config, journal
from trm_mlx.train import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Train with each value of one setting, and compare quality and speed."""

    setting: Annotated[str, "what to change, as in a settings file: model.feed_forward, fit.optimizer, ..."]
    values: Annotated[tuple[str, ...], "its values, the one to compare with first; JSON, or a word"]
    seeds: Annotated[tuple[int, ...], "seeds of weights and data order"] = (0, 1, 2)
    json: Annotated[bool, "print one JSON object"] = False
    train: TrainConfig = field(default_factory=lambda: TrainConfig(sample_every=0, dtype="float32"))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: held-out bits per byte at full depth, median tokens a second of its steps at full depth."""

    value: str
    seed: int
    bits_per_byte: float
    tokens_per_s: float


def changed(settings: TrainConfig, setting: str, value: str) -> TrainConfig:
    """The settings with one of them replaced, checked as in a settings file."""
    record, (*tables, key) = config.to_json(settings), setting.split(".")
    table = record
    for name in tables:
        table = table.get(name, {})
    try:
        table[key] = json.loads(value)
    except ValueError:
        table[key] = value
    return config.from_json(TrainConfig, record, f"--setting {setting}")


def measure(settings: AblateConfig, value: str, seed: int, folder: Path) -> Result:
    """Train once."""
    one = replace(settings.train, out=folder, fit=replace(settings.train.fit, seed=seed))
    one = changed(one, settings.setting, value)
    scores = train(one)
    steps = [each for each in journal.read(folder / "metrics.jsonl") if each["kind"] == "step"]
    speeds = [each["tokens_per_s"] for each in steps if each["depth"] == one.model.depth]
    bits = scores[one.model.depth].bits_per_byte
    return Result(value=value, seed=seed, bits_per_byte=bits, tokens_per_s=statistics.median(speeds or [math.nan]))


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.4f} +- {error:.4f}"


def ablate(settings: AblateConfig) -> list[Result]:
    """Train with each value and seed."""
    results = []
    with tempfile.TemporaryDirectory() as work:
        for seed in settings.seeds:
            for value in settings.values:
                results.append(measure(settings, value, seed, Path(work) / f"{value}-{seed}"))
                print(config.to_json(results[-1]), file=sys.stderr, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(AblateConfig, argv, program="benchmarks/ablate.py")
    with config.door("benchmarks/ablate.py"):
        results = ablate(settings)
        if settings.json:
            print(json.dumps([config.to_json(each) for each in results]))
            return
        first = {each.seed: each for each in results if each.value == settings.values[0]}
        for value in settings.values:
            runs = [each for each in results if each.value == value]
            bits = [each.bits_per_byte for each in runs]
            gain = [each.bits_per_byte - first[each.seed].bits_per_byte for each in runs]
            speed = [each.tokens_per_s / first[each.seed].tokens_per_s for each in runs]
            print(
                f"{settings.setting}={value}  bits_per_byte {statistics.fmean(bits):.4f}  difference {spread(gain)}  "
                f"speed {statistics.median(speed):.2f}x ({min(speed):.2f} to {max(speed):.2f})"
            )


if __name__ == "__main__":
    main()
