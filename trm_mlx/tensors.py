"""Tensors in a safetensors file that holds its own hash: equal tensors give equal bytes, and damage is noticed."""

import json
import math
import struct
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import mlx.core as mx

from trm_mlx import files

HEADER_BYTES = 1 << 22  # the header of a safetensors file of 30,000 tensors
TYPES = {
    "F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U64": mx.uint64, "U32": mx.uint32,
    "I8": mx.int8,
}  # fmt: skip


def check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, mx.array]) -> None:
    """Refuse tensors that are missing, unknown or of another shape than expected."""
    for name in sorted(expected.keys() | arrays.keys()):
        if name not in arrays:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        if name not in expected:
            raise ValueError(f"{path}: tensor {name!r} is unknown to a model of this config.json")
        if arrays[name].shape != expected[name]:
            raise ValueError(f"{path}: {name!r} must be {expected[name]}, got {arrays[name].shape}")


def write(path: Path, arrays: Mapping[str, mx.array], facts: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata holds the facts and the sha256 of the data.

    The same arrays give the same bytes. Format: huggingface.co/docs/safetensors.
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    mx.eval(list(arrays.values()))
    header, data, hashed, start = {}, [], sha256(), 0
    for name, array in sorted(arrays.items()):
        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        # Arrays are buffers, though MLX's type stubs do not say so.
        whole = memoryview(mx.contiguous(plain))  # ty: ignore[invalid-argument-type]
        data.append(whole.cast("B") if array.size else memoryview(b""))
        hashed.update(data[-1])
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    content = json.dumps({"__metadata__": {**facts, "sha256": hashed.hexdigest()}, **header}).encode()
    content += b" " * (-len(content) % 8)
    files.replace(path, struct.pack("<Q", len(content)), content, *data)


def read(path: Path, numbers: int | None = None) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, once everything that it says of itself holds.

    Args:
        numbers: how many numbers the tensors must hold together; checked before any is read.

    Raises:
        ValueError: the file is cut short, garbled, of other types, or not one that `write` made.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        if length > min(HEADER_BYTES, size - 8):
            raise ValueError(f"{path} must be a safetensors file, got {size} bytes that are not; it may be cut short")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
            facts = {str(key): str(value) for key, value in header.pop("__metadata__").items()}
            spans = sorted(_span(name, entry) for name, entry in header.items())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{path} must be a safetensors file saved by trm_mlx, got another header") from None
        end = 0
        for start, stop, _ in spans:
            if start != end:
                raise ValueError(f"{path}: its tensors must follow each other without gaps; it is damaged")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"{path} must hold {end} bytes of tensors, got {size - 8 - length}; it may be cut short")
        held = sum(math.prod(entry["shape"]) for entry in header.values())
        if numbers is not None and held != numbers:
            raise ValueError(f"{path} must hold the {numbers} numbers of its config.json, got {held}")
        hashed = sha256()
        while block := file.read(1 << 20):
            hashed.update(block)
    if facts.get("sha256") != hashed.hexdigest():
        raise ValueError(f"{path} is damaged: its data are not those it was saved with; restore it from a copy")
    try:
        arrays = mx.load(str(path))
        assert isinstance(arrays, dict)
        return arrays, facts
    except (RuntimeError, ValueError):  # JSON that Python reads and MLX does not, such as NaN
        raise ValueError(f"{path} must be a safetensors file saved by trm_mlx, got another header") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, none of whose keys comes twice: parsers differ in which one they believe."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _span(name: str, entry: dict) -> tuple[int, int, str]:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    whole = all(type(each) is int and each >= 0 for each in (start, stop, *shape))
    if not whole or stop - start != math.prod(shape) * TYPES[entry["dtype"]].size or len(shape) > 8:
        raise ValueError(name)
    return start, stop, name
