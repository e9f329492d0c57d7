from collections import Counter

import numpy as np
import pytest

from trm_mlx.data import Batches, held_out_windows, read_tokens


@pytest.fixture
def count() -> np.ndarray:
    """A thousand tokens, each its own place, so that a batch tells where it was cut."""
    return np.arange(1_000, dtype=np.uint16)


def test_every_row_is_a_run_of_the_file(count):
    batches = Batches(count, window=16, batch=8, seed=0)
    for step in range(30):
        batch = batches[step]
        assert batch.dtype == np.int32
        assert np.array_equal(batch - batch[:, :1], np.tile(np.arange(17), (8, 1)))


def test_an_epoch_visits_each_of_its_windows_once_in_a_mixed_order(count):
    batches = Batches(count, window=16, batch=1, seed=0)
    n = batches.windows_per_epoch
    assert (n, batches.tokens_per_epoch) == (61, 976)
    offsets = set()
    for epoch in range(5):
        starts = [int(batches[step][0, 0]) for step in range(epoch * n, (epoch + 1) * n)]
        assert sorted(starts) == list(range(min(starts), min(starts) + 16 * n, 16))
        assert starts != sorted(starts)
        assert {batches.epoch(step) for step in range(epoch * n, (epoch + 1) * n)} == {epoch}
        offsets.add(min(starts))
    assert len(offsets) > 1
    assert all(0 <= offset < 24 for offset in offsets)


def test_over_many_epochs_every_token_is_a_target(count):
    batches = Batches(count, window=16, batch=61, seed=0)
    assert set(np.concatenate([batches[step][:, 1:].ravel() for step in range(100)])) == set(range(1, 1_000))


def test_batches_run_over_the_end_of_an_epoch_without_dropping(count):
    single = Batches(count, window=16, batch=1, seed=3)
    batches = Batches(count, window=16, batch=25, seed=3)
    rows = np.concatenate([batches[step] for step in range(10)])
    assert np.array_equal(rows, np.concatenate([single[step] for step in range(250)]))
    assert [batches.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_a_batch_may_be_larger_than_an_epoch(count):
    batches = Batches(count[:40], window=16, batch=5, seed=0)
    assert batches.windows_per_epoch == 1
    assert np.array_equal(batches[0] - batches[0][:, :1], np.tile(np.arange(17), (5, 1)))
    assert len(set(batches[0][:, 0])) > 1


def test_any_step_gives_the_same_batch_whatever_came_before(count):
    forward = [batch.tolist() for batch in map(Batches(count, window=16, batch=7, seed=5).__getitem__, range(40))]
    batches = Batches(count, window=16, batch=7, seed=5)
    for step in np.random.default_rng(0).permutation(40):
        assert batches[int(step)].tolist() == forward[step]


def test_another_seed_gives_another_order(count):
    first, second = (Batches(count, window=16, batch=32, seed=seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_a_file_and_its_tokens_give_the_same_batches(count, tmp_path):
    path = tmp_path / "train.bin"
    count.astype("<u2").tofile(path)
    assert np.array_equal(read_tokens(path), count)
    by_path, by_tokens = (Batches(tokens, window=16, batch=4, seed=0) for tokens in (path, count))
    assert np.array_equal(by_path[2], by_tokens[2])


def test_the_smallest_corpus_is_one_window(count):
    assert np.array_equal(Batches(count[:17], window=16, batch=2, seed=0)[9], np.tile(np.arange(17), (2, 1)))
    with pytest.raises(ValueError, match=r"window \+ 1 tokens, got 16 for window 16; .* at most 15"):
        Batches(count[:16], window=16, batch=2, seed=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": 0}, "window and batch must be at least 1"),
        ({"batch": 0}, "window and batch must be at least 1"),
        ({"seed": -1}, "got 16, 4, -1"),
    ],
)
def test_wrong_settings_are_refused(count, wrong, said):
    with pytest.raises(ValueError, match=said):
        Batches(count, **({"window": 16, "batch": 4, "seed": 0} | wrong))


def test_steps_before_the_first_are_refused(count):
    with pytest.raises(IndexError, match="steps count from 0, got -1"):
        Batches(count, window=16, batch=4, seed=0)[-1]


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_a_file_that_is_no_token_file_is_refused(tmp_path, content):
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"2 bytes a token and at least one token, got {len(content)} bytes"):
        Batches(path, window=16, batch=4, seed=0)
    with pytest.raises(FileNotFoundError, match="no token file at"):
        read_tokens(tmp_path / "missing.bin")


@pytest.mark.parametrize("size", [2, 16, 17, 18, 33, 40, 1_000])
def test_held_out_windows_make_every_token_but_the_first_a_target_once(count, size):
    seen: Counter[int] = Counter()
    for tokens, weights in held_out_windows(count[:size], 16):
        assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
        assert (len(tokens), len(weights)) == (17, 16)
        assert np.all(tokens[1:][weights == 1] == tokens[:-1][weights == 1] + 1)
        assert np.all(tokens[1:][weights == 0] == 3)
        seen.update(tokens[1:][weights == 1].tolist())
    assert seen == Counter(range(1, size))


def test_held_out_windows_need_two_tokens(count):
    with pytest.raises(ValueError, match="needs 2 tokens"):
        next(held_out_windows(count[:1], 16))
