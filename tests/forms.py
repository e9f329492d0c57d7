"""Numbers, and what the fused and the plain forms make of them."""

import mlx.core as mx

from trm_mlx import fused


def both(compute):
    """What the fused form gives, and what the plain form gives."""
    results = []
    for forms in ("fused", "plain"):
        with fused.use(forms):
            results.append(compute())
            mx.eval(results[-1])
    return results


def farthest(a, b):
    return mx.abs(a - b).max().item()


def draw(*shape, scale=1.0, seed=0):
    return scale * mx.random.normal(shape, key=mx.random.key(seed))
