"""What a model learns from a batch: inputs, targets, weights, and the loss over them.

Shapes: B batch, T tokens, V vocabulary, E exits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Literal

import mlx.core as mx
import numpy as np

from trm_mlx import fused
from trm_mlx.model import Mask, TinyRecursiveLM

Objective = Literal["causal", "masked"]
MASKED = 0.15  # share of tokens to restore; BERT, arXiv 1810.04805


@dataclass(frozen=True)
class Task:
    """One batch made ready: inputs and targets (B, T) integers, weights (B, T) float32, and who sees whom."""

    inputs: mx.array
    targets: mx.array
    weights: mx.array
    mask: Mask
    segments: mx.array | None = None

    def share(self, rank: int, ranks: int) -> "Task":
        """Rows rank, rank + ranks, ... of the batch."""
        if ranks == 1:
            return self
        rows = {name: array[rank::ranks] for name, array in vars(self).items() if isinstance(array, mx.array)}
        return replace(self, **rows)


def causal(batch: mx.array, pad: int, bos: int | None = None) -> Task:
    """Predict each token from those before it.

    Args:
        batch: (B, T + 1) token ids.
        pad: the id that is never a target.
        bos: the id that starts a document: tokens then see only their own document. None: documents that share
            a window see each other.
    """
    inputs, targets = batch[:, :-1], batch[:, 1:]
    segments = None if bos is None else mx.cumsum(inputs == bos, axis=1)
    return Task(inputs, targets, (targets != pad).astype(mx.float32), "causal", segments)


def masked(batch: mx.array, pad: int, blank: int, vocabulary: int, bos: int | None = None) -> Task:
    """Restore the 15 % of tokens that were blanked out, seeing both sides.

    Of those tokens 80 % become `blank`, 10 % any token, 10 % stay (arXiv 1810.04805, 3.1). Draws from MLX's
    random state.

    Args:
        batch: (B, T + 1) token ids; the first column is not used, so that targets are those of `causal`.
        pad: the id that is never a target.
        blank: the id that stands for a hidden token.
        vocabulary: V.
        bos: as in `causal`.
    """
    targets = batch[:, 1:]
    draw, dice = mx.random.uniform(shape=targets.shape), mx.random.uniform(shape=targets.shape)
    draw = mx.where(targets == pad, 1.0, draw)
    chosen = (draw < MASKED) | ((draw == draw.min(1, keepdims=True)) & (draw < 1))  # at least one a row
    other = mx.random.randint(0, vocabulary, targets.shape)
    spoiled = mx.where(dice < 0.8, blank, mx.where(dice < 0.9, other, targets))
    segments = None if bos is None else mx.cumsum(targets == bos, axis=1)
    return Task(mx.where(chosen, spoiled, targets), targets, chosen.astype(mx.float32), "bidirectional", segments)


def loss(
    model: TinyRecursiveLM,
    task: Task,
    *,
    depth: int | None = None,
    exits: Sequence[int] = (),
    exit_weight: float = 0.0,
    smoothing: float = 0.0,
) -> tuple[mx.array, mx.array, mx.array]:
    """Weighted sums over the batch, so that parts of a batch add up to the whole.

    Args:
        model: called once.
        task: what to predict.
        depth: passes; None: all.
        exits: earlier passes whose scores are also trained.
        exit_weight: factor of the mean loss at those exits.
        smoothing: label smoothing of the trained loss.

    A halting head is trained at those exits of a run to full depth: binary cross-entropy of its chance against
    whether the likeliest token there is the last exit's. Its gradient does not reach the rest of the model.

    Returns:
        The sum to minimise (scalar), the sums of plain losses in nats (E,), the last exit last, and the sum of
        weights (scalar).
    """
    last = model.config.at_depth(depth)
    earlier = [reached for reached in exits if reached < last] if exit_weight else []
    halts = [] if earlier and model.config.halting and last == model.config.depth else None
    logits = model(task.inputs, exits=[*earlier, last], mask=task.mask, segments=task.segments, halts=halts)
    targets = mx.broadcast_to(task.targets, logits.shape[:-1])
    each = fused.cross_entropy(logits, targets, smoothing)
    sums = (each * task.weights).sum((1, 2))  # (E,)
    total = sums[-1] + (exit_weight / len(earlier) * sums[:-1].sum() if earlier else 0)
    if halts:
        best, odds = mx.stop_gradient(logits).argmax(-1), mx.stack(halts[:-1])
        agree = (best[:-1] == best[-1]).astype(mx.float32)
        total = total + ((mx.logaddexp(odds, 0) - agree * odds) * task.weights).sum() / len(earlier)
    plain = sums
    if smoothing:
        plain = (fused.cross_entropy(mx.stop_gradient(logits), targets) * task.weights).sum((1, 2))
    return total, plain, task.weights.sum()


@dataclass(frozen=True)
class Score:
    """Bits per byte of text, with its standard error."""

    bits_per_byte: float
    standard_error: float
    perplexity: float  # per token
    tokens: int
    bytes: int
    difference: float | None = None  # of bits per byte, to another score of the same text
    difference_error: float | None = None  # its standard error, part by part


def score(parts: Sequence[tuple[float, int, int]]) -> Score:
    """The score of parts of a text.

    Args:
        parts: of each part the summed loss in nats, its bytes of text and its tokens. The standard error is that
            of a ratio of sums over the parts (Cochran, Sampling Techniques, 6.4), which are taken as independent.

    Raises:
        ValueError: no text.
    """
    nats, size, tokens = (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0, 0)
    if not size:
        raise ValueError("bits per byte must be measured on text, got none")
    mean, n = nats / size, len(parts)
    spread = sum((part - mean * bytes_) ** 2 for part, bytes_, _ in parts)
    error = math.sqrt(spread * n / (n - 1)) / size if n > 1 else math.nan
    perplexity = math.exp(nats / tokens) if nats / tokens < 700 else math.inf
    return Score(mean / math.log(2), error / math.log(2), perplexity, tokens, size)


def score_windows(
    model: TinyRecursiveLM,
    windows: Iterable[tuple[np.ndarray, np.ndarray]],
    byte_lengths: Sequence[int],
    make_task: Callable[[mx.array], Task],
    depth: int | None = None,
    batch: int = 8,
) -> list[tuple[float, int, int]]:
    """(nats, bytes, tokens) of each window, as `score` takes them.

    Args:
        windows: (T + 1,) int32 ids and (T,) float32 weights of their targets, 1 or 0; T may differ.
        byte_lengths: (V,) bytes of text that each id stands for.
        make_task: what is predicted in a batch (B, T + 1).
        depth: passes; None: all.
        batch: windows of one length that are computed together.
    """
    sizes, parts = np.asarray(byte_lengths), []
    for _, same in groupby(windows, key=lambda window: len(window[0])):
        while rows := list(islice(same, batch)):
            ids, weights = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
            task = make_task(mx.array(ids))
            logits = model(task.inputs, depth=depth, mask=task.mask, segments=task.segments)
            weights = weights * np.array(task.weights)
            nats = np.array(fused.cross_entropy(logits, task.targets)) * weights
            columns = (nats.sum(1, dtype=np.float64), (sizes[ids[:, 1:]] * weights).sum(1), weights.sum(1))
            parts += [(float(a), int(b), int(c)) for a, b, c in zip(*columns, strict=True)]
    return parts
