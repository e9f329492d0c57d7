"""`python -m trm_mlx.quantize`: round a model's matrices to few bits, and say what that costs."""

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import mlx.core as mx
import numpy as np

from trm_mlx import PRETRAINED, checkpoint, config, data, objectives
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.runs import CORPUS
from trm_mlx.tokenizer import Tokenizer

FABLES = Path(__file__).parent.parent / "docs" / "fables.txt"  # in a checkout
GROUPS = {8: 0, 6: 32, 4: 32}  # inputs that share a scale, where --group does not say
REPORT_SECONDS = 5.0
Bits = Literal[8, 6, 4]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Round a model's matrices to few bits, and say what that costs."""

    model: Annotated[Path, "model folder"] = PRETRAINED
    out: Annotated[Path, "model folder to make"] = Path("runs/quantized")
    bits: Annotated[Bits, "bits a weight"] = 8
    method: Annotated[grid.Method, "multiples of a scale, or a table of values found by k-means"] = "affine"
    group: Annotated[
        int | None,
        "affine: inputs that share a scale, 0 for a whole row, none for 0 at 8 bits and 32 below; "
        "lut: rows that share a table, 0 or none for all",
    ] = None
    embedding_bits: Annotated[Bits | None, "bits of the embedding, which is also the head; none: as the rest"] = None
    core_bits: Annotated[Bits | None, "bits of the core, which every pass uses; none: as the rest"] = None
    data: Annotated[
        tuple[str, ...], "text to measure on; empty: what the run folder held out, or docs/fables.txt"
    ] = ()
    max_tokens: Annotated[int, "most tokens to measure on"] = 65_536
    json: Annotated[bool, "print one JSON object"] = False

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, got {self.max_tokens}")
        if self.group is not None and self.group < 0:
            raise ValueError(f"group must not be negative, got {self.group}")

    def grid(self, name: str) -> Grid:
        """The grid of the matrix of this name."""
        chosen = {"embedding": self.embedding_bits, "core": self.core_bits}.get(name.partition(".")[0])
        bits = chosen or self.bits
        usual = GROUPS[bits] if self.method == "affine" else 0
        return Grid(method=self.method, bits=bits, group=usual if self.group is None else self.group)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Bits per byte at one depth before and after; their difference by window, with its standard error.

    The error is NaN where there is one window.
    """

    depth: int
    before: float
    after: float
    difference: float
    difference_error: float


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was made, and what it cost."""

    bytes_before: int
    bytes_after: int
    seconds: float
    tokens: int
    damage: tuple[Damage, ...]


def quantize(settings: QuantizeConfig) -> Quantized:
    """Write a quantized model folder beside another one, which is left as it is.

    Raises:
        FileNotFoundError: the model or the data is missing.
        ValueError: the model is broken, the output exists, or a matrix does not suit the grid.
    """
    held = checkpoint.contents(settings.model)
    if held.grids:
        _say(
            f"{settings.model} is quantized already: its rounded numbers are rounded again, and are the ones compared"
        )
    if settings.out.exists():
        raise ValueError(f"{settings.out} must be a new folder; remove it, or choose another --out")
    if not next(parent for parent in settings.out.absolute().parents if parent.exists()).is_dir():
        raise ValueError(f"{settings.out} must be in a folder, got one below a file; choose another --out")
    grids = {name: settings.grid(name) for name in held.config.matrices()}
    for name, shape in held.config.matrices().items():
        try:
            grids[name].groups(shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    text = _text(settings, held.tokenizer)  # a missing file is told before the work
    began, arrays = time.perf_counter(), held.dense()
    due = began + REPORT_SECONDS
    for number, (name, each) in enumerate(grids.items()):
        if time.perf_counter() >= due:
            _say(f"rounding  matrices {number}/{len(grids)}")
            due = time.perf_counter() + REPORT_SECONDS
        matrix = arrays.pop(name)
        if held.grids.get(name) == each:
            arrays |= {part: held.arrays[part] for part in each.names(name)}
        else:
            arrays |= grid.fit(name, np.array(matrix.astype(mx.float32)), each)
    seconds = time.perf_counter() - began
    length = min(held.config.window or held.config.context, held.config.context)
    before = _scores(settings.model, text, length)  # a model that cannot be measured leaves no folder
    checkpoint.save(settings.out, held.config, held.tokenizer, arrays, _dtype(held), grids)
    after, damage = _scores(settings.out, text, length), []
    for depth, parts in before.items():
        pairs = zip(after[depth], parts, strict=True)
        gap = objectives.score([(new[0] - old[0], *new[1:]) for new, old in pairs])
        first, last = (objectives.score(each).bits_per_byte for each in (parts, after[depth]))
        told = {"difference": gap.bits_per_byte, "difference_error": gap.standard_error}
        damage.append(Damage(depth=depth, before=first, after=last, **told))
    sizes = [(folder / checkpoint.MODEL).stat().st_size for folder in (settings.model, settings.out)]
    return Quantized(
        bytes_before=sizes[0], bytes_after=sizes[1], seconds=seconds, tokens=len(text) - 1, damage=tuple(damage)
    )


def _text(settings: QuantizeConfig, tokenizer: Tokenizer) -> np.ndarray:
    """The ids to measure on."""
    folder = settings.model / CORPUS
    if not settings.data and folder.is_dir():
        corpus = data.Corpus.load(folder, verify=True)
        if corpus.tokenizer_sha256 != checkpoint.digest(tokenizer.bytes):
            raise ValueError(f"{folder} was made with another tokenizer than the model's; give --data")
        return data.read_tokens(corpus.held_out_path)[: settings.max_tokens + 1]
    sources = settings.data or ((str(FABLES),) if FABLES.is_file() else ())
    if not sources:
        raise ValueError("--data must name text to measure on: files, folders or globs of .txt or .jsonl")
    ids: list[int] = []
    for document in data.documents(sources):
        ids += [tokenizer.bos, *document.ids(tokenizer), tokenizer.eos]
        if len(ids) > settings.max_tokens:
            break
    return np.array(ids[: settings.max_tokens + 1])


def _scores(folder: Path, text: np.ndarray, length: int) -> dict[int, list[tuple[float, int, int]]]:
    model, tokenizer = checkpoint.load(folder, packed=False)
    scores = {}
    for depth in range(1, model.config.depth + 1):
        _say(f"measuring  model {folder}  depth {depth}")
        scores[depth] = _parts(model, tokenizer, text, length, depth)
        if not all(math.isfinite(nats) for nats, _, _ in scores[depth]):
            raise ValueError(f"the loss at depth {depth} must be finite; {folder} holds a broken model")
    return scores


def _parts(
    model: TinyRecursiveLM, tokenizer: Tokenizer, text: np.ndarray, length: int, depth: int
) -> list[tuple[float, int, int]]:
    windows = data.held_out_windows(text, length)
    return objectives.score_windows(
        model, windows, tokenizer.byte_lengths, lambda batch: objectives.causal(batch, tokenizer.pad), depth
    )


def _dtype(held: checkpoint.Contents) -> mx.Dtype:
    """Of what is not rounded: as it was stored."""
    return held.arrays["final_norm.weight"].dtype


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(QuantizeConfig, argv, program="trm_mlx.quantize")
    with config.door("trm_mlx.quantize"):
        made = quantize(settings)
        if settings.json:
            record = asdict(made)
            for one in record["damage"]:  # JSON has no NaN
                one["difference_error"] = None if math.isnan(one["difference_error"]) else one["difference_error"]
            print(json.dumps({"model": str(settings.out), **record}, allow_nan=False))
            return
        share = made.bytes_after / made.bytes_before
        print(f"bytes {made.bytes_before} -> {made.bytes_after} ({share:.2f}x)  seconds {made.seconds:.1f}")
        for one in made.damage:
            line = f"depth {one.depth}  bits_per_byte {one.before:.4f} -> {one.after:.4f}"
            error = "" if math.isnan(one.difference_error) else f" +- {one.difference_error:.4f}"
            print(f"{line}  difference {one.difference:+.4f}{error}  tokens {made.tokens}")


if __name__ == "__main__":
    main()
