"""What MLX makes of some texts: the reference that the package, and the app that runs it, are held against."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from convert.manifest import GOLDEN, Manifest, SelfTest, SelfTestStep
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
NEAR = 1e-3  # what another machine may change of a share, or of a score as a share of the largest


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
        _continuation(model, _prompt(tokenizer, text, context), text, depth, context)
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


def faults(golden: Golden, told: Manifest, model: TinyRecursiveLM, tokenizer: Tokenizer) -> Iterator[str]:
    """One line for each thing in the golden texts, and in the manifest's self-test, that the model does not say."""
    depths = [pair.depth for pair in told.functions]
    named = [(each.depth, each.text) for each in golden.continuations]
    if named != [(depth, text) for depth in depths for text in TEXTS]:
        yield "must hold every text at every exported depth"
        return
    for each in golden.continuations:
        where = f"depth {each.depth}, {each.text!r}"
        wanted = _continuation(
            model, _prompt(tokenizer, each.text, told.context), each.text, each.depth, told.context
        )
        if each.prompt != wanted.prompt:
            yield f"{where}: its prompt must be what the tokenizer makes of the text"
        elif abs(each.lead - wanted.lead) > NEAR or (each.ids != wanted.ids and wanted.lead > NEAR):
            yield f"{where}: its ids must be those that MLX writes"
    ids = golden.context
    if len(ids) != told.context or ids[0] != tokenizer.bos or not all(0 <= each < told.vocabulary for each in ids):
        yield f"context must be {told.context} ids, bos first"
        return
    rows, random = scores(model, ids, depths[-1]), np.random.default_rng(SEED)
    for place, (row, token) in enumerate(zip(rows, ids[1:], strict=False)):
        low, high = (_drawn_id(row, share) for share in np.clip(random.random() + np.array([-NEAR, NEAR]), 0, 1))
        if not low <= token <= high:
            yield f"context: id {place + 1} must be what MLX draws, {low} to {high}, got {token}"
    test = told.self_test
    if test.depth != depths[-1] or [each.id for each in test.steps] != list(ids[:SELF_TEST]):
        yield f"the self-test must be of the first {SELF_TEST} ids of the context, at the deepest depth"
        return
    for step, row in zip(test.steps, rows, strict=False):
        least = np.sort(row)[-TOP] - NEAR * np.abs(row).max()
        if len({*step.top}) != TOP or not all(0 <= each < len(row) and row[each] >= least for each in step.top):
            yield f"the self-test must name the {TOP} likeliest tokens after {step.id}, got {list(step.top)}"


def _prompt(tokenizer: Tokenizer, text: str, context: int) -> list[int]:
    return [tokenizer.bos, *tokenizer.encode(text)][: context // 2]


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
            ids.append(_drawn_id(row, random.random()))
    return ids


def _drawn_id(row: np.ndarray, share: float) -> int:
    """The id at which (V,) scores reach such a share of all probability, special ones left out."""
    row = row[Tokenizer.end + 1 :].astype(np.float64)
    shares = np.cumsum(np.exp(row - row.max()))
    return min(int(np.searchsorted(shares, share * shares[-1])), len(row) - 1) + Tokenizer.end + 1
