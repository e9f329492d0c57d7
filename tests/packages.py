"""Core ML packages that tests build with coremltools, as small as can be."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, Var, types

KINDS = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}


def narrow(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Whole numbers as the type of so many bits that coremltools packs."""
    return values.astype(types.nptype_from_builtin(types.get_nbits_int_builtin_type(bits, signed)))


def like(variable: Var, values: np.ndarray | float) -> np.ndarray:
    """The values in the type of a variable."""
    return np.asarray(values).astype(types.nptype_from_builtin(variable.dtype))[()]


def save(
    path: Path,
    build: Callable,
    inputs: Mapping[str, np.ndarray],
    states: Sequence[tuple[int, ...]] = (),
) -> Path:
    """The package of a program whose function `build` gets a variable for each input and state.

    Args:
        path: where to save it.
        inputs: an array of the type and shape of each, by name.
        states: their shapes; they are called state_0 and so on.
    """
    given = {name: mb.placeholder(each.shape, KINDS[each.dtype.name]) for name, each in inputs.items()}
    given |= {f"state_{n}": mb.state_tensor_placeholder(shape, types.fp16) for n, shape in enumerate(states)}
    program = Program()
    with Function(given, opset_version=ct.target.iOS18) as function:
        outputs = build(*function.inputs.values())
        function.set_outputs(list(outputs) if isinstance(outputs, tuple) else [outputs])
    program.add_function("main", function)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    model.save(str(path))
    return path
