"""More than one text to choose from: the best of several that were drawn, or of a beam search.

Shapes: T tokens, V vocabulary.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import mlx.core as mx
import numpy as np

from trm_mlx import fused
from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode import beam
from trm_mlx.decode.constrain import Constraint
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.step import PREFILL
from trm_mlx.decode.stream import Reply, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.splitmix import WORD
from trm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Several texts at work, of which the best is given, at the end and not as it comes."""

    beams: Annotated[int, "likeliest text by a beam search this wide, 1 is greedy; 0 draws one instead"] = 0
    length_penalty: Annotated[float, "of a beam search: 0 ranks by log-probability, more favours longer texts"] = 0.6
    best_of: Annotated[
        int, "draw as many, with seeds from --seed up; give the one of highest mean log-probability"
    ] = 1

    def __post_init__(self) -> None:
        if self.beams < 0:
            raise ValueError(f"beams must be at least 0, got {self.beams}; 0 is no beam search")
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(f"length_penalty must be finite and at least 0, got {self.length_penalty}")
        if self.best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {self.best_of}")
        if self.beams and self.best_of > 1:
            raise ValueError("give beams or best_of, not both: beams draw nothing")
        if not self.beams and self.length_penalty != type(self).length_penalty:
            raise ValueError("length_penalty is of a beam search; give beams too")

    @property
    def streams(self) -> bool:
        """Whether there is one text alone, which can be given as it comes."""
        return not self.beams and self.best_of == 1

    def check(self, sampling: SamplingConfig) -> None:
        """Refuse settings of sampling that a search would not heed: for beams all, but for temperature 0."""
        if self.best_of > 1 and sampling.temperature == 0:
            raise ValueError("best_of must have a temperature above 0, got 0: all texts would be the same")
        if self.beams:
            for field in fields(sampling):
                value = getattr(sampling, field.name)
                if value != field.default and (field.name, value) != ("temperature", 0):
                    raise ValueError(
                        f"beams draw nothing, so {field.name} must be left at {field.default}, got {value}"
                    )


def find(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: StreamConfig,
    sampling: SamplingConfig,
    words: WordsConfig,
    search: SearchConfig,
    kind: CacheConfig = EVERYTHING,
    constraint: Constraint | None = None,
) -> Reply:
    """The best text; its `score` is a beam's, or the mean log-probability.

    Args:
        prompt, settings, sampling, words, kind, constraint: as of `stream.events`.
        search: beams, or how many texts to draw.

    Raises:
        ValueError: as `stream.events`, and what `SearchConfig.check` refuses.
    """
    search.check(sampling)
    start = time.perf_counter()
    if search.beams:
        penalty = search.length_penalty
        best = beam.search(model, tokenizer, prompt, settings, search.beams, penalty, words, kind, constraint)[0]
        text, reason, score = (
            beam.spoken(best.tokens, tokenizer, settings.stop)[0],
            best.reason,
            beam.score(best, penalty),
        )
    else:
        drawn = [
            Timed(events(model, tokenizer, prompt, settings, each, words, kind, constraint), len(prompt)).whole()
            for each in seeds(sampling, search.best_of)
        ]  # each as if drawn alone
        means = [mean_log_probability(model, prompt, reply.tokens, settings.depth) for reply in drawn]
        score = max(means)
        best = drawn[means.index(score)]  # of equal ones the earliest seed
        text, reason = best.text, best.reason
    seconds = time.perf_counter() - start
    return Reply(
        text=text,
        tokens=best.tokens,
        reason=reason or "length",
        prompt_tokens=len(prompt),
        seconds_to_first=seconds,
        seconds=seconds,
        score=score,
    )


def seeds(sampling: SamplingConfig, count: int) -> list[SamplingConfig]:
    """The same with the seeds seed, seed + 1, ... seed + count - 1, modulo 2**64."""
    return [replace(sampling, seed=(sampling.seed + number) & WORD) for number in range(count)]


def mean_log_probability(
    model: TinyRecursiveLM, prompt: Sequence[int], tokens: Sequence[int], depth: int | None
) -> float:
    """Of a text of at least one token, an end token counted: what the model gives it per token, in nats.

    The model's own: before temperature, penalties, biases and bans, and of all V tokens.
    """
    ids, cache, total = [*prompt, *tokens], model.cache(depth), 0.0
    for start in range(0, len(ids) - 1, PREFILL):
        end = min(start + PREFILL, len(ids) - 1)
        with fused.uncompiled():
            logits = model(mx.array([ids[start:end]]), depth=depth, cache=cache)  # (1, end - start, V)
        first = max(len(prompt) - 1, start)  # the last of the prompt tells of the first token written
        if first < end:
            rows = np.array(logits[0, first - start :].astype(mx.float32))
            given = np.take_along_axis(beam.logarithms(rows), np.array(ids[first + 1 : end + 1])[:, None], axis=1)
            total += float(given.sum())
        mx.eval(cache.arrays)
    return total / len(tokens)
