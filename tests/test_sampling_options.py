"""Bias, bans, presence and frequency penalties, typical sampling: against the specification, and what they mean."""

import importlib.util
import json
import math
import random
import sys

import numpy as np
import pytest
from test_sampling import GOLDEN, KEYS, logits_of, outcome, random_logits, specification

from trm_mlx.decode.penalties import History, penalize
from trm_mlx.decode.sampling import SamplingConfig, draw, exponential, sample, typical

VECTORS = json.loads((GOLDEN / "sampler_options.json").read_text())
GREEDY = SamplingConfig(temperature=0)
OPEN = SamplingConfig(temperature=1, top_k=0)


def makers_module():
    """The program that writes the vectors; it imports the specification by its name."""
    sys.modules.setdefault("make_sampler", specification)
    found = importlib.util.spec_from_file_location("make_sampler_options", GOLDEN / "make_sampler_options.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def settings_of(case: dict) -> SamplingConfig:
    keys = (*KEYS, "typical_p", "presence_penalty", "frequency_penalty")
    values: dict = {key: case[key] if key == "top_k" else float.fromhex(case[key]) for key in keys}
    return SamplingConfig(**values, seed=int(case["seed"]))


def tokens_drawn(logits, settings: SamplingConfig, count: int = 200, **options) -> set[int]:
    return {sample(np.asarray(logits, dtype=np.float64), settings, step, **options) for step in range(count)}


# The vectors shared with Swift


def test_golden_file_of_options_is_what_its_program_writes():
    assert (GOLDEN / "sampler_options.json").read_bytes() == makers_module().document().encode()


@pytest.mark.parametrize("case", VECTORS["cases"] + VECTORS["edges"], ids=lambda case: case["name"])
def test_golden_case_of_options_gives_its_tokens(case):
    logits, settings = logits_of(case), settings_of(case)
    history = History(logits.size, case["history"])
    bias = {token: float.fromhex(amount) for token, amount in case["bias"]}
    found = [sample(logits, settings, step, history, bias, case["banned"]) for step in case["steps"]]
    assert found == case["tokens"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["reason"])
def test_golden_refusal_of_options_is_refused_by_both(vector):
    settings, banned = SamplingConfig(temperature=float.fromhex(vector["temperature"])), vector["banned"]
    with pytest.raises(ValueError, match="logits must"):
        sample(logits_of(vector), settings, 0, banned=banned)
    assert (
        outcome(specification.sample, logits_of(vector), 0, 0, temperature=settings.temperature, banned=banned)
        == "refused"
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
def test_any_options_give_the_token_of_the_specification(seed):
    chance = random.Random(seed)
    tokens = set()
    for _ in range(1000):
        logits = random_logits(chance)
        step, history = chance.getrandbits(20), chance.choices(range(logits.size), k=chance.choice([0, 3, 30]))
        values = {
            "temperature": chance.choice([0.0, 5e-324, 0.1, 0.8, 1.0, 1.0, 3.0, 1e300]),
            "top_k": chance.choice([0, 0, 2, 5, 40]),
            "top_p": chance.choice([1.0, 1.0, 1e-9, 0.3, 0.9]),
            "min_p": chance.choice([0.0, 0.0, 0.05, 1.0]),
            "repetition_penalty": chance.choice([1.0, 1.2, 0.7, 5e-324, 1e300]),
            "typical_p": chance.choice([1.0, 5e-324, 0.2, 0.5, 0.9, 1 - 2**-53]),
            "presence_penalty": chance.choice([0.0, 0.0, 0.7, -1.3, 100.0]),
            "frequency_penalty": chance.choice([0.0, 0.0, 0.4, -0.1, -100.0]),
            "seed": chance.getrandbits(64),
        }
        ids = range(logits.size)
        bias = {chance.choice(ids): chance.choice([0.1, -2.5, 100.0]) for _ in range(chance.choice([0, 0, 1, 4]))}
        banned = chance.sample(ids, chance.choice([0, 0, 1, logits.size]))
        remembered = chance.choice([history, History(logits.size, history)])
        ours = outcome(sample, logits, SamplingConfig(**values), step, remembered, bias, banned)
        told = {"step": step, "history": history, "bias": bias, "banned": banned}
        theirs = outcome(specification.sample, logits, **told, **values)
        assert ours == theirs, (logits, told, values)
        tokens.add(ours)
    assert len(tokens) > 30  # the comparison saw many tokens


# Typical sampling


def test_typical_sampling_leaves_out_a_token_that_is_too_likely():
    logits = np.log([0.4] + [0.01] * 60)  # entropy 3.1: a token of 0.01 tells 4.6, that of 0.4 only 0.9
    assert 0 in tokens_drawn(logits, OPEN)
    settings = SamplingConfig(temperature=1, top_k=0, typical_p=0.5)
    assert 0 not in tokens_drawn(logits, settings)
    assert len(tokens_drawn(logits, settings)) > 30


def test_typical_sampling_keeps_what_the_formula_of_the_paper_keeps():
    chance = np.random.default_rng(3)
    for size in (2, 7, 100):
        for share in (0.1, 0.5, 0.95):
            steps = -np.sort(chance.exponential(3, size))
            steps -= steps[0]
            p = np.exp(steps) / np.exp(steps).sum()
            distance = np.abs(-np.log(p) - np.sum(p * -np.log(p)))
            order = np.argsort(distance)
            count = int(np.searchsorted(np.cumsum(p[order]), share)) + 1
            assert typical(steps, exponential(steps), share).tolist() == sorted(order[:count])


def test_tokens_equally_typical_come_in_by_their_place():
    assert typical(np.zeros(4), np.ones(4), 0.6).tolist() == [0, 1, 2]


def test_typical_sampling_of_equal_tokens_keeps_no_less_than_its_share():
    assert len(tokens_drawn(np.zeros(10), SamplingConfig(temperature=1, typical_p=0.7))) == 7


def test_typical_sampling_comes_after_top_k_and_before_top_p_and_min_p():
    logits = np.log([0.4] + [0.06] * 10)
    typically = {"temperature": 1, "typical_p": 0.3}
    assert tokens_drawn(logits, SamplingConfig(**typically, top_k=1)) == {0}  # top_k left nothing else
    assert tokens_drawn(logits, SamplingConfig(**typically, top_k=0, top_p=0.1)) == {1}  # of what was typical
    assert len(tokens_drawn(logits, SamplingConfig(**typically, top_k=0, min_p=1.0))) > 4  # the likeliest is out


def test_typical_sampling_draws_by_the_probabilities_that_are_left():
    logits, settings = np.log([0.3, 0.3, 0.2, 0.1, 0.1]), SamplingConfig(temperature=1, top_k=0, typical_p=0.75)
    counts = np.bincount([sample(logits, settings, step) for step in range(4_000)], minlength=5)
    assert counts[3:].tolist() == [0, 0]
    expected = np.array([1500, 1500, 1000])
    assert np.sum((counts[:3] - expected) ** 2 / expected) < 13.8  # 2 degrees of freedom, once in 1,000


# Presence and frequency


def test_the_presence_penalty_is_taken_once_whatever_the_count_and_sign():
    for logit in (3.0, 0.0, -2.0):
        for history in ([0], [0, 0, 0]):
            values = np.array([logit, 1.0])
            penalize(values, history, 1, 0.75, 0)
            assert values.tolist() == [logit - 0.75, 1.0]


def test_the_frequency_penalty_is_taken_for_every_time_a_token_came():
    values = np.array([3.0, 1.0, -2.0])
    penalize(values, [0, 2, 0, 0], 1, 0, 0.5)
    assert values.tolist() == [1.5, 1.0, -2.5]


def test_repetition_comes_before_presence_and_frequency():
    values = np.array([3.0])
    penalize(values, [0, 0], 2, 0.25, 0.5)
    assert values.tolist() == [3 / 2 - (0.25 + 0.5 * 2)]


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_below_zero_makes_a_token_likelier(name):
    assert sample(np.array([0.0, 0.5]), SamplingConfig(temperature=0, **{name: -1.0}), 0, [0]) == 0


def test_a_history_counts_each_id():
    history = History(10, [3, 1, 3])
    history.add(3)
    assert (history.ids.tolist(), history.counts.tolist()) == ([3, 1], [3, 1])


# Bias and bans


def test_a_bias_is_added_before_the_penalties():
    settings = SamplingConfig(temperature=0, repetition_penalty=2)
    assert sample(np.array([1.0, 1.4]), settings, 0, [0], {0: 2.0}) == 0  # (1 + 2) / 2 is more than 1.4
    assert sample(np.array([1.0, 1.6]), settings, 0, [0], {0: 2.0}) == 1  # 1 / 2 + 2 would be more


def test_a_bias_comes_before_top_k_and_is_scaled_by_temperature():
    logits = np.array([2.0, 1.0, 0.0])
    assert tokens_drawn(logits, SamplingConfig(top_k=1), bias={2: 3.0}) == {2}
    hot, cold = (SamplingConfig(temperature=t, top_k=0, seed=1) for t in (4, 0.1))
    assert tokens_drawn(logits, hot, bias={2: 3.0}) == {0, 1, 2}
    assert tokens_drawn(logits, cold, bias={2: 3.0}) == {2}


def test_a_bias_shifts_the_log_odds_by_its_amount():
    counts = np.bincount([sample(np.zeros(2), OPEN, step, bias={1: math.log(3)}) for step in range(4_000)])
    assert (counts[1] - 3_000) ** 2 / 750 < 10.8  # once in 1,000


def test_a_banned_token_is_not_taken_even_with_the_greatest_bias():
    assert sample(np.array([5.0, 1.0]), GREEDY, 0, bias={0: 100.0}, banned=[0]) == 1
    assert tokens_drawn(np.zeros(4), OPEN, banned=[0, 3]) == {1, 2}


@pytest.mark.parametrize("temperature", [0, 1])
def test_bans_that_leave_no_token_are_refused(temperature):
    with pytest.raises(ValueError, match="at least one token that is not banned"):
        sample(np.array([1.0, -np.inf]), SamplingConfig(temperature=temperature), 0, banned=[0])


@pytest.mark.parametrize("options", [{"bias": {4: 1.0}}, {"banned": [-1]}, {"bias": {0: 1.0}, "banned": [4]}])
def test_ids_outside_the_vocabulary_are_refused(options):
    with pytest.raises(ValueError, match="bias and banned must hold ids from 0 to 3"):
        sample(np.zeros(4), GREEDY, 0, **options)


def test_options_leave_the_logits_alone():
    logits = np.array([3.0, 2.0])
    settings = SamplingConfig(presence_penalty=1, frequency_penalty=1, typical_p=0.5)
    sample(logits, settings, 0, [0], {0: 1.0}, [1])
    assert logits.tolist() == [3.0, 2.0]


def test_a_draw_of_no_weight_at_all_is_left_to_the_last_candidate():
    logits = np.array([math.inf, 1.0])  # as a vanishing repetition penalty makes it
    with np.errstate(all="ignore"):
        assert draw(logits, SamplingConfig(typical_p=0.5), 0.3) == 1
