"""Whatever is changed in a package is found, and the first operation that differs is named."""

import re

import pytest

pytest.importorskip("coremltools")

from export_folder import SPEC, WEIGHTS, edited, flip

from convert.compare import first_difference
from convert.execute import Package

pytest_plugins = ["export_folder"]


def differ(copied, exported):
    return first_difference(Package(copied / "Tiny.mlpackage"), Package(exported / "Tiny.mlpackage"))


def operation(spec, kind, function="decode"):
    """The first operation of a type."""
    operations = spec.mlProgram.functions[function].block_specializations["CoreML8"].operations
    return next(each for each in operations if each.type == kind)


def change_type(spec):
    operation(spec, "less").type = "less_equal"


def change_constant(spec):
    """The epsilon of a norm, in place or by name."""
    norm = operation(spec, "layer_norm").inputs["epsilon"].arguments[0]
    if norm.WhichOneof("binding") == "value":
        tensor = norm.value.immediateValue.tensor
    else:
        every = spec.mlProgram.functions["decode"].block_specializations["CoreML8"].operations
        tensor = next(e for e in every if e.outputs[0].name == norm.name).attributes["val"].immediateValue.tensor
    tensor.bytes.values = bytes([tensor.bytes.values[0] ^ 1, *tensor.bytes.values[1:]])


def change_inputs(spec):
    inputs = operation(spec, "matmul").inputs
    names = inputs["x"].arguments[0].name, inputs["y"].arguments[0].name
    inputs["y"].arguments[0].name, inputs["x"].arguments[0].name = names


def change_name(spec):
    operation(spec, "softmax").attributes["name"].immediateValue.tensor.strings.values[0] = "shares"


def change_output(spec):
    block = spec.mlProgram.functions["prefill"].block_specializations["CoreML8"]
    conv = [each for each in block.operations if each.type == "conv"][-1]
    assert conv.outputs[0].name == "scores"
    block.operations.remove(block.operations[-1])


def change_function(spec):
    spec.mlProgram.functions["decode"].CopyFrom(spec.mlProgram.functions["decode_r1"])


CHANGES = {
    "type": (change_type, "decode: operation .* must be less "),
    "constant": (change_constant, "its numbers are not those of the model"),
    "inputs": (change_inputs, "matmul"),
    "name": (change_name, "softmax"),
    "description": (lambda spec: setattr(spec.description.metadata, "author", "me"), "description"),
    "words": (lambda spec: setattr(spec.description.functions[0].input[0], "shortDescription", "x"), "description"),
    "default": (lambda spec: setattr(spec.description, "defaultFunctionName", "prefill"), "description"),
    "function": (change_function, "decode: "),
    "last": (change_output, "operations|scores"),
}


@pytest.mark.slow
def test_a_package_is_equal_to_its_copy(copied, exported):
    assert differ(copied, exported) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_program_is_found(name, copied, exported):
    change, words = CHANGES[name]
    with edited(copied) as spec:
        change(spec)

    assert re.search(words, differ(copied, exported) or "")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["head", "first", "middle", "last"])
def test_a_flipped_bit_of_a_weight_is_found(part, copied, exported):
    package = Package(exported / "Tiny.mlpackage")
    offsets = sorted(package.offsets())
    spans = [package.record(offset) for offset in offsets]
    place = {
        "head": 0,
        "first": spans[0][0] + 64,
        "middle": (spans[len(spans) // 2][0] + 64 + spans[len(spans) // 2][1]) // 2,
        "last": spans[-1][1] - 1,
    }[part]
    flip(copied / "Tiny.mlpackage" / WEIGHTS, place)
    assert differ(copied, exported)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Data/more.bin", SPEC + ".bak"])
def test_a_file_too_many_is_found(name, copied, exported):
    (copied / "Tiny.mlpackage" / name).write_bytes(b"more")
    assert differ(copied, exported) == f"{name} does not belong to it"


@pytest.mark.slow
def test_bytes_after_the_last_record_are_found(copied, exported):
    file = copied / "Tiny.mlpackage" / WEIGHTS
    file.write_bytes(file.read_bytes() + b"\0")
    assert "where no operation reads" in differ(copied, exported)
