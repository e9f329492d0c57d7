"""A package that is damaged, or not what we know, is refused in one line."""

import random
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb
from coremltools.proto import Model_pb2
from packages import narrow, save

from convert.execute import Package

X = {"x": np.ones((1, 32, 1, 2), np.float16), "ids": np.zeros(2, np.int32)}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    def build(x, ids, kept):
        data = narrow(np.arange(1024).reshape(32, 32, 1, 1) % 16 - 8, 4, True)
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=np.ones((32, 1, 1, 1), np.float16), name="w")
        y = mb.conv(x=x, weight=weight, name="y")
        past = mb.read_state(input=kept)
        mb.coreml_update_state(state=kept, value=mb.add(x=past, y=np.arange(32, dtype=np.float16)))
        y = mb.add(x=y, y=mb.reshape(x=past, shape=[1, 32, 1, 1]), name="moved")
        y = mb.softmax(x=mb.tile(x=y, reps=[1, 1, 1, 2]), axis=1, name="soft")
        first, _ = mb.split(x=y, num_splits=2, axis=-1, name="halves")
        return first, mb.cast(x=ids, dtype="fp16", name="numbers")

    return save(tmp_path_factory.mktemp("pristine") / "Small.mlpackage", build, X, [(32,)])


@pytest.fixture
def package(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "Small.mlpackage")


def model_file(package):
    return package / "Data/com.apple.CoreML/model.mlmodel"


def weight_file(package):
    return package / "Data/com.apple.CoreML/weights/weight.bin"


def run(path):
    package = Package(path)
    return package.run("main", X, package.zero_state("main"))


def change(package, edit):
    """Edit the operations of the program, by type, or the whole model."""
    model = Model_pb2.Model.FromString(model_file(package).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    edit(model, {each.type: each for each in block.operations}, block)
    model_file(package).write_bytes(model.SerializeToString())


def refusal(package):
    with pytest.raises(ValueError) as error:
        run(package)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def set_size(value_type, axis, size):
    value_type.tensorType.dimensions[axis].constant.size = size


def rename_softmax(model, operations, block):
    operations["softmax"].type = "hardmax"


def widen_softmax(model, operations, block):
    set_size(operations["softmax"].outputs[0].type, 1, 31)


def retype_softmax(model, operations, block):
    operations["softmax"].outputs[0].type.tensorType.dataType = 11


def add_attribute(model, operations, block):
    operations["softmax"].attributes["speed"].CopyFrom(operations["softmax"].attributes["name"])


def drop_input(model, operations, block):
    del operations["softmax"].inputs["x"]


def add_input(model, operations, block):
    operations["softmax"].inputs["y"].CopyFrom(operations["softmax"].inputs["x"])


def read_unknown(model, operations, block):
    operations["softmax"].inputs["x"].arguments[0].name = "nobody"


def move_blob(model, operations, block):
    operations["constexpr_blockwise_shift_scale"].inputs["data"].arguments[0].value.blobFileValue.offset = 1 << 20


def other_file(model, operations, block):
    operations["constexpr_blockwise_shift_scale"].inputs["data"].arguments[0].value.blobFileValue.fileName = "/x"


def retype_blob(model, operations, block):
    value = operations["constexpr_blockwise_shift_scale"].inputs["data"].arguments[0].value
    value.type.tensorType.dataType = 35


def cast_otherwise(model, operations, block):
    for each in block.operations:
        if each.type == "const" and each.outputs[0].name.startswith("numbers_dtype"):
            each.attributes["val"].immediateValue.tensor.strings.values[0] = "fp32"


def write_twice(model, operations, block):
    operations["softmax"].outputs[0].name = "y"


def describe_otherwise(model, operations, block):
    model.description.output[0].type.multiArrayType.shape[0] = 2


def newer_opset(model, operations, block):
    model.mlProgram.functions["main"].opset = "CoreML99"


EDITS = {
    rename_softmax: r"main: operation \d+ \(hardmax soft\): is not known",
    widen_softmax: r"\(softmax soft\): declares float16 \(1, 31, 1, 4\), makes float32 \(1, 32, 1, 4\)",
    retype_softmax: r"\(softmax soft\): its output must be float16, got float32",
    add_attribute: r"\(softmax soft\): has blocks or unknown attributes \['speed'\]",
    drop_input: r"\(softmax soft\): lacks the input 'x'",
    add_input: r"\(softmax soft\): has an unknown input 'y'",
    read_unknown: r"\(softmax soft\): reads 'nobody', which nothing before it makes",
    move_blob: r"main: constant w\.data: the record at 1048576 of weight\.bin must lie on a multiple of 64",
    other_file: r"w\): must lie in @model_path/weights/weight\.bin, got '/x'",
    retype_blob: r"main: constant w\.data: the record at \d+ of weight\.bin must be of type uint4, got int4",
    cast_otherwise: r"\(cast numbers\): casts to fp32, but makes float16",
    write_twice: r"\(softmax soft\): makes 'y' again",
    describe_otherwise: r"main describes its outputs as .*\(2, 32, 1, 2\)",
    newer_opset: r"function main: must have one block of opset CoreML8, got CoreML99",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_changed_program_is_refused_by_name(edit, package):
    change(package, edit)
    message = refusal(package)
    assert re.search(EDITS[edit], message), message


def test_untouched_package_runs(package):
    results = run(package)
    assert results["halves_0"].shape == (1, 32, 1, 2)
    assert results["numbers"].tolist() == [0, 0]


@pytest.mark.parametrize("size", [0, 32, 100, -1])
def test_truncated_weight_file_is_refused(size, package):
    weight_file(package).write_bytes(weight_file(package).read_bytes()[:size])
    assert "weight.bin" in refusal(package)


def test_broken_sentinel_is_refused(package):
    data = bytearray(weight_file(package).read_bytes())
    data[64] ^= 1
    weight_file(package).write_bytes(data)
    assert "must start with 0xdeadbeef" in refusal(package)


@pytest.mark.parametrize("part", [0, 0.3, 0.9, 0.999])
def test_truncated_model_is_refused(part, package):
    data = model_file(package).read_bytes()
    model_file(package).write_bytes(data[: int(part * len(data))])
    assert "model.mlmodel" in refusal(package)


def test_random_bytes_are_refused(package):
    model_file(package).write_bytes(random.Random(0).randbytes(5000))
    assert "model.mlmodel" in refusal(package)


def test_flipped_bits_give_a_result_or_one_line(package):
    dice, whole = random.Random(1), model_file(package).read_bytes()
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        model_file(package).write_bytes(data)
        try:
            run(package)
        except ValueError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert 100 < refused < 200


def test_missing_part_is_named(package):
    weight_file(package).unlink()
    with pytest.raises(FileNotFoundError, match=r"weight\.bin is missing"):
        run(package)
    model_file(package).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.mlmodel is missing"):
        run(package)
    with pytest.raises(FileNotFoundError, match=r"no \.mlpackage folder"):
        run(package / "nothing")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"itemInfoEntries": {}, "rootModelIdentifier": "x"}'])
def test_manifest_that_lists_no_model_is_refused(text, package):
    (package / "Manifest.json").write_text(text)
    assert "Manifest.json" in refusal(package)


def test_manifest_that_lists_no_weights_is_refused(package):
    manifest = package / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/weights", "com.apple.CoreML/model.mlmodel"))
    assert "lists no weights" in refusal(package)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"main: inputs must be \['ids', 'x'\], got \[\]"),
        ({**X, "x": X["x"][:, :3]}, r"main: input x must be float16 \(1, 32, 1, 2\), got float16 \(1, 3, 1, 2\)"),
        ({**X, "x": X["x"].astype(np.float32)}, "got float32"),
        ({**X, "ids": [0, 0]}, "got list"),
    ],
)
def test_wrong_input_is_refused(inputs, message, package):
    found = Package(package)
    with pytest.raises(ValueError, match=message):
        found.run("main", inputs, found.zero_state("main"))


def test_missing_state_and_function_are_refused(package):
    with pytest.raises(ValueError, match=r"main: states must be \['state_0'\], got \[\]"):
        Package(package).run("main", X)
    with pytest.raises(ValueError, match="has no function 'prefill'; it has main"):
        Package(package).run("prefill", X)
