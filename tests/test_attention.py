import math

import mlx.core as mx
import pytest
from forms import both, draw, farthest

from trm_mlx.attention import attention

Q, K, V = draw(2, 4, 150, 16, seed=1), draw(2, 2, 150, 16, seed=2), draw(2, 2, 150, 16, seed=3)
MASK = draw(2, 1, 150, 150, seed=4) > 0
MASK[:, :, :, 0] = True
ADDED = draw(1, 4, 150, 150, seed=5)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 40}, {"window": 1}, {"mask": MASK}, {"mask": ADDED}],
    ids=lambda o: str(list(o)),
)
@pytest.mark.parametrize("queries", [150, 64, 65, 3, 1])
def test_attention_forms_agree(options, queries):
    if "mask" in options:
        options = {"mask": options["mask"][:, :, -queries:]}
    fast, plain = both(lambda: attention(Q[:, :, -queries:], K, V, 0.25, **options))
    assert farthest(fast, plain) < 1e-5


def test_attention_is_a_softmax_of_products():
    scores = (Q @ mx.repeat(K, 2, axis=1).swapaxes(-1, -2)) * 0.25
    seen = mx.arange(150)[:, None] >= mx.arange(150)
    expected = mx.softmax(mx.where(seen, scores, -math.inf), axis=-1) @ mx.repeat(V, 2, axis=1)
    for found in both(lambda: attention(Q, K, V, 0.25)):
        assert farthest(found, expected) < 1e-5


@pytest.mark.parametrize("scale", [0.01, 10.0, 300.0])
def test_attention_forms_agree_at_any_size_of_scores(scale):
    fast, plain = both(lambda: attention(Q, K, V, scale))
    assert farthest(fast, plain) < 1e-5 * max(1, scale)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 40}, {"mask": MASK}, {"mask": ADDED}], ids=lambda o: str(list(o)))
def test_gradients_of_both_forms_agree(options, compiled):
    def loss(q, k, v):
        y = attention(q, k, v, 0.25, **options)
        return (y * mx.cos(mx.arange(y.size).reshape(y.shape))).sum()

    gradients = mx.grad(loss, argnums=(0, 1, 2))
    fast, plain = both(lambda: (mx.compile(gradients) if compiled else gradients)(Q, K, V))
    for a, b in zip(fast, plain, strict=True):
        assert farthest(a, b) < 1e-5 * max(1.0, mx.abs(b).max().item())
