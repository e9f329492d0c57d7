"""Tokens picked for many texts at once are those picked one by one."""

import math

import numpy as np
import pytest

from trm_mlx.decode.draws import picks, shortlist
from trm_mlx.decode.sampling import SamplingConfig, rank, sample

SETTINGS = [
    {"temperature": 0.0},
    {},
    {"top_k": 1},
    {"top_k": 5, "temperature": 3.0},
    {"top_k": 0},
    {"top_k": 60},
    {"top_p": 0.7},
    {"min_p": 0.2, "temperature": 2.0},
    {"top_p": 0.9, "min_p": 0.02, "temperature": 5.0},
    {"typical_p": 0.5},
    {"top_p": 1e-9},
    {"min_p": 1.0},
    {"temperature": 1e-300},
]


def rows(kind: str, B: int = 40, V: int = 517) -> np.ndarray:
    """Logits: drawn, or rounded so that many are equal, or mostly forbidden."""
    draw = np.random.default_rng(5)
    logits = draw.normal(size=(B, V)) * 4
    if kind in ("equal", "flat"):
        logits = np.round(logits)
    if kind == "flat":
        logits[::3] = 1.0
    if kind == "forbidden":
        logits[draw.random(size=(B, V)) < 0.9] = -math.inf
        logits[3] = -math.inf
        logits[3, 17] = 0
    return logits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["drawn", "equal", "flat", "forbidden"])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_every_text_gets_the_token_it_would_get_alone(options, kind, dtype):
    settings, logits = SamplingConfig(**options), rows(kind).astype(dtype)
    seeds, steps = [7 * row for row in range(len(logits))], [row % 5 for row in range(len(logits))]
    found = picks(logits, settings, seeds, steps)
    for row, seed, step, token in zip(logits, seeds, steps, found, strict=True):
        alone = SamplingConfig(**(options | {"seed": seed}))
        assert token == sample(row, alone, step)


def test_a_shortlist_is_in_the_order_of_the_specification():
    for kind in ("drawn", "equal"):
        logits = rows(kind)
        ids, values = shortlist(logits, 40)
        for row, found, value in zip(logits, ids, values, strict=True):
            assert found.tolist() == rank(row, 40).tolist()
            assert value.tolist() == row[found].tolist()


def test_there_is_no_shortlist_where_it_would_not_be_short():
    assert shortlist(rows("drawn"), 0) is None
    assert shortlist(rows("drawn"), 100) is None
    assert shortlist(rows("forbidden"), 40) is None
    assert shortlist(np.zeros((2, 517)), 40) is None  # all are equal


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_no_number_is_named(value, temperature):
    logits = rows("drawn")
    logits[3, 11] = value
    with pytest.raises(ValueError, match=r"logits must be finite, .* at id 11"):
        picks(logits, SamplingConfig(temperature=temperature), [0] * 40, [0] * 40)


def test_a_text_with_nothing_left_is_refused():
    logits = rows("drawn")
    logits[3] = -math.inf
    with pytest.raises(ValueError, match="logits must allow at least one token"):
        picks(logits, SamplingConfig(), [0] * 40, [0] * 40)
