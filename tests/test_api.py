"""`import trm_mlx` as its users have it: load, generate, stream; and several threads at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import mlx.core as mx
import pytest
from test_generate import PROMPT
from tiny_folder import ROOT, text

import trm_mlx

pytest_plugins = ["tiny_folder"]

ROUNDS = 3  # of all texts in four threads; new threads each time
OPTIONS = [  # of texts that run at the same time
    {"temperature": 0},
    {"seed": 1},
    {"seed": 2, "depth": 1},
    {"temperature": 0, "depth": 1, "cache_window": 16},
    {"seed": 3, "cache_bits": 8, "ban": ("a",)},
    {"beams": 2},
    {"best_of": 2, "top_k": 0},
]


@pytest.fixture(scope="module")
def model(folder):
    return trm_mlx.load(folder)


def said(model, number: int) -> tuple[int, ...]:
    """The tokens of one of the texts; their prompts are short, and so long that they are read in parts."""
    prompt = text((2, 30, 150)[number % 3], seed=number)
    return trm_mlx.generate(model, prompt, max_tokens=20, **OPTIONS[number % len(OPTIONS)]).tokens


# What is loaded, and the stream.


def test_a_loaded_model_is_the_module_with_its_tokenizer(model, loaded):
    assert isinstance(model, trm_mlx.TinyRecursiveLM)
    assert model.tokenizer.bytes == loaded[1].bytes
    ids = mx.array([model.tokenizer.encode(PROMPT)])
    assert mx.array_equal(model(ids), loaded[0](ids))


def test_tokenizer_and_revision_are_no_parameters(model):
    assert not {"tokenizer", "revision"} & model.parameters().keys()


def test_a_model_without_a_tokenizer_is_refused_until_it_has_one(tiny, loaded):
    model = tiny(vocabulary=512)
    with pytest.raises(
        ValueError, match=r"must have a tokenizer; load it with trm_mlx\.load, or set model\.tokenizer"
    ):
        trm_mlx.generate(model, PROMPT)
    model.tokenizer = loaded[1]
    assert trm_mlx.generate(model, PROMPT, max_tokens=2).tokens


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_ends_with_what_generate_returns(model, options, chat):
    events = list(trm_mlx.stream(model, PROMPT, chat=chat, max_tokens=12, **options))
    wanted = trm_mlx.generate(model, PROMPT, chat=chat, max_tokens=12, **options)
    reply = events[-1].reply
    assert "".join(event.text for event in events) == reply.text == wanted.text
    assert (reply.tokens, reply.reason, reply.score) == (wanted.tokens, events[-1].reason, wanted.score)
    assert [event.reply for event in events[:-1]] == [None] * (len(events) - 1)
    if {"beams", "best_of"} & options.keys():
        assert len(events) == 1
    else:
        assert tuple(event.token for event in events) == reply.tokens


def test_a_stream_that_is_closed_early_leaves_the_model_as_it_was(model):
    wanted = said(model, 0)
    for _ in range(3):
        events = trm_mlx.stream(model, PROMPT, temperature=0)
        next(events)
        events.close()
        assert said(model, 0) == wanted


def test_streams_may_take_turns(model):
    one, other = (trm_mlx.stream(model, PROMPT, seed=seed, max_tokens=12) for seed in (1, 2))
    pairs = [(a.token, b.token) for a, b in zip(one, other, strict=True)]
    for place, seed in enumerate((1, 2)):
        alone = trm_mlx.generate(model, PROMPT, seed=seed, max_tokens=12).tokens
        assert tuple(pair[place] for pair in pairs) == alone


# Threads.


@pytest.mark.slow
@pytest.mark.parametrize("first", ["alone", "together"])
def test_texts_of_several_threads_at_once_are_those_of_one_after_the_other(folder, first):
    model, count = trm_mlx.load(folder), 2 * len(OPTIONS)
    alone = [said(model, number) for number in range(count)] if first == "alone" else None
    together: list[list[tuple[int, ...]]] = []
    for _ in range(ROUNDS):
        start = Barrier(4)  # all four at once, also in what is made for a model but once

        def run(numbers, start=start) -> list[tuple[int, ...]]:
            start.wait()
            return [said(model, number) for number in numbers]

        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(run, [range(place, count, 4) for place in range(4)]))
        together.append([parts[number % 4][number // 4] for number in range(count)])
    alone = alone or [said(model, number) for number in range(count)]
    assert together == [alone] * ROUNDS


@pytest.mark.slow
def test_one_model_may_be_loaded_and_used_in_different_threads(folder):
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(trm_mlx.load, folder).result()
    assert said(model, 0) == said(trm_mlx.load(folder), 0)


@pytest.mark.slow
def test_a_prompt_cache_may_be_used_in_one_thread_after_another(model):
    cache, prompts = trm_mlx.PromptCache(model), [PROMPT, PROMPT + " moon", PROMPT + " moon river"]
    found = []

    def run(prompt: str) -> None:
        found.append(trm_mlx.generate(model, prompt, cache=cache, max_tokens=9, temperature=0).tokens)

    for prompt in prompts:
        thread = Thread(target=run, args=(prompt,))
        thread.start()
        thread.join()
    assert found == [trm_mlx.generate(model, prompt, max_tokens=9, temperature=0).tokens for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("words", [2, 300])
def test_a_program_may_end_right_after_its_threads(folder, words):
    script = f"""
import threading, trm_mlx
model = trm_mlx.load({str(folder)!r})
for temperature in (0, 1):
    options = dict(max_tokens=4, temperature=temperature)
    given = dict(target=trm_mlx.generate, args=(model, {text(words)!r}), kwargs=options)
    threads = [threading.Thread(**given) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
