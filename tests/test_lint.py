"""Faults of a package that can be seen without running it."""

import pytest

pytest.importorskip("coremltools")

import numpy as np
import packages
from coremltools.converters.mil import Builder as mb
from export_folder import SPEC, WEIGHTS, edited

from convert import lint

pytest_plugins = ["export_folder"]


def faults(path):
    return list(lint.faults(lint.Package(path)))


@pytest.mark.slow
def test_an_export_has_no_fault(exported):
    census = lint.check(exported / "Tiny.mlpackage")
    assert census.operations["read_state"] == census.operations["write_state"] == 4


@pytest.mark.slow
def test_a_file_that_not_everybody_can_read_is_a_fault(copied):
    (copied / "Tiny.mlpackage" / SPEC).chmod(0o600)
    with pytest.raises(RuntimeError, match=r"model\.mlmodel cannot be read by everybody"):
        lint.check(copied / "Tiny.mlpackage")


@pytest.mark.slow
def test_bytes_that_nothing_uses_are_a_fault(copied):
    file = copied / "Tiny.mlpackage" / WEIGHTS
    file.write_bytes(file.read_bytes() + bytes(128))
    assert any("nothing uses weight.bin from byte" in each for each in faults(copied / "Tiny.mlpackage"))


@pytest.mark.slow
def test_a_feature_without_a_description_is_a_fault(copied):
    with edited(copied) as spec:
        spec.description.functions[0].output[0].shortDescription = ""
    assert faults(copied / "Tiny.mlpackage") == ["decode_r1 does not describe logits"]


@pytest.mark.slow
def test_a_default_function_that_is_not_there_is_a_fault(copied):
    with edited(copied) as spec:
        spec.description.defaultFunctionName = "main"
    assert faults(copied / "Tiny.mlpackage") == ["the default function 'main' is none of its functions"]


def save(path, shape, build):
    """A package of one state of this shape and of numbers that lie in the weight file."""
    given = {"x": np.zeros(shape, np.float16)}
    weights = np.arange(shape[-1], dtype=np.float16)
    return packages.save(path, lambda x, state: mb.add(x=build(x, state), y=weights), given, [shape])


def stale(x, state):
    """A use, after a write, of what was read before it, as merged reads leave it."""
    past = mb.read_state(input=state)
    mb.coreml_update_state(state=state, value=mb.add(x=past, y=x))
    return mb.mul(x=past, y=x)


def test_a_read_that_is_used_after_a_write_is_a_fault(tmp_path):
    path = save(tmp_path / "stale.mlpackage", (1, 1, 1, 32), stale)
    assert any("was read before the state was written" in each for each in faults(path))


@pytest.mark.parametrize(("shape", "fault"), [((1, 1, 1, 33), True), ((1, 1, 32), True), ((1, 1, 1, 64), False)])
def test_a_state_that_the_neural_engine_refuses_is_a_fault(shape, fault, tmp_path):
    path = save(tmp_path / "state.mlpackage", shape, lambda x, state: mb.add(x=mb.read_state(input=state), y=x))
    assert any("must be float16 of rank 4" in each for each in faults(path)) == fault
