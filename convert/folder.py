"""Fills an export folder: package, tokenizer, golden texts and, last, the manifest that vouches for the rest."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convert import golden, lint, manifest, package
from convert.manifest import Compression, Manifest, Sampling, SelfTest, Tokens
from convert.program import Plan
from trm_mlx import checkpoint, files
from trm_mlx.checkpoint import Contents

# isort: split
import mlx.core as mx

SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=1.0, min_p=0.0, repetition_penalty=1.1)


def fill(
    folder: Path, held: Contents, plan: Plan, name: str, how: Compression, told: Callable[[str], None]
) -> Manifest:
    """Write all files of an export into an empty folder.

    Args:
        name: of the package.
        how: rounding by coremltools at export, or "none".
        told: is given what is done next.

    Raises:
        RuntimeError: the package does not pass `lint`.
        OSError: a file could not be written.
    """
    made = package.make(held, plan, folder, name, how, told)
    told("checking the structure")
    lint.check(made)
    told("writing the golden texts")
    model, tokenizer = checkpoint.load(held.folder, mx.float32, packed=False)
    reference = golden.golden(model, tokenizer, plan.depths, plan.context)
    files.replace(folder / manifest.GOLDEN, golden.text(reference))
    files.replace(folder / manifest.TOKENIZER, tokenizer.bytes)
    test = golden.self_test(model, reference, plan.depths[-1])
    record = replace(describe(held, plan, name, how), self_test=test, files=tuple(manifest.records(folder)))
    files.replace(folder / manifest.FILE, manifest.text(record))
    return record


def describe(held: Contents, plan: Plan, name: str, how: Compression) -> Manifest:
    """The manifest of an export, without its self-test and its files."""
    shape = held.config
    return Manifest(
        name=name,
        package=f"{name}.mlpackage",
        revision=held.revision,
        stored_parameters=shape.stored_parameters(),
        effective_parameters=shape.effective_parameters(plan.depths[-1]),
        weights=described(held, how),
        compress=how,
        precision=plan.precision,
        state=plan.state,
        vocabulary=shape.vocabulary,
        context=plan.context,
        window=shape.window,
        chunk=plan.chunk,
        slots=plan.slots(shape, plan.depths[-1]),
        kv_heads=shape.kv_heads,
        head_width=shape.head_width,
        functions=plan.pairs(shape),
        tokens=Tokens(),
        sampling=SAMPLING,
        self_test=SelfTest(depth=plan.depths[-1], steps=()),
        files=(),
    )


def described(held: Contents, how: Compression) -> str:
    """How the matrices are stored: `float16`, or for example `4-bit affine, group 32; 8-bit affine`."""
    if how != "none":
        return f"{how} by coremltools"
    kinds = [
        f"{each.bits}-bit {each.method}" + (f", group {each.group}" if each.group else "")
        for each in held.grids.values()
    ]
    return "; ".join(sorted(set(kinds))) or "plain"
