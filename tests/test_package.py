"""The bytes of a package: one copy of the weights, the model's own integers, and the same ones at every export."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("coremltools")

from export_folder import WEIGHTS, read, save_export
from tiny_folder import save_tiny

from convert import golden, manifest, package
from convert.execute import Package
from trm_mlx import checkpoint
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid

pytest_plugins = ["export_folder", "tiny_folder"]

GRIDS = {
    "embedding": Grid(method="affine", bits=8),
    "prelude.0.attention.qkv": Grid(method="affine", bits=6, group=32),
    "prelude.0.attention.out": Grid(method="affine", bits=4, group=32),
    "prelude.0.feed_forward.up": Grid(method="lut", bits=8),
    "prelude.0.feed_forward.down": Grid(method="lut", bits=6, group=16),
    "core.0.attention.qkv": Grid(method="lut", bits=4, group=8),
    "core.0.attention.out": Grid(method="lut", bits=4),
    "core.0.feed_forward.up": Grid(method="affine", bits=8, group=32),
    "core.0.feed_forward.down": Grid(method="affine", bits=4),
}


@pytest.fixture(scope="module")
def quantized(small, tmp_path_factory):
    """A model folder in which every matrix has another grid, and its export."""
    held = checkpoint.contents(small)
    grids = {f"{name}.weight": each for name, each in GRIDS.items()}
    arrays = dict(held.arrays)
    for name, each in grids.items():
        arrays |= grid.fit(name, np.array(arrays.pop(name).astype(mx.float32)), each)
    folder = tmp_path_factory.mktemp("quantized") / "model"
    checkpoint.save(folder, held.config, held.tokenizer, arrays, mx.float32, grids)
    return folder, save_export(folder.with_name("export"), folder)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("function", ["decode", "prefill", "decode_r1", "prefill_r1"])
def test_the_integers_of_a_package_are_those_of_the_model_folder(function, quantized):
    folder, export = quantized
    held, constants = checkpoint.contents(folder), Package(export / "Tiny.mlpackage").constants(function)
    for name, each in held.grids.items():
        key = "data" if each.method == "affine" else "indices"
        whole = constants[f"{name.replace('.', '_')}.{key}"][:, :, 0, 0]
        assert np.array_equal(whole, grid.whole_numbers(name, held.arrays, each)), name


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_a_quantized_package_gives_the_scores_of_mlx(depth, quantized):
    folder, export = quantized
    model, _ = checkpoint.load(folder, mx.float32, packed=False)
    ids = [7 + 29 * place % 500 for place in range(24)]
    wanted = golden.scores(model, ids, depth)
    rows = read(export, ids, depth, [8, 8, 1, 7])
    assert max(np.abs(row - wanted[count - 1]).max() for count, row in rows.items()) < 2e-3 * np.abs(wanted).max()


@pytest.mark.slow
def test_an_export_after_others_in_the_same_process_has_the_same_bytes(small, exported, quantized, tmp_path):
    assert files(save_export(tmp_path / "again", small)) == files(exported)


@pytest.mark.slow
def test_an_export_with_another_hash_seed_has_the_same_bytes(small, exported, tmp_path, command):
    words = ("--model", small, "--out", tmp_path / "again", "--name", "Tiny", "--chunk", 8)
    done = command("convert", *words, PYTHONHASHSEED="5")
    assert done.returncode == 0, done.stderr.decode()
    assert files(tmp_path / "again") == files(exported)


@pytest.mark.slow
def test_the_weights_are_stored_once_for_all_functions_and_passes(tmp_path):
    shape = {"width": 256, "heads": 4, "kv_heads": 2, "core": 1, "coda": 0, "depth": 3, "context": 64}
    model = save_tiny(tmp_path / "model", **shape)
    export = save_export(tmp_path / "export", model)
    numbers = checkpoint.load_config(model).stored_parameters()
    assert numbers > 1_000_000
    assert (export / "Tiny.mlpackage" / WEIGHTS).stat().st_size < 1.01 * 2 * numbers


@pytest.mark.slow
def test_every_file_is_in_the_manifest_with_its_hash(exported):
    told = manifest.read(exported)
    assert [each.path for each in told.files] == sorted(
        str(path) for path in files(exported) if str(path) != manifest.FILE
    )
    assert not manifest.changed(exported, told)


@pytest.mark.slow
def test_every_file_can_be_read_by_everybody(exported):
    for path in exported.rglob("*.mlpackage/**/*"):
        assert path.stat().st_mode & 0o444 == 0o444


def test_a_copy_that_finds_the_disk_full_says_so(tmp_path):
    why = [("a", "b/weight.bin", "[Errno 28] No space left on device: 'a' -> 'b/weight.bin'")]
    with pytest.raises(OSError, match="No space left on device") as caught, package.writing():
        raise shutil.Error(why)
    assert caught.value.filename == "b/weight.bin"


def test_a_weight_file_that_cannot_be_written_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(package.tempfile, "gettempdir", lambda: "/scratch")
    with pytest.raises(OSError, match="No space left on device: '/scratch'"), package.writing():
        raise RuntimeError("[MIL FileWriter]: Unknown error occurred while writing data to the file.")
