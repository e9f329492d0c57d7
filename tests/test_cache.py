import mlx.core as mx
import pytest

from trm_mlx.cache import CHUNK, Cache, Slot


def rows(start, count):
    """Keys (1, 1, count, 2) whose numbers tell their position."""
    return mx.arange(start, start + count).astype(mx.float32)[None, None, :, None] * mx.array([1.0, 10.0])


def test_slot_gives_back_what_was_put_in_across_growth():
    slot, total = Slot(), 0
    for count in (1, CHUNK - 1, 1, 3 * CHUNK, 7):
        keys, values = slot.append(rows(total, count), -rows(total, count))
        total += count
        assert mx.array_equal(keys, rows(0, total))
        assert mx.array_equal(values, -rows(0, total))
    assert slot.keys.shape[2] % CHUNK == 0


def test_arrays_given_out_earlier_do_not_change():
    slot = Slot()
    first, _ = slot.append(rows(0, 3), rows(0, 3))
    slot.append(rows(3, 2), rows(3, 2))
    slot.length = 1
    slot.append(rows(90, 2), rows(90, 2))
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
        Cache(1, 1, 1, 1).trim(1)


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
    cache = Cache(3, 2, 4, 1)
    assert len(cache.slots) == 2 + 3 * 4 + 1
    assert cache.bytes == 0
