"""Words that are favoured, and texts that are never written."""

import json
import random

import mlx.core as mx
import numpy as np
import pytest
from test_sampling import GOLDEN, specification
from test_stream import GREEDY, Script, pieces

from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.search import SearchConfig, find
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import Words, WordsConfig, repeating, tokens_of
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["tiny_folder"]

WILD = SamplingConfig(temperature=4, top_k=0)  # single bytes, halves of characters, control tokens
BANS = ["e", "moon", " the", "caf\u00e9", "\u00e9", "th", "a a", "12", "\U0001f600", ", "]


class Yearning(Script):
    """A model of random scores, in which some tokens always stand out."""

    def __init__(self, wanted: list[int], vocabulary: int, noise: float = 0) -> None:
        super().__init__([], vocabulary, context=256)
        self.noise, self.chance = noise, np.random.default_rng(0)
        self.scores = np.zeros(vocabulary, dtype=np.float32)
        self.scores[wanted] = 5
        self.scores[[Tokenizer.eos, Tokenizer.end]] = -50

    def __call__(self, ids, *, cache=None, **options):
        assert cache is not None
        cache.advance(ids.shape[1])
        return mx.array(self.scores + self.chance.normal(0, self.noise, self.scores.size).astype(np.float32))[
            None, None
        ]


def written(model, tokenizer, prompt: str, ban: tuple[str, ...], sampling: SamplingConfig, count: int) -> str:
    ids, words = [tokenizer.bos, *tokenizer.encode(prompt)], WordsConfig(ban=ban)
    source = events(model, tokenizer, ids, StreamConfig(max_tokens=count), sampling, words)
    return "".join(event.text for event in source)


def byte_ids(tokenizer, text: str) -> list[int]:
    return [tokenizer.pieces.index(bytes([byte])) for byte in text.encode()]


# Bans.


def test_no_text_holds_a_banned_one_whatever_it_is_spelled_with(loaded):
    tokenizer = loaded[1]
    wanted = {*byte_ids(tokenizer, "".join(BANS)), tokenizer.pad}
    wanted |= {token for text in BANS for token in tokenizer.encode(text)}
    held = dict.fromkeys(BANS, 0)
    for seed in range(6):
        draw = SamplingConfig(temperature=1, top_k=0, seed=seed)
        texts = [
            written(Yearning(sorted(wanted), 512, 1.0), tokenizer, "hello moon", ban, draw, 150)
            for ban in ((), tuple(BANS[seed % 2 :: 2]), tuple(BANS))
        ]
        for each in BANS:
            held[each] += each in texts[0]
            assert each not in texts[2] and (each not in texts[1] or each not in BANS[seed % 2 :: 2])
            assert ("hello moon" + texts[2]).count(each) == "hello moon".count(each)
        assert len(texts[2]) > 50
    assert sum(count > 0 for count in held.values()) > 6, held  # without the bans, most came


def test_a_ban_that_never_comes_up_changes_nothing(loaded):
    texts = [written(*loaded, "hello", ban, WILD, 30) for ban in ((), ("zzzzzzzz",))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("wanted", ["moon", "caf\u00e9", "\U0001f600", "the queen"])
@pytest.mark.parametrize("before", ["", " ", "a ", "\n"])
def test_a_model_that_wants_nothing_but_a_word_cannot_write_it_in_bytes(loaded, wanted, before):
    tokenizer = loaded[1]
    model = Yearning(byte_ids(tokenizer, wanted), tokenizer.vocabulary)
    for seed in range(6):
        draw = SamplingConfig(temperature=1, top_k=0, seed=seed)
        assert wanted not in before + written(model, tokenizer, before, (wanted,), draw, 50)


@pytest.mark.parametrize("word", ["moon", "caf\u00e9", "\U0001f600", "\u00e9", "x"])
def test_the_last_byte_of_a_banned_word_is_where_it_ends(loaded, word):
    tokenizer = loaded[1]
    config, texts = StreamConfig(max_tokens=len(word.encode())), []
    for ban in ((), (word,)):
        model = Script(byte_ids(tokenizer, word), tokenizer.vocabulary)
        found = events(model, tokenizer, [tokenizer.bos], config, GREEDY, WordsConfig(ban=ban))
        texts.append("".join(event.text for event in found))
    assert (texts[0], word in texts[1]) == (word, False)
    assert texts[1].startswith(word[:-1])  # all before it may be written


def test_a_word_of_one_piece_is_banned_with_and_without_a_space_before_it(loaded):
    tokenizer = loaded[1]
    banned = {*Words(WordsConfig(ban=("oon",)), tokenizer).banned(b"").tolist()}
    assert {tokenizer.encode(" moon")[0], tokenizer.pieces.index("oon")} <= banned
    assert banned == {token for token, piece in enumerate(tokenizer.pieces) if "oon" in str(piece)}


def test_a_word_that_the_prompt_begins_is_not_finished(loaded):
    tokenizer = loaded[1]
    model = Script(pieces(tokenizer, "oon") * 3, tokenizer.vocabulary)
    config, ids = StreamConfig(max_tokens=1), [tokenizer.bos, *tokenizer.encode("m")]
    free = [event.text for event in events(model, tokenizer, ids, config, GREEDY)]
    model = Script(pieces(tokenizer, "oon") * 3, tokenizer.vocabulary)
    held = [event.text for event in events(model, tokenizer, ids, config, GREEDY, WordsConfig(ban=("moon",)))]
    assert (free, "oon" in held[0]) == (["oon"], False)


def test_only_what_the_model_writes_after_a_role_can_complete_a_ban(loaded):
    tokenizer = loaded[1]
    words = Words(WordsConfig(ban=("moon",)), tokenizer)
    prompt = [tokenizer.bos, tokenizer.user, *pieces(tokenizer, "m"), tokenizer.end, tokenizer.assistant]
    assert words.tail(prompt) == b""
    assert words.tail([tokenizer.bos, *pieces(tokenizer, "a", "m")]) == b"am"


def test_a_control_token_in_the_middle_does_not_hide_a_banned_word(loaded):
    tokenizer = loaded[1]
    words = Words(WordsConfig(ban=("moon",)), tokenizer)
    tail = words.grown(words.grown(b"", pieces(tokenizer, "m")[0]), tokenizer.pad)
    assert pieces(tokenizer, "oon")[0] in words.banned(tail)


def test_a_ban_forbids_no_end_and_every_ending_of_a_word_only_where_it_began(loaded):
    tokenizer = loaded[1]
    words = Words(WordsConfig(ban=("moon", "\u00e9")), tokenizer)
    assert not {tokenizer.eos, tokenizer.end} & {*words.banned(b"moo\xc3").tolist()}
    (o,) = pieces(tokenizer, "o")
    assert [o in words.banned(tail) for tail in (b"", b"mo", b"noo")] == [False, False, False]
    (n,) = pieces(tokenizer, "n")
    assert [n in words.banned(tail) for tail in (b"", b"moo", b"xmoo", b"oo")] == [False, True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_the_ids_banned_are_those_of_the_specification(loaded, seed):
    tokenizer, draw = loaded[1], random.Random(seed)
    words = Words(WordsConfig(ban=tuple(BANS)), tokenizer)
    spelled = [piece if isinstance(piece, bytes) else piece.encode() for piece in tokenizer.pieces]
    tail = whole = b""
    for _ in range(60):
        token = draw.choice([*byte_ids(tokenizer, "moonth\u00e9 ,1"), draw.randrange(512)])
        whole, tail = whole + spelled[token], words.grown(tail, token)
        expected = specification.completing(spelled, [ban.encode() for ban in BANS], whole)
        assert sorted({*words.banned(tail).tolist()}) == expected


def test_golden_vectors_ban_what_the_text_shows():
    for case in json.loads((GOLDEN / "sampler_options.json").read_text())["completing"]:
        shown, bans = bytes.fromhex(case["tail"]), [bytes.fromhex(ban) for ban in case["bans"]]
        for token, piece in enumerate(map(bytes.fromhex, case["pieces"])):
            more = [(shown + piece).count(ban[-1:]) and ends(shown, piece, ban) for ban in bans]
            assert any(more) == (token in case["ids"])


def ends(tail: bytes, piece: bytes, ban: bytes) -> bool:
    """Whether a banned text ends inside the piece."""
    return any((tail + piece)[: len(tail) + cut].endswith(ban) for cut in range(1, len(piece) + 1))


def test_beams_and_the_best_of_several_heed_bans_and_biases(loaded):
    model, tokenizer = loaded
    prompt, config = [1, *tokenizer.encode("hello")], StreamConfig(max_tokens=12)
    for search in (SearchConfig(beams=3), SearchConfig(best_of=2)):
        free = find(model, tokenizer, prompt, config, SamplingConfig(), WordsConfig(), search)
        ban = free.text[1:3]
        held = find(model, tokenizer, prompt, config, SamplingConfig(), WordsConfig(ban=(ban,)), search)
        assert ban in free.text and ban not in held.text
        pushed = find(model, tokenizer, prompt, config, SamplingConfig(), WordsConfig(bias=("#300=60",)), search)
        assert pushed.tokens.count(300) > 9


@pytest.mark.parametrize(
    ("ban", "message"),
    [
        (("",), "must not be empty"),
        (("a\ufffd",), "or hold U\\+FFFD"),
        (("\udcff",), "lone surrogate"),
        ("moon", "ban must be a tuple of texts"),
    ],
)
def test_a_ban_that_cannot_be_kept_is_refused(ban, message):
    with pytest.raises(ValueError, match=message):
        WordsConfig(ban=ban)


# Biases.


def test_a_bias_is_for_the_word_with_and_without_a_space_where_each_is_one_token(loaded):
    tokenizer = loaded[1]
    assert tokens_of("moon", tokenizer) == tokenizer.encode(" moon")  # moon alone is m and oon
    assert tokens_of(" moon", tokenizer) == tokenizer.encode(" moon")
    assert tokens_of("m", tokenizer) == [*tokenizer.encode("m"), *tokenizer.encode(" m")]
    assert tokens_of("#300", tokenizer) == [300]
    assert tokens_of("#", tokenizer) == tokenizer.encode("#")


def test_biases_of_one_token_add_up(loaded):
    words = Words(WordsConfig(bias=("#300=1.5", "#301=1", "#300=-0.25")), loaded[1])
    assert words.bias == {300: 1.25, 301: 1.0}


def test_a_bias_makes_a_word_come_or_stay_away(loaded):
    model, tokenizer = loaded
    prompt = [1, *tokenizer.encode("hello")]

    def tokens(*bias: str) -> list[int]:
        config = StreamConfig(max_tokens=8)
        return [e.token for e in events(model, tokenizer, prompt, config, GREEDY, WordsConfig(bias=bias))]

    free = tokens()
    assert tokens("#400=100") == [400] * 8
    assert free[0] not in tokens(f"#{free[0]}=-100")
    assert tokens("#400=0") == free


def test_a_bias_with_equals_signs_is_cut_at_the_last(loaded):
    words = Words(WordsConfig(bias=("==2",)), loaded[1])
    assert words.bias == dict.fromkeys(tokens_of("=", loaded[1]), 2.0)


@pytest.mark.parametrize("text", ["moon", "=1", "moon=", "moon=x", "moon=nan", "moon=inf", "moon=101", ""])
def test_a_bias_that_is_malformed_is_refused(text):
    with pytest.raises(ValueError, match=r'bias must be "word=X" or "#id=X", X from -100 to 100, got'):
        WordsConfig(bias=(text,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#512=1", "bias must be for ids from 0 to 511, got #512"),
        ("moon river=1", "bias must be for one token, got 'moon river', which is 2: #"),
        ("\U0001f600=1", "which is 5: #"),
    ],
)
def test_a_bias_for_what_is_no_token_is_refused(loaded, text, message):
    with pytest.raises(ValueError, match=message):
        Words(WordsConfig(bias=(text,)), loaded[1])


# Runs that are not repeated.


def runs(ids: list[int], size: int) -> list[tuple[int, ...]]:
    """Those without a control token."""
    found = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
    return [run for run in found if min(run) > Tokenizer.end]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ids_that_complete_a_run_are_those_that_followed_it(size):
    draw, found = random.Random(size), 0
    for length in range(size - 1, 60):
        text = draw.choices((Tokenizer.end, 7, 8), (1, 6, 6), k=length)  # the first is a control token
        had, ending = runs(text, size), tuple(text[length - size + 1 :])
        assert repeating(text, size) == {token for token in range(12) if (*ending, token) in had}
        found += len(repeating(text, size))
    assert found > 10 and repeating([], size) == repeating([9] * (size - 1), size) == set()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("search", [None, SearchConfig(beams=3), SearchConfig(best_of=2)])
def test_no_run_is_written_twice_nor_one_of_the_prompt(loaded, size, search):
    model, tokenizer = loaded
    prompt = [tokenizer.bos, *tokenizer.encode("hello moon and the moon and the garden")]
    length = StreamConfig(max_tokens=60)
    sampling = GREEDY if search and search.beams else SamplingConfig(temperature=0.2)

    def repeats(words: WordsConfig) -> int:
        if search:
            tokens = find(model, tokenizer, prompt, length, sampling, words, search).tokens
        else:
            tokens = [event.token for event in events(model, tokenizer, prompt, length, sampling, words)]
        found = runs([*prompt, *tokens], size)
        return len(found) - len({*found})

    given = runs(prompt, size)
    assert repeats(WordsConfig(no_repeat_ngram=size)) == len(given) - len({*given}) < repeats(WordsConfig())


def test_a_run_comes_again_where_nothing_else_may(loaded):
    tokenizer = loaded[1]
    moon = tokenizer.encode("moon")[-1]
    others = [f"#{token}=-100" for token in range(tokenizer.vocabulary) if token != moon]
    words = WordsConfig(no_repeat_ngram=2, bias=(*others, f"#{moon}=100"))
    model = Yearning([moon], tokenizer.vocabulary)
    source = events(model, tokenizer, [tokenizer.bos, moon], StreamConfig(max_tokens=4), GREEDY, words)
    assert [event.token for event in source] == [moon] * 4


def test_a_run_must_be_of_two_tokens_or_more():
    for size in (-1, 1):
        with pytest.raises(ValueError, match=f"must be 0, which is off, or at least 2, got {size}"):
            WordsConfig(no_repeat_ngram=size)
