"""The weights of a program: the very numbers of the model folder, quantized or not.

    affine 8, 6 bits    constexpr_blockwise_shift_scale of int8, a scale for a row or a group of inputs
    affine 4 bits       constexpr_blockwise_shift_scale of int4
    lut 4, 6, 8 bits    constexpr_lut_to_dense of uint4, uint6, uint8, a table for the tensor or a group of rows

Nothing is rounded here. Every scale times its whole number is a float16 number (`trm_mlx.adapt.grid`), so Core ML's
float16(scale * q) is the weight that MLX multiplies with.
"""

import contextlib
import hashlib
import io
from collections.abc import Generator, Iterable
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import mlx.core as mx
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Program, Var, types
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

from convert.manifest import Compression
from trm_mlx.adapt import grid
from trm_mlx.checkpoint import Contents

mb: Any = Builder  # which makes its operations at run time
ROUNDING = {"int": "compression::linear_quantize_weights", "lut": "compression::palettize_weights"}  # its passes


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


def round_matrices(program: Program, names: Iterable[str], how: Compression) -> None:
    """Let coremltools round the matrices of these names, in every function, by rules of its own."""
    bits = int(how[3:])
    if how.startswith("int"):
        by: Any = {"granularity": "per_block", "block_size": 32} if bits == 4 else {}
        each = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=how, weight_threshold=0, **by)
    else:
        each = cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0)
    chosen = cto.OptimizationConfig()
    for name in names:
        chosen.set_op_name(name.replace(".", "_"), each)
    pipeline: Any = ct.PassPipeline([ROUNDING[how[:3]]], "trm_mlx")
    pipeline.set_options(ROUNDING[how[:3]], {"config": chosen})
    with quiet():
        PassPipelineManager.apply_pipeline(program, pipeline)
    for function in program.functions.values():
        for op in function.operations:
            if op.op_type.startswith("constexpr_"):  # which has another name than the matrix that it stands for
                op.name = op.outputs[0].name = op.name.removesuffix("_quantized").removesuffix("_palettized")


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Without coremltools' own progress and warnings, which are not about what the user asked."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
