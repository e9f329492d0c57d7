"""Shapes: O outputs (rows), I inputs (columns)."""

import mlx.core as mx
import numpy as np
import pytest

from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid, fit

NAME = "core.0.attention.qkv.weight"
SHAPE = (64, 128)
GRIDS = [
    *(Grid(method="affine", bits=bits, group=group) for bits in (8, 6, 4) for group in (0, 32, 64, 16)),
    *(Grid(method="lut", bits=bits, group=group) for bits in (8, 6, 4) for group in (0, 16)),
]
AFFINE, TABLES = ([each for each in GRIDS if each.method == method] for method in ("affine", "lut"))


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def outlier(size: float, rest: float) -> np.ndarray:
    weight = rest * drawn().normal(size=SHAPE)
    weight[3, 5] = size
    return weight


MATRICES = {
    "normal": 0.05 * drawn().normal(size=SHAPE),
    "heavy tails": np.clip(drawn().standard_cauchy(size=SHAPE), -1e4, 1e4),
    "one-sided": drawn().exponential(size=SHAPE),
    "one outlier": outlier(10.0, 1e-3),
    "a negative outlier": outlier(-8.3, 0.02),
    "a constant": np.full(SHAPE, 0.3),
    "zeros": np.zeros(SHAPE),
    "zeros but for one": outlier(0.7, 0.0),
    "five values": drawn().choice([-3.0, 0.1, 0.11, 2.0, 7.0], size=SHAPE),
    "subnormal": 1e-6 * drawn().normal(size=SHAPE),
    "below float16": 1e-9 * drawn().normal(size=SHAPE),
    "near the largest": drawn().uniform(-65504, 65504, size=SHAPE),
    "the largest": np.full(SHAPE, -65504.0),
    "spread over all sizes": np.exp2(drawn().uniform(-24, 15, size=SHAPE)),
}
MATRICES = {name: weight.astype(np.float32) for name, weight in MATRICES.items()}
every_grid = pytest.mark.parametrize("chosen", GRIDS, ids=lambda each: f"{each.method}-{each.bits}-{each.group}")
every_matrix = pytest.mark.parametrize("weight", MATRICES.values(), ids=MATRICES)


def numbers(weight: np.ndarray, chosen: Grid) -> np.ndarray:
    """(O, I) float64: what a matrix is rounded to."""
    return grid.values(NAME, fit(NAME, weight, chosen), chosen).astype(np.float64)


def error(found: np.ndarray, weight: np.ndarray) -> float:
    return float(np.square(found - weight.astype(np.float64)).sum())


def plain(weight: np.ndarray, chosen: Grid) -> np.ndarray:
    """(O, I) float64: rounded with the smallest scales of the grid that reach the largest weight."""
    most = (1 << chosen.bits - 1) - 1
    grouped = weight.astype(np.float64).reshape(len(weight), chosen.groups(weight.shape), -1)
    reach = np.abs(grouped).max(-1, keepdims=True) / most
    scale = grid.coarse(reach, chosen.significant)
    following = grid.coarse(scale * (1 + 2.0 ** (1 - chosen.significant)), chosen.significant)
    scale = np.minimum(np.where(scale < reach, following, scale), chosen.largest)
    return (np.clip(np.rint(grouped / scale), -most, most) * scale).reshape(weight.shape)


def levels(weight: np.ndarray, chosen: Grid) -> np.ndarray:
    """(O, I) float64: rounded to float16 values at even distances from the smallest to the largest."""
    found = []
    for rows in np.split(weight, chosen.groups(weight.shape)):
        table = np.linspace(rows.min(), rows.max(), 1 << chosen.bits).astype(np.float16).astype(np.float64)
        found.append(table[np.abs(rows[..., None] - table).argmin(-1)])
    return np.concatenate(found)


# Exactness


@every_grid
@every_matrix
def test_rounded_numbers_are_exact_in_float16(weight, chosen):
    tensors = fit(NAME, weight, chosen)
    whole = grid.whole_numbers(NAME, tensors, chosen).astype(np.float64)
    rest = np.array(tensors[chosen.names(NAME)[1]]).astype(np.float64)
    if chosen.method == "affine":
        exact = (whole.reshape(*rest.shape, -1) * rest[..., None]).reshape(SHAPE)
    else:
        exact = np.concatenate(
            [t[rows.astype(int)] for t, rows in zip(rest, np.split(whole, len(rest)), strict=True)]
        )
    assert np.array_equal(grid.values(NAME, tensors, chosen), exact)


@every_grid
@every_matrix
def test_what_fit_makes_passes_the_check_and_is_finite(weight, chosen):
    tensors = fit(NAME, weight, chosen)
    grid.check(NAME, tensors, chosen)
    assert np.isfinite(grid.values(NAME, tensors, chosen)).all()


@every_grid
def test_tensors_have_the_promised_shapes_and_types(chosen):
    tensors = fit(NAME, MATRICES["normal"], chosen)
    assert {name: (array.shape, array.dtype) for name, array in tensors.items()} == chosen.parts(NAME, SHAPE)


@pytest.mark.parametrize("chosen", [each for each in AFFINE if each.group != 16], ids=str)
@every_matrix
def test_mlx_dequantizes_to_the_same_numbers_in_float32(weight, chosen):
    tensors = fit(NAME, weight, chosen)
    operands = grid.product_operands(NAME, tensors, chosen, mx.float32)
    assert operands is not None
    packed, scales, biases, group = operands
    found = np.array(mx.dequantize(packed, scales, biases, group_size=group, bits=chosen.bits))
    assert np.array_equal(found, grid.values(NAME, tensors, chosen))


@pytest.mark.parametrize("chosen", [each for each in AFFINE if each.group != 16], ids=str)
def test_mlx_multiplies_by_the_same_numbers_in_float32(chosen):
    tensors = fit(NAME, MATRICES["normal"], chosen)
    operands = grid.product_operands(NAME, tensors, chosen, mx.float32)
    assert operands is not None
    packed, scales, biases, group = operands
    found = mx.quantized_matmul(mx.eye(SHAPE[1]), packed, scales, biases, group_size=group, bits=chosen.bits)
    assert np.array_equal(np.array(found).T, grid.values(NAME, tensors, chosen))


@pytest.mark.parametrize("chosen", [each for each in AFFINE if each.group == 32 and each.bits < 8], ids=str)
def test_mlx_dequantizes_6_and_4_bits_to_the_same_numbers_in_float16(chosen):
    tensors = fit(NAME, MATRICES["normal"], chosen)
    operands = grid.product_operands(NAME, tensors, chosen, mx.float16)
    assert operands is not None
    packed, scales, biases, group = operands
    found = np.array(mx.dequantize(packed, scales, biases, group_size=group, bits=chosen.bits))
    assert np.array_equal(found, grid.values(NAME, tensors, chosen))


@pytest.mark.parametrize("chosen", [*TABLES, Grid(group=16)], ids=str)
def test_mlx_has_no_product_for_tables_and_for_small_groups(chosen):
    assert grid.product_operands(NAME, fit(NAME, MATRICES["normal"], chosen), chosen, mx.float32) is None


# Packing


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_packing_is_mlx_s_own(bits):
    packed, *_ = mx.quantize(mx.array(MATRICES["normal"]), group_size=32, bits=bits)
    ones = mx.ones((SHAPE[0], SHAPE[1] // 32))
    whole = np.array(mx.dequantize(packed, ones, 0 * ones, group_size=32, bits=bits))
    assert np.array_equal(grid.unpack(packed, bits), whole)
    assert mx.array_equal(grid.pack(whole, bits), packed)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_every_number_of_so_many_bits_is_packed_and_unpacked(bits):
    whole = drawn().permutation(np.arange(4 * 256) % (1 << bits)).reshape(4, 256)
    assert np.array_equal(grid.unpack(grid.pack(whole, bits), bits), whole)


@pytest.mark.parametrize("chosen", AFFINE, ids=str)
def test_whole_numbers_are_symmetric(chosen):
    whole = grid.whole_numbers(NAME, fit(NAME, MATRICES["normal"], chosen), chosen)
    assert (whole.dtype, whole.max(), whole.min() >= -whole.max()) == (np.int8, (1 << chosen.bits - 1) - 1, True)


# Scales and tables


@pytest.mark.parametrize("significant", [4, 5, 7])
def test_coarse_numbers_are_near_and_have_few_significant_bits(significant):
    scales = np.exp2(drawn().uniform(-14, 9, 10_000))
    found = grid.coarse(scales, significant)
    fraction, _ = np.frexp(found)
    assert np.array_equal(np.round(fraction * 2**significant), fraction * 2**significant)
    assert (np.abs(found / scales - 1) <= 2.0**-significant).all()


@pytest.mark.parametrize("significant", [4, 5, 7])
def test_coarse_numbers_are_multiples_of_the_smallest_float16_and_never_0(significant):
    found = grid.coarse(np.concatenate([[0.0, 1e-300, 1e-8], np.exp2(np.linspace(-40, -14, 1000))]), significant)
    assert found.min() == 2.0**-24
    assert np.array_equal(found.astype(np.float16), found)


def test_coarse_leaves_a_coarse_number_as_it_is():
    held = np.concatenate([np.arange(8, 16) * 2.0**power for power in range(-24, 6)])
    assert np.array_equal(grid.coarse(held, 4), held)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_the_largest_scale_times_the_lowest_whole_number_is_a_number_of_float16(bits):
    chosen = Grid(bits=bits)
    assert np.isfinite(np.float16(chosen.largest * 2 ** (bits - 1)))
    assert 2.0 ** (17 - bits) * 2 ** (bits - 1) > grid.LARGEST
    assert grid.coarse(np.array([chosen.largest]), chosen.significant) == [chosen.largest]


@pytest.mark.parametrize("chosen", TABLES, ids=str)
def test_tables_ascend(chosen):
    table = np.array(fit(NAME, MATRICES["heavy tails"], chosen)["core.0.attention.qkv.table"])
    assert (np.diff(table.astype(np.float64)) >= 0).all()


# Errors of rounding


@every_grid
@every_matrix
def test_a_fit_is_the_same_each_time(weight, chosen):
    first, second = (fit(NAME, weight.copy(), chosen) for _ in range(2))
    assert all(mx.array_equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("chosen", AFFINE, ids=str)
@every_matrix
def test_scales_are_no_worse_than_those_that_reach_the_largest_weight(weight, chosen):
    assert error(numbers(weight, chosen), weight) <= error(plain(weight, chosen), weight) * (1 + 1e-5)


@pytest.mark.parametrize("chosen", TABLES, ids=str)
@every_matrix
def test_tables_are_no_worse_than_even_levels(weight, chosen):
    slack = error(weight.astype(np.float16), weight)  # of a single value, which an even level may happen to hit
    assert error(numbers(weight, chosen), weight) <= error(levels(weight, chosen), weight) * (1 + 1e-5) + slack


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_few_values_are_kept_by_tables(bits):
    weight = drawn().choice([-1.0, 0.0, 0.5, 3.0], size=SHAPE).astype(np.float32)
    assert np.array_equal(numbers(weight, Grid(method="lut", bits=bits)), weight)


@every_grid
def test_zeros_stay_zeros(chosen):
    assert not numbers(MATRICES["zeros"], chosen).any()


@pytest.mark.parametrize("chosen", [each for each in AFFINE if each.group == 32], ids=str)
def test_an_outlier_spoils_its_own_group_alone(chosen):
    whole, spoiled = MATRICES["normal"], MATRICES["normal"].copy()
    spoiled[3, 5] = 100.0
    same = numbers(whole, chosen) == numbers(spoiled, chosen)
    assert not same[3, :32].all()
    same[3, :32] = True
    assert same.all()


def test_a_table_serves_its_own_rows_alone():
    whole, spoiled, chosen = MATRICES["normal"], MATRICES["normal"].copy(), Grid(method="lut", bits=4, group=16)
    spoiled[3, 5] = 100.0
    same = numbers(whole, chosen) == numbers(spoiled, chosen)
    assert not same[:16].all()
    assert same[16:].all()


@pytest.mark.parametrize("method", ["affine", "lut"])
def test_more_bits_are_nearer(method):
    errors = [error(numbers(MATRICES["normal"], Grid(method=method, bits=b)), MATRICES["normal"]) for b in (8, 6, 4)]
    assert errors == sorted(errors)
    assert errors[0] < errors[2] / 100


# Refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520.0, 1e30])
@pytest.mark.parametrize("method", ["affine", "lut"])
def test_what_is_no_number_of_float16_is_not_rounded(method, bad):
    with pytest.raises(ValueError, match=r"core.0.attention.qkv.weight must hold finite numbers of at most 65504"):
        fit(NAME, outlier(bad, 0.02), Grid(method=method))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"bits": 5}, "bits must be 4, 6 or 8, got 5"), ({"group": -1}, "group must not be negative, got -1")],
    ids=str,
)
def test_a_grid_that_is_none_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Grid(**settings)


@pytest.mark.parametrize(
    ("chosen", "shape", "words"),
    [
        (Grid(), (64, 48), "multiple of 32 inputs, got 48"),
        (Grid(method="lut"), (64, 48), "multiple of 32 inputs, got 48"),
        (Grid(group=48), (96, 64), "group must divide the 64 inputs of a matrix, got 48"),
        (Grid(group=128), (128, 64), "group must divide the 64 inputs of a matrix, got 128"),
        (Grid(method="lut", group=48), (64, 96), "group must divide the 64 rows of a matrix, got 48"),
    ],
    ids=str,
)
def test_a_matrix_that_does_not_suit_a_grid_is_refused(chosen, shape, words):
    with pytest.raises(ValueError, match=words):
        fit(NAME, np.zeros(shape, np.float32), chosen)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.nan, "finite"),
        (np.inf, "finite"),
        (-0.5, "above 0"),
        (0.0, "above 0"),
        (512.0, "at most 480"),
        (17 / 16, "of at most 4 significant bits"),
    ],
)
def test_a_scale_that_fit_does_not_make_is_refused(bad, words):
    tensors = fit(NAME, MATRICES["normal"], Grid())
    scales = np.array(tensors["core.0.attention.qkv.scales"])
    scales[7, 0] = bad
    with pytest.raises(ValueError, match=f"'core.0.attention.qkv.scales' must be .*{words}"):
        grid.check(NAME, tensors | {"core.0.attention.qkv.scales": mx.array(scales)}, Grid())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_table_of_what_is_no_number_is_refused(bad):
    chosen = Grid(method="lut", bits=4)
    tensors = fit(NAME, MATRICES["normal"], chosen)
    table = np.array(tensors["core.0.attention.qkv.table"])
    table[0, 3] = bad
    with pytest.raises(ValueError, match=r"'core.0.attention.qkv.table' must be finite"):
        grid.check(NAME, tensors | {"core.0.attention.qkv.table": mx.array(table)}, chosen)
