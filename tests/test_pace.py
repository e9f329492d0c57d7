"""Drafting that loses is turned off before it costs much: seconds are made up here, a plain token takes one."""

import random
from itertools import pairwise

import pytest

from trm_mlx.decode.pace import LEAST, Pace

LIMIT = 1.05


def written(pace, round_seconds, round_tokens, most=3000, noise=0.0, seed=0):
    """Write tokens plainly and by rounds, as the pace allows; seconds so far after each of them.

    Args:
        round_seconds, round_tokens: functions of the tokens so far and of a random generator.
        noise: standard deviation of each time, in parts of it.
    """
    draw, times = random.Random(seed), [0.0]

    def spend(seconds, tokens, steps):
        seconds *= max(0.2, draw.gauss(1, noise))
        start = times[-1]
        times.extend(start + seconds * min(1, number / steps) for number in range(1, tokens + 1))
        return seconds

    while len(times) <= most:
        done = len(times) - 1
        if pace.allows():
            tokens = round_tokens(done, draw)
            pace.drafted(spend(round_seconds(done, draw), tokens, 1), tokens)
        else:
            stretch = min(16, pace.pause) if pace.pause > 0 else 16
            pace.plain([spend(1.0, 1, 1) for _ in range(stretch)])
    return times


def slowest(times):
    """The most that a text of LEAST tokens or more took, in parts of its plain time."""
    return max(seconds / tokens for tokens, seconds in enumerate(times) if tokens >= LEAST)


@pytest.mark.parametrize("cost", [0.5, 1.2, 2.0, 3.0, 6.0, 50.0])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_no_text_of_a_hundred_tokens_is_slower_by_more_than_the_limit(cost, kept):
    def tokens(done, draw):
        return 1 + next((n for n in range(4) if draw.random() >= kept), 4)

    times = written(Pace(), lambda done, draw: cost, tokens)
    if cost > 6:  # one round that is dearer than any thought of
        assert max(times[n] / n for n in range(1500, 3000)) <= LIMIT
    else:
        assert slowest(times) <= LIMIT
    assert all(seconds - tokens <= max(cost - 1, 0.05 * LEAST) for tokens, seconds in enumerate(times[:LEAST]))


@pytest.mark.parametrize("seed", range(20))
def test_the_limit_holds_where_times_are_noisy(seed):
    times = written(Pace(), lambda done, draw: 4.0, lambda done, draw: draw.choice([1, 2, 3]), noise=0.2, seed=seed)
    noise_alone = 0.2 / 3000**0.5
    assert times[3000] / 3000 <= LIMIT + 3 * noise_alone


def test_drafts_that_pay_are_used_nearly_always():
    pace = Pace()
    times = written(pace, lambda done, draw: 2.0, lambda done, draw: 4)
    assert times[3000] / 3000 < 0.6  # rounds alone would take 0.5
    assert not pace.off and pace.speed_up == pytest.approx(3000 / times[3000], rel=0.02)


def test_drafts_that_stop_paying_are_given_up():
    pace = Pace()
    times = written(pace, lambda done, draw: 2.0 if done < 1500 else 8.0, lambda done, draw: 4, most=6000)
    later = times[6000] - times[1500]
    assert pace.off and later / 4500 <= LIMIT


def test_drafts_that_begin_to_pay_are_found():
    pace = Pace()
    times = written(pace, lambda done, draw: 8.0 if done < 1500 else 2.0, lambda done, draw: 4, most=12_000)
    assert not pace.off and (times[12_000] - times[6000]) / 6000 < 0.6


def test_a_losing_trial_waits_twice_as_long_as_the_one_before():
    pace, starts = Pace(), []

    def cost(done, draw):
        starts.append(done)
        return 1.5

    written(pace, cost, lambda done, draw: 1, most=10_000)
    assert len(starts) < 40
    trials = [b - a for a, b in pairwise(starts) if b - a > 50]
    assert trials[-1] > 4 * trials[0]


def test_rounds_are_forced_by_always():
    pace = Pace(always=True)
    assert pace.allows() and pace.allows(1e9)
    pace.drafted(100.0, 1)
    assert pace.allows() and pace.speed_up is None


def test_what_a_round_owes_is_counted_before_it_begins():
    pace = Pace()
    for _ in range(20):
        pace.plain([1.0] * 16)
    assert pace.allows() and pace.allows(5.0) and not pace.allows(20.0)


def test_a_token_that_compiled_something_is_no_measure_of_a_plain_one():
    pace = Pace()
    pace.plain([*[9.0] * 8, 30.0, *[1.0, 1.2] * 8])  # and the first ones are none either
    assert pace.token == pytest.approx(1.1)
