"""The operations that MLX's Linux CPU build is slow at, in forms that agree with MLX's own to 1e-5.

Three sets of forms. "plain": MLX's own operations, the fast ones on Metal and CUDA. "lean": fewer operations a call,
because there each costs microseconds and `mx.fast` expands to a dozen; for generating token by token. "fused": lean,
and a polynomial in place of `exp`, which is computed one element at a time there, compiled, with a backward pass
that reuses what the forward pass computed; for training and scoring. Compiling calls g++ once for each new form,
seconds that only long work is worth.

Shapes: B batch, T queries, S keys, H query heads, N key-value heads, K head width, V vocabulary.
"""

import math
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import mlx.core as mx

Forms = Literal["plain", "lean", "fused"]
Mask = Literal["causal", "bidirectional"] | mx.array
QUERY_BLOCK = 64  # queries that share one slice of the keys; 32 is as fast, 128 and 256 are slower

_linux_cpu = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
_usual: Forms = "fused" if _linux_cpu and os.environ.get("TRM_MLX_FUSED") != "0" else "plain"
_chosen: ContextVar[Forms] = ContextVar("forms", default=_usual)  # each thread has its own


def active() -> Forms:
    """The forms in use."""
    return _chosen.get()


@contextmanager
def use(forms: Forms) -> Generator[None]:
    """Choose the forms for the calls inside."""
    token = _chosen.set(forms)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def uncompiled() -> Generator[None]:
    """No form inside needs a compiler: a few tokens would be done before it is."""
    with use("lean" if active() == "fused" else active()):
        yield


def rms(x: mx.array, weight: mx.array | None, epsilon: float) -> mx.array:
    """x over the root of its mean square along the last axis, times the weight. Source: arXiv 1910.07467."""
    if active() == "plain" or x.dtype != mx.float32:  # halves would overflow when squared
        return mx.fast.rms_norm(x, weight, epsilon)
    x = x * mx.rsqrt(mx.square(x).mean(-1, keepdims=True) + epsilon)
    return x if weight is None else x * weight


def rope(x: mx.array, base: float, start: int) -> mx.array:
    """Turn feature m with feature m + K/2 by position times base^(-2 m / K).

    Args:
        x: (B, H, T, K), K even.
        base: of the wavelengths.
        start: position of the first of the T.

    Source: RoFormer, arXiv 2104.09864, equation 34, on halves instead of neighbours.
    """
    T, K = x.shape[2:]
    if active() == "plain" or x.dtype != mx.float32:
        return mx.fast.rope(x, K, traditional=False, base=base, scale=1.0, offset=start)
    cosines, sines = _turns(K, base, 1 << (start + T - 1).bit_length())
    low, high = mx.split(x, 2, axis=-1)
    return x * cosines[start : start + T] + mx.concatenate([high, low], axis=-1) * sines[start : start + T]


@cache
def _turns(width: int, base: float, length: int) -> tuple[mx.array, mx.array]:
    """Cosines, and sines with the first half negative: each (length, width)."""
    import numpy as np  # the arrays have to be numbers also while MLX traces a function

    angles = np.arange(length)[:, None] * base ** (-2 * np.arange(width // 2) / width)
    cosines, sines = np.cos(angles), np.sin(angles)
    return (
        mx.array(np.concatenate([cosines, cosines], axis=-1).astype(np.float32)),
        mx.array(np.concatenate([-sines, sines], axis=-1).astype(np.float32)),
    )


def exponential(x: mx.array) -> mx.array:
    """e to the x, from products and sums alone; for x <= 0 the absolute error is below 4e-6.

    (1 + y + y^2/2 + y^3/6 + y^4/24)^64 with y = x/64; x below -80 counts as -80, above 80 it is not defined.
    """
    y = mx.maximum(x, -80.0) * (1 / 64)
    p = 1 + y * (1 + y * (0.5 + y * (1 / 6 + y * (1 / 24))))
    for _ in range(6):
        p = p * p
    return p


@mx.compile
def _softmax_forward(scores: mx.array) -> mx.array:
    e = exponential(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@mx.compile
def _softmax_backward(p: mx.array, dp: mx.array) -> mx.array:
    t = p * dp
    return t - p * t.sum(-1, keepdims=True)


@mx.custom_function
def _softmax(scores: mx.array) -> mx.array:
    return _softmax_forward(scores)


@_softmax.vjp
def _(primals, cotangents, outputs):
    return _softmax_backward(outputs, cotangents)


def softmax(scores: mx.array) -> mx.array:
    """Probabilities along the last axis."""
    return _softmax(scores) if active() == "fused" else mx.softmax(scores, axis=-1)  # ty: ignore[invalid-explicit-return]


@mx.compile
def _relu_squared_forward(x: mx.array) -> mx.array:
    return x * mx.maximum(x, 0)  # mx.square(mx.maximum(x, 0)) compiles to code ten times slower


@mx.compile
def _relu_squared_backward(x: mx.array, dy: mx.array) -> mx.array:
    return (x + mx.abs(x)) * dy


@mx.custom_function
def _relu_squared(x: mx.array) -> mx.array:
    return _relu_squared_forward(x)


@_relu_squared.vjp
def _(primals, cotangents, outputs):
    return _relu_squared_backward(primals, cotangents)


def relu_squared(x: mx.array) -> mx.array:
    """max(x, 0)^2 per element. Source: Primer, arXiv 2109.08668."""
    return _relu_squared(x) if active() == "fused" else mx.square(mx.maximum(x, 0))  # ty: ignore[invalid-explicit-return]


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + exponential(-mx.minimum(x, 80.0)))  # for x < 0 the error is relative to a vanishing value


@mx.compile
def _swiglu_forward(gate: mx.array, up: mx.array) -> mx.array:
    return gate * _sigmoid(gate) * up


@mx.compile
def _swiglu_backward(gate: mx.array, up: mx.array, dy: mx.array) -> tuple[mx.array, mx.array]:
    s = _sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return _swiglu_forward(gate, up)


@_swiglu.vjp
def _(primals, cotangents, outputs):
    return _swiglu_backward(*primals, cotangents)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate * sigmoid(gate) * up per element. Source: GLU variants, arXiv 2002.05202."""
    return _swiglu(gate, up) if active() == "fused" else gate * mx.sigmoid(gate) * up  # ty: ignore[invalid-explicit-return]


@mx.compile
def _cross_entropy_forward(logits, targets, smoothing):
    top = logits.max(-1, keepdims=True)
    e = exponential(logits - top)
    total = e.sum(-1, keepdims=True)
    loss = mx.log(total) + top - (1 - smoothing) * mx.take_along_axis(logits, targets[..., None], -1)
    if smoothing:
        loss = loss - smoothing * logits.mean(-1, keepdims=True)
    return loss[..., 0], e, 1 / total


@mx.compile
def _cross_entropy_backward(e, share, targets, smoothing, dloss):
    hit = mx.arange(e.shape[-1]) == targets[..., None]
    return (e * share - (1 - smoothing) * hit - smoothing / e.shape[-1]) * dloss[..., None]


@cache
def _cross_entropy(smoothing: float):
    @mx.custom_function
    def loss(logits, targets):
        return _cross_entropy_forward(logits, targets, smoothing)

    @loss.vjp
    def _(primals, cotangents, outputs):
        _, e, share = outputs
        return _cross_entropy_backward(e, share, primals[1], smoothing, cotangents[0]), mx.zeros_like(primals[1])

    return loss


def cross_entropy(logits: mx.array, targets: mx.array, smoothing: float = 0.0) -> mx.array:
    """Negative log probability of each target, in nats.

    Args:
        logits: (..., V) float.
        targets: (...) integer ids below V.
        smoothing: share of the target's probability spread evenly over all V (arXiv 1512.00567).

    Returns:
        (...) float32.
    """
    logits = logits.astype(mx.float32)
    if active() == "fused":
        return _cross_entropy(smoothing)(logits, targets)[0]
    told = mx.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return mx.logsumexp(logits, -1) - (1 - smoothing) * told - smoothing * logits.mean(-1)


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
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if mask is not None:
        return _attend(q, k, v, scale, mask)
    if T <= QUERY_BLOCK:
        return _attend(q, k, v, scale, None if T == 1 and (not window or window >= S) else causal_mask(T, S, window))
    parts = []
    for start in range(0, T, QUERY_BLOCK):  # later keys are not even multiplied
        end = min(start + QUERY_BLOCK, T)
        last = S - T + end
        first = max(0, S - T + start - window + 1) if window else 0
        part = (q[:, :, start:end], k[:, :, first:last], v[:, :, first:last])
        parts.append(_attend(*part, scale, causal_mask(end - start, last - first, window)))
    return mx.concatenate(parts, axis=2)


def causal_mask(T: int, S: int, window: int = 0) -> mx.array:
    """(T, S) boolean: whether the query at position S - T + i may look at key j; see `attention`."""
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)[None]
    seen = key <= query
    return seen & (key > query - window) if window else seen


def visible(T: int, S: int, mask: Mask, segments: mx.array | None, window: int, alibi: int) -> mx.array | None:
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
    slopes = 2.0 ** (-8 * mx.arange(1, alibi + 1) / alibi)
    return mx.where(seen, -slopes[:, None, None] * mx.abs(query - key), -math.inf)


def _attend(q, k, v, scale, mask):
    B, H, T, K = q.shape
    N, S = k.shape[1:3]
    # The H / N heads of a group are rows of one product: no key or value is copied.
    scores = ((q * scale).reshape(B, N, H // N * T, K) @ k.swapaxes(-1, -2)).reshape(B, H, T, S)
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf) if mask.dtype == mx.bool_ else scores + mask
    return (softmax(scores).reshape(B, N, H // N * T, S) @ v).reshape(B, H, T, K)
