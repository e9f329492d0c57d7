"""A batch gives each text as its prompt gives it alone, and its rows are those of texts alone."""

import random

import mlx.core as mx
import numpy as np
import pytest

from trm_mlx import fused
from trm_mlx.cache import CacheConfig
from trm_mlx.decode import batch
from trm_mlx.decode.batch import Request, replies
from trm_mlx.decode.rows import SPACE, Rows
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.stream import Reply, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig

pytest_plugins = ["tiny_folder"]

LENGTHS = (1, 2, 5, 17, 40, 41, 130, 199)  # tokens of prompts
KINDS = [CacheConfig(), CacheConfig(cache_window=20, cache_sinks=3), CacheConfig(cache_shared=True)]


def drawn_requests(count: int, vocabulary: int, seed: int = 3) -> list[Request]:
    draw = random.Random(seed)

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(7, vocabulary) for _ in range(length))

    lengths, most = [draw.choice(LENGTHS) for _ in range(count)], (1, 3, 30, 60)
    return [Request(prompt(length), draw.choice(most), index % 5) for index, length in enumerate(lengths)]


def alone(model, tokenizer, request: Request, settings: StreamConfig, sampling: SamplingConfig, *rest) -> Reply:
    how = batch.told(request, settings, sampling)
    return Timed(events(model, tokenizer, request.prompt, *how, *rest), len(request.prompt)).whole()


def written(reply: Reply) -> tuple:
    return reply.text, reply.tokens, reply.reason, reply.prompt_tokens


@pytest.fixture
def small(tiny):
    return tiny(vocabulary=512, context=200, depth=2, core=1)


WAYS = {
    "greedy": (StreamConfig(), SamplingConfig(temperature=0), WordsConfig()),
    "sampled": (StreamConfig(), SamplingConfig(), WordsConfig()),
    "steered": (
        StreamConfig(stop=("ab", "e"), depth=1),
        SamplingConfig(top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.2),
        WordsConfig(ban=("th", "a"), bias=("#300=2",), no_repeat_ngram=2),
    ),
    "typical": (StreamConfig(), SamplingConfig(typical_p=0.7, top_k=0), WordsConfig()),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "rows"),
    [*((way, rows) for rows in (1, 2, 7, 16) for way in ("greedy", "sampled")), ("steered", 7), ("typical", 5)],
)
def test_texts_of_a_batch_are_those_of_each_prompt_alone(small, loaded, way, rows):
    settings, sampling, words = WAYS[way]
    requests = drawn_requests(20, 512)
    found = dict(replies(small, loaded[1], requests, rows, settings, sampling, words))
    assert sorted(found) == list(range(20))
    for index, request in enumerate(requests):
        assert written(found[index]) == written(alone(small, loaded[1], request, settings, sampling, words))
    assert len({reply.reason for reply in found.values()}) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("forms", ["lean", "plain"])
@pytest.mark.parametrize("options", [{}, {"window": 30}, {"position": "learned"}], ids=str)
def test_so_it_is_where_the_model_itself_must_serve(tiny, loaded, forms, options):
    model = tiny(vocabulary=512, context=200, depth=2, core=1, **options)
    requests = drawn_requests(12, 512)
    with fused.use(forms):
        found = dict(replies(model, loaded[1], requests, 5, StreamConfig(), SamplingConfig()))
        for index, request in enumerate(requests):
            expected = alone(model, loaded[1], request, StreamConfig(), SamplingConfig())
            assert written(found[index]) == written(expected)


@pytest.mark.slow
def test_a_short_text_is_given_before_a_long_one_that_began_earlier(small, loaded):
    requests = [Request((9, 8), 60), *[Request((9, 8, index), 1) for index in range(7, 10)]]
    order = [index for index, _ in replies(small, loaded[1], requests, 2, StreamConfig(), SamplingConfig(top_k=1))]
    assert order == [1, 2, 3, 0]


def test_times_of_a_reply_begin_with_its_own_prompt(small, loaded):
    requests = [Request((9, 8, index), 4) for index in range(7, 10)]
    for _, reply in replies(small, loaded[1], requests, 1, StreamConfig(), SamplingConfig()):
        assert 0 < reply.seconds_to_first <= reply.seconds


def test_no_request_gives_no_reply(small, loaded):
    assert list(replies(small, loaded[1], [], 4, StreamConfig(), SamplingConfig())) == []


@pytest.mark.parametrize(
    ("request_", "rows", "message"),
    [
        (Request(()), 4, "the prompt must have 1 to 199 tokens, as the context is 200, got 0"),
        (Request((9,) * 200), 4, "the prompt must have 1 to 199 tokens, as the context is 200, got 200"),
        (Request((9,), 0), 4, "max_tokens must be at least 1, got 0"),
        (Request((9,), 1, -1), 4, "seed must be at least 0 and below"),
        (Request((9,)), 0, "batch must be at least 1, got 0"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_is_refused_before_there_is_a_text(small, loaded, request_, rows, message):
    with pytest.raises(ValueError, match=message):
        replies(small, loaded[1], [Request((9,)), request_], rows, StreamConfig(), SamplingConfig())


def test_scores_that_are_no_numbers_are_refused(small, loaded):
    small.update({"injection": small.injection * float("nan")})
    with pytest.raises(ValueError, match="logits must be finite"):
        list(replies(small, loaded[1], [Request((9,))] * 3, 2, StreamConfig(), SamplingConfig(temperature=0)))


# Rows.


def ids_of(count: int, seed: int, vocabulary: int = 64) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


class Watched:
    """Rows beside texts that are each read alone; every score is held against theirs."""

    def __init__(self, model, count: int, kind: CacheConfig, tolerance: float = 1e-4) -> None:
        self.model, self.kind, self.tolerance = model, kind, tolerance
        self.rows, self.texts = Rows(model, count, None, kind), {}

    def read(self, **prompts: int) -> None:
        """r0=5: in row 0 a prompt of 5 tokens."""
        given = {int(name[1:]): ids_of(length, length) for name, length in prompts.items()}
        scores = self.rows.read(given)
        for (row, prompt), score in zip(given.items(), scores, strict=True):
            self.texts[row] = StepModel(self.model, None, self.kind)
            self.same(score, self.texts[row].append(prompt)[0])

    def append(self, count: int) -> None:
        for _ in range(count):
            tokens = ids_of(len(self.rows.lengths), self.rows.column)
            scores = self.rows.append(tokens)
            for row, text in self.texts.items():
                self.same(scores[row], text.append([tokens[row]])[0])

    def forget(self, row: int) -> None:
        self.rows.forget(row)
        del self.texts[row]

    def same(self, a: mx.array, b: mx.array) -> None:
        assert mx.abs(a - b).max() <= self.tolerance * mx.abs(b).max()


def lives(model, kind: CacheConfig, tolerance: float = 1e-4) -> None:
    """Texts come, go, outgrow the places, and give way to longer and to shorter ones."""
    watched = Watched(model, 3, kind, tolerance)
    watched.read(r0=5, r2=3)
    watched.append(2)
    watched.read(r1=11)  # longer than the column
    watched.append(95)
    assert watched.rows.places == 128
    watched.forget(0)
    watched.read(r0=2)
    watched.append(40)  # more places
    assert watched.rows.places == 256
    watched.read(r1=4, r2=7)  # the longest are gone
    watched.append(3)
    assert watched.rows.places == 128
    watched.rows.select([2, 1])
    watched.texts = {0: watched.texts[2], 1: watched.texts[1]}
    watched.append(2)


SHAPES = [{}, {"window": 30}, {"position": "alibi"}, {"position": "learned"}, {"position": "sinusoidal"}]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_score_as_texts_alone(tiny, shape, kind):
    lives(tiny(context=256, core=1, depth=2, **shape), kind)


@pytest.mark.slow
@pytest.mark.parametrize("forms", ["lean", "plain"])
def test_rows_score_as_texts_alone_where_the_model_itself_must_serve(tiny, forms):
    with fused.use(forms):
        lives(tiny(context=256, core=1, depth=2, window=30), KINDS[1])


@pytest.mark.slow
def test_rows_may_be_kept_in_8_bits(tiny):
    lives(tiny(context=256, core=1, depth=2), CacheConfig(cache_bits=8), 2e-2)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("forms", ["fused", "plain"])
def test_rows_of_half_precision_hold_numbers(tiny, dtype, forms):
    model = tiny(context=256, core=1, depth=2, window=30)
    model.set_dtype(dtype)
    with fused.use(forms):
        rows = Rows(model, 3)
        rows.read({0: [5] * 40, 2: [5, 6, 7]})
        scores = rows.append([8, 9, 10])
        text = StepModel(model)
        text.append([5, 6, 7])
        assert mx.isfinite(scores).all()
        assert mx.allclose(scores[2], text.append([10])[0], rtol=0.05, atol=0.5)
        assert rows.step.cache.arrays[0].dtype == dtype


def test_a_text_may_fill_the_whole_context_beside_others(tiny):
    watched = Watched(tiny(context=150, core=1, depth=2), 2, CacheConfig())
    watched.read(r0=148, r1=100)
    watched.append(2)
    assert watched.rows.places == watched.rows.column == 150
    watched.forget(0)
    watched.append(20)
    assert watched.rows.column < 150


def test_rows_are_moved_seldom(tiny, monkeypatch):
    rows, moves = Rows(tiny(context=1024, core=1, depth=1), 2), []
    rows.step.folded = None  # whose step replaces the arrays too
    replace = rows.step.cache.replace
    monkeypatch.setattr(rows.step.cache, "replace", lambda arrays: moves.append(1) or replace(arrays))
    rows.read({0: [5], 1: [5] * 10})
    for number in range(300):
        if number % 7 == 0:
            rows.read({0: [5] * (1 + number % 20)})
        rows.append([6, 7])
    assert len(moves) < 300 / SPACE + 3
