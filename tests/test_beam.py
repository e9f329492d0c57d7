"""Beam search against every text there is, and against greedy choice. Shapes: V vocabulary, L tokens of a text."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from test_stream import prompt_of

from trm_mlx.decode.beam import Text, divisor, following, logarithms, score, search, settled
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["tiny_folder"]

GREEDY = SamplingConfig(temperature=0)
V, L = 12, 3
PROMPT = [1, 8, 9]


class Letters:
    """A tokenizer of 12 ids, those past the control tokens letters."""

    eos, end, vocabulary = Tokenizer.eos, Tokenizer.end, V
    pieces = ("",) * 7 + tuple("abcde")

    def decode(self, ids) -> str:
        return "".join(self.pieces[i] for i in ids)

    def stream(self):
        return self

    def push(self, i: int) -> str:
        return self.pieces[i]

    def finish(self) -> str:
        return ""


def little(seed: int, sharpness: float = 0.5) -> TinyRecursiveLM:
    """A model of 12 tokens with random weights: no text is much likelier than the others."""
    shape = ModelConfig(vocabulary=V, width=16, heads=2, kv_heads=1, prelude=1, core=1, coda=1, depth=2, context=32)
    model = TinyRecursiveLM(shape, seed)
    weights = sorted(named(model.parameters()).items())
    keys = mx.random.split(mx.random.key(seed), len(weights))
    model.load_weights(
        [(n, v + 0.4 * mx.random.normal(v.shape, key=k)) for (n, v), k in zip(weights, keys, strict=True)]
    )
    model.embedding.weight = model.embedding.weight * sharpness
    return model


def every_text(model, longest: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every text that ends by an end token or has the longest length, without a cache."""
    ends = (Tokenizer.eos, Tokenizer.end)
    whole = [list(each) for each in itertools.product(range(V), repeat=longest)]
    ids = mx.array([PROMPT + each for each in whole])
    rows = logarithms(np.array(model(ids)))[:, len(PROMPT) - 1 : -1]  # (V^L, L, V)
    found = {}
    for each, row in zip(whole, rows, strict=True):
        ended = next((place + 1 for place, token in enumerate(each) if token in ends), longest)
        text = tuple(each[:ended])
        found.setdefault(text, sum(row[place, token] for place, token in enumerate(text)))
    return found


def greedy(model, tokenizer, prompt, config: StreamConfig) -> tuple[int, ...]:
    return tuple(event.token for event in events(model, tokenizer, prompt, config, GREEDY))


# Against every text.


@pytest.mark.parametrize("penalty", [0, 0.6, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_all_texts_finds_the_best_one_of_all(seed, penalty):
    model = little(seed)
    texts = every_text(model, L)
    best = max(texts, key=lambda text: texts[text] / ((5 + len(text)) / 6) ** penalty)
    found = search(model, Letters(), PROMPT, StreamConfig(max_tokens=L), V**L, penalty)
    assert found[0].tokens == best
    assert found[0].log_probability == pytest.approx(texts[best], abs=1e-4)


def test_a_beam_of_all_texts_ranks_them_as_their_scores_do():
    model = little(5)
    texts = every_text(model, L)
    found = search(model, Letters(), PROMPT, StreamConfig(max_tokens=L), V**L, 1.0)
    expected = sorted(texts, key=lambda text: -texts[text] / divisor(len(text), 1.0))
    assert [text.tokens for text in found[:10]] == expected[:10]


@pytest.mark.slow
def test_the_penalty_chooses_between_short_and_long():
    lengths = {}
    for penalty in (0, 8):
        best = [
            search(little(seed), Letters(), PROMPT, StreamConfig(max_tokens=L), V**L, penalty) for seed in range(6)
        ]
        lengths[penalty] = sum(len(each[0].tokens) for each in best)
    assert lengths[0] < lengths[8]


@pytest.mark.slow
def test_greedy_is_not_always_the_best_and_nothing_is_better_than_a_beam_of_all():
    found = {}
    for width in (1, 3, V**L):
        best = (
            search(little(seed), Letters(), PROMPT, StreamConfig(max_tokens=L), width, 0.6)[0] for seed in range(8)
        )
        found[width] = [score(text, 0.6) for text in best]
    assert all(wide > narrow - 1e-4 for wide, narrow in zip(found[V**L], found[3], strict=True))
    assert sum(found[1]) < sum(found[3]) - 0.1


@pytest.mark.slow
def test_the_early_end_loses_nothing_and_saves_steps(monkeypatch):
    steps = []
    for seed in range(8):
        for rule in (settled, lambda *rest: False):
            monkeypatch.setattr("trm_mlx.decode.beam.settled", rule)
            model, cost = little(seed), []
            monkeypatch.setattr(
                "trm_mlx.decode.beam.following", lambda *rest, cost=cost: cost.append(1) or following(*rest)
            )
            best = search(model, Letters(), PROMPT, StreamConfig(max_tokens=8), 6, 1.0)[0]
            steps.append((best.tokens, len(cost)))
    assert [tokens for tokens, _ in steps[::2]] == [tokens for tokens, _ in steps[1::2]]
    assert sum(cost for _, cost in steps[::2]) < sum(cost for _, cost in steps[1::2])


def test_a_live_text_that_may_yet_overtake_keeps_the_search_going():
    live, ended = [Text((8, 8), -5.0), Text((8, 9), -2.0)], [Text((2,), -1.8)]
    assert settled(live, ended, 4, 0)
    assert not settled(live, ended, 20, 1)  # -2 over lp(20) = 4.2 is more than -1.8
    assert not settled(live, [], 4, 0) and not settled([], ended, 4, 0)


# Width 1, and the cache.


@pytest.mark.parametrize("length", [1, 9, 300])
def test_width_1_is_greedy(loaded, length):
    config = StreamConfig(max_tokens=12)
    (found,) = search(*loaded, prompt_of(length), config, 1, 0.6)
    assert (found.tokens, found.reason) == (greedy(*loaded, prompt_of(length), config), "length")


@pytest.mark.parametrize("seed", range(4))
def test_width_1_ends_where_greedy_ends(seed):
    model, config = little(seed), StreamConfig(max_tokens=25, depth=1)
    (found,) = search(model, Letters(), PROMPT, config, 1, 2.0)
    assert found.tokens == greedy(model, Letters(), PROMPT, config)


@pytest.mark.parametrize("width", [2, 5])
def test_scores_are_those_of_computing_without_a_cache(loaded, width):
    model, prompt = loaded[0], prompt_of(20)
    for text in search(*loaded, prompt, StreamConfig(max_tokens=6), width, 0.6):
        rows = logarithms(np.array(model(mx.array([[*prompt, *text.tokens]]))))[0, len(prompt) - 1 : -1]
        whole = sum(row[token] for row, token in zip(rows, text.tokens, strict=True))
        assert text.log_probability == pytest.approx(whole, abs=1e-3)


def test_a_search_gives_no_more_texts_than_it_is_wide_and_all_different(loaded):
    found = search(*loaded, prompt_of(4), StreamConfig(max_tokens=5), 7, 0.6)
    assert len(found) == len({text.tokens for text in found}) == 7
    values = [score(text, 0.6) for text in found]
    assert values == sorted(values, reverse=True)


def test_the_beams_of_a_step_are_one_batch(loaded, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        "trm_mlx.decode.beam.following",
        lambda reader, ids: shapes.append(len(ids)) or following(reader, ids),
    )
    search(*loaded, prompt_of(4), StreamConfig(max_tokens=3), 5, 0.6)
    assert shapes == [5, 5]


def test_a_text_that_has_ended_keeps_its_place_in_the_beam(monkeypatch):
    rows = []
    monkeypatch.setattr(
        "trm_mlx.decode.beam.following",
        lambda reader, ids: rows.append(len(ids)) or following(reader, ids),
    )
    monkeypatch.setattr("trm_mlx.decode.beam.settled", lambda *rest: False)
    found = search(little(0), Letters(), PROMPT, StreamConfig(max_tokens=12), 4, 1.0)
    assert len(found) == 4
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]


# Why a text ends.


def test_the_score_is_that_of_the_paper():
    assert score(Text((8, 8, 8, 2), -6.0), 0.5) == -6.0 / (9 / 6) ** 0.5
    assert score(Text((8,) * 30, -6.0), 0) == -6.0


def test_a_text_ends_with_the_context(loaded):
    model, tokenizer = loaded
    found = search(model, tokenizer, prompt_of(509), StreamConfig(max_tokens=9), 2, 0.6)
    assert {(len(text.tokens), text.reason) for text in found} == {(3, "context")}


def test_a_text_ends_with_a_stop_text(loaded):
    free = greedy(*loaded, prompt_of(5), StreamConfig(max_tokens=8))
    stop = loaded[1].decode(free)[2:4]
    config = StreamConfig(max_tokens=8, stop=(stop,))
    (found,) = search(*loaded, prompt_of(5), config, 1, 0.6)
    assert (found.tokens, found.reason) == (greedy(*loaded, prompt_of(5), config), "stop")


def test_biases_and_bans_shape_the_texts():
    model = little(0)
    texts = every_text(model, L)
    banned = search(model, Letters(), PROMPT, StreamConfig(max_tokens=L), V**L, 0.6, WordsConfig(ban=("a", "bc")))
    allowed = {t: p for t, p in texts.items() if "a" not in Letters().decode(t) and "bc" not in Letters().decode(t)}
    assert {text.tokens for text in banned} <= allowed.keys()
    assert banned[0].tokens == max(allowed, key=lambda text: texts[text] / divisor(len(text), 0.6))
    biased = search(model, Letters(), PROMPT, StreamConfig(max_tokens=L), 1, 0.6, WordsConfig(bias=("#9=90",)))
    assert biased[0].tokens == (9,) * L


def test_a_ban_of_everything_ends_the_text(loaded):
    model, tokenizer = loaded
    ban = tuple(chr(code) for code in range(128))
    found = search(model, tokenizer, [1, 300], StreamConfig(max_tokens=4), 3, 0.6, WordsConfig(ban=ban))
    assert all(character not in tokenizer.decode(text.tokens) for text in found for character in ban)


def test_the_prompt_must_leave_room(loaded):
    with pytest.raises(ValueError, match="1 to 511 tokens"):
        search(*loaded, [], StreamConfig(), 2, 0.6)
