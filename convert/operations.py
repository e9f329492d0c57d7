"""What each operation of a Core ML program computes.

Shapes: B batch, I inputs, O outputs, P positions; anything else is any shape. A kernel takes the operation's inputs
by their names and raises ValueError on any it cannot honour. Half precision is carried in float32: a kernel computes
in float32, and whoever calls it rounds the result.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from convert.rule import CASTS, INDICES, Rule, carried

Array = np.ndarray
LARGEST = 1 << 28  # values that one operation may make


def nearest(x: Array) -> Array:
    """Each number's nearest of half precision, carried in float32; infinite from 65520 on."""
    return x.astype(np.float16).astype(np.float32)


def product(a: Array, b: Array, block: int) -> Array:
    """a @ b in float32, or with the running sum rounded to half precision after every `block` products."""
    if not block:
        return a @ b
    total = np.float32(0)
    for start in range(0, a.shape[-1], block):
        part = a[..., start : start + block] @ b[..., start : start + block, :]
        total = nearest(total + part)
    return np.asarray(total)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | int = 1,
    pad_type: Array | str = "valid",
    pad: Array | int = 0,
    dilations: Array | int = 1,
    groups: Array | int = 1,
    *,
    block: int,
) -> Array:
    """A linear map of channels: x (B, I, ...), weight (O, I, 1, ...), bias (O,); gives (B, O, ...)."""
    if np.any(np.asarray(strides) != 1) or np.any(np.asarray(dilations) != 1) or int(groups) != 1:
        raise ValueError("must have strides, dilations and groups of 1")
    if str(pad_type) not in ("valid", "custom") or (str(pad_type) == "custom" and np.any(np.asarray(pad) != 0)):
        raise ValueError(f"must have no padding, got {pad_type}")
    if weight.ndim != x.ndim or x.ndim < 3 or math.prod(weight.shape[2:]) != 1 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"must have a kernel of 1 over x's channels, got {weight.shape} for x {x.shape}")
    outputs, channels = weight.shape[:2]
    y = product(weight.reshape(outputs, channels), x.reshape(x.shape[0], channels, -1), block)  # (B, O, P)
    if bias is not None:
        if bias.shape != (outputs,):
            raise ValueError(f"bias must be of shape {(outputs,)}, got {bias.shape}")
        y = y + bias[:, None]
    return y.reshape(x.shape[0], outputs, *x.shape[2:])


def matmul(
    x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False, *, block: int
) -> Array:
    """x @ y over the last two axes; the others broadcast."""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"must have matrices, got {x.shape} and {y.shape}")
    a = np.swapaxes(x, -1, -2) if transpose_x else x
    b = np.swapaxes(y, -1, -2) if transpose_y else y
    return product(a, b, block)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    """x with mean 0 and variance 1 over the axes, then times gamma, plus beta, each of the shape of these axes."""
    over = normal_axes(axes, x.ndim)
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(over, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(over, keepdims=True) + np.float32(epsilon))
    for factor in (gamma, beta):
        if factor is not None and factor.shape != tuple(x.shape[axis] for axis in over):
            raise ValueError(f"gamma and beta must be of the shape of axes {over} of {x.shape}, got {factor.shape}")
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def softmax(x: Array, axis: Array | int = -1) -> Array:
    powers = np.exp(x - x.max(int(axis), keepdims=True))
    return powers / powers.sum(int(axis), keepdims=True)


def normal_axes(axes: Array | None, rank: int) -> tuple[int, ...]:
    """Axes as different numbers from 0, in order; all if None."""
    if axes is None:
        return tuple(range(rank))
    found = sorted(int(axis) + rank * (int(axis) < 0) for axis in np.ravel(axes))
    if len(set(found)) < len(found) or not all(0 <= axis < rank for axis in found):
        raise ValueError(f"axes must be different ones of rank {rank}, got {np.ravel(axes).tolist()}")
    return tuple(found)


def reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    """A kernel that gathers the numbers of some axes in one."""

    def kernel(x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
        return function(x, axis=normal_axes(axes, x.ndim), keepdims=bool(keep_dims)).astype(x.dtype)

    return kernel


def cast(x: Array, dtype: Array) -> Array:
    kind = CASTS[str(dtype)]
    if kind in INDICES and x.dtype != bool:
        limits = np.iinfo(kind)
        if not np.all((np.trunc(x) >= limits.min) & (np.trunc(x) <= limits.max)) or np.any(x == 2.0**31):
            raise ValueError(f"cannot put its numbers in {kind}")
    return x.astype(carried(kind))


def concat(values: list[Array], axis: Array, interleave: Array | bool = False) -> Array:
    if interleave:
        raise ValueError("interleave is not known")
    return np.concatenate(values, int(axis))


def split(
    x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | list[int] | None = None
) -> list[Array]:
    size = x.shape[int(axis)]
    if split_sizes is None:
        if num_splits is None or int(num_splits) < 1 or size % int(num_splits):
            raise ValueError(f"must have split_sizes, or num_splits that divides {size}")
        split_sizes = [size // int(num_splits)] * int(num_splits)
    elif num_splits is not None and int(num_splits) != len(split_sizes):
        raise ValueError(f"must have as many split_sizes as num_splits, got {len(split_sizes)} and {int(num_splits)}")
    if sum(map(int, split_sizes)) != size or min(map(int, split_sizes)) < 0:
        raise ValueError(f"split_sizes must add up to {size}, got {[int(each) for each in split_sizes]}")
    return np.split(x, np.cumsum(split_sizes)[:-1], int(axis))


def reshape(x: Array, shape: Array) -> Array:
    """x in another shape: 0 keeps the size of that axis, one -1 stands for what is left."""
    sizes = [int(size) for size in shape]
    if 0 in sizes and len(sizes) != x.ndim:
        raise ValueError(f"shape {sizes} keeps an axis of {x.shape}, which has another rank")
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else normal_axes(axes, x.ndim))


def tile(x: Array, reps: Array) -> Array:
    if len(reps) != x.ndim or min(map(int, reps), default=1) < 1 or x.size * math.prod(map(int, reps)) > LARGEST:
        raise ValueError(f"reps must be one positive number for each axis of {x.shape}, got {list(map(int, reps))}")
    return np.tile(x, reps)


def gather(
    x: Array,
    indices: Array,
    axis: Array | int = 0,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
) -> Array:
    """Rows of x along the axis; an index outside is refused whether or not the program asks for it."""
    del validate_indices
    size = x.shape[int(axis)]
    if int(batch_dims) != 0:
        raise ValueError(f"batch_dims must be 0, got {int(batch_dims)}")
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise ValueError(f"indices must be from 0 to {size - 1}, got {indices.min()} to {indices.max()}")
    return np.take(x, indices, int(axis))


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """x from begin on, this many of each axis; -1 stands for all that follow."""
    if len(begin) != x.ndim or len(size) != x.ndim or any(n < 1 and n != -1 for n in size.tolist()):
        raise ValueError(f"size must be -1 or positive for each axis of {x.shape}, got {size.tolist()}")
    low = np.where(begin < 0, begin + x.shape, begin)
    return x[window(x.shape, low, np.where(size == -1, x.shape, low + size))]


def window(
    shape: Sequence[int],
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> tuple[slice | int, ...]:
    """The index of a slice: per axis from begin to end, negative ones counted from the end.

    Raises:
        ValueError: it does not lie inside the shape: what Core ML does then is not defined.
    """
    rank = len(shape)
    index: list[slice | int] = []
    columns = [
        begin,
        end,
        *(each if each is not None else [0] * rank for each in (begin_mask, end_mask, squeeze_mask)),
    ]
    steps = [1] * rank if stride is None else stride
    for axis, (low, high, first, last, single, step) in enumerate(zip(*columns, steps, strict=True)):
        size = shape[axis]
        low = 0 if first else int(low) + size * (int(low) < 0)
        high = low + 1 if single else size if last else int(high) + size * (int(high) < 0)
        if not 0 <= low <= high <= size or int(step) < 1:
            raise ValueError(f"slice {low}:{high}:{int(step)} must lie in axis {axis} of {tuple(shape)}")
        index.append(low if single else slice(low, high, int(step)))
    if len(index) != rank:
        raise ValueError(f"must have a begin and an end for each axis of {tuple(shape)}, got {len(index)}")
    return tuple(index)


def slice_by_index(x: Array, begin: Array, end: Array, **how: Array) -> Array:
    return x[window(x.shape, begin, end, **how)]


def slice_update(x: Array, update: Array, begin: Array, end: Array, **how: Array) -> Array:
    """A copy of x with this slice replaced."""
    y, place = x.copy(), window(x.shape, begin, end, **how)
    if y[place].shape != update.shape:
        raise ValueError(f"update must be of the slice's shape {y[place].shape}, got {update.shape}")
    y[place] = update
    return y


def blocks(small: Array, shape: Sequence[int]) -> Array:
    """Each value repeated over its block, so that the first axes have this shape."""
    for axis, size in enumerate(shape):
        if small.ndim < len(shape) or small.shape[axis] == 0 or size % small.shape[axis]:
            raise ValueError(f"blocks {small.shape} do not divide {tuple(shape)}")
        if small.shape[axis] not in (1, size):
            small = np.repeat(small, size // small.shape[axis], axis)
    return small


def shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), a scale and an offset for each block."""
    if offset is not None and offset.shape != scale.shape:
        raise ValueError(f"offset must be of the shape of scale {scale.shape}, got {offset.shape}")
    values = data.astype(np.float32)
    return blocks(scale, data.shape) * (values if offset is None else values - blocks(offset, data.shape))


def look_up(indices: Array, lut: Array) -> Array:
    """Each index's value in the table of its group: lut (groups of each axis ..., 2^bits, 1)."""
    if lut.ndim != indices.ndim + 2 or lut.shape[-1] != 1 or int(indices.max()) >= lut.shape[-2]:
        raise ValueError(f"lut {lut.shape} is no table of single values for indices {indices.shape}")
    tables = blocks(lut[..., 0], indices.shape)  # (..., 2^bits), an axis of 1 where all share one table
    spread = np.broadcast_to(tables, (*indices.shape, tables.shape[-1]))
    return np.take_along_axis(spread, indices[..., None].astype(np.intp), -1)[..., 0]


SLICE = "begin:I end:I stride?:I begin_mask?:bool end_mask?:bool squeeze_mask?:bool -> T"
CONV = "x:F weight:F bias?:F strides?:int32 pad_type?:string pad?:int32 dilations?:int32 groups?:int32 -> F"
SUMS = "x:N axes?:int32 keep_dims?:bool -> N"
STATES = {  # the caller keeps the states
    "read_state": Rule("input:state -> F"),
    "write_state": Rule("input:state data:F ->"),
}
CONSTANTS = {  # what makes a weight from what is stored: computed once
    "constexpr_blockwise_shift_scale": Rule("data:Q scale:F offset?:O -> F", shift_scale, rounds=True),
    "constexpr_lut_to_dense": Rule("indices:X lut:F -> F", look_up),
}
OPERATIONS = {
    "abs": Rule("x:N -> N", lambda x: np.abs(x)),
    "add": Rule("x:N y:N -> N", lambda x, y: x + y, rounds=True),
    "cast": Rule("x:T dtype:string -> U", cast, rounds=True),
    "concat": Rule("values*:T axis:int32 interleave?:bool -> T", concat),
    "conv": Rule(CONV, conv, rounds=True, sums=True),
    "expand_dims": Rule("x:T axes:int32 -> T", lambda x, axes: np.expand_dims(x, tuple(map(int, axes)))),
    "floor_div": Rule("x:N y:N -> N", lambda x, y: np.floor_divide(x, y), rounds=True),
    "gather": Rule("x:T indices:I axis?:int32 batch_dims?:int32 validate_indices?:bool -> T", gather),
    "greater": Rule("x:N y:N -> bool", lambda x, y: x > y),
    "greater_equal": Rule("x:N y:N -> bool", lambda x, y: x >= y),
    "identity": Rule("x:T -> T", lambda x: x),
    "layer_norm": Rule("x:F axes?:int32 gamma?:F beta?:F epsilon?:F -> F", layer_norm, rounds=True),
    "less": Rule("x:N y:N -> bool", lambda x, y: x < y),
    "less_equal": Rule("x:N y:N -> bool", lambda x, y: x <= y),
    "logical_and": Rule("x:bool y:bool -> bool", lambda x, y: x & y),
    "matmul": Rule("x:F y:F transpose_x?:bool transpose_y?:bool -> F", matmul, rounds=True, sums=True),
    "maximum": Rule("x:N y:N -> N", lambda x, y: np.maximum(x, y)),
    "mul": Rule("x:N y:N -> N", lambda x, y: x * y, rounds=True),
    "real_div": Rule("x:F y:F -> F", lambda x, y: x / y, rounds=True),
    "reduce_max": Rule(SUMS, reduce(np.max)),
    "reduce_mean": Rule(SUMS.replace("N", "F"), reduce(np.mean), rounds=True),
    "reduce_sum": Rule(SUMS, reduce(np.sum), rounds=True),
    "relu": Rule("x:F -> F", lambda x: np.maximum(x, 0)),
    "reshape": Rule("x:T shape:int32 -> T", reshape),
    "rsqrt": Rule("x:F epsilon?:F -> F", lambda x, epsilon=1e-12: 1 / np.sqrt(x + np.float32(epsilon)), rounds=True),
    "select": Rule("cond:bool a:T b:T -> T", lambda cond, a, b: np.where(cond, a, b)),
    "sigmoid": Rule("x:F -> F", sigmoid, rounds=True),
    "silu": Rule("x:F -> F", lambda x: x * sigmoid(x), rounds=True),
    "slice_by_index": Rule("x:T " + SLICE, slice_by_index),
    "slice_by_size": Rule("x:T begin:int32 size:int32 -> T", slice_by_size),
    "slice_update": Rule("x:T update:T " + SLICE, slice_update),
    "softmax": Rule("x:F axis?:int32 -> F", softmax, rounds=True),
    "split": Rule("x:T axis:int32 num_splits?:int32 split_sizes?:int32 -> T*", split),
    "sqrt": Rule("x:F -> F", lambda x: np.sqrt(x), rounds=True),
    "square": Rule("x:N -> N", lambda x: np.square(x), rounds=True),
    "squeeze": Rule("x:T axes?:int32 -> T", squeeze),
    "sub": Rule("x:N y:N -> N", lambda x, y: x - y, rounds=True),
    "tile": Rule("x:T reps:int32 -> T", tile),
    "transpose": Rule("x:T perm:int32 -> T", lambda x, perm: np.transpose(x, tuple(map(int, perm)))),
}
