"""Gradient checkpointing that frees what it promises to: the inside of a pass is computed again when it is needed.

`mx.checkpoint` alone saves a fifth of the memory here, this two thirds and more. The gradients of shared weights are
not on the way to the inputs' gradients, so MLX leaves them for last and keeps all they are made of, for every pass.
Two dependencies put the work in order: compute again only once the gradient has come back this far, and hand the
gradient on only once those of the weights are done. Source of the idea: arXiv 1604.06174.
"""

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten


def call(
    module: nn.Module,
    function: Callable[..., mx.array],
    weights: Mapping[str, mx.array],
    inputs: Sequence[mx.array],
    key: mx.array | None,
) -> mx.array:
    """function(*inputs, key), whose inside is computed anew for the backward pass instead of being kept.

    Args:
        module: what function belongs to.
        weights: those of the module's parameters that function uses, by name.
        inputs: arrays that function depends on and that have gradients.
        key: random key or None; function must draw from nothing else, to draw the same the second time.
    """
    names, count = list(weights), len(inputs)
    drawn = [] if key is None else [key]

    def pure(drawn: list[mx.array], *arrays: mx.array) -> mx.array:
        module.update(tree_unflatten(list(zip(names, arrays[count:], strict=True))), strict=False)
        try:
            return function(*arrays[:count], *(drawn or [None]))
        finally:
            module.update(tree_unflatten(list(weights.items())), strict=False)

    @mx.custom_function
    def run(*arrays):
        return pure(list(arrays[count + len(names) :]), *arrays[: count + len(names)])

    @run.vjp
    def _(primals, cotangent, output):
        arrays = mx.depends(list(primals), [cotangent])
        floats, drawn = arrays[: count + len(names)], arrays[count + len(names) :]
        _, found = mx.vjp(lambda *floats: pure(drawn, *floats), floats, [cotangent])
        return *mx.depends(found[:count], found[count:]), *found[count:], *map(mx.zeros_like, drawn)

    return run(*inputs, *weights.values(), *drawn)  # ty: ignore[invalid-explicit-return]
