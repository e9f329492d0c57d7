"""`python -m convert.verify DIR`: proof that the saved package computes what MLX does, on any machine.

The package is made again from the model and compared operation by operation, number by number; then what is saved is
run by our own interpreter, through prefill, decode and the state, and held against MLX. On a Mac Core ML answers too.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np

from convert import NEEDED, golden, manifest
from convert.agreement import Agreement, line, take_weights
from convert.manifest import Manifest
from convert.session import Runner, Session
from trm_mlx import PRETRAINED, checkpoint, config
from trm_mlx.model import TinyRecursiveLM

# isort: split
import mlx.core as mx

SINGLE = 48  # tokens read one by one at the beginning of the context, and again at its end
BLOCK = 16  # products after which the accumulators of the error bar are rounded
LARGEST = 65_504.0  # what float16 holds
HIDDEN = -5e3  # scores below are of keys that the mask hides
TOLERANCE = {"float16": 2e-3, "float32": 1e-5}  # of a score, as a share of the largest one


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check an export folder against the model that it was made from."""

    export: Annotated[Path, "export folder; may be given without the flag"]
    model: Annotated[Path, "model folder that it was made from"] = PRETRAINED


class Interpreted(Runner):
    """A package run by our own interpreter."""

    def __init__(self, package, options, dtype: type[np.floating] = np.float16) -> None:
        self.package, self.options, self.dtype = package, options, dtype
        self.state: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """Begin a text."""
        zero = self.package.zero_state(self.package.functions[0])
        self.state = {name: array.astype(self.dtype) for name, array in zero.items()}

    def call(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a function."""
        return self.package.run(function, inputs, self.state, options=self.options)


def verify(settings: VerifyConfig) -> Iterator[str]:
    """Check an export folder; a line for each thing that holds.

    Raises:
        FileNotFoundError, ValueError: there is no export, or it was made from another model.
        ImportError: coremltools is missing.
        RuntimeError: something does not hold; the line says where.
    """
    told = manifest.read(settings.export)
    try:
        from convert import lint
        from convert.execute import Package
    except ImportError as error:
        raise ImportError(f"{NEEDED} ({error})") from None
    held = checkpoint.contents(settings.model)
    if held.revision != told.revision:
        raise ValueError(f"{settings.export} was made from another model than {settings.model}; name it with --model")
    changed = manifest.changed(settings.export, told)
    beside = f"; changed since the export: {', '.join(changed)}" if changed else ""
    try:
        package = Package(settings.export / told.package)
        faults = list(lint.faults(package))
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(f"{error}{beside}") from None
    yield from _made_again(settings, told, held, package, beside)
    if faults:
        raise RuntimeError(f"{told.package} is not sound: {faults[0]}{beside}")
    if changed:
        raise RuntimeError(f"files are not as the manifest says: {', '.join(changed)}")
    yield f"files     {len(told.files)}, each as the manifest says; the structure is sound"
    model, tokenizer = checkpoint.load(settings.model, mx.float32, packed=False)
    _say("reading the golden texts")
    if found := next(golden.faults(golden.read(settings.export), told, model, tokenizer), None):
        raise RuntimeError(f"golden.json or manifest.json says what MLX does not: {found}")
    if told.compress != "none":
        take_weights(model, package, told)
    yield from _agreements(settings.export, told, package, model)
    yield from _core_ml(settings.export, told, model)


def _made_again(
    settings: VerifyConfig, told: Manifest, held: checkpoint.Contents, package, beside: str
) -> Iterator[str]:
    """Make the package again, and compare."""
    from convert import folder
    from convert.compare import first_difference
    from convert.execute import Package
    from convert.package import make
    from convert.program import Plan

    wrote = dict(package.spec.description.metadata.userDefined).get("trm.coremltools")
    _say("making it again")
    if told.context > held.config.context:
        raise RuntimeError(
            f"manifest.json: context must be {held.config.context} at most, got {told.context}{beside}"
        )
    depths = tuple(pair.depth for pair in told.functions)
    plan = Plan(depths=depths, context=told.context, chunk=told.chunk, state=told.state, precision=told.precision)
    wanted = config.to_json(folder.describe(held, plan, told.name, told.compress))
    for key, value in config.to_json(told).items():
        if key not in ("self_test", "files") and value != wanted[key]:
            raise RuntimeError(f"manifest.json: {key} must be {wanted[key]}, got {value}{beside}")
    if (settings.export / manifest.TOKENIZER).read_bytes() != held.tokenizer.bytes:
        raise RuntimeError(f"{manifest.TOKENIZER} is not the one of {settings.model}{beside}")
    with tempfile.TemporaryDirectory() as aside:
        made = Package(make(held, plan, Path(aside), told.name, told.compress))
        found = first_difference(package, made)
        weights = sum(array.size for array in made.weights(told.functions[-1].decode).values())
    if found and wrote != version("coremltools"):
        found += f" (written by coremltools {wrote}, compared with {version('coremltools')})"
    if found:
        raise RuntimeError(f"{told.package} is not what {settings.model} gives: {found}{beside}")
    number = sum(len(package.operations(name)) for name in package.functions)
    yield f"program   {len(package.functions)} functions, {number} operations, as made again from the model"
    yield f"weights   {weights} numbers, bit for bit"


def _agreements(folder: Path, told: Manifest, package, model: TinyRecursiveLM) -> Iterator[str]:
    """Run the package beside MLX at every depth."""
    from convert.execute import Options

    reference, tolerance = golden.read(folder), TOLERANCE[told.precision]
    largest: dict[str, float] = {}

    def watch(operation, result: np.ndarray) -> None:
        if result.dtype == np.float32:
            seen = np.abs(result[result > HIDDEN])
            largest[operation.name] = max(largest.get(operation.name, 0.0), float(seen.max(initial=0)))

    dtype = np.float16 if told.precision == "float16" else np.float32
    for pair in told.functions:
        _say(f"depth {pair.depth}: {told.context} tokens of context, {len(reference.continuations)} golden texts")
        session = Session(told, Interpreted(package, Options(watch=watch), dtype), pair.depth)
        found = Agreement()
        every = golden.scores(model, reference.context, pair.depth)
        _read_context(session, reference.context, every, found)
        for text in (each for each in reference.continuations if each.depth == pair.depth):
            ids = [*text.prompt, *text.ids]
            wanted = golden.scores(model, ids, pair.depth)[len(text.prompt) - 1 :]
            session.reset()
            found.add(np.stack([session.append(text.prompt), *session.append(text.ids, every=True)]), wanted)
        yield line(f"depth {pair.depth}", found.figures(tolerance))
        _judge(f"depth {pair.depth}", found.figures(tolerance), tolerance)
    if told.precision == "float16":
        ids, every = reference.context[:SINGLE], every[:SINGLE]
        for what, options, kept in (
            ("unrounded", Options(widen=True), np.float32),
            (f"sums of {BLOCK}", Options(block=BLOCK), np.float16),
        ):
            found = Agreement()
            found.add(Session(told, Interpreted(package, options, kept)).append(ids, every=True), every)
            yield line(what, found.figures(tolerance))
    worst = sorted(largest, key=lambda name: -largest[name])[:5]
    yield "largest   " + ", ".join(f"{largest[name]:.4g} in {name}" for name in worst)
    if told.precision == "float16" and largest[worst[0]] >= LARGEST:
        raise RuntimeError(f"{worst[0]} reaches {largest[worst[0]]:.4g}, which float16 does not hold")


def _read_context(session: Session, ids: Sequence[int], wanted: np.ndarray, found: Agreement) -> None:
    """Read a whole context: token by token, by chunks, and token by token again to its very end."""
    chunk, end = session.manifest.chunk, session.manifest.context
    single = min(SINGLE, end // 4)
    found.add(session.append(ids[:single], every=True), wanted[:single])
    while session.position + chunk <= end - single:
        rows = session.append(ids[session.position : session.position + chunk])
        found.add(rows, wanted[session.position - 1])
    if session.position + 2 < end - single:  # a part of a chunk, padded
        rows = session.append(ids[session.position : end - single])
        found.add(rows, wanted[session.position - 1])
    rest = session.position
    found.add(session.append(ids[rest:end], every=True), wanted[rest:end])


def _core_ml(folder: Path, told: Manifest, model: TinyRecursiveLM) -> Iterator[str]:
    """Ask Core ML itself, where it is."""
    from convert import device

    if sys.platform != "darwin":
        yield "core ml   was not asked: it predicts on macOS only"
        return
    ids = golden.read(folder).context[:SINGLE]
    names = [name for pair in told.functions for name in (pair.decode, pair.prefill)]
    for units in ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"):
        runner = device.CoreMLRunner(folder / told.package, units, names, told.state == "model")
        for pair in told.functions:
            session, found = Session(told, runner, pair.depth), Agreement()
            wanted = golden.scores(model, ids, pair.depth)
            found.add(session.append(ids, every=True), wanted)
            session.reset()
            found.add(session.append(ids), wanted[-1])
            figures = found.figures(TOLERANCE[told.precision])
            yield line(f"{units}, depth {pair.depth}", figures)
            five = np.argsort(-np.stack(found.wanted), axis=-1)[:, : golden.TOP]
            if not all(row.argmax() in likeliest for row, likeliest in zip(found.rows, five, strict=True)):
                raise RuntimeError(
                    f"Core ML on {units} at depth {pair.depth} gives a token that is not among MLX's five"
                )


def _judge(what: str, figures: dict[str, float], tolerance: float) -> None:
    if not figures["relative_error"] <= tolerance:
        raise RuntimeError(f"{what}: scores must be within {tolerance} of MLX's, got {figures['relative_error']:.2e}")
    if figures["top1_agreement"] < 1:
        raise RuntimeError(f"{what}: likeliest tokens must be MLX's, got {figures['top1_agreement']:.2%} of them")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    words = manifest.folder_first(sys.argv[1:] if argv is None else argv)
    settings = config.parse(VerifyConfig, words, program="convert.verify")
    with config.door("convert.verify"):
        for what in verify(settings):
            print(what, flush=True)
        print(f"verified  {settings.export}")


if __name__ == "__main__":
    main()
