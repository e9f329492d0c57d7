"""What MLX makes of some texts: the reference that the package, and the app that runs it, are held against."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from convert.manifest import GOLDEN, SelfTest, SelfTestStep
from trm_mlx import config, fused
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

# isort: split
import mlx.core as mx

TEXTS = (
    "Once upon a time",
    "One morning the little fox said to his mother,",
    '"Where are you going?" asked the old man.\n\n"To the river," said',
    "It was 7 o'clock \u2014 caf\u00e9, \u732b, \U0001f98a!",
)  # story, speech, a blank line, and characters that are spelt in bytes
WRITTEN = 32  # tokens of a greedy continuation
SELF_TEST, TOP = 16, 5
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The likeliest token after each step, from a prompt on, at one depth."""

    depth: int
    text: str
    prompt: Annotated[tuple[int, ...], "ids, bos first"]
    ids: tuple[int, ...]
    lead: Annotated[float, "least distance of a chosen score from the next, as a share of the largest score"]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The file golden.json."""

    format: Literal["trm.golden"] = "trm.golden"
    version: Literal[1] = 1
    continuations: tuple[Continuation, ...]
    context: Annotated[tuple[int, ...], "ids that fill the context, drawn from the model itself"]


def scores(model: TinyRecursiveLM, ids: Sequence[int], depth: int) -> np.ndarray:
    """(T, V) float32: what MLX's own operations give after each of the ids."""
    with fused.use("plain"):
        return np.array(model(mx.array([list(ids)]), depth=depth)[0].astype(mx.float32))


def golden(model: TinyRecursiveLM, tokenizer: Tokenizer, depths: Sequence[int], context: int) -> Golden:
    """The reference of a model at some depths, for a context of so many tokens."""
    continuations = [
        _continuation(model, [tokenizer.bos, *tokenizer.encode(text)][: context // 2], text, depth, context)
        for depth in depths
        for text in TEXTS
    ]
    return Golden(
        continuations=tuple(continuations), context=tuple(_drawn(model, tokenizer.bos, depths[-1], context))
    )


def self_test(model: TinyRecursiveLM, golden: Golden, depth: int) -> SelfTest:
    """The first tokens of the golden context, and the likeliest tokens after each."""
    ids = golden.context[:SELF_TEST]
    likeliest = np.argsort(-scores(model, ids, depth), axis=-1, kind="stable")[:, :TOP]
    steps = (SelfTestStep(id=token, top=tuple(map(int, row))) for token, row in zip(ids, likeliest, strict=True))
    return SelfTest(depth=depth, steps=tuple(steps))


def text(golden: Golden) -> bytes:
    """The file's content."""
    return (json.dumps(config.to_json(golden), ensure_ascii=True) + "\n").encode()


def read(folder: Path) -> Golden:
    """The golden texts of an export folder.

    Raises:
        FileNotFoundError, ValueError: there are none, or they are malformed.
    """
    return config.read(Golden, folder / GOLDEN)


def _continuation(model: TinyRecursiveLM, prompt: list[int], text: str, depth: int, context: int) -> Continuation:
    cache, ids, lead = model.cache(depth), [], np.inf
    given = prompt
    with fused.use("plain"):
        for _ in range(min(WRITTEN, context - len(prompt))):
            row = np.array(model(mx.array([given]), depth=depth, cache=cache, last=True)[0, 0].astype(mx.float32))
            second, first = np.sort(row)[-2:]
            lead = min(lead, float(first - second) / float(np.abs(row).max()))
            given = [int(row.argmax())]
            ids += given
    return Continuation(depth=depth, text=text, prompt=tuple(prompt), ids=tuple(ids), lead=lead)


def _drawn(model: TinyRecursiveLM, bos: int, depth: int, context: int) -> list[int]:
    """Ids drawn from the model at temperature 1, which keep it where text keeps it; special ones are left out."""
    cache, ids, random = model.cache(depth), [bos], np.random.default_rng(SEED)
    with fused.uncompiled():
        while len(ids) < context:
            row = np.array(model(mx.array([ids[-1:]]), depth=depth, cache=cache, last=True)[0, 0].astype(mx.float32))
            row = row[Tokenizer.end + 1 :].astype(np.float64)
            shares = np.cumsum(np.exp(row - row.max()))
            place = int(np.searchsorted(shares, random.random() * shares[-1]))
            ids.append(min(place, len(row) - 1) + Tokenizer.end + 1)
    return ids
