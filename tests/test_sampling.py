import base64
import importlib.util
import json
import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from trm_mlx.decode.penalties import History
from trm_mlx.decode.sampling import SamplingConfig, exponential, sample, uniform

GOLDEN = Path(__file__).parent / "golden"
VECTORS = json.loads((GOLDEN / "sampler.json").read_text())
KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

found = importlib.util.spec_from_file_location("make_sampler", GOLDEN / "make_sampler.py")
assert found and found.loader
specification = importlib.util.module_from_spec(found)
found.loader.exec_module(specification)


def bits(values) -> list[int]:
    return np.asarray(values, dtype=np.float64).view(np.uint64).tolist()


def double(digits: str) -> float:
    return struct.unpack(">d", bytes.fromhex(digits))[0]


def logits_of(vector: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(vector["logits"]), dtype="<f4").astype(np.float32)


def settings_of(case: dict) -> SamplingConfig:
    values: dict = {key: case[key] if key == "top_k" else float.fromhex(case[key]) for key in KEYS}
    return SamplingConfig(**values, seed=int(case["seed"]))


def outcome(sampler, *arguments, **settings) -> int | str:
    try:
        return sampler(*arguments, **settings)
    except ValueError:
        return "refused"


# The vectors shared with Swift


def test_golden_file_is_what_its_program_writes():
    assert (GOLDEN / "sampler.json").read_bytes() == specification.document().encode()


def test_golden_file_holds_the_cases_promised():
    assert len(VECTORS["cases"]) == 48
    assert all(len(case["tokens"]) == len(case["steps"]) == 6 for case in VECTORS["cases"])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_golden_case_gives_its_tokens(case):
    logits, settings = logits_of(case), settings_of(case)
    history = History(logits.size, case["history"])
    assert [sample(logits, settings, step, history) for step in case["steps"]] == case["tokens"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["reason"])
def test_golden_refusal_is_refused(vector):
    with pytest.raises(ValueError, match="logits must"):
        sample(logits_of(vector), SamplingConfig(), 0)


def test_golden_uniforms_have_the_same_bits():
    ours = [uniform(int(vector["seed"]), int(vector["step"])) for vector in VECTORS["uniform"]]
    assert bits(ours) == [int(vector["value_bits"], 16) for vector in VECTORS["uniform"]]


def test_golden_exponentials_have_the_same_bits():
    points = np.array([double(vector["x_bits"]) for vector in VECTORS["exp_det"]])
    assert bits(exponential(points)) == [int(vector["value_bits"], 16) for vector in VECTORS["exp_det"]]


# Against the specification


def test_splitmix64_gives_its_published_numbers():
    published = [0x599ED017FB08FC85, 0x2C73F08458540FA5, 0x883EBCE5A3F27C77]
    assert [specification.splitmix64(1234567, step) for step in range(3)] == published
    assert [uniform(1234567, step) for step in range(3)] == [(value >> 11) / 2**53 for value in published]


def test_exponential_has_the_bits_of_the_specification():
    chance = np.random.default_rng(1)
    edges = [0.0, -0.0, -5e-324, -700.0, math.nextafter(-700, 0), -math.inf, math.nan, -1e300, 1e-9, 700.0]
    turns = [(k + 0.5) * -math.log(2) for k in range(1000)]  # where the power of two changes
    near = [math.nextafter(x, way) for x in turns for way in (-math.inf, math.inf)]
    wide = [
        chance.uniform(-710, 0, 8000),
        -chance.exponential(3, 8000),
        -(10 ** chance.uniform(-20, 3, 4000)),
    ]
    points = np.concatenate([edges, turns, near, *wide])
    assert bits(exponential(points)) == bits([specification.exp_det(x) for x in points.tolist()])


def test_exponential_is_close_to_the_true_one():
    points = np.linspace(-699, 0, 5000)
    assert np.max(np.abs(exponential(points) / np.exp(points) - 1)) < 2**-51


def random_logits(chance: random.Random) -> np.ndarray:
    size = chance.choice([1, 2, 3, 8, 20, 64])
    values = np.array([chance.gauss(0, 3) for _ in range(size)])
    kind = chance.choice(["plain", "half", "ties", "zeros", "wide", "double"])
    if kind == "ties":
        values = np.round(values)
    if kind == "zeros":
        values = np.array(chance.choices([0.0, -0.0, 1.0, -1.0], k=size))
    if kind == "wide":
        values *= 10.0 ** chance.randint(-40, 36)
    if kind == "double":
        values *= 10.0 ** chance.randint(-300, 300)
    share = chance.choice([0, 0, 0, 0.3, 0.9, 1])
    values[[chance.random() < share for _ in range(size)]] = -math.inf
    if chance.random() < 0.03:
        values[chance.randrange(size)] = chance.choice([math.nan, math.inf])
    return values.astype({"half": np.float16, "double": np.float64}.get(kind, np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
def test_any_settings_give_the_token_of_the_specification(seed):
    chance = random.Random(seed)
    tokens = set()
    for _ in range(1500):
        logits = random_logits(chance)
        step = chance.getrandbits(chance.choice([1, 10, 60]))
        history = chance.choices(range(logits.size), k=chance.choice([0, 3, 30]))
        values = {
            "temperature": chance.choice([0.0, 5e-324, 1e-300, 0.1, 0.8, 1.0, 1.0, 3.0, 1e300]),
            "top_k": chance.choice([0, 0, 1, 2, 5, 40, logits.size]),
            "top_p": chance.choice([1.0, 1.0, 5e-324, 1e-9, 0.3, 0.9, 0.999, 1 - 2**-53]),
            "min_p": chance.choice([0.0, 0.0, 5e-324, 0.05, 0.5, 1.0]),
            "repetition_penalty": chance.choice([1.0, 1.0, 1.2, 0.7, 5e-324, 1e300]),
            "seed": chance.getrandbits(64),
        }
        settings = SamplingConfig(**values)
        remembered = chance.choice([history, set(history), History(logits.size, history)])
        ours = outcome(sample, logits, settings, step, remembered)
        theirs = outcome(specification.sample, logits, step=step, history=history, **values)
        assert ours == theirs, (logits, step, history, values)
        tokens.add(ours)
    assert len(tokens) > 50  # the comparison saw many tokens, not one refusal over and over


@pytest.mark.parametrize("top_k", [0, 40])
def test_a_whole_vocabulary_gives_the_token_of_the_specification(top_k):
    logits = np.random.default_rng(2).normal(0, 3, 4096).astype(np.float16)  # many exact ties
    settings = SamplingConfig(top_k=top_k, top_p=0.95, seed=3)
    ours = [sample(logits, settings, step) for step in range(10)]
    assert ours == [specification.sample(logits, 3, step, 0.8, top_k, 0.95) for step in range(10)]


# What sampling means


def test_temperature_sampling_follows_softmax():
    # 15 degrees of freedom: a right sampler passes 37.7 once in 500 seeds. A temperature wrong by
    # 7 percent passes it with probability 0.9, by 10 percent almost surely (20,000 simulated runs).
    logits = np.random.default_rng(4).normal(0, 1.5, 16)
    settings = SamplingConfig(temperature=0.8, top_k=0, seed=5)
    counts = np.bincount([sample(logits, settings, step) for step in range(6_000)], minlength=16)
    expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum() * 6_000
    assert np.sum((counts - expected) ** 2 / expected) < 37.7


def test_greedy_takes_the_first_of_equal_maxima():
    assert sample(np.array([-1, -0.0, 0.0, -2]), SamplingConfig(temperature=0), 0) == 1


def test_greedy_with_every_token_forbidden_gives_the_first():
    assert sample(np.full(3, -np.inf), SamplingConfig(temperature=0), 0) == 0


def test_top_k_keeps_the_lowest_ids_among_equals():
    settings = SamplingConfig(top_k=3)
    assert {sample(np.array([1.0, 0, 0, 0, 1]), settings, step) for step in range(60)} == {0, 1, 4}


def test_top_p_keeps_the_fewest_tokens_that_hold_the_share():
    settings = SamplingConfig(temperature=1, top_p=0.8)
    logits = np.log([0.1, 0.5, 0.1, 0.29, 0.01])  # 0.5 + 0.29 falls short, so the first 0.1 comes in
    assert {sample(logits, settings, step) for step in range(100)} == {0, 1, 3}


def test_min_p_keeps_only_tokens_near_the_likeliest():
    settings = SamplingConfig(temperature=1, min_p=0.5)
    logits = np.log([0.3, 0.16, 0.14, 0.4])
    assert {sample(logits, settings, step) for step in range(100)} == {0, 3}


def test_a_forbidden_token_is_never_drawn():
    logits = np.where(np.arange(32) % 4 == 1, np.float32(0), -np.inf)
    tokens = {sample(logits, SamplingConfig(temperature=5), step) for step in range(200)}
    assert tokens == set(range(1, 32, 4))


def test_the_penalty_lowers_a_token_of_the_history_once_whatever_its_sign():
    greedy = SamplingConfig(temperature=0, repetition_penalty=2)
    assert sample(np.array([3.0, 2.0]), greedy, 0, [0, 0]) == 1
    assert sample(np.array([3.0, 1.6]), greedy, 0, [0]) == 1
    assert sample(np.array([3.0, 1.4]), greedy, 0, [0, 0]) == 0
    assert sample(np.array([-1.0, -1.5]), greedy, 0, [0]) == 1


def test_sampling_leaves_its_logits_alone():
    logits = np.array([3.0, 2.0])
    sample(logits, SamplingConfig(repetition_penalty=2), 0, [0])
    assert logits.tolist() == [3.0, 2.0]


def test_the_history_is_not_read_without_a_penalty():
    class Unreadable(list):
        def __iter__(self):
            raise AssertionError

    assert sample(np.array([1.0, 2.0]), SamplingConfig(temperature=0), 0, Unreadable([0])) == 1


def test_a_history_holds_each_id_once_in_order_of_appearance():
    history = History(10, [3, 1, 3])
    history.add(9)
    history.add(1)
    assert (list(history), len(history), history.ids.tolist()) == ([3, 1, 9], 3, [3, 1, 9])
    assert 9 in history and 2 not in history and -1 not in history and 10 not in history


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": value} for value in (-0.1, math.inf, math.nan)]
    + [{"top_k": -1}]
    + [{"top_p": value} for value in (0.0, 1.1, math.nan)]
    + [{"min_p": value} for value in (-0.1, 1.1, math.nan)]
    + [{"repetition_penalty": value} for value in (0.0, -1.0, math.inf, math.nan)]
    + [{"typical_p": value} for value in (0.0, 1.1, -1.0, math.nan)]
    + [{name: value} for name in ("presence_penalty", "frequency_penalty") for value in (100.1, -101.0, math.nan)]
    + [{"seed": value} for value in (-1, 2**64)],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must .*got {value}"):
        SamplingConfig(**wrong)


def test_settings_at_the_ends_of_their_ranges_are_taken():
    SamplingConfig(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1e-300, seed=0)
    SamplingConfig(temperature=1e308, top_k=10**9, top_p=5e-324, min_p=1, seed=2**64 - 1)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(("value", "name"), [(math.nan, "NaN"), (math.inf, r"\+inf")])
def test_a_logit_that_is_not_a_number_is_named_with_its_id(value, name, temperature):
    logits = np.zeros(30, dtype=np.float32)
    logits[17] = logits[20] = value
    with pytest.raises(ValueError, match=f"must be finite.*got {name} at id 17"):
        sample(logits, SamplingConfig(temperature=temperature), 0)


def test_a_draw_with_every_token_forbidden_is_refused():
    with pytest.raises(ValueError, match="must allow at least one token, got -inf at all 5 ids"):
        sample(np.full(5, -np.inf), SamplingConfig(), 0)


@pytest.mark.parametrize("logits", [np.zeros((1, 4)), np.zeros(0), np.zeros(4, dtype=np.int32)])
def test_logits_that_are_not_one_float_row_are_refused(logits):
    with pytest.raises(ValueError, match="must be one float row"):
        sample(logits, SamplingConfig(), 0)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_history_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"history must hold ids from 0 to 3, got {token}"):
        sample(np.zeros(4), SamplingConfig(repetition_penalty=1.1), 0, [0, token])


def test_a_history_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary of the logits, 4, got 5"):
        sample(np.zeros(4), SamplingConfig(repetition_penalty=1.1), 0, History(5))


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        sample(np.zeros(4), SamplingConfig(), -1)
