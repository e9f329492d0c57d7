"""`python -m convert`: a Core ML package, and all that an app needs beside it, from a model folder."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from convert import NEEDED, manifest
from convert.manifest import Compression, Precision, StateKind
from trm_mlx import PRETRAINED, config


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a model as a Core ML package, with its manifest, tokenizer and golden texts."""

    model: Annotated[Path, "model folder, quantized or not"] = PRETRAINED
    out: Annotated[Path, "export folder to make"] = Path("runs/export")
    name: Annotated[str | None, "of the package and of Xcode's class; none: from the model folder's name"] = None
    depths: Annotated[tuple[int, ...], "passes to export functions for; empty: 1 to the most"] = ()
    context: Annotated[int | None, "positions; none: as many as the model was made for"] = None
    chunk: Annotated[int | None, "tokens that prefill reads at once; none: 64, or half of a short context"] = None
    state: Annotated[StateKind, "who owns the cache: the package, as a Core ML state, or the app"] = "model"
    precision: Annotated[Precision, "of activations and of what is not quantized"] = "float16"
    compress: Annotated[Compression, "let coremltools round a plain model, and say what it costs"] = "none"
    force: Annotated[bool, "replace what is at --out"] = False

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,63}", self.name):
            raise ValueError(f"name must be letters and digits, a letter first, got {self.name!r}")
        if list(self.depths) != sorted({*self.depths}):
            raise ValueError(f"depths must ascend, got {' '.join(map(str, self.depths))}")


def export(settings: ExportConfig) -> Path:
    """Write the export folder, whole or not at all, and check it; what it is made of is in docs/export.md.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a setting does not suit the model, or something is at `out`.
        ImportError: coremltools is missing.
        RuntimeError: the package does not pass `lint`.
    """
    from trm_mlx import checkpoint

    held = checkpoint.contents(settings.model)
    shape = held.config
    depths = tuple(shape.at_depth(depth) for depth in settings.depths) or tuple(range(1, shape.depth + 1))
    context = shape.context if settings.context is None else settings.context
    if not 3 <= context <= shape.context:
        raise ValueError(f"context must be 3 to the {shape.context} that the model was made for, got {context}")
    if shape.head_width % 32:
        raise ValueError(
            f"heads must be a multiple of 32 wide, or the Neural Engine refuses the cache, got {shape.head_width}"
        )
    if settings.compress != "none" and held.grids:
        raise ValueError(f"{settings.model} is quantized already; --compress is for a plain model")
    if settings.out.exists() and not settings.force:
        raise ValueError(f"{settings.out} exists; remove it, choose another --out, or give --force")
    if settings.out.exists() and not manifest.is_export(settings.out):
        raise ValueError(f"{settings.out} is no export folder, so --force does not replace it; choose another --out")
    if find_spec("coremltools") is None:
        raise ImportError(NEEDED)
    if settings.compress.startswith("lut") and find_spec("sklearn") is None:
        raise ImportError('scikit-learn must be installed for --compress lut*; run: pip install -e ".[convert]"')
    with uninterrupted():
        from convert import folder
        from convert.program import Plan

    chunk = min(64, max(2, context // 2)) if settings.chunk is None else settings.chunk
    plan = Plan(depths=depths, context=context, chunk=chunk, state=settings.state, precision=settings.precision)
    name = settings.name or class_name(settings.model.resolve().name)
    out = settings.out.resolve()  # what a link leads to is replaced, and not the link
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, before = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("partial", "before"))
    began = time.perf_counter()
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        folder.fill(aside, held, plan, name, settings.compress, lambda what: _say(began, what))
        if out.exists():
            os.replace(out, before)
        os.replace(aside, out)
    finally:
        if before.exists() and not out.exists():
            os.replace(before, out)
        for each in (aside, before):
            shutil.rmtree(each, ignore_errors=True)
    return settings.out


@contextmanager
def uninterrupted() -> Generator[None]:
    """Hold Ctrl-C back until the end: libraries that are being imported take it for a missing part of theirs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def class_name(text: str) -> str:
    """tiny-stories-4m -> TinyStories4M."""
    words = re.findall(r"[A-Za-z]+|[0-9]+", text)
    name = "".join(word[:1].upper() + word[1:] for word in words)
    return name if name[:1].isalpha() else f"Model{name}"


def _say(began: float, what: str) -> None:
    print(f"{time.perf_counter() - began:5.1f} s  {what}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ExportConfig, argv, program="convert")
    with config.door("convert"):
        made = export(settings)
        for file in sorted(each for each in made.rglob("*") if each.is_file()):
            print(f"{file.stat().st_size:>10}  {file}")
        if settings.compress != "none":
            from convert import agreement

            print(agreement.line("damage", agreement.damage(made, settings.model)))
        print(f"check it with: python -m convert.verify {made} --model {settings.model}", file=sys.stderr)


if __name__ == "__main__":
    main()
