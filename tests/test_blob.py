"""The weight file is read as coremltools' own writer writes it."""

import numpy as np
import pytest

from convert.blob import BITS, WeightFile

storage = pytest.importorskip("coremltools.libmilstoragepython")

NAMES = {"float32": "float", "float16": "fp16"}  # in coremltools' methods, where they are not ours


def sample(kind):
    """13 numbers of a type: an odd number, so that the last byte is not full."""
    random, bits = np.random.default_rng(0), BITS[kind]
    if kind.startswith("float"):
        return random.normal(size=13).astype(kind)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if kind.startswith("int") else (0, 1 << bits)
    width = max(8, bits)
    return random.integers(low, high, 13).astype(f"{'int' if kind.startswith('int') else 'uint'}{width}")


def write(path, *kinds):
    writer = storage._BlobStorageWriter(str(path), True)
    offsets = []
    for kind in kinds:
        values = sample(kind).view(np.uint16) if kind == "float16" else sample(kind)
        offsets.append(getattr(writer, f"write_{NAMES.get(kind, kind)}_data")(values))
    return offsets


@pytest.mark.parametrize("kind", BITS)
def test_every_type_reads_as_coremltools_writes_it(kind, tmp_path):
    first, second = write(tmp_path / "weight.bin", "int4", kind)
    file = WeightFile(tmp_path / "weight.bin")
    np.testing.assert_array_equal(file.read(second, kind, (13,)), sample(kind))
    np.testing.assert_array_equal(file.read(first, "int4", (13, 1)), sample("int4")[:, None])
    assert file.read(second, kind, (13,)).dtype == sample(kind).dtype


@pytest.mark.parametrize("kind", ["float16", "int8", "int4", "uint6"])
def test_coremltools_reads_what_we_read(kind, tmp_path):
    (offset,) = write(tmp_path / "weight.bin", kind)
    reader = storage._BlobStorageReader(str(tmp_path / "weight.bin"))
    theirs = np.asarray(getattr(reader, f"read_{NAMES.get(kind, kind)}_data")(offset))
    ours = WeightFile(tmp_path / "weight.bin").read(offset, kind, (13,))
    np.testing.assert_array_equal(theirs.view(np.float16) if kind == "float16" else theirs, ours)


def test_file_without_header_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weight\.bin is missing"):
        WeightFile(tmp_path / "weight.bin")
    (tmp_path / "weight.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="64 bytes of header, got 0"):
        WeightFile(tmp_path / "weight.bin")
    (tmp_path / "weight.bin").write_bytes(bytes(64))
    with pytest.raises(ValueError, match="version 2, got 0"):
        WeightFile(tmp_path / "weight.bin")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (64, 0, "must start with 0xdeadbeef"),
        (68, 2, "must be of type int8, got float32"),
        (72, 99, "is not"),
        (80, 65, "has its data at 65"),
        (80, 64, "has its data at 64"),
        (88, 3, "3 bits unused"),
    ],
)
def test_damaged_record_is_refused(place, value, message, tmp_path):
    (offset,) = write(tmp_path / "weight.bin", "int8")
    data = bytearray((tmp_path / "weight.bin").read_bytes()) + bytes(128)
    data[place] = value
    (tmp_path / "weight.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        WeightFile(tmp_path / "weight.bin").read(offset, "int8", (13,))


@pytest.mark.parametrize("offset", [0, 65, 128, 1 << 40])
def test_record_outside_the_file_is_refused(offset, tmp_path):
    write(tmp_path / "weight.bin", "int8")
    with pytest.raises(ValueError, match="must lie on a multiple of 64"):
        WeightFile(tmp_path / "weight.bin").read(offset, "int8", (13,))
