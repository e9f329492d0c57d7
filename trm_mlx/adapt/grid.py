"""Grids: the few values that a matrix is rounded to, the same bits in the model folder, in MLX and in Core ML.

    affine   w = scale * q, q a signed whole number, one float16 scale for a row or for each group of its inputs
    lut      w = table[q], one table of float16 values for the tensor or for each group of its rows

Scales have so few significant bits that scale * q is itself a float16 number. So nothing is rounded when it is
computed: Core ML's `scale * q` in float16 or float32 and MLX's `scale * (q + offset) + bias` in float32 are the same
numbers, and MLX's in float16 at 6 and 4 bits. (At 8 bits q + offset has a bit too many; bfloat16 rounds all.)
Whole numbers are packed as MLX packs them: q + 2^(bits - 1), or the place in the table, bits after bits from the
lowest, in words of 32.

Shapes: O outputs (rows), I inputs (columns), G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import mlx.core as mx
import numpy as np

Method = Literal["affine", "lut"]
MLX_GROUPS = (128, 64, 32)  # inputs that share a scale in MLX's own quantized products
SHRINKS = np.linspace(0.70, 1.14, 23)  # of the scale that reaches the largest weight; 9/8 is the next that does
LLOYD = 40  # rounds of k-means at most; the error stops falling after 10 to 30
SMALLEST = -24  # float16 counts in steps of 2^-24
LARGEST = 65504  # of float16


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a matrix is rounded."""

    method: Annotated[Method, "multiples of a scale, or a table of any values"] = "affine"
    bits: Annotated[int, "bits a weight"] = 8
    group: Annotated[
        int, "affine: inputs that share a scale, 0 for a whole row; lut: rows that share a table, 0: all"
    ] = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 6, 8):
            raise ValueError(f"bits must be 4, 6 or 8, got {str(self.bits)[:20]}")
        if self.group < 0:
            raise ValueError(f"group must not be negative, got {str(self.group)[:20]}")

    @property
    def significant(self) -> int:
        """Significant bits of a scale: with the bits - 1 of |q| they fill a float16's 11, or one less."""
        return {8: 4, 6: 5, 4: 7}[self.bits]

    @property
    def largest(self) -> float:
        """The largest scale: 2^(bits - 1) times the next one is no number of float16."""
        return 2.0 ** (17 - self.bits) * (1 - 2.0**-self.significant)

    def groups(self, shape: tuple[int, int]) -> int:
        """Scales in a row, or tables.

        Raises:
            ValueError: a matrix of this shape has no such groups.
        """
        rows, columns = shape
        if columns % 32:
            raise ValueError(f"a matrix to be rounded must have a multiple of 32 inputs, got {columns}")
        whole, of = (columns, "inputs") if self.method == "affine" else (rows, "rows")
        group = self.group or whole
        if whole % group:
            raise ValueError(f"group must divide the {whole} {of} of a matrix, got {str(group)[:20]}")
        return whole // group

    def names(self, name: str) -> tuple[str, str]:
        """The tensors that stand for the matrix of this name: the packed numbers, and the scales or the tables."""
        return name, f"{name.removesuffix('.weight')}.{'scales' if self.method == 'affine' else 'table'}"

    def parts(self, name: str, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """Shape and type of each of those tensors."""
        (packed, rest), (rows, columns), count = self.names(name), shape, self.groups(shape)
        held = (rows, count) if self.method == "affine" else (count, 1 << self.bits)
        return {packed: ((rows, columns * self.bits // 32), mx.uint32), rest: (held, mx.float16)}


def fit(name: str, weight: np.ndarray, grid: Grid) -> dict[str, mx.array]:
    """The tensors of the matrix (O, I) rounded to a grid, by name.

    Raises:
        ValueError: its shape does not suit the grid, or it holds what is no number of float16.
    """
    grid.groups(weight.shape)
    weight = weight.astype(np.float32)
    if not (np.abs(weight) <= LARGEST).all():
        raise ValueError(f"{name} must hold finite numbers of at most {LARGEST} to be rounded")
    if grid.method == "affine":
        scales, whole = _affine(weight, grid)
        return dict(
            zip(grid.names(name), (pack(whole + (1 << grid.bits - 1), grid.bits), mx.array(scales)), strict=True)
        )
    table, places = _lut(weight, grid)
    return dict(zip(grid.names(name), (pack(places, grid.bits), mx.array(table)), strict=True))


def check(name: str, tensors: Mapping[str, mx.array], grid: Grid) -> None:
    """Refuse scales and tables that `fit` does not make.

    Raises:
        ValueError: they are not finite, or scale * q is not always a number of float16.
    """
    held = grid.names(name)[1]
    rest = np.array(tensors[held]).astype(np.float64)
    if not np.isfinite(rest).all():
        raise ValueError(f"{held!r} must be finite")
    if grid.method == "lut":
        return
    if not ((rest > 0) & (rest <= grid.largest)).all():
        raise ValueError(f"{held!r} must be above 0 and at most {grid.largest:g}")
    if not np.array_equal(coarse(rest, grid.significant), rest):
        raise ValueError(f"{held!r} must be of at most {grid.significant} significant bits")


def whole_numbers(name: str, tensors: Mapping[str, mx.array], grid: Grid) -> np.ndarray:
    """(O, I): the signed numbers of an affine grid (int8), or the places in the tables (uint8)."""
    found = unpack(tensors[name], grid.bits)
    return (found.astype(np.int16) - (1 << grid.bits - 1)).astype(np.int8) if grid.method == "affine" else found


def values(name: str, tensors: Mapping[str, mx.array], grid: Grid) -> np.ndarray:
    """(O, I) float16: the matrix that the tensors stand for, exactly."""
    whole = whole_numbers(name, tensors, grid)
    rows, columns = whole.shape
    if grid.method == "affine":
        scales = np.array(tensors[grid.names(name)[1]])
        grouped = whole.reshape(rows, scales.shape[1], -1) * scales[..., None]
        return grouped.astype(np.float16).reshape(rows, columns)
    table = np.array(tensors[grid.names(name)[1]])
    tables = np.repeat(np.arange(len(table)), rows // len(table))
    return table[tables[:, None], whole]


def product_operands(
    name: str, tensors: Mapping[str, mx.array], grid: Grid, dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array, int] | None:
    """What MLX's quantized product takes: packed weights, scales, biases, inputs that share a scale.

    None where MLX has no such product: for tables, and for groups that its groups of 32, 64 or 128 do not divide.
    """
    if grid.method != "affine":
        return None
    columns = tensors[name].shape[1] * 32 // grid.bits
    scales = tensors[grid.names(name)[1]]
    group = next((each for each in MLX_GROUPS if columns // scales.shape[1] % each == 0), None)
    if group is None:
        return None
    scales = mx.repeat(scales, columns // scales.shape[1] // group, axis=1).astype(dtype)
    return tensors[name], scales, scales * -(1 << grid.bits - 1), group


def pack(whole: np.ndarray, bits: int) -> mx.array:
    """(O, I) numbers from 0 to 2^bits - 1 -> (O, I bits / 32) uint32."""
    rows = whole.shape[0]
    spread = np.unpackbits(whole.astype(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")
    words = np.packbits(spread.reshape(rows, -1), axis=-1, bitorder="little")
    return mx.array(np.ascontiguousarray(words).view("<u4"))


def unpack(packed: mx.array, bits: int) -> np.ndarray:
    """(O, I bits / 32) uint32 -> (O, I) uint8."""
    words = np.array(packed).astype("<u4")
    spread = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").reshape(len(words), -1, bits)
    return np.packbits(spread, axis=-1, bitorder="little")[..., 0]


def coarse(scales: np.ndarray, significant: int) -> np.ndarray:
    """The nearest numbers of so few significant bits, at least one step of float16."""
    fraction, exponent = np.frexp(np.maximum(scales, 2.0**SMALLEST))
    step = np.ldexp(1.0, np.maximum(exponent - significant, SMALLEST))
    return np.round(np.ldexp(fraction, exponent) / step) * step


def _affine(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(O, G) float16 scales and (O, I) int16: of several scales for each group the one of least squared error."""
    rows, columns = weight.shape
    grouped = weight.reshape(rows, grid.groups(weight.shape), -1)
    most = (1 << grid.bits - 1) - 1
    reach = np.abs(grouped).max(-1, keepdims=True).astype(np.float64) / most
    best = np.full(reach.shape, np.inf)
    chosen, whole = np.ones(reach.shape), np.zeros(grouped.shape, np.int16)
    for shrink in SHRINKS:
        scale = np.minimum(coarse(reach * shrink, grid.significant), grid.largest)
        found = np.clip(np.rint(grouped / scale.astype(np.float32)), -most, most)
        error = np.square(grouped - found * scale.astype(np.float32)).sum(-1, keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        chosen = np.where(better, scale, chosen)
        np.copyto(whole, found.astype(np.int16), where=better)
    return chosen[..., 0].astype(np.float16), whole.reshape(rows, columns)


def _lut(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(G, 2^bits) float16 tables, ascending, and (O, I) places: k-means of each group (Lloyd, 1982)."""
    tables, places = [], []
    for rows in np.split(weight, grid.groups(weight.shape)):
        table = _means(rows.ravel(), 1 << grid.bits).astype(np.float16)
        table = np.sort(table)
        middles = (table[1:].astype(np.float32) + table[:-1].astype(np.float32)) / 2
        tables.append(table)
        places.append(np.searchsorted(middles, rows))
    return np.stack(tables), np.concatenate(places)


def _means(numbers: np.ndarray, count: int) -> np.ndarray:
    """(count,) centres of one-dimensional k-means, begun at even shares of density to the power 1/3.

    Which is where the best centres of many lie (Panter and Dite, 1951).
    """
    ordered = np.sort(numbers).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    edges = np.linspace(ordered[0], ordered[-1], 129)
    density = np.histogram(ordered, edges)[0] ** (1 / 3)
    share = np.concatenate([[0.0], np.cumsum(density)])
    centres = np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges)
    for _ in range(LLOYD):
        cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        cuts = np.concatenate([[0], cuts, [len(ordered)]])
        held = np.diff(cuts)
        means = np.where(held > 0, np.diff(sums[cuts]) / np.maximum(held, 1), centres)
        if np.array_equal(means, centres):
            break
        centres = means
    return centres
