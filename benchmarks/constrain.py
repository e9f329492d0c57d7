"""What a form costs: time per token with and without choices, an expression and a schema, in turns, in one process.

python benchmarks/constrain.py
python benchmarks/constrain.py --model runs/mine --turns 20 --depth 1
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import trm_mlx  # before mlx.core
from trm_mlx import PRETRAINED, checkpoint, config, machine
from trm_mlx.decode.constrain import ConstrainConfig, Constraint
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "friends": {"type": "array", "items": {"enum": ["fox", "bear", "hare"]}, "minItems": 4, "maxItems": 8},
        "story": {"type": "string"},
    },
    "required": ["name", "age", "friends", "story"],
}
FORMS = {
    "choices": ConstrainConfig(
        choices=tuple(
            f" the {size} fox {verb} over the river, and the {other} bear sat under a tree and saw the \U0001f319."
            for size in ("little", "old", "red")
            for verb in ("jumped", "walked")
            for other in ("brown", "sleepy")
        )
    ),
    "regex": ConstrainConfig(regex=r"( [a-z]{1,12}){4,12},( [a-z]{1,12}){4,30}\."),
    "schema": ConstrainConfig(json_schema=json.dumps(SCHEMA)),
}


@dataclass(frozen=True, kw_only=True)
class ConstrainBenchConfig:
    """Time tokens of texts that have a form, and of as many that are free."""

    model: Annotated[Path, "model folder"] = PRETRAINED
    prompt: Annotated[str, "how each text begins"] = "Once upon a time"
    turns: Annotated[int, "texts with a form, and as many without, each with its own seed"] = 10
    max_tokens: Annotated[int, "most tokens a text"] = 128
    depth: Annotated[int | None, "passes through the core, none for all"] = None

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")


def timed(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    settings: ConstrainBenchConfig,
    seed: int,
    count: int,
    form: Constraint | None,
) -> tuple[list[int], float]:
    """The tokens of one text, and the median milliseconds from one to the next."""
    prompt = [tokenizer.bos, *tokenizer.encode(settings.prompt)]
    stream = StreamConfig(max_tokens=count, depth=settings.depth)
    tokens, times = [], []
    for event in events(model, tokenizer, prompt, stream, SamplingConfig(seed=seed), constraint=form):
        tokens.append(event.token)
        times.append(time.perf_counter())
    steps = [1000 * (after - before) for before, after in pairwise(times)]
    return tokens, statistics.median(steps) if steps else 0.0


def alone(form: Constraint, tokens: Sequence[int], room: int) -> float:
    """The median microseconds that a form takes for a token of a text it has not seen, without the model."""
    state, times = form.start, []
    for place, token in enumerate(tokens):
        start = time.perf_counter()
        form.allowed(state, room - place)
        state = form.grown(state, token)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def spread(values: Sequence[float], places: int) -> str:
    return f"{statistics.median(values):.{places}f} ({min(values):.{places}f} to {max(values):.{places}f})"


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ConstrainBenchConfig, argv, program="benchmarks/constrain.py")
    with config.door("benchmarks/constrain.py"):
        model, tokenizer = checkpoint.load(settings.model)
        versions = "  ".join(f"{name} {machine.installed(name)}" for name in ("mlx", "outlines-core"))
        print(
            f"trm_mlx {trm_mlx.__version__}  {versions}  {settings.model.name}  vocabulary {tokenizer.vocabulary}",
            file=sys.stderr,
        )
        timed(model, tokenizer, settings, 0, 16, None)
        for name, asked in FORMS.items():
            start = time.perf_counter()
            form = Constraint(asked, tokenizer)
            form.nearest  # noqa: B018  (worked out at first use)
            made = 1000 * (time.perf_counter() - start)
            held, free, own, count = [], [], [], 0
            for seed in range(settings.turns):
                tokens, median = timed(model, tokenizer, settings, seed, settings.max_tokens, form)
                held.append(median)
                free.append(timed(model, tokenizer, settings, seed, len(tokens), None)[1])
                own.append(alone(Constraint(asked, tokenizer), tokens, settings.max_tokens))
                count += len(tokens)
            ratios = [a / b for a, b in zip(held, free, strict=True) if b]
            print(
                f"{name:8} {spread(held, 2)} ms_per_token  free {spread(free, 2)}  {spread(ratios, 2)}x  "
                f"by itself {spread(own, 0)} us_per_token  made in {made:.0f} ms  "
                f"{form.automaton.dead} states  {count} tokens"
            )


if __name__ == "__main__":
    main()
