"""The folded, compiled step against the model itself."""

import mlx.core as mx
import pytest

from trm_mlx import fused
from trm_mlx.cache import SPARE, CacheConfig
from trm_mlx.decode.folded import foldable
from trm_mlx.decode.step import StepModel, folded

pytestmark = pytest.mark.skipif(fused.active() != "fused", reason="the folded step is for the Linux CPU")

SHAPES = {
    "plain": {},
    "swiglu": {"feed_forward": "swiglu"},
    "no norms": {"qk_norm": False, "injection": False, "pass_scale": False},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "no positions": {"position": "none"},
    "window": {"window": 9},
    "one head": {"heads": 1, "kv_heads": 1, "prelude": 2, "core": 1, "coda": 2},
    "many kv heads": {"kv_heads": 4},
}
KINDS = {
    "full": CacheConfig(),
    "window": CacheConfig(cache_window=12, cache_sinks=2),
    "shared": CacheConfig(cache_shared=True),
    "bits": CacheConfig(cache_bits=8),
    "all": CacheConfig(cache_window=12, cache_shared=True, cache_bits=8),
}


def drawn(model, B: int, T: int) -> mx.array:
    return mx.random.randint(0, model.config.vocabulary, (B, T), key=mx.random.key(T))


def agree(model, kind: CacheConfig, depth: int | None = None, B: int = 1, tolerance: float = 1e-4) -> None:
    """Prompt, single tokens, some tokens at once, and single tokens again give what the model gives."""
    ids, cache = drawn(model, B, 60), model.cache(depth, kind)
    step, at = StepModel(model, depth, kind), 0
    assert step.folded
    for count in (20, 1, 1, 7, 1, SPARE, 1, 1):
        piece = ids[:, at : at + count]
        given = step.append(piece, every=True)
        with fused.uncompiled():
            wanted = model(piece, depth=depth, cache=cache)
        assert mx.abs(given - wanted).max() <= tolerance * mx.abs(wanted).max()
        at += count
        assert step.position == at


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_folded_step_gives_what_the_model_gives(tiny, shape):
    agree(tiny(**SHAPES[shape]), CacheConfig())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_folded_step_gives_what_the_model_gives_with_every_cache(tiny, kind):
    tolerance = 2e-2 if KINDS[kind].cache_bits else 1e-4  # a rounding that falls the other way
    agree(tiny(), KINDS[kind], tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_folded_step_serves_fewer_passes_and_several_rows(tiny, depth):
    agree(tiny(), CacheConfig(), depth, B=3)


def test_a_model_that_changed_is_folded_anew(tiny):
    model, ids = tiny(), [5]
    before, first = StepModel(model).append(ids), folded(model)
    assert folded(model) is first
    model.update({"injection": model.injection * 2})
    after = StepModel(model).append(ids)
    assert folded(model) is not first
    assert not mx.allclose(before, after, atol=1e-3)
    assert mx.allclose(after, model(mx.array([ids]))[:, -1], rtol=1e-3, atol=1e-3)


def test_folding_is_for_plain_float32_models(tiny):
    assert foldable(tiny())
    assert not foldable(tiny(pass_lora=2))
    half = tiny()
    half.set_dtype(mx.float16)
    assert not foldable(half)
    with fused.use("plain"):
        assert not foldable(tiny())


def test_text_taken_back_is_read_anew(tiny):
    model = tiny()
    ids = drawn(model, 1, 30)
    step = StepModel(model)
    step.append(ids[:, :20])
    mx.eval(step.append(ids[:, 20:25] * 0 + 3, every=True))
    step.trim(20)
    again = [step.append(ids[:, at : at + 1]) for at in range(20, 30)]
    assert mx.allclose(mx.stack(again, axis=1), model(ids)[:, 20:], rtol=1e-3, atol=1e-3)


def test_arrays_are_written_in_place(tiny):
    step = StepModel(tiny(context=4096))
    step.append(drawn(step.model, 1, 1000))
    mx.eval(step.append([5]), step.cache.arrays)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        mx.eval(step.append([5]), step.cache.arrays)
    assert mx.get_peak_memory() - before < step.cache.bytes / 2


def test_scores_too_large_for_a_plain_exponential_are_shifted(tiny):
    model, ids = tiny(), drawn(tiny(), 1, 12)
    for block in (*model.prelude, *model.core, *model.coda):
        for norm in (block.attention.query_norm, block.attention.key_norm):
            norm.weight = norm.weight * 8
    step = StepModel(model)
    assert step.folded and step.folded.core[0][0].bound > 200
    given = [step.append(ids[:, at : at + 1]) for at in range(12)]
    assert mx.allclose(mx.stack(given, axis=1), model(ids), rtol=1e-3, atol=1e-3)
