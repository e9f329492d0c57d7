"""Attention, in the forms of `fused`, and who sees whom in it.

Shapes: B batch, T queries, S keys, H query heads, N key-value heads, K head width.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal

import mlx.core as mx

from trm_mlx.fused import active, exponentials

Mask = Literal["causal", "bidirectional"] | mx.array
QUERY_BLOCK = 64  # queries that share one slice of the keys; 32 is as fast, 128 and 256 are slower
NEVER = -1e30  # added to a score, leaves no probability; infinity would make a NaN of a row that sees nothing


def attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None, window: int = 0
) -> mx.array:
    """Weighted means of the values, by softmax of scaled query-key products.

    Args:
        q: (B, H, T, K), the last T of S positions.
        k, v: (B, N, S, K), H a multiple of N; query head h reads key-value head h // (H / N).
        scale: factor of the products.
        mask: broadcastable to (B, H, T, S), boolean (True: may look) or added to the scores. None: causal,
            a query at position i sees keys i - window < j <= i, or all j <= i with window 0.

    Returns:
        (B, H, T, K), the dtype of q.
    """
    T, S = q.shape[2], k.shape[2]
    if active() == "plain":
        if mask is None and not window:
            causal = "causal" if T > 1 else None
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=causal)
        mask = causal_mask(T, S, window) if mask is None else mask
        mask = mask if mask.dtype == mx.bool_ else mask.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if active() == "fused" and q.dtype == mx.float32:
        if mask is not None and mask.dtype == mx.bool_:
            mask = mx.where(mask, 0.0, NEVER)
        return _attention(scale, window, mask is not None)(q, k, v, *([] if mask is None else [mask]))[0]
    if mask is None and (T > 1 or 0 < window < S):
        mask = causal_mask(T, S, window)
    scores = _scores(_grouped(q * scale, k), k, mask)
    return (mx.softmax(scores, axis=-1) @ v).reshape(q.shape)


def causal_mask(T: int, S: int, window: int = 0) -> mx.array:
    """(T, S) boolean: whether the query at position S - T + i may look at key j; see `attention`."""
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)[None]
    seen = key <= query
    return seen & (key > query - window) if window else seen


def visible_keys(T: int, S: int, mask: Mask, segments: mx.array | None, window: int, alibi: int) -> mx.array | None:
    """Who sees whom, for the masks that `attention` does not know by itself.

    Args:
        T, S: queries, the last T of S positions.
        mask: "causal", "bidirectional", or (B,) lengths of a prefix that is seen from everywhere.
        segments: (B, T) with T = S; a query sees only keys of its own segment.
        window: farthest distance seen, plus one; 0: any.
        alibi: heads whose scores fall with distance, each with its own slope (arXiv 2108.12409); 0: none.

    Returns:
        What `attention` takes: (1 or B, 1, T, S) boolean; with alibi (1 or B, H, T, S) numbers to add, -inf where
        nothing is seen; None for what is causal and no more.

    Raises:
        ValueError: another word for a mask.
    """
    if isinstance(mask, str) and mask not in ("causal", "bidirectional"):
        raise ValueError(f'mask must be "causal", "bidirectional" or prefix lengths, got {mask!r}')
    if isinstance(mask, str) and mask == "causal" and segments is None and not alibi:
        return None
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)[None]
    seen = (key <= query)[None, None]
    if isinstance(mask, mx.array):
        seen = seen | (key < mask[:, None, None, None])
    elif mask == "bidirectional":
        seen = mx.ones_like(seen)
    if window:
        seen = seen & (mx.abs(key - query) < window)
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])
    if not alibi:
        return seen
    return mx.where(seen, -slopes(alibi)[:, None, None] * mx.abs(query - key), -math.inf)


def slopes(heads: int) -> mx.array:
    """(H,) how much each head's scores fall with one position of distance. Source: ALiBi, arXiv 2108.12409."""
    return 2.0 ** (-8 * mx.arange(1, heads + 1) / heads)


def _grouped(q: mx.array, k: mx.array) -> mx.array:
    """(B, H, T, K) -> (B, N, H T / N, K): the heads of a group are rows of one product, and no key is copied."""
    B, N, _, K = k.shape
    return q.reshape(B, N, -1, K)


def _scores(q: mx.array, k: mx.array, mask: mx.array | None) -> mx.array:
    """(B, N, R, S) of grouped queries and keys; mask as in `attention`."""
    scores = q @ k.swapaxes(-1, -2)
    if mask is None:
        return scores
    B, N, R, S = scores.shape
    T = mask.shape[-2]
    heads = scores.reshape(B, N * R // T, T, S)
    heads = mx.where(mask, heads, -math.inf) if mask.dtype == mx.bool_ else heads + mask
    return heads.reshape(B, N, R, S)


@mx.compile
def _scores_backward(e: mx.array, dp: mx.array, mean: mx.array) -> mx.array:
    return e * (dp - mean)


def _blocks(T: int, S: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Queries of one block after another, and the keys that they may see."""
    for start in range(0, T, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, T)
        yield slice(start, end), slice(max(0, S - T + start - window + 1) if window else 0, S - T + end)


@cache
def _attention(scale: float, window: int, masked: bool):
    """Attention whose backward pass keeps, of each block, e to the scores and one over its sums.

    The sum over keys of a probability times its gradient is that over features of an output times its own
    (FlashAttention, arXiv 2205.14135, appendix B.2), so no (T, S) array is summed for it.
    """

    def parts(T: int, S: int) -> list[tuple[slice, slice]]:
        return [(slice(0, T), slice(0, S))] if masked else list(_blocks(T, S, window))

    @mx.custom_function
    def attend(q, k, v, *mask):
        B, H, T, K = q.shape
        q, v, kept, means = q * scale, mx.contiguous(v), [], []
        for rows, keys in parts(T, k.shape[2]):
            seen = mask[0] if masked else _added_mask(rows.stop - rows.start, keys.stop - keys.start, window)
            scores = _scores(_grouped(q[:, :, rows], k), k[:, :, keys], seen)
            e, _, total = exponentials(scores)
            share = 1 / total
            means.append(((e @ v[:, :, keys]) * share).reshape(B, H, -1, K))
            kept += [e, share]
        return mx.concatenate(means, axis=2), *kept

    @attend.vjp
    def _(primals, cotangents, outputs):
        q, k, v, *mask = primals
        (B, H, T, K), S = q.shape, k.shape[2]
        y, *kept = outputs
        dy, q, v, dq = cotangents[0], q * scale, mx.contiguous(v), []
        mean = (dy * y).sum(-1, keepdims=True)
        dk, dv = mx.zeros(k.shape), mx.zeros(v.shape)
        for (rows, keys), e, share in zip(parts(T, S), kept[::2], kept[1::2], strict=True):
            given = _grouped(dy[:, :, rows], k) * share
            dp = given @ v[:, :, keys].swapaxes(-1, -2)
            ds = _scores_backward(e, dp, _grouped(mean[:, :, rows], k[..., :1]) * share)
            dq.append((ds @ k[:, :, keys]).reshape(B, H, -1, K) * scale)
            pads = [(0, 0), (0, 0), (keys.start, S - keys.stop), (0, 0)]
            dk = dk + mx.pad(ds.swapaxes(-1, -2) @ _grouped(q[:, :, rows], k), pads)
            dv = dv + mx.pad(e.swapaxes(-1, -2) @ given, pads)
        return mx.concatenate(dq, axis=2), dk, dv, *(mx.zeros_like(each) for each in mask)

    return attend


@cache
def _added_mask(T: int, S: int, window: int) -> mx.array:
    """`causal_mask` as numbers to add."""
    import numpy as np  # the arrays have to be numbers also while MLX traces a function

    query, key = np.arange(S - T, S)[:, None], np.arange(S)[None]
    seen = (key <= query) & (key > query - window if window else True)
    return mx.array(np.where(seen, 0, NEVER).astype(np.float32))
