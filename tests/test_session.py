import numpy as np
import pytest
from stand_in import HashRunner, describe, expected

from convert.session import Session


def session(depth=None, **options):
    made = describe(**options)
    return Session(made, HashRunner(made), depth)


@pytest.mark.parametrize(
    ("count", "calls"),
    [
        (1, [("decode", 0, 0)]),
        (2, [("prefill", 0, 1)]),
        (3, [("prefill", 0, 2)]),
        (4, [("prefill", 0, 3)]),
        (5, [("prefill", 0, 3), ("decode", 4, 0)]),
        (6, [("prefill", 0, 3), ("prefill", 4, 1)]),
        (16, [("prefill", start, 3) for start in (0, 4, 8, 12)]),
    ],
)
def test_a_prompt_is_read_in_chunks_and_a_lone_token_alone(count, calls):
    text = session()
    text.append(list(range(7, 7 + count)))
    assert text.runner.calls == calls


@pytest.mark.parametrize(
    ("before", "calls"),
    [
        (12, [("prefill", 12, 2)]),
        (13, [("decode", 13, 0), ("decode", 14, 0), ("decode", 15, 0)]),
    ],
)
def test_a_chunk_that_would_pass_the_end_is_read_token_by_token(before, calls):
    text = session()
    text.append(list(range(7, 7 + before)))
    text.runner.calls.clear()
    text.append([20, 21, 22])
    assert text.runner.calls == calls


def test_depths_have_functions_of_their_own():
    text = session(depth=1)
    text.append([7, 8, 9])
    text.append([10])
    assert text.runner.calls == [("prefill_r1", 0, 2), ("decode_r1", 3, 0)]


@pytest.mark.parametrize("options", [{}, {"state": "host"}, {"state": "host", "precision": "float32"}], ids=str)
@pytest.mark.parametrize("depth", [1, 2])
def test_any_way_to_cut_a_text_gives_the_scores_of_that_text(options, depth):
    ids = [7 + 5 * place % 43 for place in range(16)]
    for cuts in ([16], [1] * 16, [3, 1, 5, 7], [2, 2, 2, 10], [13, 3], [5, 6, 5]):
        text, done = session(depth, **options), 0
        for count in cuts:
            logits = text.append(ids[done : done + count])
            done += count
            assert text.position == done
            assert np.array_equal(logits, expected(ids[:done], depth)), cuts


@pytest.mark.parametrize("state", ["model", "host"])
def test_a_reset_session_remembers_nothing(state):
    text = session(state=state)
    text.append(list(range(20, 36)))
    text.reset()
    assert np.array_equal(text.append([9, 8, 7]), expected([9, 8, 7]))
    assert text.position == 3


def test_reset_clears_the_hosts_cache_which_may_hold_what_is_no_number():
    text = session(state="host")
    text.append([7, 8])
    text.cache[:] = np.nan
    text.reset()
    assert not text.cache.any()


def test_every_gives_the_scores_after_each_token_by_decoding():
    text = session()
    logits = text.append([7, 8, 9, 10, 11], every=True)
    assert np.array_equal(logits, np.stack([expected([7, 8, 9, 10, 11][:end]) for end in range(1, 6)]))
    assert {name for name, *_ in text.runner.calls} == {"decode"}


def test_the_host_keeps_rows_of_real_tokens_in_slots_of_the_depth_alone():
    text = session(depth=1, state="host")
    text.append([7, 8])
    assert text.cache.dtype == np.float16
    assert (text.cache[:4, :, :2] > 0).all()
    assert not text.cache[4:].any() and not text.cache[:, :, 2:].any()


def test_scores_are_float32_whatever_the_package_computes_in():
    assert session(state="host").append([7]).dtype == np.float32


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "at least one token, got none"),
        ([7, 50], "from 0 to 49, got 50"),
        ([-1], "from 0 to 49, got -1"),
        ([2**40], "from 0 to 49"),
        ([7] * 15, "context of 16 tokens, got 15 after 2"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is(ids, words):
    text = session()
    text.append([7, 8])
    with pytest.raises(ValueError, match=words) as caught:
        text.append(ids)
    assert "\n" not in str(caught.value)
    assert text.position == 2 and len(text.runner.calls) == 1
    assert np.array_equal(text.append([9]), expected([7, 8, 9]))


def test_a_depth_that_was_not_exported_is_refused():
    with pytest.raises(ValueError, match=r"one of \[1, 2\], got 3"):
        session(depth=3)
