"""Tokens that leave early, against a recomputation of every token and pass from nothing.

Shapes: T tokens, D width, V vocabulary.
"""

import math

import mlx.core as mx
import numpy as np
import pytest
from both_forms import BOTH

from trm_mlx.cache import EVERYTHING, CacheConfig, decoded, encoded
from trm_mlx.decode import exits
from trm_mlx.decode.exits import ExitConfig, ExitModel
from trm_mlx.decode.step import StepModel
from trm_mlx.model import EPSILON

KINDS = {
    "full": EVERYTHING,
    "window": CacheConfig(cache_window=12, cache_sinks=2),
    "shared": CacheConfig(cache_shared=True),
    "bits": CacheConfig(cache_bits=8),
    "all": CacheConfig(cache_window=12, cache_sinks=0, cache_shared=True, cache_bits=8),
}
RULES = ["entropy:3.2", "kl:0.02", "stable:1", "change:0.6", "halt:0.5"]  # each lets some tokens go and some not


def normed(x):
    return x * mx.rsqrt(mx.square(x).mean(-1, keepdims=True) + EPSILON)


class Recomputed:
    """Texts read whole, with the passes of each token given: no cache, and no part of the decoder."""

    def __init__(self, model, kind: CacheConfig = EVERYTHING) -> None:
        self.model, self.kind = model, kind

    def read(self, ids, depths):
        """Scores (T, V), and the states (D,) of the last token from its anchor on."""
        m, c = self.model, self.model.config
        depths, T = mx.array(depths), len(ids)
        x = normed(m.embedding(mx.array([ids])))
        for block in m.prelude:
            x, _ = self.block(block, x, 0)
        h = anchor = normed(x)
        states, first, before = [h], [], []
        for index in range(c.depth):
            ran = (depths > index)[None, :, None]
            x, kept = normed(h) + (m.injection * anchor if c.injection else 0), []
            for number, block in enumerate(m.core):
                lent = before[number] if before else None
                if first and self.kind.cache_shared:
                    x, kv = self.block(block, x, index, first[number])
                else:
                    x, kv = self.block(block, x, index, None, lent, ran)
                kept.append(kv)
            before, first = kept, first or kept
            h = mx.where(ran, x, h)
            states.append(h)
        y = normed(h) + (m.recall * anchor if c.injection else 0)
        for block in m.coda:
            y, _ = self.block(block, y, 0)
        scores = m.embedding.as_linear(m.final_norm(y))[0]
        return scores, [state[0, T - 1] for state in states[: int(depths[-1]) + 1]]

    def block(self, block, x, index, borrowed=None, lent=None, ran=None):
        """The block, and its keys and values: borrowed, or its own, or lent where a token did not run."""
        a, c, T = block.attention, self.model.config, x.shape[1]
        H, N, K = c.heads, c.kv_heads, c.head_width
        qkv = a.qkv(block.attention_norm(x), index).reshape(T, H + 2 * N, K)
        q, k, v = qkv[:, :H], qkv[:, H : H + N], qkv[:, H + N :]
        q, k = (normed(part) * norm.weight for part, norm in ((q, a.query_norm), (k, a.key_norm)))
        q, k = (mx.fast.rope(p.swapaxes(0, 1)[None], K, traditional=False, base=c.rope_base, scale=1.0, offset=0)[0]
                for p in (q, k))  # fmt: skip
        kv = mx.concatenate([k, v.swapaxes(0, 1)])  # (2 N, T, K)
        kv = decoded(encoded(kv[None], self.kind.cache_bits))[0]
        kv = borrowed if borrowed is not None else mx.where(ran, kv, lent) if lent is not None else kv
        k, v = (mx.repeat(part, H // N, axis=0) for part in (kv[:N], kv[N:]))
        query, key = mx.arange(T)[:, None], mx.arange(T)[None]
        seen = key <= query
        if self.kind.cache_window:
            seen = seen & ((key > query - self.kind.cache_window) | (key < self.kind.cache_sinks))
        weights = mx.softmax(mx.where(seen, q @ k.swapaxes(1, 2) / math.sqrt(K), -math.inf), axis=-1)
        y = a.out((weights @ v).swapaxes(0, 1).reshape(1, T, H * K), index)
        x = x + block._branch(y, "attention_scale", index, None)
        y = block.feed_forward(block.feed_forward_norm(x), index)
        return x + block._branch(y, "feed_forward_scale", index, None), kv

    def follow(self, ids, depths, rule):
        """Scores (V,) of the last token, and the passes it takes."""
        reads = []
        for depth in range(1, self.model.config.depth + 1):
            scores, states = self.read(ids, [*depths, depth])
            reads.append(np.array(scores[-1], dtype=np.float64))
            if self.leaves(reads, [np.array(state, dtype=np.float64) for state in states], rule):
                break
        return reads[-1], depth

    def leaves(self, reads, states, rule):
        kind, limit = rule.rule, rule.limit
        if kind == "entropy":
            return exits.entropy(reads[-1]) < limit
        if kind == "kl":
            return len(reads) > 1 and exits.divergence(reads[-1], reads[-2]) < limit
        if kind == "stable":
            return len(reads) > limit and len({each.argmax() for each in reads[-int(limit) - 1 :]}) == 1
        if kind == "change":
            return exits.change(states[-1], states[-2]) < limit
        head = self.model.halting
        return exits.chance(states[-1], np.array(head.weight, dtype=np.float64), head.bias.item()) > limit


def drawn(model, T, seed=0):
    return mx.random.randint(0, model.config.vocabulary, (T,), key=mx.random.key(seed)).tolist()


def agree(model, rule, kind=EVERYTHING, plan=("+20", 12, "-5", 6, "+3", 4, "-14", 15), tolerance=1e-3):
    """Prompts (+n), single tokens (n) and trims (-n) give what recomputing gives, pass for pass."""
    rule, whole = ExitConfig(exit=rule), Recomputed(model, kind)
    text = ExitModel(model, kind=kind, exits=rule)
    ids, depths, given = [], [], iter(drawn(model, 200))
    taken = set()
    for move in plan:
        if str(move)[0] == "-":
            ids, depths = ids[: int(move)], depths[: int(move)]
            text.trim(len(ids))
        elif str(move)[0] == "+":
            ids += [next(given) for _ in range(int(move))]
            depths += [model.config.depth] * int(move)
            wanted, _ = whole.read(ids, depths)
            assert farthest(text.append(ids[-int(move) :])[0], wanted[-1]) <= tolerance
        else:
            for _ in range(move):
                ids.append(next(given))
                wanted, depth = whole.follow(ids, depths, rule)
                depths.append(depth)
                assert farthest(text.follow(ids[-1]), wanted) <= tolerance
                assert text.depths[-1] == (len(ids), depth)
                taken.add(depth)
    return taken


def farthest(given, wanted):
    wanted = np.array(wanted)
    return np.abs(np.array(given) - wanted).max() / np.abs(wanted).max()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("rule", RULES)
def test_tokens_leave_as_when_everything_is_computed_anew(tiny, rule, forms):
    taken = agree(tiny(depth=4, halting=True), rule)
    assert len(taken) > 1


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_leave_alike_with_every_cache(tiny, kind, forms):
    tolerance = 3e-2 if KINDS[kind].cache_bits else 1e-3
    assert len(agree(tiny(depth=4), "change:0.6", KINDS[kind], tolerance=tolerance)) > 1


def test_a_rule_that_never_holds_gives_the_text_of_all_passes(tiny):
    model, ids = tiny(), drawn(tiny(), 30)
    early, plain = ExitModel(model, exits=ExitConfig(exit="entropy:1e-9")), StepModel(model)
    assert farthest(early.append(ids[:10]), plain.append(ids[:10])) < 1e-4
    for token in ids[10:]:
        assert farthest(early.follow(token), plain.append([token])) < 1e-4
    assert early.mean_depth == 3


def test_a_rule_that_always_holds_makes_one_pass(tiny):
    model, ids = tiny(), drawn(tiny(), 30)
    early = ExitModel(model, exits=ExitConfig(exit="entropy:99"))
    early.append(ids[:10])
    for token in ids[10:]:
        early.follow(token)
    assert early.mean_depth == (3 + 20) / 21


def test_a_text_begun_anew_remembers_no_exits(tiny):
    model, ids = tiny(), drawn(tiny(), 20)
    early = ExitModel(model, exits=ExitConfig(exit="change:0.6"))

    def read():
        early.append(ids[:9])
        return [np.array(early.follow(token)) for token in ids[9:]]

    first, depths = read(), early.depths
    early.reset()
    assert np.array_equal(first, read()) and early.depths == depths


@pytest.mark.parametrize(
    "text", ["entropy", "entropy:", "entropy:x", "entropy:-1", "entropy:0", "kl:nan", "kl:inf", "depth:2", ":1", " "]
)
def test_a_rule_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"exit must be entropy:X, kl:X, stable:X, change:X, halt:X, X above 0, got"):
        ExitConfig(exit=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("stable:1.5", "whole number of passes"), ("halt:1", "a chance below 1, got 'halt:1'")],
)
def test_a_limit_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ExitConfig(exit=text)


@pytest.mark.parametrize(
    ("text", "depth", "message"),
    [
        ("halt:0.5", None, "this one has no halting head"),
        ("kl:0.1", 2, "exit kl:0.1 can end no pass early below depth 3, got depth 2"),
        ("stable:2", None, "exit stable:2 can end no pass early below depth 4, got depth 3"),
        ("entropy:1", 1, "exit entropy:1 can end no pass early below depth 2, got depth 1"),
    ],
)
def test_a_rule_that_can_not_hold_is_refused(tiny, text, depth, message):
    with pytest.raises(ValueError, match=message):
        ExitModel(tiny(), depth, exits=ExitConfig(exit=text))


def test_measures_of_rules_are_what_they_are_called():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    assert exits.entropy(np.log(p) + 3) == pytest.approx(1.5 * math.log(2))
    assert exits.divergence(np.log(p) - 1, np.log(q)) == pytest.approx((p * np.log(p / q)).sum())
    assert exits.divergence(np.log(p) + 5, np.log(p)) == pytest.approx(0)
    assert exits.change(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(0, abs=1e-5)
    assert exits.change(np.array([1.0, 1.0]), np.array([-1.0, -1.0])) == pytest.approx(2, abs=1e-4)
    assert exits.chance(np.array([1.0, 1.0]), np.array([0.5, 0.5]), -1.0) == pytest.approx(0.5, abs=1e-4)
