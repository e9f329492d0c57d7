"""The vectors of the writing loop, which Swift replays."""

import importlib.util
import json
import sys

import pytest
from test_sampling import GOLDEN, specification

VECTORS = json.loads((GOLDEN / "loop.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}


@pytest.fixture(scope="module")
def makers():
    """The program that writes the vectors; it imports the specification by its name."""
    sys.modules.setdefault("make_sampler", specification)
    found = importlib.util.spec_from_file_location("make_loop", GOLDEN / "make_loop.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_golden_file_of_the_loop_is_what_its_program_writes(makers):
    assert (GOLDEN / "loop.json").read_bytes() == makers.document().encode()


def test_names_of_cases_differ_and_every_reason_is_among_them():
    assert len(CASES) == len(VECTORS["cases"]) > 100
    assert {case["reason"] for case in CASES.values()} == {"end", "stop", "length", "context"}


def test_the_hash_of_the_vectors_is_the_generator_of_the_sampler(makers):
    for seed in (0, 1, 2**63, 2**64 - 1):
        expected = [specification.splitmix64(seed, step) for step in range(50)]
        assert makers.numbers(seed, 50).tolist() == expected


def test_a_case_is_written_anew_from_what_its_file_says():
    """Greedy, with nothing of the product but the numbers of a line."""
    case, state = CASES["greedy"], 0
    for token in [case["model"]["depths"][-1], *case["prompt"]]:
        state = specification.splitmix64(state or case["model"]["seed"], token)
    for token in case["tokens"]:
        scores = [specification.splitmix64(state, i) >> 40 for i in range(4096)]
        assert scores.index(max(scores)) == token
        state = specification.splitmix64(state, token)


def test_texts_joined_are_those_of_the_pieces_where_nothing_stops_them():
    pieces = [bytes.fromhex(piece) for row in VECTORS["pieces"] for piece in row["bytes"]]
    whole = 0
    for case in CASES.values():
        spelled = b"".join(pieces[token] for token in case["tokens"])
        if not case["settings"]["stop"] and "\ufffd" not in "".join(case["texts"]):
            assert "".join(case["texts"]).encode() == spelled
            whole += 1
    assert whole > 40
