"""`python -m trm_mlx.evaluate`: how well a model predicts text, at each depth."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from trm_mlx import PRETRAINED, checkpoint, config, data, objectives
from trm_mlx.tokenizer import Tokenizer

REPORT_SECONDS = 5.0
ROUND = 32  # short documents are padded to a multiple of this, so that some can share a batch


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Perplexity and bits per byte of text."""

    data: Annotated[tuple[str, ...], "files, folders, globs or hub:NAME, of .txt or .jsonl"]
    model: Annotated[Path, "model folder"] = PRETRAINED
    depth: Annotated[tuple[int, ...], "passes to evaluate at; empty: the most"] = ()
    length: Annotated[int | None, "tokens the model sees at once; none: its context"] = None
    stride: Annotated[int | None, "tokens the window moves on by; none: half of length"] = None
    max_tokens: Annotated[int, "stop after the document that reaches this many tokens; 0: all"] = 0
    json: Annotated[bool, "print one JSON object"] = False

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must not be negative, got {self.max_tokens}")


def evaluate(settings: EvaluateConfig) -> dict[int, objectives.Score]:
    """The score of each depth asked for.

    Every token of a document, its end included, is predicted once, from at least length - stride tokens before
    it where the document has them. The parts of the standard error are documents, or the windows of a lone one.

    Raises:
        ValueError, FileNotFoundError: the model, the data, a depth or the stride is not usable.
    """
    model, tokenizer = checkpoint.load(settings.model)
    length = settings.length or model.config.context
    stride = settings.stride or max(1, length // 2)
    if length > model.config.context or stride > length:
        raise ValueError(
            f"stride must be at most length, and length at most the context of {model.config.context}, "
            f"got {stride} and {length}"
        )
    depths = [model.config.at_depth(depth) for depth in settings.depth or (None,)]
    documents, read = [], 0
    for document in data.documents(settings.data):
        ids = [tokenizer.bos, *document.ids(tokenizer), tokenizer.eos]
        documents.append(list(windows(ids, length, stride)))
        read += len(ids)
        if 0 < settings.max_tokens <= read:
            break
    every = [window for document in documents for window in document]
    scores: dict[int, objectives.Score] = {}
    first: list[tuple[float, int, int]] = []
    for depth in depths:
        watched = _watched(every, depth)
        parts = objectives.score_windows(model, watched, tokenizer.byte_lengths, _causal, depth)
        if not all(math.isfinite(nats) for nats, _, _ in parts):
            raise ValueError(f"the loss at depth {depth} must be finite; {settings.model} holds a broken model")
        if len(documents) > 1:
            rest = iter(parts)
            parts = [_joined([next(rest) for _ in document]) for document in documents]
        scores[depth] = objectives.score(parts)
        first = first or parts
        if len(scores) > 1:
            apart = [(here[0] - there[0], *here[1:]) for here, there in zip(parts, first, strict=True)]
            gap = objectives.score(apart)
            scores[depth] = replace(scores[depth], difference=gap.bits_per_byte, difference_error=gap.standard_error)
    return scores


def windows(ids: Sequence[int], length: int, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(T + 1,) ids and (T,) weights: T = length for all windows of a long document, its own for a short one.

    Each target has weight 1 in one window, the first that reaches it.
    """
    done, start, targets = 0, 0, len(ids) - 1
    width = min(length, -(-targets // ROUND) * ROUND)
    while done < targets:
        end = min(start + width, targets)
        row = np.full(width + 1, Tokenizer.pad, dtype=np.int32)
        row[: end - start + 1] = ids[start : end + 1]
        weights = np.zeros(width, dtype=np.float32)
        weights[done - start : end - start] = 1
        yield row, weights
        done, start = end, start + stride


def _watched(every: list[tuple[np.ndarray, np.ndarray]], depth: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows, with a line on stderr every few seconds of long work."""
    due = time.monotonic() + REPORT_SECONDS
    for number, window in enumerate(every):
        if time.monotonic() >= due:
            print(f"depth {depth}  windows {number}/{len(every)}", file=sys.stderr, flush=True)
            due = time.monotonic() + REPORT_SECONDS
        yield window


def _causal(batch):
    return objectives.causal(batch, Tokenizer.pad)


def _joined(parts: list[tuple[float, int, int]]) -> tuple[float, int, int]:
    nats, size, tokens = (sum(column) for column in zip(*parts, strict=True))
    return nats, size, tokens


def _error(error: float) -> str:
    return "" if math.isnan(error) else f" +- {error:.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(EvaluateConfig, argv, program="trm_mlx.evaluate")
    with config.door("trm_mlx.evaluate"):
        scores = evaluate(settings)
        if settings.json:
            depths = {depth: asdict(score) for depth, score in scores.items()}
            for record in depths.values():
                for name in ("standard_error", "difference_error"):  # of one part; JSON has no NaN
                    record[name] = None if math.isnan(record[name] or 0) else record[name]
            print(json.dumps({"model": str(settings.model), "depths": depths}, allow_nan=False))
            return
        for depth, score in scores.items():
            line = f"depth {depth}  bits_per_byte {score.bits_per_byte:.4f}{_error(score.standard_error)}"
            line += f"  perplexity {score.perplexity:.2f}  tokens {score.tokens}  bytes {score.bytes}"
            if score.difference is not None and score.difference_error is not None:
                gap = f"{score.difference:+.4f}{_error(score.difference_error)}"
                line += f"  difference_from_depth_{next(iter(scores))} {gap}"
            print(line)


if __name__ == "__main__":
    main()
