"""`python -m convert.verify` believes no file of an export, whoever changed it."""

import json
import re
import shutil

import mlx.core as mx
import pytest

pytest.importorskip("coremltools")

from export_folder import SPEC, WEIGHTS, edited, flip, save_export, vouch
from tiny_folder import save_tiny

from convert import golden, manifest, package, verify
from trm_mlx import checkpoint, config

pytest_plugins = ["export_folder"]
SWAPPED = {"unknown": 0, "bos": 1, "eos": 2, "pad": 3, "user": 5, "assistant": 4, "end": 6}


@pytest.fixture
def answer(asked, small, exported, monkeypatch):
    """Verify an export, with the untouched package in the place of one made again: exit status and error line."""

    def copy(held, plan, folder, name, how):
        return shutil.copytree(exported / "Tiny.mlpackage", folder / "Tiny.mlpackage")

    def ask(export):
        monkeypatch.setattr(package, "make", copy)
        status, _, told = asked(verify.main, export, "--model", small)
        return status, told.splitlines()[-1]

    return ask


@pytest.mark.slow
def test_an_export_is_verified(small, exported, asked):
    status, told, _ = asked(verify.main, exported, "--model", small)
    assert status == 0 and told.splitlines()[-1] == f"verified  {exported}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["int4", "lut4"])
def test_an_export_that_coremltools_rounded_is_verified(how, small, tmp_path, asked):
    export = save_export(tmp_path / "export", small, compress=how, depths=(1,))
    status, _, told = asked(verify.main, export, "--model", small)
    assert status == 0, told


@pytest.mark.slow
def test_another_model_than_that_of_the_export_is_refused(exported, tmp_path, asked):
    other = save_tiny(tmp_path / "other")
    status, _, told = asked(verify.main, exported, "--model", other)
    assert status == 2 and "was made from another model" in told


@pytest.mark.slow
def test_a_flipped_bit_is_found_though_the_manifest_vouches_for_it(copied, answer):
    flip(copied / "Tiny.mlpackage" / WEIGHTS, 64 + 64)
    vouch(copied)
    status, told = answer(copied)
    assert status == 1 and "its numbers are not those of the model" in told and "operation" in told


@pytest.mark.slow
def test_another_tokenizer_is_found_though_the_manifest_vouches_for_it(copied, answer):
    flip(copied / manifest.TOKENIZER, 40)
    vouch(copied)
    status, told = answer(copied)
    assert status == 1 and "tokenizer.model is not the one of" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", SWAPPED),
        ("window", 8),
        ("vocabulary", 513),
        ("kv_heads", 2),
        ("context", 25),
        ("stored_parameters", 1),
        ("weights", "4-bit affine"),
    ],
)
def test_a_changed_key_of_the_manifest_is_found(key, value, copied, answer):
    vouch(copied, **{key: value})
    status, told = answer(copied)
    assert status == 1 and told.startswith("convert.verify: error: ")


@pytest.mark.slow
def test_a_manifest_of_another_program_is_found(copied, small, asked):
    vouch(copied, state="host")
    status, _, told = asked(verify.main, copied, "--model", small)
    assert status == 1 and "must be" in told.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [manifest.GOLDEN, manifest.TOKENIZER, f"Tiny.mlpackage/{SPEC}", f"Tiny.mlpackage/{WEIGHTS}"]
)
def test_a_file_that_is_cut_short_is_found(path, copied, answer):
    file = copied / path
    file.write_bytes(file.read_bytes()[:-100])
    status, told = answer(copied)
    assert status == 1 and path in told


@pytest.mark.slow
@pytest.mark.parametrize("path", ["more.txt", "Tiny.mlpackage/Data/more"])
def test_a_file_that_is_added_is_found(path, copied, answer):
    (copied / path).write_text("more")
    status, told = answer(copied)
    assert status == 1 and path in told


@pytest.mark.slow
@pytest.mark.parametrize("path", [manifest.TOKENIZER, "Tiny.mlpackage/Data"])
def test_a_link_in_the_place_of_a_file_or_folder_is_found(path, copied, tmp_path, answer):
    shutil.move(copied / path, tmp_path / "elsewhere")
    (copied / path).symlink_to(tmp_path / "elsewhere")
    status, told = answer(copied)
    assert status == 2 and "must be a plain file" in told


@pytest.mark.slow
def test_a_changed_program_is_found_with_the_first_operation_that_differs(copied, answer):
    with edited(copied) as spec:
        block = spec.mlProgram.functions["decode"].block_specializations["CoreML8"]
        next(each for each in block.operations if each.type == "less_equal").type = "less"
    status, told = answer(copied)
    assert status == 1 and "must be less_equal own_seen" in told


@pytest.fixture(scope="module")
def reference(small, exported):
    model, tokenizer = checkpoint.load(small, mx.float32)
    text = (exported / manifest.GOLDEN).read_text()
    return text, manifest.read(exported), model, tokenizer


def faults(reference, change):
    """The first fault of golden texts whose JSON was changed."""
    text, told, model, tokenizer = reference
    record = json.loads(text)
    change(record)
    return next(golden.faults(config.from_json(golden.Golden, record, "golden"), told, model, tokenizer), None)


def change_text(record):
    record["continuations"][1]["text"] = "Another time"


def change_ids(record):
    """As one who also says that all of it is a tie."""
    for each in record["continuations"]:
        each["ids"], each["lead"] = [9] * len(each["ids"]), 0.0


def change_context(record):
    record["context"][5] = 7 if record["context"][5] != 7 else 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_text, "every text at every exported depth"),
        (lambda record: record["continuations"].pop(), "every text at every exported depth"),
        (lambda record: record["continuations"].clear(), "every text at every exported depth"),
        (lambda record: record["continuations"][0]["prompt"].pop(), "its prompt must be"),
        (change_ids, "its ids must be those that MLX writes"),
        (change_context, "must be what MLX draws|self-test"),
        (lambda record: record["context"].pop(), "context must be 24 ids"),
    ],
)
def test_golden_texts_that_mlx_does_not_write_are_found(change, words, reference):
    assert re.search(words, faults(reference, change) or "")


@pytest.mark.slow
def test_golden_texts_of_an_export_have_no_fault(reference):
    assert faults(reference, lambda record: None) is None
