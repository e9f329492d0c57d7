"""The weight file of a Core ML package: records of numbers, each found by its offset.

The file has a header of 64 bytes (two u32: records, version 2) and then records, each on a multiple of 64 bytes:
u32 sentinel, u32 type, u64 bytes of data, u64 offset of the data, u64 unused bits of its last byte.
All of it is little endian, and types narrower than a byte are packed from the lowest bit up.
"""

import math
import struct
from pathlib import Path

import numpy as np

BITS = {  # of one value of each type that the file can hold, by the name it has in a program
    **{"float16": 16, "float32": 32, "int8": 8, "int16": 16, "int32": 32, "uint8": 8, "uint16": 16, "uint32": 32},
    **{"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6},
}
CODES = {
    **{1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1"},
    **{10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32"},
}
HEADER = struct.Struct("<II")
RECORD = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
UNIT = 64  # bytes: the length of the header and of a record's head, and what offsets are multiples of
VERSION = 2


def holder(kind: str) -> np.dtype:
    """The NumPy type that holds values of a type of the file: the type itself, or a byte for a narrower one."""
    if BITS[kind] >= 8:
        return np.dtype(kind).newbyteorder("<")
    return np.dtype("int8" if kind.startswith("int") else "uint8")


def unpack(data: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values from their bytes.

    Args:
        data: (bytes,) uint8.

    Returns:
        An array of this shape; types narrower than a byte as int8 or uint8.

    Raises:
        ValueError: the number of bytes is not that of the shape.
    """
    count, bits = math.prod(shape), BITS[kind]
    if data.size != (count * bits + 7) // 8:
        raise ValueError(f"{shape} of {kind} needs {(count * bits + 7) // 8} bytes, got {data.size}")
    if bits >= 8:
        return data.view(holder(kind)).reshape(shape)
    single = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    values = np.packbits(single, axis=1, bitorder="little").reshape(shape)
    if kind.startswith("int"):
        half = 1 << bits - 1
        return ((values ^ half).astype(np.int8) - half).astype(np.int8)
    return values


class WeightFile:
    """A weight file, open for reading.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no weight file of version 2.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        self.path = path
        if path.stat().st_size < UNIT:
            raise ValueError(f"{path.name} must start with {UNIT} bytes of header, got {path.stat().st_size} in all")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        _, version = HEADER.unpack(self._bytes[: HEADER.size].tobytes())
        if version != VERSION:
            raise ValueError(f"{path.name} must be of version {VERSION}, got {version}")

    def data(self, offset: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """The bytes of one record, (bytes,) uint8, not read yet.

        Args:
            offset: bytes from the start of the file to the record's head.
            kind: the type that the record must be of.
            shape: the shape that its data must fill.

        Raises:
            ValueError: there is no such record there.
        """
        where, size = f"the record at {offset} of {self.path.name}", self._bytes.size
        if kind not in BITS:
            raise ValueError(f"{where} cannot be of type {kind}")
        if offset % UNIT or not UNIT <= offset <= size - UNIT:
            raise ValueError(f"{where} must lie on a multiple of {UNIT} inside its {size} bytes")
        head = self._bytes[offset : offset + RECORD.size].tobytes()
        sentinel, code, length, start, unused = RECORD.unpack(head)
        if sentinel != SENTINEL:
            raise ValueError(f"{where} must start with {SENTINEL:#x}, got {sentinel:#x}")
        if CODES.get(code) != kind:
            raise ValueError(f"{where} must be of type {kind}, got {CODES.get(code, f'code {code}')}")
        if start % UNIT or start < offset + UNIT or start + length > size:
            raise ValueError(f"{where} has its data at {start} to {start + length}, not after it in {size} bytes")
        if math.prod(shape) * BITS[kind] + unused != 8 * length or unused > 7:
            raise ValueError(f"{where} has {length} bytes with {unused} bits unused, which is not {shape} of {kind}")
        return self._bytes[start : start + length]

    def span(self, offset: int) -> tuple[int, int]:
        """First byte of the record at an offset, which `data` has accepted, and the first one after its data."""
        _, _, length, start, _ = RECORD.unpack(self._bytes[offset : offset + RECORD.size].tobytes())
        return offset, start + length

    def read(self, offset: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """The values of one record, of this shape; see `data` and `unpack`."""
        return unpack(self.data(offset, kind, shape), kind, shape)
