"""Shapes: B batch, T tokens, V vocabulary."""

import dataclasses
import math
import random

import mlx.core as mx
import numpy as np
import pytest

from trm_mlx.decode.sampling import SamplingConfig, sample
from trm_mlx.decode.step import PREFILL
from trm_mlx.decode.stream import Event, Scanner, StreamConfig, Timed, events
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["tiny_folder"]

GREEDY = SamplingConfig(temperature=0)
WILD = SamplingConfig(temperature=4, top_k=0)  # many single bytes, and control tokens


class Script(TinyRecursiveLM):
    """A model that says given tokens in turn, whatever it reads."""

    def __init__(self, tokens: list[int], vocabulary: int, context: int = 64, value: float = 1.0) -> None:
        shape = ModelConfig(vocabulary=vocabulary, width=4, heads=1, kv_heads=1, depth=1, context=context)
        super().__init__(shape)
        self.tokens, self.value, self.reached = tokens, value, 0

    def __call__(self, ids, *, cache=None, **options):
        assert cache is not None
        cache.advance(ids.shape[1])
        self.reached = cache.length
        token, self.tokens = self.tokens[0], self.tokens[1:] or self.tokens  # one more may be asked for ahead
        return mx.array(self.value) * (mx.arange(self.config.vocabulary) == token)[None, None]


class Yes(Script):
    """A model that would say 300, and a little less gladly 301."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__([], vocabulary)

    def __call__(self, ids, *, cache=None, **options):
        at = mx.arange(self.config.vocabulary)
        return (2.0 * (at == 300) + 1.1 * (at == 301))[None, None]


def said(tokenizer: Tokenizer, tokens: list[int], *stop: str, context: int = 64, **settings) -> list[Event]:
    model = Script(list(tokens), tokenizer.vocabulary, context)
    config = StreamConfig(stop=stop, **{"max_tokens": len(tokens), **settings})
    return list(events(model, tokenizer, [tokenizer.bos], config, GREEDY))


def uncached(
    model: TinyRecursiveLM, prompt: list[int], count: int, sampling: SamplingConfig, depth=None
) -> list[int]:
    """The tokens that go on from a prompt up to an end token, each computed from the whole text anew."""
    ids = list(prompt)
    for step in range(count):
        if step and ids[-1] in (Tokenizer.eos, Tokenizer.end):
            break
        logits = model(mx.array([ids]), depth=depth)[0, -1]
        ids.append(sample(np.array(logits), sampling, step, ids))
    return ids[len(prompt) :]


def prompt_of(length: int, vocabulary: int = 512) -> list[int]:
    return [1, *np.random.default_rng(length).integers(7, vocabulary, length - 1).tolist()]


def tokens_of(model, tokenizer, prompt: list[int], sampling: SamplingConfig, **settings) -> list[int]:
    return [event.token for event in events(model, tokenizer, prompt, StreamConfig(**settings), sampling)]


# Against computing without a cache.


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, None])
def test_a_prompt_of_any_length_gives_the_tokens_of_computing_without_a_cache(tiny, loaded, depth):
    model, tokenizer = tiny(vocabulary=512, context=2 * PREFILL + 40, core=1, depth=2), loaded[1]
    sampling = SamplingConfig(seed=5, repetition_penalty=1.3, min_p=0.01)
    for length in (1, 2, PREFILL - 1, PREFILL, PREFILL + 1, 2 * PREFILL, 2 * PREFILL + 1):
        expected = uncached(model, prompt_of(length), 6, sampling, depth)
        found = tokens_of(model, tokenizer, prompt_of(length), sampling, max_tokens=6, depth=depth)
        assert found == expected, length


@pytest.mark.parametrize(
    "options",
    [{"window": 40}, {"window": 300}, {"window": 1}]
    + [{"position": position} for position in ("alibi", "learned", "sinusoidal", "none")]
    + [{"position": "alibi", "window": 40}, {"kv_heads": 4}, {"prelude": 0, "coda": 0}],
    ids=str,
)
def test_every_kind_of_model_gives_the_tokens_of_computing_without_a_cache(tiny, loaded, options):
    model, prompt = tiny(vocabulary=512, context=PREFILL + 64, **options), prompt_of(PREFILL + 44)
    expected = uncached(model, prompt, 4, GREEDY)
    assert tokens_of(model, loaded[1], prompt, GREEDY, max_tokens=4) == expected


def test_passes_that_are_not_asked_for_are_not_computed(loaded):
    shallow, deep = (tokens_of(*loaded, prompt_of(9), GREEDY, max_tokens=20, depth=depth) for depth in (1, 2))
    assert shallow != deep
    assert deep == tokens_of(*loaded, prompt_of(9), GREEDY, max_tokens=20)


def test_repetition_penalty_counts_the_prompt_and_what_was_written(loaded):
    model, tokenizer = loaded
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e9)
    prompt = prompt_of(12)
    found = tokens_of(model, tokenizer, prompt, sampling, max_tokens=30)
    assert found == uncached(model, prompt, len(found), sampling)
    assert len({*found, *prompt}) == len({*prompt}) + len(found)  # nothing comes twice
    assert found != tokens_of(model, tokenizer, prompt, GREEDY, max_tokens=30)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_presence_and_frequency_count_the_prompt_and_what_was_written(loaded, name):
    sampling, prompt = SamplingConfig(temperature=0, **{name: 3.0}), [1, *[300] * 5, *prompt_of(9)[1:]]
    found = tokens_of(*loaded, prompt, sampling, max_tokens=15)
    assert found == uncached(loaded[0], prompt, len(found), sampling)
    assert found != tokens_of(*loaded, prompt, GREEDY, max_tokens=15)


def test_a_token_of_the_prompt_is_penalized_for_every_time_it_came(loaded):
    model = Yes(loaded[1].vocabulary)
    for count, token in ((1, 300), (3, 300), (4, 301)):
        sampling = SamplingConfig(temperature=0, frequency_penalty=0.25)
        assert tokens_of(model, loaded[1], [1, *[300] * count], sampling, max_tokens=1) == [token]


# The same seed, the same text.


def test_a_seed_fixes_the_text_and_another_seed_gives_another(loaded):
    draws = [SamplingConfig(seed=seed) for seed in (3, 3, 4)]
    first, again, other = (tokens_of(*loaded, prompt_of(5), draw, max_tokens=20) for draw in draws)
    assert first == again != other


def test_a_text_that_is_cut_shorter_is_the_beginning_of_the_longer_one(loaded):
    long = tokens_of(*loaded, prompt_of(5), SamplingConfig(), max_tokens=20)
    assert tokens_of(*loaded, prompt_of(5), SamplingConfig(), max_tokens=7) == long[:7]


# Text as it becomes certain.


@pytest.mark.parametrize("seed", range(2))
def test_texts_joined_are_those_of_all_ids_and_none_holds_half_a_character(loaded, seed):
    model, tokenizer = loaded
    found = list(events(model, tokenizer, [1], StreamConfig(max_tokens=120), dataclasses.replace(WILD, seed=seed)))
    assert "".join(event.text for event in found) == tokenizer.decode([event.token for event in found])
    for event in found:
        event.text.encode()  # no lone surrogate
    assert [event.reason for event in found[:-1]] == [None] * (len(found) - 1)


def test_the_bytes_of_a_character_are_written_with_its_last_one(loaded):
    tokenizer = loaded[1]
    ids = [tokenizer.pieces.index(bytes([byte])) for byte in "\U0001f600".encode()]
    assert [event.text for event in said(tokenizer, ids)] == ["", "", "", "\U0001f600"]


@pytest.mark.parametrize("settings", [{"max_tokens": 2}, {"context": 3, "max_tokens": 9}, {}])
def test_a_character_that_is_never_whole_is_written_as_replacements_at_the_end(loaded, settings):
    tokenizer = loaded[1]
    ids = [tokenizer.pieces.index(bytes([byte])) for byte in b"\xf0\x9f"]
    found = said(tokenizer, [*ids, tokenizer.eos], **settings)
    assert "".join(event.text for event in found) == "\ufffd\ufffd" == tokenizer.decode(ids)
    assert found[-1].text == "\ufffd\ufffd"


# Why it stops.


@pytest.mark.parametrize("name", ["eos", "end"])
def test_an_end_token_may_be_the_first(loaded, name):
    end = getattr(loaded[1], name)
    assert said(loaded[1], [end, 300]) == [Event(end, "", "end")]


def test_max_tokens_of_one_gives_one(loaded):
    tokenizer = loaded[1]
    (event,) = said(tokenizer, [300, 301], max_tokens=1)
    assert event == Event(300, tokenizer.decode([300]), "length")


def test_the_last_token_allowed_may_end_the_text(loaded):
    assert [e.reason for e in said(loaded[1], [300, loaded[1].eos])] == [None, "end"]


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("length", [1, 60, 63])
def test_a_text_ends_with_the_context(tiny, loaded, position, length):
    model = tiny(vocabulary=512, context=64, position=position, depth=1)
    found = list(events(model, loaded[1], prompt_of(length), StreamConfig(max_tokens=99), GREEDY))
    assert (len(found), found[-1].reason) == (64 - length, "context")


def test_no_position_past_the_context_is_read(loaded):
    model = Script([300] * 70, 512, context=64)
    found = list(events(model, loaded[1], prompt_of(10), StreamConfig(max_tokens=99), GREEDY))
    assert (len(found), found[-1].reason, model.reached) == (54, "context", 63)


@pytest.mark.parametrize("length", [0, 64, 65, 1_000])
def test_a_prompt_must_leave_room_in_the_context(loaded, length):
    model = Script([300], 512, context=64)
    with pytest.raises(ValueError, match=f"1 to 63 tokens, as the context is 64, got {length}"):
        list(events(model, loaded[1], [1] * length, StreamConfig(), GREEDY))


@pytest.mark.parametrize("depth", [-1, 0, 3])
def test_a_depth_that_the_model_was_not_made_for_is_refused(loaded, depth):
    with pytest.raises(ValueError, match=f"depth must be 1 to 2, .* got {depth}"):
        list(events(*loaded, [1], StreamConfig(depth=depth), GREEDY))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(loaded, value):
    with pytest.raises(ValueError, match="logits must be finite"):
        list(events(Script([300], 512, value=value), loaded[1], [1], StreamConfig(), GREEDY))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"stop": ("a", "")}, "must not be empty"),
        ({"stop": "END"}, "must be a tuple of texts, got the text 'END'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StreamConfig(**settings)


# Stop texts.


def pieces(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Ids that decode to these parts, one token each: bytes, or a piece."""
    return [tokenizer.pieces.index(part if part in tokenizer.pieces else part.encode()) for part in parts]


@pytest.mark.parametrize(
    ("parts", "stops", "text"),
    [
        (["a", "b", "c", "d"], ["bc"], "a"),
        (["a", "b", "c", "d"], ["x", "d"], "abc"),
        (["a", "b", "c", "d"], ["a"], ""),
        (["a", "b", "a", "b", "c"], ["abc"], "ab"),  # held back, released, found
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["a", "b", "c", "d"], ["abcd", "c"], "ab"),  # the one that ends first
        (["a", "b", "c", "d"], ["bc", "abc"], ""),  # both end here: the longer
        (["a", "b", "c", "d"], ["cx", "bcdx"], "abcd"),  # begun, never whole
        (["m", "oon", "b"], ["oo"], "m"),  # inside one token
        (["m", "oon", "b"], ["nb"], "moo"),  # across two
        (["m", "oon", "b"], ["m"], ""),
    ],
)
def test_nothing_from_a_stop_text_on_is_written_and_all_before_it_is(loaded, parts, stops, text):
    found = said(loaded[1], pieces(loaded[1], *parts), *stops)
    whole = text == "".join(parts)
    assert ("".join(event.text for event in found), found[-1].reason) == (text, "length" if whole else "stop")


def test_no_token_is_computed_after_a_stop_text(loaded):
    found = said(loaded[1], pieces(loaded[1], "a", "b", "c", "d"), "b")
    assert [event.token for event in found] == pieces(loaded[1], "a", "b")


def test_a_stop_text_is_found_in_the_text_before_an_end_token(loaded):
    found = said(loaded[1], [*pieces(loaded[1], "a", "b"), loaded[1].eos], "bc")
    assert [(event.text, event.reason) for event in found] == [("a", None), ("", None), ("b", "end")]


def test_a_stop_text_on_the_last_token_is_the_reason(loaded):
    assert said(loaded[1], pieces(loaded[1], "a", "b"), "b")[-1].reason == "stop"


def test_a_stop_text_may_be_of_many_bytes(loaded):
    ids = [loaded[1].pieces.index(bytes([byte])) for byte in "a\u00e9\U0001f600b".encode()]
    found = said(loaded[1], ids, "\U0001f600")
    assert ("".join(event.text for event in found), found[-1].reason) == ("a\u00e9", "stop")


def test_text_that_may_become_a_stop_text_is_held_back_no_longer_than_it_may(loaded):
    found = said(loaded[1], pieces(loaded[1], "a", "b", "c", "a", "b", "d", "e"), "abd", "bcd")
    assert [event.text for event in found] == ["", "", "a", "bc", "", ""]  # bc may begin bcd until a comes
    assert found[-1].reason == "stop"


def test_a_scanner_gives_the_same_text_however_it_was_cut():
    draw = random.Random(0)
    for _ in range(3_000):
        text = "".join(draw.choice("abc") for _ in range(draw.randrange(20)))
        stops = ["".join(draw.choice("abc") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        scanner, passed, at = Scanner(stops), "", 0
        while at < len(text):
            size = draw.randrange(1, 6)
            passed += scanner.push(text[at : at + size])
            at += size
            assert text.startswith(passed)
        passed += scanner.finish()
        assert scanner.found == bool(places)
        assert passed == (text[: min(places)[1]] if places else text), (text, stops)


# The reply.


def test_a_reply_adds_up_its_events():
    source = [Event(5, "a"), Event(6, "", None), Event(7, "bc", "stop")]
    timed = Timed(iter(source), 4)
    assert list(timed) == source
    reply = timed.reply()
    assert (reply.text, reply.tokens, reply.reason, reply.prompt_tokens) == ("abc", (5, 6, 7), "stop", 4)
    assert 0 < reply.seconds_to_first <= reply.seconds
    assert reply.tokens_per_second == pytest.approx(2 / (reply.seconds - reply.seconds_to_first))


@pytest.mark.parametrize("count", [0, 1])
def test_a_reply_of_no_token_or_one_has_no_speed(count):
    timed = Timed(iter([Event(5, "a", "length")][:count]), 1)
    assert len(list(timed)) == count
    assert timed.reply().tokens_per_second == 0
