"""The weights of a program: the very numbers of the model folder, quantized or not.

    affine 8, 6 bits    constexpr_blockwise_shift_scale of int8, a scale for a row or a group of inputs
    affine 4 bits       constexpr_blockwise_shift_scale of int4
    lut 4, 6, 8 bits    constexpr_lut_to_dense of uint4, uint6, uint8, a table for the tensor or a group of rows

Nothing is rounded here. Every scale times its whole number is a float16 number (`trm_mlx.adapt.grid`), so Core ML's
float16(scale * q) is the weight that MLX multiplies with.
"""

import hashlib
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import mlx.core as mx
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Var, types

from convert.manifest import Compression
from trm_mlx.adapt import grid
from trm_mlx.checkpoint import Contents

mb: Any = Builder  # which makes its operations at run time
LEAST = 4096  # numbers of a constant that is rounded: matrices, and no gains or tables


def constant(name: str, held: Contents, dtype: type[np.float16] | type[np.float32]) -> Var:
    """The matrix of this name as a kernel (O, I, 1, 1) of the program that is being built."""
    place = name.replace(".", "_")
    each = held.grids.get(name)
    if each is None:
        matrix = np.array(held.arrays[name].astype(mx.float32)).astype(dtype)
        return mb.const(val=matrix[:, :, None, None], name=place)
    whole = grid.whole_numbers(name, held.arrays, each)[:, :, None, None]
    rest = np.array(held.arrays[each.names(name)[1]]).astype(dtype)
    if each.method == "affine":
        whole = narrow(whole, 4, signed=True) if each.bits == 4 else whole
        return mb.constexpr_blockwise_shift_scale(data=whole, scale=rest[:, :, None, None], name=place)
    tables = rest.reshape(len(rest), 1, 1, 1, -1, 1)
    return mb.constexpr_lut_to_dense(indices=narrow(whole, each.bits, signed=False), lut=tables, name=place)


def narrow(whole: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """Whole numbers that coremltools stores in so few bits."""
    return whole.astype(types.nptype_from_builtin(types.get_nbits_int_builtin_type(bits, signed)))


def weight_id(value: np.ndarray) -> str:
    """The same for equal constants, and only for them: coremltools stores those of one id once."""
    kind = f"{types.builtin_to_string(types.numpy_type_to_builtin_type(value.dtype))}{value.shape}"
    return f"{kind} {hashlib.sha256(value.tobytes()).hexdigest()}"


def rounded(model: "ct.models.MLModel", how: Compression) -> "ct.models.MLModel":
    """A single-function model whose matrices coremltools rounded by its own rules, which MLX does not know."""
    if how.startswith("int"):
        by: Any = {"granularity": "per_block", "block_size": 32} if how == "int4" else {}
        each = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=how, weight_threshold=LEAST, **by)
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=each))
    each = cto.OpPalettizerConfig(mode="kmeans", nbits=int(how[3:]), weight_threshold=LEAST)
    return cto.palettize_weights(model, cto.OptimizationConfig(global_config=each))
