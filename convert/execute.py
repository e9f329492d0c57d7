"""Runs a saved .mlpackage with NumPy: what its program says, on any machine.

Half precision is computed in float32 and rounded after every operation. What it costs is the difference to `widen`,
and what narrow accumulators may cost is the difference to `block`; Core ML's own numbers lie somewhere near.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.blob import WeightFile, holder
from convert.operations import CONSTANTS, OPERATIONS, nearest
from convert.parse import Function, Operation, Tensor, naming, read_package
from convert.rule import Rule, carried


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute.

    `watch` gets each operation and each of its results, float16 ones as float32: rounded, or not with `widen`.
    """

    widen: bool = False  # compute float16 operations in float32 and round nothing
    block: int = 0  # round the sums of conv and matmul to float16 after every so many products; 0: once, at the end
    watch: Callable[[Operation, np.ndarray], None] | None = None

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block must be 0 or more, got {self.block}")


PLAIN = Options()


class Step(NamedTuple):
    """An operation that is ready to run."""

    operation: Operation
    rule: Rule | None  # None for those on states
    outputs: tuple[Tensor, ...]


class Package:
    """A saved package.

    Raises:
        FileNotFoundError: a part of it is missing.
        ValueError: a part is damaged, or not known here; every error is one line that names where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec, self._functions, self.weight_file = read_package(path)
        self.functions = tuple(self._functions)
        self._dense: dict[tuple, np.ndarray] = {}  # constants as carried, by where they lie: one for all functions
        self._fixed: dict[str, dict[str, np.ndarray]] = {}
        self._steps: dict[str, list[Step]] = {}
        if any(each.stored for each in self._functions.values()):
            self._file = WeightFile(self.weight_file)
        for function in self._functions.values():
            for name, offset in function.stored.items():
                with naming(f"{function.name}: constant {name}"):
                    self._file.data(offset, *function.types[name])

    def inputs(self, function: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of each input, without the states."""
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in self._function(function).inputs.items()}

    def outputs(self, function: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of each output."""
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in self._function(function).outputs.items()}

    def states(self, function: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of each state."""
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in self._function(function).states.items()}

    def zero_state(self, function: str) -> dict[str, np.ndarray]:
        """Every state, filled with zeros."""
        return {name: np.zeros(shape, kind) for name, (kind, shape) in self.states(function).items()}

    def kind(self, function: str, name: str) -> Tensor:
        """Type and shape of anything that a function makes or is given, but for its states."""
        return self._function(function).types[name]

    def stored(self, function: str) -> dict[str, int]:
        """Where each constant of the weight file lies there, by name."""
        return dict(self._function(function).stored)

    def operations(self, function: str) -> list[Operation]:
        """Every operation in order, constants too."""
        return list(self._function(function).operations)

    def offsets(self) -> set[int]:
        """Where the records of the weight file lie that a function uses."""
        return {offset for each in self._functions.values() for offset in each.stored.values()}

    def record(self, offset: int) -> tuple[int, int]:
        """First byte of a record, its head included, and the first one after its data."""
        return self._file.span(offset)

    def constants(self, function: str) -> dict[str, np.ndarray]:
        """Every constant of the weight file by name, as stored; types narrower than a byte as int8 or uint8.

        A constant that an operation has in place of a name is called "<the operation's output>.<the input>".
        """
        found = self._function(function)
        return {name: self._file.read(offset, *found.types[name]) for name, offset in found.stored.items()}

    def constant(self, function: str, name: str) -> np.ndarray | None:
        """The value of one constant, in the program as it is carried or in the file as stored; None if it is none."""
        found = self._function(function)
        if name in found.stored:
            return self._file.read(found.stored[name], *found.types[name])
        return found.values.get(name)

    def weights(self, function: str) -> dict[str, np.ndarray]:
        """Every weight by name, decoded to its declared type, and none of what it is decoded from."""
        found = self._function(function)
        made = [each for each in found.operations if each.type in CONSTANTS]
        parts = {name for each in made for names in each.inputs.values() for name in names}
        names = [name for each in made for name in each.outputs] + [n for n in found.stored if n not in parts]
        fixed = self._constants(found)
        return {name: fixed[name].astype(holder(found.types[name].kind)) for name in names}

    def run(
        self,
        function: str,
        inputs: Mapping[str, np.ndarray],
        state: dict[str, np.ndarray] | None = None,
        *,
        options: Options = PLAIN,
    ) -> dict[str, np.ndarray]:
        """The outputs of one call, by name.

        Args:
            inputs: an array of the declared type and shape for each; with `widen` float32 may stand for float16.
            state: likewise for each state; changed in place when the call is done, untouched if it fails.

        Returns:
            Arrays of the declared types; with `widen` float32 in place of float16.

        Raises:
            ValueError: an input is wrong, or an operation cannot be computed or gives not what the program declares.
        """
        found = self._function(function)
        state = {} if state is None else state
        check_arrays(f"{function}: input", found.inputs, inputs, options.widen)
        check_arrays(f"{function}: state", found.states, state, options.widen)
        values = dict(self._constants(found))
        values.update({name: inputs[name].astype(carried(kind)) for name, (kind, _) in found.inputs.items()})
        states = {name: state[name].astype(carried(kind)) for name, (kind, _) in found.states.items()}
        with np.errstate(all="ignore"):
            for step in self._plan(found):
                with naming(step.operation):
                    self._take(step, values, states, options)
        for name, value in states.items():
            state[name][...] = value
        results = {}
        for name, (kind, _) in found.outputs.items():
            with np.errstate(over="ignore"):
                results[name] = values[name].astype(carried(kind) if options.widen else kind)
        return results

    def _take(
        self, step: Step, values: dict[str, np.ndarray], states: dict[str, np.ndarray], options: Options
    ) -> None:
        """Run one operation and add its results to the values."""
        operation, rule, tensors = step
        if rule is None:
            (source,) = operation.inputs["input"]
            if operation.type == "write_state":
                states[source] = values[operation.inputs["data"][0]]
                return
            results = [states[source]]
        else:
            results = compute(operation, rule, tensors, values, options)
        for name, tensor, result in zip(operation.outputs, tensors, results, strict=True):
            if result.shape != tensor.shape or result.dtype != carried(tensor.kind):
                raise ValueError(f"declares {tensor.kind} {tensor.shape}, makes {result.dtype} {result.shape}")
            values[name] = result
            if options.watch is not None:
                options.watch(operation, result)

    def _function(self, name: str) -> Function:
        if name not in self._functions:
            raise ValueError(f"{self.path.name} has no function {name!r}; it has {', '.join(self.functions)}")
        return self._functions[name]

    def _plan(self, function: Function) -> list[Step]:
        """What a run of the function has to do: all but its constants."""
        if function.name not in self._steps:
            self._steps[function.name] = [
                Step(each, OPERATIONS.get(each.type), tuple(function.types[name] for name in each.outputs))
                for each in function.operations
                if each.type != "const" and each.type not in CONSTANTS
            ]
        return self._steps[function.name]

    def _constants(self, function: Function) -> dict[str, np.ndarray]:
        """Every constant that a run of the function needs, as it is carried, by name."""
        if function.name in self._fixed:
            return self._fixed[function.name]
        made = [each for each in function.operations if each.type in CONSTANTS]
        parts = {name for each in made for names in each.inputs.values() for name in names}
        fixed = dict(function.values)
        for name, offset in function.stored.items():
            kind, shape = function.types[name]
            key = (offset, kind, shape)
            if name in parts:
                continue
            if key not in self._dense:
                self._dense[key] = self._file.read(offset, kind, shape).astype(carried(kind))
            fixed[name] = self._dense[key]
        for each in made:
            with naming(each), np.errstate(all="ignore"):
                fixed[each.outputs[0]] = self._decode(function, each)
        self._fixed[function.name] = fixed
        return fixed

    def _decode(self, function: Function, operation: Operation) -> np.ndarray:
        """The weight that an operation on constants makes."""
        names = {given: name for given, (name,) in operation.inputs.items()}
        places = [
            function.stored.get(name, function.values.get(name, np.empty(0)).tobytes()) for name in names.values()
        ]
        key = (operation.type, *names, *places, *(function.types[name] for name in names.values()))
        if key not in self._dense:
            parts = {name: value for name, value in function.values.items() if name in names.values()}
            for name in names.values() & function.stored.keys():
                kind, shape = function.types[name]
                parts[name] = self._file.read(function.stored[name], kind, shape).astype(carried(kind))
            tensor = function.types[operation.outputs[0]]
            (result,) = compute(operation, CONSTANTS[operation.type], (tensor,), parts, PLAIN)
            if result.shape != tensor.shape:
                raise ValueError(f"declares {tensor.shape}, makes {result.shape}")
            self._dense[key] = np.ascontiguousarray(result)
        return self._dense[key]


def compute(
    operation: Operation, rule: Rule, tensors: tuple[Tensor, ...], values: Mapping[str, np.ndarray], options: Options
) -> list[np.ndarray]:
    """The results of an operation that has a rule."""
    assert rule.kernel is not None
    given = {}
    for key, names in operation.inputs.items():
        several = rule.inputs[key][1] == "*"
        given[key] = [values[name] for name in names] if several else values[names[0]]
    half = bool(tensors) and tensors[0].kind == "float16"
    if rule.sums:
        given["block"] = options.block if half else 0
    made = rule.kernel(**given)
    results = made if isinstance(made, list) else [np.asarray(made)]
    return [nearest(each) for each in results] if half and rule.rounds and not options.widen else results


def check_arrays(where: str, wanted: Mapping[str, Tensor], given: Mapping[str, np.ndarray], widen: bool) -> None:
    """Refuse arrays that are not those wanted, by name, type and shape."""
    if given.keys() != wanted.keys():
        raise ValueError(f"{where}s must be {sorted(wanted)}, got {sorted(given)}")
    for name, (kind, shape) in wanted.items():
        array = given[name]
        kinds = [kind, "float32"] if widen and kind == "float16" else [kind]
        if not isinstance(array, np.ndarray) or array.dtype.name not in kinds or array.shape != shape:
            got = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{where} {name} must be {' or '.join(kinds)} {shape}, got {got}")
