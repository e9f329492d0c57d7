"""Vectors of the loop that writes a text: `python tests/golden/make_loop.py`.

They are what `trm_mlx.decode.stream.events` writes with a model that anyone can build in a few lines: its scores
are a hash of the depth and of all tokens so far, with the numbers of `make_sampler.py`'s generator. So a token lost,
read twice or at another place, or anything left of an older text, changes every score after it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from make_sampler import written

from trm_mlx import PRETRAINED  # before mlx
from trm_mlx.config import to_json
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.splitmix import WORD, splitmix64
from trm_mlx.tokenizer import Tokenizer

import mlx.core as mx  # isort: skip

FILE = Path(__file__).with_name("loop.json")
DESCRIPTION = [
    "Vectors of the writing loop, format trm.loop/1, written by make_loop.py; the tokenizer is the pretrained one.",
    "pieces: from id `first` on, the bytes of each id in hexadecimal. encoded: texts and their ids.",
    "cases: `model` begins a text at state number(seed, depth), and each token t makes state number(state, t), where",
    "number(seed, step) is SplitMix64 as in sampler.json. The score of id i is the top 24 bits of number(state, i),",
    "divided by 2^20, minus 8; but that of wanted[n], if there is one, is 16 after the prompt and n tokens.",
    "`settings` are as in a settings file. tokens and texts: those of each event; reason: that of the last.",
]
DEPTHS = 3
GREEDY, OPEN = {"temperature": 0.0}, {"temperature": 1.0, "top_k": 0}
WILD = {"temperature": 4.0, "top_k": 0}  # single bytes and control tokens too


class Table(TinyRecursiveLM):
    """The model of the vectors."""

    def __init__(self, vocabulary: int, context: int, seed: int, wanted: dict[int, int]) -> None:
        shape = {"width": 4, "heads": 1, "kv_heads": 1, "depth": DEPTHS, "context": context}
        super().__init__(ModelConfig(vocabulary=vocabulary, **shape))
        self.seed, self.wanted, self.number = seed, wanted, 0  # wanted: by the tokens before it

    def __call__(self, ids, *, cache=None, **options):
        assert cache is not None
        if cache.length == 0:
            self.number = splitmix64(self.seed, cache.depth)
        for token in ids[0].tolist():
            self.number = splitmix64(self.number, token)
        cache.advance(ids.shape[1])
        scores = (numbers(self.number, self.config.vocabulary) >> 40) / np.float32(2**20) - np.float32(8)
        if cache.length in self.wanted:
            scores[self.wanted[cache.length]] = 16
        return mx.array(scores.astype(np.float32))[None, None]


def numbers(seed: int, count: int) -> np.ndarray:
    """The first outputs of a generator, as `splitmix64` gives them one by one; (count,) uint64."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Maker:
    """Makes cases with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.cases = tokenizer, []
        self.encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        return self.encoded.setdefault(text, self.tokenizer.encode(text))

    def bytes_of(self, text: str | bytes) -> list[int]:
        """One byte token for each byte."""
        data = text if isinstance(text, bytes) else text.encode()
        return [self.tokenizer.pieces.index(bytes([byte])) for byte in data]

    def spelled(self, *parts: str) -> list[int]:
        """One piece for each part."""
        return [self.tokenizer.pieces.index(part) for part in parts]

    def add(self, name: str, sampling: dict[str, Any], prompt="Once upon a time", wanted=(), **more: Any) -> str:
        """One case; gives its text. `prompt` is a text or ids, `more` settings and what the model is."""
        ids = prompt if isinstance(prompt, list) else [self.tokenizer.bos, *self.encode(prompt)]
        seed, context = more.pop("model_seed", len(self.cases)), more.pop("context", 256)
        bias, ban, run = tuple(more.pop("bias", ())), tuple(more.pop("ban", ())), more.pop("no_repeat_ngram", 0)
        words = WordsConfig(bias=bias, ban=ban, no_repeat_ngram=run)
        for word in words.bias:
            word = word.rpartition("=")[0]
            self.encode(word), self.encode(" " + word)
        stream = StreamConfig(**{"max_tokens": max(len(wanted), 1), "stop": tuple(more.pop("stop", ())), **more})
        draws = SamplingConfig(**sampling)
        model = Table(self.tokenizer.vocabulary, context, seed, dict(enumerate(wanted, len(ids))))
        found = list(events(model, self.tokenizer, ids, stream, draws, words))
        settings = {**to_json(stream), "sampling": to_json(draws), "words": to_json(words)}
        self.cases.append(
            {
                "name": name,
                "model": {"seed": seed, "context": context, "depths": [*range(1, DEPTHS + 1)]},
                "wanted": [*wanted],
                "prompt": ids,
                "settings": settings,
                "tokens": [event.token for event in found],
                "texts": [event.text for event in found],
                "reason": found[-1].reason,
            }
        )
        return "".join(event.text for event in found)


def sampled(make: Maker) -> None:
    """Texts that only the sampler decides: every option, depths, prompts of one piece and of several."""
    for name, sampling in {
        "greedy": GREEDY,
        "usual": {},
        "open": OPEN,
        "wild": WILD,
        "top_p and min_p": {**OPEN, "top_p": 0.7, "min_p": 0.05, "seed": 2**63 + 1},
        "typical": {**OPEN, "typical_p": 0.4, "seed": WORD},
        "repetition": {"temperature": 0.5, "repetition_penalty": 3.0},
        "presence": {**GREEDY, "presence_penalty": -9.0},
        "frequency": {**GREEDY, "frequency_penalty": -1.5},
        "all": {"top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    }.items():
        make.add(name, sampling, max_tokens=16, model_seed=1)
    for depth in (1, 2, 3):
        make.add(f"depth {depth}", {}, max_tokens=6, depth=depth, model_seed=1)
    for length in (1, 63, 64, 65, 127, 128, 129, 256, 257, 300):
        ids = [1, *(7 + (splitmix64(length, place) % 4089) for place in range(length - 1))]
        make.add(f"prompt of {length}", {"repetition_penalty": 2.0}, ids, max_tokens=4, context=512, model_seed=1)
    make.add("history of the prompt", {**GREEDY, "frequency_penalty": 5.0}, [1, *[300] * 4, 301], [300, 301, 300])
    make.add("history of the text", {**GREEDY, "frequency_penalty": 5.0}, [1], [300] * 6)
    make.add("seed of the model", {}, max_tokens=6, model_seed=WORD)


def ended(make: Maker) -> None:
    """Every reason to end, and characters cut by it."""
    t, cat = make.tokenizer, make.spelled(" c", "at")
    whole, half = make.bytes_of("\U0001f600"), make.bytes_of(b"\xf0\x9f\x98")
    for name, end in {"eos": t.eos, "end": t.end}.items():
        make.add(f"{name} first", GREEDY, wanted=[end], max_tokens=5)
        make.add(f"{name} later", GREEDY, wanted=[*cat, end], max_tokens=5)
        make.add(f"{name} in a character", GREEDY, wanted=[*cat, *half, end], max_tokens=9)
    make.add("end on the last token", GREEDY, wanted=[*cat, t.end])
    make.add("length of one", GREEDY, max_tokens=1)
    make.add("length in a character", GREEDY, wanted=[*cat, *half])
    make.add("length at the end of a character", GREEDY, wanted=[*cat, *whole])
    make.add("context", {}, max_tokens=99, context=12)
    make.add("context of one more", {}, [1, 300, 301], max_tokens=99, context=4)
    make.add("context in a character", GREEDY, [1], wanted=half, context=4, max_tokens=9)
    make.add("context and length at once", GREEDY, [1], wanted=cat, context=3, max_tokens=2)
    make.add("context and end at once", GREEDY, [1], wanted=[*cat, t.eos], context=4, max_tokens=9)
    make.add("control tokens give no text", GREEDY, wanted=[*cat, t.pad, t.bos, t.user, t.assistant, *cat])
    make.add("a control token cuts a character", GREEDY, wanted=[*half, t.pad, *half[:1], *cat])
    make.add("unknown", GREEDY, wanted=[*cat, t.unknown, *cat])
    bad = make.bytes_of(b"\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xff\xe2\x82a\xf0\x9f\x98\x80\xe2\x82")
    make.add("bytes that are no text", GREEDY, wanted=bad)
    make.add("surplus of an end by bias", {**WILD, "seed": 3}, bias=["#2=25"], max_tokens=40)


def stopped(make: Maker) -> None:
    """Stop texts in one token, across several, overlapping, begun, and of characters that look alike."""
    free = make.add("before any stop", OPEN, max_tokens=20, model_seed=12)
    for start, size in ((0, 1), (3, 2), (7, 9), (20, 4), (33, 3), (len(free) - 1, 1), (len(free) - 6, 6)):
        stop = free[start : start + size]
        make.add(f"stop at {start}", OPEN, max_tokens=20, model_seed=12, stop=[stop])
        near = [stop + "~", free[start + 1 : start + 4] + "~", "~", stop]
        make.add(f"stops near {start}", OPEN, max_tokens=20, model_seed=12, stop=near)
    for parts, stops in [
        ("abcd", ["bc"]),
        ("abcd", ["x", "d"]),
        ("abcd", ["a"]),
        ("ababc", ["abc"]),
        ("aaab", ["aab"]),
        ("abcd", ["abcd", "c"]),
        ("abcd", ["bc", "abc"]),
        ("abcd", ["cx", "bcdx"]),
        ("abcabde", ["abd", "bcd"]),
        ("aaaaaaab", ["aaaab"]),
    ]:
        make.add(f"{parts} with stops {' '.join(stops)}", GREEDY, wanted=make.spelled(*parts), stop=stops)
    for text, stops in [
        ("a\u00e9\U0001f600b", ["\U0001f600"]),
        ("ae\u0301b", ["\u00e9"]),  # canonically equal, other bytes
        ("ae\u0301b", ["e"]),  # only the first half of what is shown
        ("a\u00e9b", ["e\u0301", "e"]),
        ("a\r\nb", ["\n"]),
        ("a\r\nb", ["\r"]),
        ("a\U0001f468\u200d\U0001f469b", ["\u200d"]),
        ("a\u00e9", ["\u00e8", "\u00e9\u0301"]),
        ("a\x00b", ["\x00"]),
    ]:
        wanted = make.bytes_of(text)
        make.add(f"bytes of {text!a} with stops {stops!a}", GREEDY, wanted=wanted, stop=stops, max_tokens=12)
    t, ab = make.tokenizer, make.spelled("a", "b")
    make.add("end while a stop is begun", GREEDY, wanted=[*ab, t.eos], stop=["bc"])
    make.add("stop on the last token", GREEDY, wanted=ab, stop=["b"])
    make.add("stop across a control token", GREEDY, wanted=[ab[0], t.pad, ab[1]], stop=["ab"], max_tokens=9)
    half = make.bytes_of(b"\xf0\x9f")
    make.add("replacement that is a stop, at the end", GREEDY, wanted=[*ab, *half, t.eos], stop=["\ufffd"])
    make.add("replacement that is a stop, at the length", GREEDY, wanted=[*ab, *half], stop=["\ufffd\ufffd"])
    make.add("stop in one token", GREEDY, wanted=make.spelled(" upon", " time"), stop=["im"])
    make.add("first to end in one token", GREEDY, wanted=make.spelled(" upon", " time"), stop=["upon", "p", "po"])


def steered(make: Maker) -> None:
    """Biases and bans."""
    t = make.tokenizer
    make.add("bias of a word", OPEN, bias=["moon=12", "#300=3.5", "#300=-0.25"], max_tokens=12)
    make.add("bias after a space only", OPEN, bias=[" moon=9", "==2", "#=4"], max_tokens=12)
    make.add("bias against", GREEDY, wanted=make.spelled(" upon") * 3, bias=["#828=-100"])
    make.add("a ban that never comes up", OPEN, ban=["zzzzzzzz"], max_tokens=8, model_seed=12)
    free = make.add("before any ban", OPEN, max_tokens=20, model_seed=12)
    for start, size in ((0, 1), (2, 3), (9, 7), (30, 2)):
        make.add(f"ban at {start}", OPEN, max_tokens=20, model_seed=12, ban=[free[start : start + size]])
    for text in ("moon", "caf\u00e9", "\U0001f600", "a a", "e"):
        spelled = make.bytes_of(text)
        make.add(f"ban of bytes {text!a}", GREEDY, wanted=spelled * 2, ban=[text])
        make.add(f"bans of {text!a} and its ends", GREEDY, wanted=spelled * 2, ban=[text, text[-1:], text[1:] or "~"])
    make.add("ban in a longer word", GREEDY, wanted=make.spelled(" upon", " moon", " time"), ban=["oo", "upo"])
    make.add("ban begun by the prompt", GREEDY, [1, *make.spelled("m")], make.spelled("oon"), ban=["moon"])
    turn = [1, t.user, *make.spelled("m"), t.end, t.assistant]
    make.add("ban not begun by another turn", GREEDY, turn, make.spelled("oon"), ban=["moon"])
    around = [*make.spelled("m"), t.pad, *make.spelled("oon")]
    make.add("ban around a control token", GREEDY, wanted=around, ban=["moon"])
    make.add("ban of an accent alone", GREEDY, wanted=make.bytes_of("e\u0301\u00e9"), ban=["\u00e9"])
    make.add(
        "ban of what is equal in sight", GREEDY, wanted=make.bytes_of("\u00e9e\u0301"), ban=["e\u0301", "\u00e9"]
    )
    make.add("ban, bias, stop and penalties", {"repetition_penalty": 1.4}, ban=["e", " the"], bias=["moon=9"],
             stop=["ight"], max_tokens=30)  # fmt: skip
    make.add("the letter that a ban leaves to bytes", {**WILD, "seed": 5}, ban=["e", "a", "o"], max_tokens=24)


def unrepeated(make: Maker) -> None:
    """Runs that come once: of the prompt and of the text, cut by control tokens, against biases and penalties."""
    t, moon, night = make.tokenizer, make.spelled(" moon")[0], make.spelled(" night")[0]
    for run in (2, 3, 5):
        make.add(f"runs of {run}", GREEDY, wanted=[moon, night] * 8, no_repeat_ngram=run)
    make.add("a run of the prompt", GREEDY, [1, moon, night, moon], [night, moon, night], no_repeat_ngram=2)
    make.add("a run longer than the text", GREEDY, [1, moon], [moon] * 6, no_repeat_ngram=9)
    turn = [1, t.user, moon, night, t.end, t.assistant, moon]
    make.add("a run of another turn", GREEDY, turn, [night, moon], no_repeat_ngram=2)
    make.add("a run across control tokens", GREEDY, [1, 1, 1], [t.pad, t.pad, moon, t.pad, moon], no_repeat_ngram=2)
    make.add("runs and an end", GREEDY, [1, moon, t.eos, moon], [t.eos], max_tokens=9, no_repeat_ngram=2)
    bias = [f"#{moon}=90", f"#{night}=100"]
    make.add("runs and bias", GREEDY, [1, moon], bias=bias, max_tokens=12, no_repeat_ngram=2)
    make.add("runs, bans and penalties", {"frequency_penalty": -9.0, "top_k": 3}, [300], ban=["m"], max_tokens=20,
             no_repeat_ngram=2)  # fmt: skip


def document() -> str:
    """The whole text of `loop.json`."""
    tokenizer = Tokenizer.load(PRETRAINED / "tokenizer.model")
    make = Maker(tokenizer)
    for group in (sampled, ended, stopped, steered, unrepeated):
        group(make)
    spelled = [(piece if isinstance(piece, bytes) else piece.encode()).hex() for piece in tokenizer.pieces]
    lines = {
        "ids": [{"bos": tokenizer.bos, "eos": tokenizer.eos, "end": tokenizer.end}],
        "pieces": [{"first": at, "bytes": spelled[at : at + 64]} for at in range(0, len(spelled), 64)],
        "encoded": [{"text": text, "ids": ids} for text, ids in make.encoded.items()],
        "cases": make.cases,
    }
    return written("trm.loop/1", DESCRIPTION, lines)


if __name__ == "__main__":
    FILE.write_bytes(document().encode())
