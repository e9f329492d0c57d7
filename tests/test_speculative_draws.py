"""Drawn texts with drafts are distributed as those without, and are never much slower.

Shapes: V vocabulary.
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from trm_mlx.cache import EVERYTHING
from trm_mlx.decode import speculative as module
from trm_mlx.decode.chooser import Chooser
from trm_mlx.decode.sampling import SamplingConfig, distribution
from trm_mlx.decode.speculative import Other, SpeculationConfig, Speculative
from trm_mlx.decode.words import NO_WORDS, Words

ALWAYS = SpeculationConfig(draft_depth=1, draft_tokens=3, draft_always=True)
V, LENGTH = 4, 3
PROMPT = [0]


def table(seed: int):
    """(V,) logits after any ids: made up, and far from those of other seeds."""

    def logits(ids):
        return np.random.default_rng([seed, *ids]).normal(0, 1.2, V).astype(np.float32)

    return logits


class Table:
    """A text read by a table instead of a model."""

    folded, kind, model = None, EVERYTHING, SimpleNamespace(config=SimpleNamespace(context=99, vocabulary=V))

    def __init__(self, logits, known):
        self.logits, self.known, self.ids = logits, known, []

    @property
    def position(self):
        return len(self.ids)

    def trim(self, position):
        assert 0 <= position <= len(self.ids)
        self.ids = self.ids[:position]

    def append(self, ids, *, every=False):
        rows = []
        for token in ids:
            self.ids.append(token)
            key = tuple(self.ids)
            if key not in self.known:
                self.known[key] = self.logits(key)
            rows.append(self.known[key])
        return mx.array(np.stack(rows)[None]) if every else mx.array(rows[-1][None])

    def scores(self, ids):
        return np.array(self.append(ids)[0])

    def follow(self, token):
        return self.scores([token])


def expected(sampling):
    """The chance of each text of LENGTH tokens, from the sampler's own distributions, one after another."""
    chances = {}
    for tokens in product(range(V), repeat=LENGTH):
        chance = 1.0
        for at in range(LENGTH):
            chance *= distribution(table(1)([*PROMPT, *tokens[:at]]), sampling, [*PROMPT, *tokens[:at]])[tokens[at]]
        chances[tokens] = chance
    return {tokens: chance for tokens, chance in chances.items() if chance > 0}


def counts(sampling, N, count=2, source=Speculative):
    found, texts, drafts = Counter(), {}, {}
    steered = Words(NO_WORDS, None)
    for seed in range(N):
        text = Table(table(1), texts)
        settings = replace(ALWAYS, draft_tokens=count)
        writer = source(text, Other(text, Table(table(2), drafts)), settings)
        chooser = Chooser(replace(sampling, seed=seed), steered, V, PROMPT)
        found[tuple(writer.tokens(PROMPT, LENGTH + 1, chooser))[:LENGTH]] += 1  # the last round may draft one too
    return found


def statistic(found, chances):
    """Pearson's, in standard deviations of the chi-square that it has where nothing is wrong; see `threshold`."""
    N = sum(found.values())
    if any(tokens not in chances for tokens in found):
        return math.inf
    total = sum((found[tokens] - N * chance) ** 2 / (N * chance) for tokens, chance in chances.items())
    freedom = len(chances) - 1
    spread = 2 / (9 * freedom)
    return ((total / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)  # Wilson and Hilferty, 1931


# A sound text passes 4.75 with a chance of one in a million. With N texts and a bias that moves a share d of all
# probability, the statistic is a noncentral chi-square of parameter at least 4 N d^2 (Cauchy and Schwarz). For the
# 27 texts that top_k 3 leaves, that is 125 and found with 99.9 % where d is 0.056 at N = 10,000.
LIMIT, N = 4.75, 10_000
SETTINGS = {
    "top_k": SamplingConfig(temperature=1, top_k=3),
    "all": SamplingConfig(temperature=0.7, top_k=0, repetition_penalty=1.4, frequency_penalty=0.3, min_p=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS)
def test_drawn_texts_have_the_distribution_of_those_without_drafts(settings, count):
    sampling = SETTINGS[settings]
    assert statistic(counts(sampling, N, count), expected(sampling)) < LIMIT


@pytest.mark.slow
def test_a_text_that_is_drafted_now_and_then_has_it_too():
    class Sometimes(Speculative):
        def _may(self):
            return len(self.known) % 2 == 0

    sampling = SETTINGS["top_k"]
    assert statistic(counts(sampling, N, source=Sometimes), expected(sampling)) < LIMIT


MISTAKES = [
    "residual not made to sum to 1",
    "residual of p",
    "every draft kept",
    "one draw for two",
    "q not filtered",
]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bias_would_be_found(monkeypatch, mistake):
    sampling = SETTINGS["top_k"]
    if mistake == "residual not made to sum to 1":

        def drawn_wrong(weights, chance):
            return min(int(np.cumsum(weights).searchsorted(chance, side="right")), int(np.flatnonzero(weights)[-1]))

        monkeypatch.setattr(module, "drawn", drawn_wrong)
    elif mistake == "residual of p":
        monkeypatch.setattr(module, "surplus", lambda chances, unlike: chances)
    elif mistake == "every draft kept":
        monkeypatch.setattr(module, "keeps", lambda chance, p, q: True)
    elif mistake == "one draw for two":
        monkeypatch.setattr(module, "KEPT", module.DRAFTED)
    else:
        chances = Chooser.chances

        def unfiltered(self, logits):
            if len(self.tokens) == 1:
                return distribution(logits, replace(sampling, top_k=0), *self._steering())
            return chances(self, logits)

        monkeypatch.setattr(Chooser, "chances", unfiltered)
    assert statistic(counts(sampling, N), expected(sampling)) > 3 * LIMIT


def test_a_text_with_drafts_is_never_much_slower_by_the_clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    class Slow(Table):
        def append(self, ids, *, every=False):
            clock.now += self.cost + self.more * (len(ids) - 1)
            return super().append(ids, every=every)

    text, draft = Slow(table(1), {}), Slow(table(2), {})
    (text.cost, text.more), (draft.cost, draft.more) = (1.0, 0.6), (0.3, 0.02)
    text.model = draft.model = SimpleNamespace(config=SimpleNamespace(context=10**6, vocabulary=V))
    source = Speculative(text, Other(text, draft), SpeculationConfig(draft_depth=1, draft_tokens=4), clock)
    chooser, times = Chooser(SamplingConfig(top_k=0), Words(NO_WORDS, None), V, PROMPT), []
    for _ in source.tokens(PROMPT * 50, 600, chooser):
        times.append(clock.now)
    times = [time - times[0] for time in times[1:]]  # after the prompts
    assert source.report().verifications > 0 and source.report().off
    assert max(seconds / (number + 1) for number, seconds in enumerate(times) if number >= 100) < 1.05
    assert source.report().speed_up > 0.95
