"""What each exit rule saves and costs: mean depth, bits per byte and agreement with all passes, on held-out text.

python benchmarks/exits.py --data stories-valid.jsonl --tokens 2000
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import trm_mlx  # before mlx.core
from trm_mlx import PRETRAINED, checkpoint, config, data, fused
from trm_mlx.cache import encoded
from trm_mlx.decode.exits import ExitConfig, ExitModel
from trm_mlx.decode.passes import Passes
from trm_mlx.decode.step import StepModel
from trm_mlx.model import EPSILON, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

# isort: split
import mlx.core as mx
import numpy as np

RULES = ("entropy:0.5", "entropy:1.5", "entropy:2.5", "change:0.95", "change:1.05", "change:1.15")


@dataclass(frozen=True, kw_only=True)
class ExitsConfig:
    """Read text token by token with exit rules, and score what it gives the text."""

    data: Annotated[tuple[str, ...], "text to predict, .txt or .jsonl"]
    model: Annotated[Path, "model folder"] = PRETRAINED
    rules: Annotated[tuple[str, ...], "values of --exit"] = RULES
    tokens: Annotated[int, "tokens to predict"] = 2000
    length: Annotated[int, "most tokens of a document"] = 256
    prompt: Annotated[int, "first tokens of a document, read at once with all passes and not scored"] = 16
    propagate: Annotated[
        bool, "give passes not run keys and values of the state left with, as CALM does, instead of the last pass's"
    ] = False
    json: Annotated[bool, "print one JSON object a line"] = False

    def __post_init__(self) -> None:
        for name in ("tokens", "prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length <= self.prompt:
            raise ValueError(f"length must be above the prompt's {self.prompt}, got {self.length}")


@dataclass(frozen=True)
class Found:
    """What a rule gives: passes a token, bits a byte, and the share of likeliest tokens that are full depth's."""

    rule: str
    mean_depth: float
    bits_per_byte: float
    agreement: float


class Watched(Passes):
    """Remembers the last state and its anchor."""

    last: tuple[mx.array, mx.array]

    def run(self, h: mx.array, anchor: mx.array, index: int) -> mx.array:
        h = super().run(h, anchor, index)
        self.last = h, anchor
        return h


class Propagating(ExitModel):
    """Gives passes that a token did not run keys and values made of the state that it left with."""

    def __init__(self, model: TinyRecursiveLM, exits: ExitConfig) -> None:
        super().__init__(model, exits=exits)
        self.folded = None  # its states are those of the model itself
        self.passes = self.watched = Watched(self)
        self.left: dict[int, tuple[mx.array, mx.array]] = {}  # by position

    def follow(self, token: int) -> np.ndarray:
        logits = super().follow(token)
        self.left[self.position - 1] = self.watched.last
        return logits

    def _fill(self, index: int) -> None:
        for position in range(self.upto[index] if index else self.position, self.position):
            h, anchor = (each.reshape(1, 1, -1) for each in self.left[position])
            x = _normed(h) + (self.model.injection * anchor if self.model.config.injection else 0)
            for block, slot, shallow in zip(
                self.model.core, self.cache.core[index], self.cache.core[index - 1], strict=True
            ):
                a = block.attention
                H, N, K = a.heads, a.kv_heads, a.head_width
                qkv = a.qkv(block.attention_norm(x), index).reshape(1, 1, H + 2 * N, K)[:, :, H:]
                k, v = (each.transpose(0, 2, 1, 3) for each in mx.split(qkv, 2, axis=2))
                k = a.key_norm(k) if "key_norm" in a else k
                k = fused.rope(k, a.rope_base, position) if a.rope_base else k
                slot.reserve(shallow.parts[0].shape[2], shallow.parts)
                for part, new in zip(slot.parts, encoded(mx.concatenate([k, v], axis=1), 0), strict=True):
                    place = self.cache.place(position)
                    part[:, :, place : place + 1] = new


def _normed(x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.square(x).mean(-1, keepdims=True) + EPSILON)


def documents(settings: ExitsConfig, tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of documents, as many as hold the tokens to predict."""
    found, left = [], settings.tokens
    for document in data.documents(settings.data):
        ids = [tokenizer.bos, *document.ids(tokenizer), tokenizer.eos][: min(settings.length, settings.prompt + left)]
        if len(ids) > settings.prompt:
            found.append(ids)
            left -= len(ids) - settings.prompt
        if not left:
            break
    if not found:
        raise ValueError(f"data must hold a document of more than the prompt's {settings.prompt} tokens")
    return found


def rows(text: StepModel, ids: list[int], prompt: int) -> Iterator[np.ndarray]:
    """(V,) scores of each token after the prompt."""
    text.reset()
    row = text.scores(ids[:prompt])
    for token in ids[prompt:]:
        yield row.astype(np.float64)
        row = text.follow(token)


def measure(
    text: StepModel, rule: str, texts: list[list[int]], sizes: Sequence[int], prompt: int, whole: list[int]
) -> Found:
    """Score the texts; whole: the likeliest tokens with all passes, which are added where there are none yet."""
    nats, size, best, depths = 0.0, 0, [], []
    for ids in texts:
        for row, token in zip(rows(text, ids, prompt), ids[prompt:], strict=True):
            top = row.max()
            nats += top + np.log(np.exp(row - top).sum()) - row[token]
            size += sizes[token]
            best.append(int(row.argmax()))
        depths += [passes for _, passes in text.depths[:-1]] if isinstance(text, ExitModel) else [text.depth]
    whole += best if not whole else []
    return Found(
        rule, float(np.mean(depths)), nats / size / np.log(2), float(np.mean(np.array(best) == np.array(whole)))
    )


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ExitsConfig, argv, program="benchmarks/exits.py")
    with config.door("benchmarks/exits.py"):
        model, tokenizer = checkpoint.load(settings.model)
        texts, whole, reader = documents(settings, tokenizer), [], Propagating if settings.propagate else None
        for rule in ("", *settings.rules):
            exits = ExitConfig(exit=rule)
            text = StepModel(model) if not rule else reader(model, exits) if reader else ExitModel(model, exits=exits)
            found = measure(text, rule or "none", texts, tokenizer.byte_lengths, settings.prompt, whole)
            if settings.json:
                print(json.dumps(asdict(found) | {"version": trm_mlx.__version__}), flush=True)
            else:
                print(
                    f"{found.rule:12}  mean_depth {found.mean_depth:.2f}  bits_per_byte {found.bits_per_byte:.4f}  "
                    f"agreement {found.agreement:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
