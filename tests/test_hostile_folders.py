import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from saved_folder import TINY, bits, document, loaded, parts, reconfigured, refusal, stamped, weights

from trm_mlx import checkpoint

pytest_plugins = ["saved_folder"]


# Hostile weights


def tensors(**change: Any) -> Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]:
    """What changes one entry of a header, and leaves the data."""

    def apply(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        header["final_norm.weight"] |= change
        return header, data

    return apply


def more(name: str, data: bytes = b"", **entry: Any) -> Callable[[dict[str, Any], bytes], Any]:
    """What adds an entry, and data after all others."""

    def apply(header: dict[str, Any], old: bytes) -> tuple[dict[str, Any], bytes]:
        offsets = {"data_offsets": [len(old), len(old) + len(data)]}
        return {**header, name: {"dtype": "F32", "shape": [len(data) // 4], **offsets, **entry}}, old + data

    return apply


def renamed(old: str, new: str) -> Callable[[dict[str, Any], bytes], Any]:
    return lambda header, data: ({new if name == old else name: header[name] for name in header}, data)


FORGED = {
    "overlapping tensors": lambda h, d: (h | {"final_norm.weight": h["embedding.weight"]}, d),
    "a gap": lambda h, d: ({name: h[name] for name in list(h)[1:]}, d),
    "negative shape": tensors(shape=[-32]),
    "two negative sides": tensors(shape=[-4, -8]),
    "negative offset": tensors(data_offsets=[-128, 0]),
    "offsets that run backwards": tensors(data_offsets=[128, 0]),
    "offsets past the end": tensors(data_offsets=[10**12, 10**12 + 128]),
    "one offset": tensors(data_offsets=[0]),
    "three offsets": tensors(data_offsets=[0, 128, 256]),
    "offsets of text": tensors(data_offsets="ab"),
    "no offsets": tensors(data_offsets=None),
    "shape of text": tensors(shape="32"),
    "shape of fractions": tensors(shape=[32.0]),
    "shape of truth": tensors(shape=[True, 32]),
    "shape of nothing": tensors(shape=None),
    "shape of nine sides": tensors(shape=[1] * 8 + [32]),
    "another shape": tensors(shape=[4, 8]),
    "a side that 32 bits do not hold": tensors(shape=[2**32 + 32]),
    "a side of 3,000 digits": tensors(shape=[10**3000]),
    "bytes of whole numbers": tensors(dtype="U32"),
    "longer numbers": tensors(dtype="F64"),
    "unknown numbers": tensors(dtype="F33"),
    "numbers of no type": tensors(dtype=None),
    "numbers of a list": tensors(dtype=["F32"]),
    "halves that are too few": tensors(dtype="F16"),
    "an entry that is a number": lambda h, d: (h | {"final_norm.weight": 7}, d),
    "an entry that is a list": lambda h, d: (h | {"final_norm.weight": []}, d),
    "a name that climbs": renamed("final_norm.weight", "../../x"),
    "an absolute name": renamed("final_norm.weight", "/etc/passwd"),
    "an empty name": renamed("final_norm.weight", ""),
    "a name with a NUL": renamed("final_norm.weight", "final_norm.weight\0"),
    "a name with a lone surrogate": renamed("final_norm.weight", "\ud800"),
    "a name with a new line": renamed("final_norm.weight", "final\nnorm"),
    "an unknown tensor": more("spare.weight", b"\0" * 128),
    "an empty tensor": more("spare.weight"),
    "an empty tensor of endless sides": more("spare.weight", shape=[0, 2**62, 2**62]),
    "a tensor less": lambda h, d: ({n: e for n, e in h.items() if e["data_offsets"][1] != len(d)}, d),
    "no tensor": lambda h, d: ({}, b""),
    "data left over": lambda h, d: (h, d + b"\0" * 8),
    "data missing": lambda h, d: (h, d[:-4]),
    "nesting": lambda h, d: (h | {"x": json.loads("[" * 400 + "]" * 400)}, d),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_forged_weights_are_refused(saved, forge):
    stamped(saved, *forge(*parts(saved)))
    refusal(lambda: checkpoint.load(saved), "model.safetensors")


def test_the_forger_by_hand_makes_a_file_that_loads(saved):
    stamped(saved, *parts(saved))
    assert bits(loaded(saved)) == bits(weights(1))


def raw_headers() -> dict[str, Callable[[bytes], bytes]]:
    """Headers that JSON readers disagree on, or that are no header, from a right one."""
    nested = b'{"a":' * 100_000
    return {
        "a tensor twice": lambda h: h[:-1] + b', "final_norm.weight": ' + h[h.rindex(b'{"dtype') :],
        "metadata twice": lambda h: h[:-1] + b', "__metadata__": {}}',
        "UTF-16": lambda h: h.decode().encode("utf-16"),
        "UTF-32": lambda h: h.decode().encode("utf-32"),
        "not a number in metadata": lambda h: h.replace(b'{"config"', b'{"x": NaN, "config"', 1),
        "a number in metadata": lambda h: h.replace(b'{"config"', b'{"x": 1, "config"', 1),
        "a list in metadata": lambda h: h.replace(b'{"config"', b'{"x": [1], "config"', 1),
        "a surrogate in metadata": lambda h: h.replace(b'{"config"', b'{"x": "\\ud800", "config"', 1),
        "broken UTF-8": lambda h: h.replace(b'{"config"', b'{"x": "\xff", "config"', 1),
        "a surrogate's bytes": lambda h: h.replace(b'{"config"', b'{"x": "\xed\xa0\x80", "config"', 1),
        "metadata of text": lambda h: b'{"__metadata__": "x"}',
        "metadata of a list": lambda h: b'{"__metadata__": []}',
        "no metadata": lambda h: b"{}",
        "a list": lambda h: b"[]",
        "null": lambda h: b"null",
        "nothing": lambda h: b"",
        "blanks": lambda h: b" " * 64,
        "half": lambda h: h[: len(h) // 2],
        "deep nesting": lambda h: nested,
        "deep lists": lambda h: b"[" * 1_000_000,
        "a number of 100,000 digits": lambda h: b'{"__metadata__": ' + b"9" * 100_000 + b"}",
        "5 MiB": lambda h: h + b" " * (5 << 20),
    }


@pytest.mark.parametrize("change", raw_headers().values(), ids=raw_headers())
def test_a_header_that_is_not_plain_json_is_refused(saved, change):
    content = (saved / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    stamped(saved, change(content[8 : 8 + length].rstrip()), content[8 + length :])
    began = time.perf_counter()
    refusal(lambda: checkpoint.load(saved), "model.safetensors")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**62, 2**32, 1 << 22, 10**6, 0])
def test_a_header_length_that_lies_is_refused_without_reading_so_much(saved, length):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    refusal(lambda: checkpoint.load(saved), "model.safetensors must be a safetensors file")


def test_weights_of_other_programs_are_refused(saved):
    path = saved / "model.safetensors"
    mx.save_safetensors(str(path), weights(1))
    refusal(lambda: checkpoint.load(saved), "model.safetensors must be a safetensors file saved by trm_mlx")
    mx.save_safetensors(str(path), weights(1), {"format": "mlx"})
    refusal(lambda: checkpoint.load(saved), "model.safetensors is damaged")
    mx.savez(str(saved / "weights.npz"), **weights(1))
    (saved / "weights.npz").replace(path)
    refusal(lambda: checkpoint.load(saved), "model.safetensors must be a safetensors file")
    path.write_text("weights")
    refusal(lambda: checkpoint.load(saved), "model.safetensors must be a safetensors file", "got 7 bytes")


# Hostile config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (document({"version": 2}), "version 2, this program reads 1; upgrade"),
        (document({"version": "1"}), "version '1'"),
        (document({"version": None}), "version None"),
        (document({"format": "other"}), 'must have "format": "trm_mlx.model"'),
        (document({"extra": 1}), "unknown key 'extra'"),
        (document({"model": []}), "must be a table"),
        (document({"model": None}), "must be a table"),
        (document(layers=3), "unknown key 'layers'"),
        (document(heads_=3), "did you mean heads?"),
        (document(width="32"), "width must be a whole number, got '32'"),
        (document(width=32.0), "width must be a whole number, got 32.0"),
        (document(width=True), "width must be a whole number, got True"),
        (document(width=0), "width must be 1 to 1048576, got 0"),
        (document(width=-32), "width must be 1 to 1048576, got -32"),
        (document(dropout=float("nan")), "dropout"),
        (document(rope_base=float("inf")), "rope_base"),
        (document(position="polar"), "position must be one of"),
        (b"", "config.json"),
        (b"[]", 'must have "format"'),
        (b"null", 'must have "format"'),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (document().decode().encode("utf-16"), "config.json is not valid JSON"),
        (b'{"a":' * 50_000, "config.json is not valid JSON"),
        (b"[" * 500_000, "config.json is not valid JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "config.json is not valid JSON"),
        (b" " * (1 << 20) + document(), "config.json must be at most"),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_a_config_that_is_not_understood_is_refused(saved, content, words):
    reconfigured(saved, content)
    refusal(lambda: checkpoint.load(saved), "config.json", words)


ENORMOUS = [
    *({name: 10**9} for name in ("prelude", "core", "coda", "depth", "pass_lora", "vocabulary")),
    *({name: 2**62} for name in ("vocabulary", "width", "context", "window", "depth", "prelude", "kv_heads")),
    *({"pass_scale": False, "depth": 2**62}, {"width": 2**31, "heads": 2**30, "kv_heads": 2**30}),
    *({"width": 10**4000}, {"position": "learned", "context": 2**30}, {"coda": 10**3000}),
]


@pytest.mark.parametrize("change", ENORMOUS, ids=lambda change: repr(change)[:40])
def test_enormous_numbers_are_refused_at_once_and_nothing_is_allocated(saved, change):
    reconfigured(saved, document(**change))
    mx.clear_cache()
    mx.reset_peak_memory()
    began, before = time.perf_counter(), mx.get_active_memory()
    refusal(lambda: checkpoint.load(saved), "config.json")
    assert time.perf_counter() - began < 5
    assert mx.get_peak_memory() - before < 10_000_000


def test_many_blocks_in_one_tensor_are_refused_before_they_are_made(saved):
    block: dict[str, Any] = {
        "width": 1,
        "heads": 1,
        "kv_heads": 1,
        "position": "none",
        "qk_norm": False,
        "prelude": 300_000,
    }
    shape = replace(TINY, **block)
    (saved / "config.json").write_bytes(document(**block))
    size = 2 * shape.stored_parameters()
    stamped(saved, {"x": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}, bytes(size))
    began = time.perf_counter()
    refusal(lambda: checkpoint.load(saved), "model.safetensors", "300001 blocks, got 1 tensors")
    assert time.perf_counter() - began < 5
