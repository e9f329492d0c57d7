"""The best of several texts that were drawn."""

import math

import mlx.core as mx
import numpy as np
import pytest
from test_stream import prompt_of

from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.search import SearchConfig, find, mean_log_probability, seeds
from trm_mlx.decode.step import PREFILL
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import WordsConfig

pytest_plugins = ["tiny_folder"]

NO_WORDS, SHORT = WordsConfig(), StreamConfig(max_tokens=6)


def best(loaded, count: int, seed: int = 0, settings: StreamConfig = SHORT, **options):
    sampling = SamplingConfig(seed=seed, top_k=0, **options)
    return find(*loaded, prompt_of(5), settings, sampling, NO_WORDS, SearchConfig(best_of=count))


def test_the_seeds_are_those_that_follow_and_begin_again_after_the_last():
    settings = seeds(SamplingConfig(seed=2**64 - 2, top_k=3), 4)
    assert settings == [SamplingConfig(seed=seed, top_k=3) for seed in (2**64 - 2, 2**64 - 1, 0, 1)]


def test_the_best_is_the_one_of_the_highest_mean_log_probability(loaded):
    alone = [SamplingConfig(seed=seed, top_k=0) for seed in range(3, 9)]
    drawn = [tuple(event.token for event in events(*loaded, prompt_of(5), SHORT, each)) for each in alone]
    means = [mean_log_probability(loaded[0], prompt_of(5), tokens, None) for tokens in drawn]
    found = best(loaded, 6, seed=3)
    assert (found.score, found.tokens) == (max(means), drawn[int(np.argmax(means))])
    assert len({*drawn}) > 3 and np.argmax(means) > 0
    assert (found.text, found.reason, found.prompt_tokens) == (loaded[1].decode(found.tokens), "length", 5)


def test_the_best_of_more_is_no_worse_and_the_same_each_time(loaded):
    two, four, again = (best(loaded, count) for count in (2, 4, 4))
    assert two.score <= four.score
    assert four.tokens == again.tokens


@pytest.mark.parametrize("length", [1, 7, PREFILL - 2, PREFILL, PREFILL + 1])
@pytest.mark.parametrize("depth", [1, None])
def test_the_mean_is_over_the_tokens_written_of_the_models_own_probabilities(loaded, length, depth):
    model, prompt, tokens = loaded[0], prompt_of(length), prompt_of(9)[1:]
    logits = model(mx.array([[*prompt, *tokens]]), depth=depth)[0, length - 1 : -1]
    logarithms = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    expected = np.mean([row[token] for row, token in zip(logarithms, tokens, strict=True)])
    assert mean_log_probability(model, prompt, tokens, depth) == pytest.approx(expected, abs=1e-4)


def test_a_mean_does_not_favour_the_short(loaded):
    model, prompt, tokens = loaded[0], prompt_of(5), prompt_of(9)[1:]
    whole, half = (mean_log_probability(model, prompt, part, None) for part in (tokens, tokens[:4]))
    rest = mean_log_probability(model, [*prompt, *tokens[:4]], tokens[4:], None)
    assert whole == pytest.approx((half + rest) / 2, abs=1e-5)


def test_one_text_that_is_drawn_streams_and_a_search_does_not():
    assert SearchConfig().streams
    assert not SearchConfig(beams=1).streams and not SearchConfig(best_of=2).streams


def test_beams_give_text_up_to_the_stop_text(loaded):
    settings = SearchConfig(beams=1)
    free = find(*loaded, prompt_of(5), SHORT, SamplingConfig(), NO_WORDS, settings)
    stopped = StreamConfig(max_tokens=6, stop=(free.text[3:5],))
    held = find(*loaded, prompt_of(5), stopped, SamplingConfig(), NO_WORDS, settings)
    assert (held.text, held.reason) == (free.text[: free.text.index(free.text[3:5])], "stop")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beams": -1}, "beams must be at least 0, got -1"),
        ({"best_of": 0}, "best_of must be at least 1, got 0"),
        ({"beams": 2, "best_of": 2}, "give beams or best_of, not both"),
        ({"length_penalty": 1.0}, "give beams too"),
        *(({"beams": 2, "length_penalty": value}, "length_penalty must") for value in (-0.1, math.inf, math.nan)),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**wrong)


@pytest.mark.parametrize(
    "options",
    [
        *({name: 0.5} for name in ("top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")),
        *({"temperature": 1.0}, {"top_k": 3}, {"repetition_penalty": 1.5}, {"seed": 4}),
    ],
    ids=str,
)
def test_beams_refuse_what_they_would_not_heed(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"beams draw nothing, so {name} must be left at .*, got {value}"):
        SearchConfig(beams=2).check(SamplingConfig(**options))


def test_the_best_of_equal_texts_is_not_asked_for():
    with pytest.raises(ValueError, match="best_of must have a temperature above 0"):
        SearchConfig(best_of=2).check(SamplingConfig(temperature=0))
