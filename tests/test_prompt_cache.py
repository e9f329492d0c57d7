"""Texts that go on from what was read before, against the same texts read anew; and the file of what was read."""

from dataclasses import asdict

import mlx.core as mx
import pytest
from tiny_folder import text

import trm_mlx
from trm_mlx.cache import SPARE, CacheConfig
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.step import StepModel
from trm_mlx.generate import generate, stream

pytest_plugins = ["tiny_folder"]

SYSTEM = text(60)
KINDS = {
    "full": CacheConfig(),
    "window": CacheConfig(cache_window=24, cache_sinks=2),
    "shared": CacheConfig(cache_shared=True),
    "bits": CacheConfig(cache_bits=8),
    "all": CacheConfig(cache_window=24, cache_shared=True, cache_bits=8),
}
PROMPTS = [SYSTEM, SYSTEM + " moon", SYSTEM + " moon", SYSTEM + " river moon", SYSTEM[:40], "over", SYSTEM]
MODELS = {"plain": {}, "window": {"window": 40}, "alibi": {"position": "alibi"}, "learned": {"position": "learned"}}


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many tokens were read at once, call by call."""
    counts, plain = [], StepModel.append

    def append(self, ids, **options):
        counts.append(ids.shape[1] if isinstance(ids, mx.array) else len(ids))
        return plain(self, ids, **options)

    monkeypatch.setattr(StepModel, "append", append)
    return counts


@pytest.fixture(scope="module")
def model(folder):
    return trm_mlx.load(folder)


def ids_of(model, prompt: str) -> list[int]:
    return [model.tokenizer.bos, *model.tokenizer.encode(prompt)]


# The same text with and without.


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [name for name in KINDS if not KINDS[name].cache_bits])
@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_that_begin_the_same_are_those_of_prompts_read_anew(tiny, loaded, shape, kind, depth, temperature):
    model = tiny(vocabulary=512, context=256, depth=2, **MODELS[shape])
    model.tokenizer = loaded[1]
    cache = PromptCache(model, depth, KINDS[kind])
    options = asdict(KINDS[kind]) | {"depth": depth}
    for seed, prompt in enumerate(PROMPTS):
        given = {"temperature": temperature, "seed": seed, "max_tokens": 12}
        wanted = generate(model, prompt, **given, **options)
        found = generate(model, prompt, cache=cache, **given)
        assert (found.tokens, found.text, found.reason) == (wanted.tokens, wanted.text, wanted.reason), prompt


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", MODELS)
def test_scores_after_a_prompt_are_those_of_one_read_anew(tiny, loaded, shape, kind):
    model = tiny(vocabulary=512, context=256, depth=2, **MODELS[shape])
    model.tokenizer = loaded[1]
    cache, bits = PromptCache(model, 2, KINDS[kind]), KINDS[kind].cache_bits
    for prompt in PROMPTS:
        ids = ids_of(model, prompt)
        with cache.begun(ids, 2, KINDS[kind]) as begun:
            found = begun.append(ids[begun.position :])
        wanted = StepModel(model, 2, KINDS[kind]).append(ids)
        tolerance = 2e-2 if bits else 1e-4  # a rounding that falls the other way
        assert mx.abs(found - wanted).max() <= tolerance * mx.abs(wanted).max()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_goes_on_from_an_answer_as_if_it_were_read_anew(model, temperature):
    cache, prompt = PromptCache(model), SYSTEM
    for seed in range(3):
        options = {"temperature": temperature, "seed": seed, "max_tokens": 9}
        reply = generate(model, prompt, cache=cache, **options)
        assert reply.tokens == generate(model, prompt, **options).tokens
        prompt += reply.text + " and her"


# What is read.


def test_only_what_is_new_is_read(model, reads):
    cache, ids, longer = PromptCache(model), ids_of(model, SYSTEM), ids_of(model, SYSTEM + " moon river")
    shared = next(place for place, (a, b) in enumerate(zip([*ids, -1], longer, strict=False)) if a != b)
    assert generate(model, SYSTEM, cache=cache, max_tokens=1).cached_tokens == 0
    assert reads == [len(ids)]
    reads.clear()
    assert generate(model, SYSTEM + " moon river", cache=cache, max_tokens=1).cached_tokens == shared
    assert reads == [len(longer) - shared]
    reads.clear()
    assert generate(model, SYSTEM, cache=cache, max_tokens=1).cached_tokens == len(ids) - 1
    assert reads == [1]  # whose scores are what comes next


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_holds_the_tokens_that_were_read_and_no_others(model, temperature):
    for count in (1, 2, 7):
        cache = PromptCache(model)
        reply = generate(model, SYSTEM, cache=cache, temperature=temperature, max_tokens=count)
        whole = [*ids_of(model, SYSTEM), *reply.tokens]
        assert len(whole) - 1 <= len(cache.ids) == cache.position <= len(whole)  # greedy reads one token ahead
        assert cache.ids == whole[: cache.position]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_that_is_closed_early_leaves_a_cache_to_go_on_from(model, temperature, reads):
    cache, said = PromptCache(model), []
    for event in stream(model, SYSTEM, cache=cache, temperature=temperature, max_tokens=50):
        said.append(event.token)
        if len(said) == 5:
            break
    whole = [*ids_of(model, SYSTEM), *said]
    assert cache.ids[: len(whole)] == whole[: cache.position]
    reads.clear()
    generate(model, SYSTEM + " in a garden", cache=cache, max_tokens=1)
    assert sum(reads) < 12


def test_what_an_error_cut_short_is_read_anew(model, monkeypatch, reads):
    cache, wanted = PromptCache(model), generate(model, SYSTEM, max_tokens=9).tokens
    generate(model, SYSTEM + " moon", cache=cache, max_tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "__call__", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(model, SYSTEM + " garden her friend", cache=cache)
    reads.clear()
    assert generate(model, SYSTEM, cache=cache, max_tokens=9).tokens == wanted
    assert reads[0] == len(ids_of(model, SYSTEM))


def test_a_window_that_let_go_of_what_is_shared_is_read_anew(tiny, loaded, reads):
    model = tiny(vocabulary=512, context=256, depth=2, window=24)
    model.tokenizer = loaded[1]
    cache, length = PromptCache(model), len(ids_of(model, SYSTEM))
    generate(model, SYSTEM, cache=cache, max_tokens=4)
    assert generate(model, SYSTEM, cache=cache, max_tokens=SPARE + 9).cached_tokens == length - 1
    assert generate(model, SYSTEM, cache=cache, max_tokens=1).cached_tokens == 0
    assert reads[-1] == length


def test_a_prompt_is_read_alone(model):
    cache = PromptCache(model)
    for prompt in (SYSTEM, SYSTEM + " moon", SYSTEM, "over"):
        cache.read(ids_of(model, prompt))
        assert cache.ids == ids_of(model, prompt)


# One text at a time.


def test_a_second_text_at_the_same_time_is_refused(model):
    cache = PromptCache(model)
    first = stream(model, SYSTEM, cache=cache, max_tokens=9)
    next(first)
    with pytest.raises(RuntimeError, match="a prompt cache serves one text at a time; finish or close"):
        generate(model, "over", cache=cache)
    rest = [event.token for event in first]
    assert rest == list(generate(model, SYSTEM, max_tokens=9).tokens[1:])
    assert generate(model, "over", cache=cache, max_tokens=1).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "this prompt cache was read at depth 2, got depth 1; "),
        ({"cache_bits": 8}, "was read with cache_bits 0, got cache_bits 8; "),
        ({"cache_window": 9, "cache_shared": True}, "with cache_window 0, cache_shared False, got cache_window 9, "),
        ({"beams": 2}, "a prompt cache serves one text at a time; leave out beams and best_of"),
        ({"best_of": 2}, "a prompt cache serves one text at a time; leave out beams and best_of"),
    ],
)
def test_options_that_are_not_those_of_the_cache_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, "a", cache=PromptCache(model), **options)


def test_the_cache_of_another_model_is_refused(model, tiny):
    with pytest.raises(ValueError, match="the cache must be of this model, got one of another"):
        generate(model, "a", cache=PromptCache(tiny()))


def test_several_rows_are_refused(model):
    with pytest.raises(ValueError, match="a prompt cache holds one text, got several rows"):
        PromptCache(model).append(mx.array([[1], [2]]))
