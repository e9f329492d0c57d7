import math

import mlx.core as mx
import pytest
from forms import both, draw, farthest

from trm_mlx import fused

Q, K = draw(2, 4, 150, 16, seed=1), draw(2, 2, 150, 16, seed=2)


def test_exponential_is_close_to_exp_down_to_minus_infinity():
    x = mx.concatenate([mx.linspace(-90, 0, 100_001), mx.array([-1e5, -1e30, -math.inf])])
    assert farthest(fused.exponential(x), mx.exp(x)) < 3e-7


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0, 1000.0])
def test_swiglu_forms_agree(scale):
    gate, up = draw(100, 64, scale=scale), draw(100, 64, seed=1)
    fast, plain = both(lambda: fused.swiglu(gate, up))
    assert farthest(fast, plain) < 1e-5 * max(1, scale)


def test_relu_squared_forms_agree():
    x = draw(100, 64, scale=3)
    fast, plain = both(lambda: fused.relu_squared(x))
    assert farthest(fast, plain) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_cross_entropy_forms_agree(smoothing, scale):
    logits, targets = draw(5, 11, 97, scale=scale), mx.arange(55).reshape(5, 11)
    fast, plain = both(lambda: fused.cross_entropy(logits, targets, smoothing))
    assert fast.shape == (5, 11)
    assert farthest(fast, plain) < 1e-5 * max(1, scale)


def test_cross_entropy_is_minus_log_probability():
    logits = mx.log(mx.array([[0.5, 0.25, 0.25]]))
    for loss in both(lambda: fused.cross_entropy(logits, mx.array([1]))):
        assert abs(loss.item() - math.log(4)) < 1e-5


def test_label_smoothing_spreads_the_target():
    logits = mx.log(mx.array([[0.5, 0.25, 0.25]]))
    expected = -(0.7 + 0.1) * math.log(0.25) - 0.1 * (math.log(0.5) + math.log(0.25))
    for loss in both(lambda: fused.cross_entropy(logits, mx.array([1]), 0.3)):
        assert abs(loss.item() - expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "compute", "inputs"),
    [
        ("swiglu", fused.swiglu, [draw(20, 16, scale=3), draw(20, 16, seed=1)]),
        ("relu_squared", fused.relu_squared, [draw(20, 16)]),
        ("cross_entropy", lambda x: fused.cross_entropy(x, mx.arange(7)), [draw(7, 33, scale=3)]),
        ("smoothed", lambda x: fused.cross_entropy(x, mx.arange(7), 0.2), [draw(7, 33, scale=3)]),
    ],
)
def test_gradients_of_both_forms_agree(name, compute, inputs):
    def loss(*arrays):
        y = compute(*arrays)
        return (y * mx.cos(mx.arange(y.size).reshape(y.shape))).sum()

    fast, plain = both(lambda: mx.grad(loss, argnums=tuple(range(len(inputs))))(*inputs))
    fast, plain = ([g] if isinstance(g, mx.array) else g for g in (fast, plain))
    for a, b in zip(fast, plain, strict=True):
        assert farthest(a, b) < 1e-5 * max(1.0, mx.abs(b).max().item()), name


def test_switch_returns_to_what_it_was():
    before = fused.active()
    with pytest.raises(KeyError), fused.use("lean"):
        assert fused.active() == "lean"
        raise KeyError
    assert fused.active() == before


def test_nothing_uncompiled_is_fused():
    for forms, inside in (("fused", "lean"), ("lean", "lean"), ("plain", "plain")):
        with fused.use(forms), fused.uncompiled():
            assert fused.active() == inside


@pytest.mark.parametrize("weight", [None, draw(16, seed=9)], ids=["plain", "weighted"])
def test_rms_forms_agree(weight):
    for scale in (1e-3, 1.0, 1e3):
        fast, plain = both(lambda scale=scale: fused.rms(scale * Q, weight, 1e-5))
        assert farthest(fast, plain) < 1e-5


@pytest.mark.parametrize("start", [0, 7, 63, 64])
def test_rope_forms_agree(start):
    fast, plain = both(lambda: fused.rope(Q, 10_000.0, start))
    assert farthest(fast, plain) < 1e-4  # MLX's angles are float32: they are off by 6e-8 of the position
    assert farthest(fast, Q) > 0.1


def test_rope_turns_pairs_by_position_times_wavelength():
    x = mx.zeros((1, 1, 3, 4))
    x[..., 0] = 1.0
    x[..., 1] = 1.0
    for found in both(lambda: fused.rope(x, 100.0, 5)):
        for place, position in enumerate((5, 6, 7)):
            slow = position * 100**-0.5
            expected = [math.cos(position), math.cos(slow), math.sin(position), math.sin(slow)]
            assert farthest(found[0, 0, place], mx.array(expected)) < 1e-5


def test_rope_keeps_lengths_and_relative_products():
    for forms in ("fused", "plain"):
        with fused.use(forms):
            a, b = (fused.rope(Q[:1, :, :1], 10_000.0, start) for start in (3, 90))
            c, d = (fused.rope(K[:1, :1, :1], 10_000.0, start) for start in (10, 97))
            assert mx.allclose((a * a).sum(-1), (Q[:1, :, :1] ** 2).sum(-1), rtol=1e-4)
            assert mx.allclose((a * c).sum(-1), (b * d).sum(-1), atol=1e-4)


def test_rope_holds_inside_a_compiled_function():
    with fused.use("fused"):
        compiled = mx.compile(lambda x: fused.rope(x, 777.0, 2))
        assert farthest(compiled(Q), fused.rope(Q, 777.0, 2)) < 1e-6
        assert farthest(compiled(2 * Q), fused.rope(2 * Q, 777.0, 2)) < 1e-6
