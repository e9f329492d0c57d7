"""The operations that MLX's Linux CPU build is slow at, in forms that agree with MLX's own to 1e-5.

Three sets of forms. "plain": MLX's own operations, the fast ones on Metal and CUDA. "lean": fewer operations a call,
because there each costs microseconds and `mx.fast` expands to a dozen; for generating token by token. "fused": lean,
and a polynomial in place of `exp`, which is computed one element at a time there, compiled, with a backward pass
that reuses what the forward pass computed; for training and scoring. Compiling calls g++ once for each new form,
seconds that only long work is worth.

Shapes: B batch, T tokens, H heads, K head width, V vocabulary.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import mlx.core as mx

Forms = Literal["plain", "lean", "fused"]

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
    if active() == "fused":
        return _rms(epsilon)(x, mx.ones(x.shape[-1:]) if weight is None else weight)[0]
    x = x * mx.rsqrt(mx.square(x).mean(-1, keepdims=True) + epsilon)
    return x if weight is None else x * weight


@cache
def _rms(epsilon: float):
    @mx.custom_function
    def norm(x, weight):
        width = x.shape[-1]
        share = mx.rsqrt((x * x) @ mx.full((width, 1), 1 / width) + epsilon)
        return x * share * weight, share

    @norm.vjp
    def _(primals, cotangents, outputs):
        (x, weight), dy, share = primals, cotangents[0], outputs[1]
        width, y = x.shape[-1], x * share
        along = dy * y
        dx = share * (dy * weight - y * (along @ (weight[:, None] / width)))
        return dx, (mx.ones((1, x.size // width)) @ along.reshape(-1, width))[0]

    return norm


def rope(x: mx.array, base: float, start: int | mx.array, end: int = 0) -> mx.array:
    """Turn feature m with feature m + K/2 by position times base^(-2 m / K).

    Args:
        x: (B, H, T, K), K even.
        base: of the wavelengths.
        start: position of the first of the T, or (B,) that of each row.
        end: for such, what no position of any row reaches.

    Source: RoFormer, arXiv 2104.09864, equation 34, on halves instead of neighbours.
    """
    T, K = x.shape[2:]
    if active() == "plain" or x.dtype != mx.float32:
        return mx.fast.rope(x, K, traditional=False, base=base, scale=1.0, offset=start)
    end = start + T if isinstance(start, int) else end
    tables = _turns(K, base, 1 << (end - 1).bit_length())
    if isinstance(start, int):
        cosines, sines = (table[start:end] for table in tables)
    else:
        at = mx.maximum(start[:, None, None] + mx.arange(T), 0)  # (B, 1, T); below 0 a row holds nothing
        cosines, sines = (table[at] for table in tables)
    if active() == "lean" or not isinstance(start, int):
        low, high = mx.split(x, 2, axis=-1)
        return x * cosines + mx.concatenate([high, low], axis=-1) * sines
    x = x.swapaxes(1, 2)  # which is how it lies in memory, and a product would copy it otherwise
    return (x * cosines[:, None] + (x @ _exchange(K)) * sines[:, None]).swapaxes(1, 2)


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


@cache
def _exchange(width: int) -> mx.array:
    """(width, width): a product with it exchanges the halves of a row, and its gradient copies no slices."""
    import numpy as np  # as in _turns

    return mx.array(np.roll(np.eye(width, dtype=np.float32), width // 2, axis=1))


def exponential(x: mx.array) -> mx.array:
    """e to the x, for x <= 0, from products, sums and one division; the absolute error is below 3e-7.

    1 / (1 + y + y^2/2 + y^3/6 + y^4/24)^64 with y = -x/64, by squaring 1 + q as 1 + q (2 + q), which keeps the digits
    of a small q. Minus infinity gives 0. (A maximum, as for a range of x, would keep g++ from vectorising.)
    """
    y = x * (-1 / 64)
    q = y * (1 + y * (0.5 + y * (1 / 6 + y * (1 / 24))))
    for _ in range(6):
        q = q * (2 + q)
    return 1 / (1 + q)


_exponential = mx.compile(exponential)


def exponentials(scores: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """e to the (scores - their maximum), that maximum, and the sum of the former, along the last axis."""
    top, width = scores, scores.shape[-1]
    while width % 2 == 0 and width > 32:  # halves against each other: twice as fast as MLX's maximum of a row
        width //= 2
        top = mx.maximum(top[..., :width], top[..., width:])
    top = top.max(-1, keepdims=True)
    e = _exponential(scores - top)  # the difference apart: what is broadcast in a compiled form is not vectorised
    return e, top, e @ mx.ones((e.shape[-1], 1))  # four times as fast as MLX's sum of a row


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
    e = exponential(-mx.abs(x))
    return mx.where(x < 0, e, 1.0) / (1 + e)


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


@cache
def _cross_entropy(smoothing: float):
    @mx.custom_function
    def loss(logits, targets):
        e, top, total = exponentials(logits)
        told = mx.take_along_axis(logits, targets[..., None], -1)
        loss = mx.log(total) + top - (1 - smoothing) * told
        if smoothing:
            loss = loss - smoothing * logits.mean(-1, keepdims=True)
        return loss[..., 0], e, (1 / total)[..., 0]

    @loss.vjp
    def _(primals, cotangents, outputs):
        (_, targets), (_, e, share), dloss = primals, outputs, cotangents[0]
        factor, place = (share * dloss)[..., None], targets[..., None]
        told = mx.take_along_axis(e, place, -1) * factor - (1 - smoothing) * dloss[..., None]
        even = smoothing / e.shape[-1] * dloss[..., None]
        gradient = e * factor - even if smoothing else e * factor
        # One number a row, put in its place: comparing every column with the target takes as long as all the rest.
        return mx.put_along_axis(gradient, place, told - even, -1), mx.zeros_like(targets)

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
