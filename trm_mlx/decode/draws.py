"""Picks the next tokens of many texts at once: those that `sampling.sample` picks one by one, bit for bit.

Shapes: B texts, V vocabulary, k = top_k.
"""

import math
from collections.abc import Sequence

import numpy as np

from trm_mlx.decode.sampling import SamplingConfig, doubles, draw, exponential, uniform

PARTS = 4  # times k parts of the vocabulary, whose maxima bound the k-th logit from below


def picks(logits: np.ndarray, settings: SamplingConfig, seeds: Sequence[int], steps: Sequence[int]) -> list[int]:
    """The next token of each text.

    Args:
        logits: (B, V) float32 or float64, what changes logits applied; -inf forbids a token.
        settings: for all of them, but for the seed.
        seeds, steps: (B,) the seed of each text, and the index of this token in it.

    Raises:
        ValueError: as `sampling.sample`.
    """
    if not logits.max() < math.inf:  # NaN is not below anything, and max passes it on
        for row in logits:
            doubles(row)  # names what is wrong
    if settings.temperature == 0:
        return logits.argmax(axis=1).tolist()
    chances = [uniform(seed, step) for seed, step in zip(seeds, steps, strict=True)]
    with np.errstate(all="ignore"):  # as in `sample`
        found = shortlist(logits, settings.top_k) if settings.typical_p == 1 else None
        if found is None:
            return [draw(doubles(row), settings, chance) for row, chance in zip(logits, chances, strict=True)]
        return drawn(*found, settings, np.array(chances)).tolist()


def shortlist(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Each (B, k): ids by (logit descending, id ascending), and their logits as float64.

    None where that is no shortcut: k is 0 or near V, or a text has hardly k tokens that are not forbidden.
    """
    B, V = logits.shape
    parts = PARTS * k
    if not 0 < 2 * parts <= V:
        return None
    maxima = logits[:, : V // parts * parts].reshape(B, -1, parts).max(axis=1)
    least = np.partition(maxima, parts - k, axis=1)[:, parts - k, None]  # at least k are as high
    if not least.min() > -math.inf:
        return None
    rows, ids = np.nonzero(logits >= least)  # by row, and then by id
    counts = np.bincount(rows, minlength=B)
    if counts.max() > V // 2:
        return None
    places = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    lowered = np.full((B, counts.max()), math.inf)
    lowered[rows, places] = -logits[rows, ids].astype(np.float64)
    table = np.zeros(lowered.shape, np.int64)
    table[rows, places] = ids
    order = np.argsort(lowered, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, 1), -np.take_along_axis(lowered, order, 1)


def drawn(ids: np.ndarray, ordered: np.ndarray, settings: SamplingConfig, chances: np.ndarray) -> np.ndarray:
    """(B,) tokens at which the running probability first passes (B,) chances; see `sampling.draw`, step by step.

    Args:
        ids, ordered: (B, k) of `shortlist`.
    """
    k = ids.shape[1]
    weights = exponential((ordered - ordered[:, :1]) / settings.temperature)
    running = np.cumsum(weights, axis=1)  # of each row, left to right
    kept = np.full(len(ids), k)
    if settings.top_p < 1:
        kept = (running < settings.top_p * running[:, -1:]).sum(axis=1) + 1
    if settings.min_p > 0:
        unlikely = weights < settings.min_p * weights[:, :1]
        unlikely[:, 0] = False
        kept = np.where(unlikely.any(axis=1), np.minimum(kept, unlikely.argmax(axis=1)), kept)
    total = np.take_along_axis(running, kept[:, None] - 1, 1)
    passed = (running <= chances[:, None] * total) & (np.arange(k) < kept[:, None])
    chosen = np.minimum(passed.sum(axis=1), kept - 1)
    return np.take_along_axis(ids, chosen[:, None], 1)[:, 0]
