"""Greedy texts with drafts are those without; drafts end and are steered as texts are.

Shapes: V vocabulary.
"""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import pytest
from both_forms import BOTH

import trm_mlx
from trm_mlx import checkpoint
from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode import speculative as module
from trm_mlx.decode.chooser import Chooser, plainly
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.speculative import Other, Shallow, SpeculationConfig, Speculative, speculative
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import NO_WORDS, Words, WordsConfig
from trm_mlx.generate import generate

pytest_plugins = ["tiny_folder"]

GREEDY = SamplingConfig(temperature=0)
ALWAYS = SpeculationConfig(draft_depth=1, draft_tokens=3, draft_always=True)
KINDS = {
    "full": EVERYTHING,
    "window": CacheConfig(cache_window=12, cache_sinks=2),
    "shared": CacheConfig(cache_shared=True),
    "bits": CacheConfig(cache_bits=8),
    "all": CacheConfig(cache_window=12, cache_shared=True, cache_bits=8),
}


def drawn(model, T, seed):
    return mx.random.randint(0, model.config.vocabulary, (T,), key=mx.random.key(seed)).tolist()


# Greedy texts are the same, token for token.


def greedy(text, prompt, most=25):
    chooser = Chooser(GREEDY, Words(NO_WORDS, None), text.model.config.vocabulary, prompt)
    write = text.tokens if isinstance(text, Speculative) else partial(plainly, text)
    return list(write(prompt, most, chooser))


def same(model, drafter, kind=EVERYTHING, prompts=10, count=3):
    """Whether greedy texts are those without drafts; gives the share of drafts kept."""
    kept = asked = 0
    for seed in range(prompts):
        prompt = drawn(model, 3 + seed % 20, seed)
        text = StepModel(model, kind=kind)
        source = Speculative(text, drafter(text), replace(ALWAYS, draft_tokens=count))
        assert greedy(source, prompt) == greedy(StepModel(model, kind=kind), prompt), seed
        kept, asked = kept + source.report().accepted, asked + source.report().drafted
    return kept / asked


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("depth", [1, 2])
def test_greedy_texts_of_many_prompts_are_those_without_drafts(tiny, forms, depth):
    kept = same(tiny(), lambda text: Shallow(text, depth), prompts=100 if forms == "fused" else 30)
    assert 0.05 < kept < 0.95


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_the_same_with_every_cache(tiny, forms, kind):
    same(tiny(), lambda text: Shallow(text, 1), KINDS[kind], prompts=15, count=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_another_model_drafts_as_well(tiny, kind):
    other = tiny(depth=1, core=1, context=48)  # which ends before the text does
    kept = same(tiny(), lambda text: Other(text, StepModel(other, kind=KINDS[kind])), KINDS[kind], prompts=15)
    assert kept < 0.95


@pytest.mark.slow
def test_a_model_that_drafts_for_itself_is_always_right(tiny):
    model = tiny()
    assert same(model, lambda text: Other(text, StepModel(model)), prompts=20) > 0.97  # but for ties


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4, 15])
def test_the_model_that_ships_writes_the_same(count):
    model, tokenizer = checkpoint.load(trm_mlx.PRETRAINED)
    lines = ["Once upon a time", "The old fox", "In the garden", '"Come here," said', "One day the rain"]
    for line in lines:
        prompt, text = [tokenizer.bos, *tokenizer.encode(line)], StepModel(model)
        source = Speculative(text, Shallow(text, 1), replace(ALWAYS, draft_tokens=count))
        assert greedy(source, prompt, 40) == greedy(StepModel(model), prompt, 40)
        assert source.report().tokens_per_verification > 1.5


def test_tokens_too_near_to_tell_are_computed_alone(tiny, monkeypatch):
    monkeypatch.setitem(module.TIE, 0, 1e9)
    model = tiny()
    text = StepModel(model)
    source = Speculative(text, Shallow(text, 2), ALWAYS)
    assert greedy(source, [1, 2, 3]) == greedy(StepModel(model), [1, 2, 3])
    assert source.report().accepted == 0 and source.report().tokens == source.report().verifications


# What ends or steers a text does so with drafts too.

OPTIONS = {
    "plain": {},
    "end": {"bias": ("#2=6",)},  # an end token comes in the middle of drafts
    "stop": {"stop": ("e", "xyz")},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "words": {"ban": ("a", "th"), "bias": ("#300=3",)},
    "runs": {"no_repeat_ngram": 2},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["depth", "model"])
@pytest.mark.parametrize("options", OPTIONS)
def test_texts_end_and_are_steered_alike(loaded, folder, options, draft):
    how = {"draft_depth": 1} if draft == "depth" else {"draft_model": folder, "draft_depth": 1}
    options = {"temperature": 0, "max_tokens": 30, **OPTIONS[options]}
    for prompt in ("hello moon", "the lazy dogs", "12", "", "river in a garden"):
        plain = generate(loaded[0], prompt, **options)
        drafted = generate(loaded[0], prompt, **options, **how, draft_always=True)
        for name in ("text", "tokens", "reason", "prompt_tokens"):
            assert getattr(drafted, name) == getattr(plain, name)


def test_a_text_with_drafts_ends_with_the_context(tiny, loaded):
    model, (_, tokenizer) = tiny(vocabulary=512, context=24, window=0), loaded
    for length in (3, 17, 22, 23):
        text = StepModel(model)
        source = Speculative(text, Shallow(text, 1), ALWAYS)
        settings = StreamConfig(max_tokens=99)
        prompt = drawn(model, length, length)
        found = list(events(model, tokenizer, prompt, settings, GREEDY, source=source))
        assert found == list(events(model, tokenizer, prompt, settings, GREEDY))
        assert text.position <= 24


def test_a_drawn_text_is_the_same_each_time(loaded):
    options = {"max_tokens": 25, "draft_depth": 1, "draft_always": True, "seed": 3}
    assert generate(loaded[0], "hello", **options).tokens == generate(loaded[0], "hello", **options).tokens
    assert (
        generate(loaded[0], "hello", **options).tokens != generate(loaded[0], "hello", **options | {"seed": 4}).tokens
    )


# Settings.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_depth": -1}, "draft_depth must be at least 0, got -1"),
        ({"draft_depth": 1, "draft_tokens": 0}, "draft_tokens must be 1 to 15, got 0"),
        ({"draft_depth": 1, "draft_tokens": 16}, "draft_tokens must be 1 to 15, got 16"),
        ({"draft_tokens": 2}, "draft_tokens is of drafts; give draft_depth or draft_model too"),
        ({"draft_always": True}, "draft_always is of drafts; give draft_depth or draft_model too"),
        ({"draft_depth": 2}, "draft_depth must be below the 2 passes that verify, got 2"),
        ({"draft_depth": 1, "depth": 1}, "draft_depth must be below the 1 passes that verify, got 1"),
        ({"draft_depth": 1, "exit": "entropy:1"}, "give exit or drafts, not both"),
        ({"draft_depth": 1, "beams": 2}, "draft is for one text that streams; leave out beams and best_of"),
        ({"draft_depth": 1, "best_of": 2}, "draft is for one text that streams; leave out beams and best_of"),
    ],
)
def test_drafts_that_can_not_be_are_refused(loaded, options, message):
    with pytest.raises(ValueError, match=message):
        generate(loaded[0], "hello", **options)


def test_a_drafting_model_of_another_tokenizer_is_refused(loaded):
    with pytest.raises(ValueError, match="draft_model must have the tokenizer of the model itself"):
        speculative(*loaded, SpeculationConfig(draft_model=trm_mlx.PRETRAINED))


def test_what_drafts_came_to_is_told(loaded):
    reply = generate(loaded[0], "hello", max_tokens=20, temperature=0, draft_depth=1, draft_always=True)
    drafts = reply.drafts
    assert drafts.verifications > 0 and drafts.tokens == drafts.accepted + drafts.verifications
    assert 0 <= drafts.acceptance <= 1 <= drafts.tokens_per_verification <= 5
    assert generate(loaded[0], "hello", max_tokens=3).drafts is None


def test_words_hold_while_drafting(loaded):
    model, tokenizer = loaded
    text = StepModel(model)
    source = Speculative(text, Shallow(text, 1), ALWAYS)
    words = WordsConfig(ban=("e",))
    settings, sampling = StreamConfig(max_tokens=40), SamplingConfig(seed=5)
    found = events(model, tokenizer, [tokenizer.bos], settings, sampling, words, source=source)
    assert "e" not in "".join(event.text for event in found)
