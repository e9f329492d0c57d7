"""Imports trm_mlx first, so that MLX gets its BLAS, and gives the tests a tiny model."""

import signal

import pytest

import trm_mlx  # noqa: F401  (before mlx.core)

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell has its background jobs ignore it, and their children


@pytest.fixture
def tiny():
    """Make a small model with random numbers in every tensor, so that none of them is idle."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    from trm_mlx.model import ModelConfig, TinyRecursiveLM

    def make(noise: float = 0.2, **options):
        shape = {
            "vocabulary": 64,
            "width": 32,
            "heads": 4,
            "kv_heads": 2,
            "prelude": 1,
            "core": 2,
            "coda": 1,
            "depth": 3,
            "context": 64,
        }
        model = TinyRecursiveLM(ModelConfig(**{**shape, **options}))
        named = sorted(tree_flatten(model.parameters()))
        keys = mx.random.split(mx.random.key(7), len(named))
        drawn = [
            (name, array + noise * mx.random.normal(array.shape, key=key))
            for (name, array), key in zip(named, keys, strict=True)
        ]
        model.update(tree_unflatten(drawn))
        model.eval()
        mx.eval(model.parameters())
        return model

    return make


@pytest.fixture
def forms(request):
    """The forms of operations that a test is run with; see `both_forms`."""
    from trm_mlx import fused

    with fused.use(request.param):
        yield request.param
