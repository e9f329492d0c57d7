"""How much a model writes word for word from what it was trained on: the longest run of tokens in each sample.

python benchmarks/repetition.py --tokens runs/mine/corpus/train.bin --model runs/mine --samples 200
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trm_mlx  # before mlx.core
from trm_mlx import PRETRAINED, checkpoint, config, data
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events

# isort: split
import numpy as np

PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd; products wrap at 2^64


@dataclass(frozen=True, kw_only=True)
class RepetitionConfig:
    """Measure the longest run of tokens that samples share with the training text."""

    tokens: Annotated[Path, "token file the model was trained on: corpus/train.bin of its run folder"]
    model: Annotated[Path, "model folder"] = PRETRAINED
    samples: Annotated[int, "texts to write, each with its own seed"] = 200
    max_tokens: Annotated[int, "tokens a text"] = 256
    prompt: Annotated[str, "how each begins; the prompt is not counted"] = "Once upon a time"
    json: Annotated[bool, "print one JSON object"] = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


def hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """One 64-bit number for each run of `length` tokens, in order."""
    total = np.zeros(max(0, len(tokens) - length + 1), dtype=np.uint64)
    for place in range(length):
        total = total * PRIME + tokens[place : place + len(total)].astype(np.uint64) + np.uint64(1)
    return total


def longest_runs(samples: list[np.ndarray], corpus: np.ndarray) -> list[tuple[int, int]]:
    """(length, start) of the longest run of tokens of each sample that the corpus holds."""
    found = [(0, 0)] * len(samples)
    active, length = list(range(len(samples))), 0
    rolled = np.zeros(len(corpus), dtype=np.uint64)
    while active:
        length += 1
        size = len(corpus) - length + 1
        rolled = rolled[:size] * PRIME + corpus[length - 1 :].astype(np.uint64) + np.uint64(1)
        wanted = {number: hashes(samples[number], length) for number in active}
        every = np.unique(np.concatenate(list(wanted.values())))
        nearest = every[np.minimum(np.searchsorted(every, rolled), len(every) - 1)] if len(every) else every
        held = np.unique(rolled[nearest == rolled]) if len(every) else every
        active = []
        for number, own in wanted.items():
            places = np.flatnonzero(np.isin(own, held))
            if len(places):
                found[number] = (length, int(places[0]))
                active.append(number)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(RepetitionConfig, argv, program="benchmarks/repetition.py")
    with config.door("benchmarks/repetition.py"):
        model, tokenizer = checkpoint.load(settings.model)
        corpus = data.read_tokens(settings.tokens)
        prompt = [tokenizer.bos, *tokenizer.encode(settings.prompt)]
        samples = []
        for seed in range(settings.samples):
            length = StreamConfig(max_tokens=settings.max_tokens)
            written = events(model, tokenizer, prompt, length, SamplingConfig(seed=seed))
            samples.append(np.array([event.token for event in written]))
        runs = longest_runs(samples, corpus)
        texts = [tokenizer.decode(s[at : at + n].tolist()) for s, (n, at) in zip(samples, runs, strict=True)]
        characters, worst = [len(text) for text in texts], max(texts, key=len)
        ninth = (
            statistics.quantiles(characters, n=10, method="inclusive")[-1] if len(characters) > 1 else characters[0]
        )
        if settings.json:
            print(json.dumps({"version": trm_mlx.__version__, "characters": characters, "longest": worst}))
            return
        print(
            f"samples {len(samples)}  longest run in characters: median {statistics.median(characters):.0f}  "
            f"p90 {ninth:.0f}  longest {len(worst)}\nthe longest: {worst!r}"
        )


if __name__ == "__main__":
    main()
