import struct
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from saved_folder import GRIDS, document, loaded, parts, reconfigured, refusal, stamped

from trm_mlx import checkpoint, config

pytest_plugins = ["saved_folder"]


# Hostile scales and tables


def overwritten(folder: Path, name: str, content: bytes) -> None:
    """Other bytes at the beginning of a tensor, which the weights vouch for."""
    header, data = parts(folder)
    start = header[name]["data_offsets"][0]
    stamped(folder, header, data[:start] + content + data[start + len(content) :])


@pytest.mark.parametrize("name", ["embedding.scales", "core.0.attention.qkv.scales", "core.0.feed_forward.up.table"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_scales_and_tables_that_are_no_numbers_are_refused(rounded, name, number):
    overwritten(rounded, name, struct.pack("<e", number))
    refusal(lambda: checkpoint.load(rounded), "model.safetensors", name, "must be finite")


@pytest.mark.parametrize(("number", "words"), [(-0.5, "above 0"), (0.0, "above 0"), (-0.0, "above 0"), (6e4, "480")])
def test_scales_below_0_and_scales_that_overflow_are_refused(rounded, number, words):
    overwritten(rounded, "embedding.scales", struct.pack("<e", number))
    refusal(lambda: checkpoint.load(rounded), "model.safetensors", "'embedding.scales'", words)


def test_a_scale_whose_products_would_be_rounded_is_refused(rounded):
    overwritten(rounded, "embedding.scales", struct.pack("<e", 1 + 2**-10))
    refusal(lambda: checkpoint.load(rounded), "'embedding.scales' must be of at most 4 significant bits")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("embedding.weight", "F32", "'embedding.weight' must be of mlx.core.uint32"),
        ("core.0.feed_forward.up.table", "BF16", "'core.0.feed_forward.up.table' must be of mlx.core.float16"),
        ("embedding.scales", "BF16", "'embedding.scales' must be of mlx.core.float16"),
        ("final_norm.weight", "U32", "'final_norm.weight' must be of floating point numbers"),
        ("prelude.0.feed_forward.up.weight", "U32", "must be of floating point numbers"),
    ],
)
def test_tensors_of_another_type_are_refused(rounded, name, kind, words):
    header, data = parts(rounded)
    header[name]["dtype"] = kind
    stamped(rounded, header, data)
    refusal(lambda: checkpoint.load(rounded), "model.safetensors", words)


def test_any_whole_numbers_give_finite_weights(rounded):
    for word in (b"\0", b"\xff", b"\x80"):
        header, data = parts(rounded)
        for name in GRIDS:
            start, stop = header[name]["data_offsets"]
            data = data[:start] + word * (stop - start) + data[stop:]
        stamped(rounded, header, data)
        assert all(mx.isfinite(array).all() for array in loaded(rounded, mx.float16).values())


# Hostile grids


EIGHT: dict[str, Any] = {"method": "affine", "bits": 8, "group": 0}


@pytest.mark.parametrize(
    ("grids", "words"),
    [
        (None, "grids must be a table"),
        ([], "grids must be a table"),
        ("embedding.weight", "grids must be a table"),
        ({"embedding": EIGHT}, "grids names 'embedding', which is no matrix of this model"),
        ({"final_norm.weight": EIGHT}, "grids names 'final_norm.weight'"),
        ({"core.1.attention.qkv.weight": EIGHT}, "grids names 'core.1.attention.qkv.weight'"),
        ({"coda.0.attention.qkv.weight": EIGHT}, "grids names 'coda.0.attention.qkv.weight'"),
        ({"core.00.attention.qkv.weight": EIGHT}, "grids names"),
        ({"core.-1.attention.qkv.weight": EIGHT}, "grids names"),
        ({"core.\u0660.attention.qkv.weight": EIGHT}, "grids names"),
        ({"core.0.attention.qkv.weight\n": EIGHT}, "grids names"),
        ({"core.0.attention.qkv": EIGHT}, "grids names"),
        ({"core.0.attention.qkv.scales": EIGHT}, "grids names"),
        ({"core.0.attention_norm.weight": EIGHT}, "grids names"),
        ({"core." + "9" * 5000 + ".attention.qkv.weight": EIGHT}, "grids names"),
        ({"": EIGHT}, "grids names ''"),
        ({"../../x": EIGHT}, "grids names"),
        ({"embedding.weight": None}, "grids.embedding.weight must be a table of settings"),
        ({"embedding.weight": 8}, "grids.embedding.weight must be a table of settings"),
        ({"embedding.weight": EIGHT | {"bits": "8"}}, "bits must be a whole number, got '8'"),
        ({"embedding.weight": EIGHT | {"bits": 8.0}}, "bits must be a whole number, got 8.0"),
        ({"embedding.weight": EIGHT | {"bits": True}}, "bits must be a whole number, got True"),
        ({"embedding.weight": EIGHT | {"bits": 2}}, "bits must be 4, 6 or 8, got 2"),
        ({"embedding.weight": EIGHT | {"bits": 10**3000}}, "bits must be 4, 6 or 8"),
        ({"embedding.weight": EIGHT | {"group": -32}}, "group must not be negative"),
        ({"embedding.weight": EIGHT | {"group": 33}}, "group must divide the 32 inputs"),
        ({"embedding.weight": EIGHT | {"group": 2**70}}, "group must divide the 32 inputs"),
        ({"embedding.weight": EIGHT | {"group": 10**3000}}, "group must divide the 32 inputs"),
        ({"embedding.weight": EIGHT | {"method": "lut", "group": 7}}, "group must divide the 320 rows"),
        ({"embedding.weight": EIGHT | {"method": "ternary"}}, "method must be one of 'affine', 'lut'"),
        ({"embedding.weight": EIGHT | {"method": ["lut"]}}, "method must be one of"),
        ({"embedding.weight": EIGHT | {"zero_point": 8}}, "unknown key 'zero_point'"),
    ],
    ids=lambda value: repr(value)[-50:],
)
def test_grids_that_are_not_understood_are_refused(rounded, grids, words):
    reconfigured(rounded, document({"grids": grids}))
    refusal(lambda: checkpoint.load(rounded), "config.json", words)


def test_grids_of_another_size_than_the_tensors_are_refused(rounded):
    grids = {name: config.to_json(each) for name, each in GRIDS.items()}
    reconfigured(rounded, document({"grids": grids | {"embedding.weight": EIGHT | {"bits": 4}}}))
    refusal(lambda: checkpoint.load(rounded), "model.safetensors must hold the", "numbers of its config.json")


@pytest.mark.parametrize("grids", [{}, {"embedding.weight": EIGHT}, {"core.1048575.attention.out.weight": EIGHT}])
def test_grids_of_a_model_of_millions_of_blocks_are_refused_at_once(rounded, grids):
    many: dict[str, Any] = dict.fromkeys(("prelude", "core", "coda"), 1 << 20)
    reconfigured(rounded, document({"grids": grids}, **many))
    began = time.perf_counter()
    refusal(lambda: checkpoint.load(rounded), "model.safetensors", "numbers of its config.json")
    assert time.perf_counter() - began < 1
