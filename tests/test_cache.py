import mlx.core as mx
import pytest

from trm_mlx.cache import SMALLEST, SPARE, Cache, CacheConfig, Slot, decoded, encoded
from trm_mlx.shape import ModelConfig

ONE = ModelConfig(width=2, heads=1, kv_heads=1, depth=1, context=4096)


def rows(start, count):
    """Keys (1, 1, count, 2) whose numbers tell their position."""
    return mx.arange(start, start + count).astype(mx.float32)[None, None, :, None] * mx.array([1.0, 10.0])


def put(slot: Slot, start: int, count: int):
    seen = slot.append(rows(start, count), -rows(start, count))
    slot.cache.advance(count)
    return seen


def test_slot_gives_back_what_was_put_in_across_growth():
    cache, total = Cache(ONE, 1), 0
    for count in (1, SMALLEST - 1, 1, 3 * SMALLEST, 7):
        keys, values = put(cache.prelude[0], total, count)
        total += count
        assert mx.array_equal(keys, rows(0, total))
        assert mx.array_equal(values, -rows(0, total))


def test_places_grow_in_few_steps_and_end_with_the_context():
    sizes = [Cache(ONE, 1).capacity(length) for length in range(1, 4097)]
    assert sorted({*sizes}) == [128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert all(size >= length for length, size in enumerate(sizes, 1))


def test_arrays_given_out_earlier_do_not_change():
    slot = Cache(ONE, 1).prelude[0]
    first, _ = put(slot, 0, 3)
    put(slot, 3, 2)
    slot.cache.trim(1)
    put(slot, 90, 2)
    assert mx.array_equal(first, rows(0, 3))


def test_trim_forgets_the_end(tiny):
    model, ids = tiny(), mx.array([[5, 6, 7, 8, 9]])
    cache = model.cache()
    model(ids, cache=cache)
    cache.trim(2)
    assert cache.length == 2
    again = model(ids[:, 2:], cache=cache)
    assert mx.allclose(again, model(ids)[:, 2:], rtol=1e-4, atol=1e-4)


def test_trim_beyond_the_length_is_refused():
    with pytest.raises(ValueError, match="between 0 and its 0 positions, got 1"):
        Cache(ONE, 1).trim(1)


def test_selected_rows_go_on_as_texts_of_their_own(tiny):
    model, ids = tiny(), mx.array([[5, 6, 7], [5, 9, 8]])
    cache = model.cache()
    model(ids, cache=cache)
    cache.select([1, 0, 1])
    following = mx.array([[10], [11], [12]])
    again = model(following, cache=cache)
    whole = model(mx.concatenate([ids[mx.array([1, 0, 1])], following], axis=1))[:, -1:]
    assert mx.allclose(again, whole, rtol=1e-4, atol=1e-4)
    assert cache.length == 4


@pytest.mark.parametrize("rows", [[], [2], [0, -1]])
def test_rows_that_are_not_there_are_refused(tiny, rows):
    model = tiny()
    cache = model.cache()
    model(mx.array([[5], [6]]), cache=cache)
    with pytest.raises(ValueError, match="rows must be some of the 2 that the cache holds"):
        cache.select(rows)


def test_slots_are_one_for_each_layer_and_pass():
    cache = Cache(ModelConfig(prelude=2, core=4, coda=1, depth=3), 3)
    assert len(cache.slots) == 2 + 3 * 4 + 1
    assert cache.bytes == 0


# Windows and rings: against computing the whole text with a mask that says the same.


def masked(model, ids: mx.array, window: int, sinks: int) -> mx.array:
    """Scores of all positions, each seeing the newest `window` and the first `sinks`."""
    kind = CacheConfig(cache_window=window, cache_sinks=sinks)
    cache = model.cache(kind=kind)
    cache.ring = 0  # everything is kept, and the mask alone forgets
    return model(ids, cache=cache)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("pieces", [[1] * 90, [60, 1, 1, 28], [5, 40, 16, 17, 1, 11], [90]])
def test_a_ring_gives_what_a_window_over_the_whole_text_gives(tiny, pieces, position, sinks):
    model = tiny(context=256, position=position)
    ids = mx.random.randint(0, model.config.vocabulary, (2, 90), key=mx.random.key(3))
    cache, given, at = model.cache(kind=CacheConfig(cache_window=20, cache_sinks=sinks)), [], 0
    assert 0 < cache.ring < 50
    for piece in pieces:
        given.append(model(ids[:, at : at + piece], cache=cache))
        at += piece
    assert mx.allclose(mx.concatenate(given, axis=1), masked(model, ids, 20, sinks), rtol=1e-4, atol=1e-4)
    if pieces[0] < 90:
        assert cache.slots[0].parts[0].shape[2] == cache.ring


def test_the_window_of_a_model_is_kept_as_a_ring_and_changes_nothing(tiny):
    model = tiny(context=256, window=20)
    ids = mx.random.randint(0, model.config.vocabulary, (1, 90), key=mx.random.key(3))
    cache = model.cache()
    parts = [model(ids[:, at : at + 9], cache=cache) for at in range(0, 90, 9)]
    assert cache.ring == 40
    assert mx.allclose(mx.concatenate(parts, axis=1), model(ids), rtol=1e-4, atol=1e-4)


def test_a_ring_can_be_taken_back_by_what_it_has_to_spare(tiny):
    model = tiny(context=256, window=20)
    ids = mx.random.randint(0, model.config.vocabulary, (1, 100), key=mx.random.key(3))
    cache = model.cache()
    model(ids[:, :60], cache=cache)
    model(ids[:, 84:] * 0 + 7, cache=cache)
    cache.trim(60)
    again = model(ids[:, 60:70], cache=cache)
    assert mx.allclose(again, model(ids[:, :70])[:, 60:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"must be trimmed by at most {SPARE}, or to 0, got 66"):
        cache.trim(10)
    cache.trim(0)
    assert mx.allclose(model(ids, cache=cache), model(ids), rtol=1e-4, atol=1e-4)


# Other kinds.


def test_shared_passes_read_the_keys_of_the_first(tiny):
    model = tiny(depth=3)
    ids = mx.random.randint(0, model.config.vocabulary, (1, 30), key=mx.random.key(3))
    cache = model.cache(kind=CacheConfig(cache_shared=True))
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 1), (1, 12), (12, 30))]
    whole = model.cache(kind=CacheConfig(cache_shared=True))
    assert mx.allclose(mx.concatenate(pieces, axis=1), model(ids, cache=whole), rtol=1e-4, atol=1e-4)
    assert not mx.allclose(pieces[2], model(ids)[:, 12:], atol=1e-3)
    assert all(not slot.parts for later in cache.core[1:] for slot in later)


def test_one_pass_is_the_same_shared_or_not(tiny):
    model, ids = tiny(depth=3), mx.array([[5, 6, 7, 8]])
    shared = model.cache(1, CacheConfig(cache_shared=True))
    assert mx.array_equal(model(ids, depth=1, cache=shared), model(ids, depth=1, cache=model.cache(1)))


def test_eight_bits_round_to_half_a_step_and_do_not_depend_on_the_pieces(tiny):
    kv = mx.random.normal((2, 4, 9, 8), key=mx.random.key(1)) * 30
    ints, scales = encoded(kv, 8)
    assert (ints.dtype, scales.dtype) == (mx.int8, mx.float16)
    assert mx.all(mx.abs(decoded([ints, scales]) - kv) <= 0.51 * scales.astype(mx.float32) + 1e-6)
    assert mx.array_equal(decoded(encoded(mx.zeros((1, 2, 3, 4)), 8)), mx.zeros((1, 2, 3, 4)))
    model = tiny()
    ids = mx.random.randint(0, model.config.vocabulary, (1, 30), key=mx.random.key(3))
    kind = CacheConfig(cache_bits=8)
    cache = model.cache(kind=kind)
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 1), (1, 12), (12, 30))]
    whole = model(ids, cache=model.cache(kind=kind))
    assert mx.allclose(mx.concatenate(pieces, axis=1), whole, rtol=1e-3, atol=1e-3)
    assert mx.abs(whole - model(ids)).max() < 0.1 * mx.abs(whole).max()


@pytest.mark.parametrize(
    "kind",
    [
        CacheConfig(),
        CacheConfig(cache_window=20),
        CacheConfig(cache_shared=True),
        CacheConfig(cache_bits=8),
        CacheConfig(cache_window=20, cache_shared=True, cache_bits=8),
    ],
    ids=str,
)
def test_bytes_a_token_are_those_of_the_arrays(tiny, kind):
    model = tiny(context=256, depth=3)
    cache = model.cache(kind=kind)
    mx.eval(model(mx.zeros((2, 100), mx.int32), cache=cache))
    places = cache.ring or 128
    assert cache.bytes == 2 * places * cache.bytes_per_token()
    if kind == CacheConfig():
        assert cache.bytes_per_token() == model.config.cache_bytes_per_token()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cache_window": -1}, "cache_window and cache_sinks must be at least 0, got -1 and 4"),
        ({"cache_bits": 4}, "cache_bits must be 8, or 0 for numbers as computed, got 4"),
    ],
)
def test_kinds_that_are_not_there_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CacheConfig(**wrong)


def test_a_cache_of_another_mask_is_refused(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="a cache is of causal text"):
        model(mx.array([[5]]), mask="bidirectional", cache=model.cache())
