"""A saved .mlpackage as plain Python: its functions, their operations in order, their types and constants.

Believes the file and nothing else, and refuses what it does not know. An operation's input that is written in place
instead of named gets the name "<first output>.<input>".
"""

import json
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.message import DecodeError

from convert.blob import BITS, unpack
from convert.operations import CONSTANTS, OPERATIONS, STATES
from convert.rule import CASTS, Rule, carried

FEATURES = {65552: "float16", 65568: "float32", 131104: "int32"}  # ArrayFeatureType.ArrayDataType
FIELDS = {  # of TensorValue that hold a constant of each type
    **dict.fromkeys(["float16", "int8", "uint8", "int4", "uint1", "uint2", "uint3", "uint4", "uint6"], "bytes"),
    **{"float32": "floats", "int32": "ints", "int16": "ints", "uint16": "ints", "bool": "bools", "string": "strings"},
}
Message = Any  # of protobuf, whose generated classes cannot be named as types
LARGEST = 1 << 31  # values in one tensor
OPSET = "CoreML8"  # iOS 18
VERSION = 9  # of the specification, iOS 18
WEIGHTS = "@model_path/weights/weight.bin"


class Tensor(NamedTuple):
    """A type by its name in a program ("float16"), and a shape."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operation as it is saved: where it stands, and the names that it reads and makes."""

    function: str
    number: int
    type: str
    name: str
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function}: operation {self.number} ({self.type} {self.name})"


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    name: str
    inputs: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    types: dict[str, Tensor] = field(default_factory=dict)  # of every name but the states
    values: dict[str, np.ndarray] = field(default_factory=dict)  # constants in the program, as they are carried
    stored: dict[str, int] = field(default_factory=dict)  # constants in the weight file: the offset of each


@contextmanager
def naming(where: object) -> Generator[None, None, None]:
    """Make what reading or arithmetic inside can raise a ValueError of one line that starts with `where`."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, AttributeError) as error:
        raise ValueError(" ".join(f"{where}: {error or type(error).__name__}".split())) from error


def read_package(path: Path) -> tuple[Message, dict[str, Function], Path]:
    """The model, its functions by name, and where its weight file must be.

    Raises:
        FileNotFoundError: there is no package or a part of it is missing.
        ValueError: it is not what this file knows.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no .mlpackage folder")
    root, parts = read_manifest(path)
    model = Model_pb2.Model()
    with naming(root.name):
        try:
            model.ParseFromString(root.read_bytes())
        except DecodeError as error:
            raise ValueError(f"is no model specification: {error}") from error
        if model.specificationVersion != VERSION or model.WhichOneof("Type") != "mlProgram":
            raise ValueError(f"must be an ML Program of specification {VERSION}, got {model.specificationVersion}")
        functions = {name: read_function(name, each) for name, each in sorted(model.mlProgram.functions.items())}
        check_description(model, functions)
    weights = root.parent / "weights/weight.bin"
    if any(each.stored for each in functions.values()) and not {weights, weights.parent} & set(parts):
        raise ValueError(f"{path.name}: Manifest.json lists no weights, which the model needs")
    return model, functions, weights


def read_manifest(path: Path) -> tuple[Path, list[Path]]:
    """The model file of a package, and every file or folder that its manifest lists."""
    file = path / "Manifest.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    with naming(f"{path.name}: Manifest.json"):
        manifest = json.loads(file.read_text())
        items = {key: path / "Data" / item["path"] for key, item in manifest["itemInfoEntries"].items()}
        if manifest["rootModelIdentifier"] not in items:
            raise ValueError("lists no item for its rootModelIdentifier")
        root = items[manifest["rootModelIdentifier"]]
        if any(".." in each.relative_to(path).parts for each in items.values()):
            raise ValueError("lists an item outside the package")
    for each in items.values():
        if not each.exists() or (each == root and not each.is_file()):
            raise FileNotFoundError(f"{each} is missing")
    return root, list(items.values())


def check_description(model: Message, functions: dict[str, Function]) -> None:
    """Refuse a model whose description, which an app sees, is not that of its program."""
    described = {each.name: each for each in model.description.functions}
    if not described and len(functions) == 1:
        described = dict.fromkeys(functions, model.description)
    if described.keys() != functions.keys():
        raise ValueError(f"describes the functions {sorted(described)}, but has {sorted(functions)}")
    for name, function in functions.items():
        for what in ("input", "output", "state"):
            found: dict[str, Tensor] = {}
            for feature in getattr(described[name], what):
                array = feature.type.stateType.arrayType if what == "state" else feature.type.multiArrayType
                if feature.type.WhichOneof("Type") != ("stateType" if what == "state" else "multiArrayType"):
                    raise ValueError(f"{name} describes {feature.name!r} as no {what} array")
                kind = FEATURES.get(array.dataType, str(array.dataType))
                found[feature.name] = Tensor(kind, tuple(array.shape))
                if array.WhichOneof("ShapeFlexibility"):
                    raise ValueError(f"{name} describes {feature.name!r} with a shape that is not fixed")
            if found != getattr(function, f"{what}s"):
                raise ValueError(f"{name} describes its {what}s as {found}, but has {getattr(function, f'{what}s')}")


def read_function(name: str, saved: Message) -> Function:
    """One function, every operation held against its rule."""
    function = Function(name)
    with naming(f"function {name}"):
        if list(saved.block_specializations) != [OPSET] or saved.opset != OPSET or saved.attributes:
            raise ValueError(
                f"must have one block of opset {OPSET}, got {saved.opset} {list(saved.block_specializations)}"
            )
        for each in saved.inputs:
            state = each.type.WhichOneof("type") == "stateType"
            kind = read_type(each.type.stateType.wrappedType if state else each.type)
            if each.name in function.types or each.name in function.states:
                raise ValueError(f"has two inputs {each.name!r}")
            if state:
                function.states[each.name] = kind
            else:
                function.inputs[each.name] = function.types[each.name] = kind
        (block,) = saved.block_specializations.values()
        if block.inputs or block.attributes:
            raise ValueError("has a block with inputs or attributes, which are not known")
    for number, each in enumerate(block.operations):
        title = read_title(each)
        with naming(f"{name}: operation {number} ({each.type} {title})"):
            function.operations.append(read_operation(function, number, title, each))
    with naming(f"function {name}"):
        function.outputs.update({each: function.types[each] for each in block.outputs})
    return function


def read_title(saved: Message) -> str:
    """An operation's name, or its first output's where it has none."""
    for key, value in saved.attributes.items():
        if key == "name" and len(value.immediateValue.tensor.strings.values) == 1:
            return value.immediateValue.tensor.strings.values[0]
    return saved.outputs[0].name if saved.outputs else ""


def read_operation(function: Function, number: int, title: str, saved: Message) -> Operation:
    """One operation; its outputs and its constants are added to the function."""
    types, outputs = function.types, {each.name: read_type(each.type) for each in saved.outputs}
    attributes = {"name", "val"} if saved.type == "const" else {"name"}
    if saved.blocks or not set(saved.attributes) <= attributes:
        raise ValueError(f"has blocks or unknown attributes {sorted(set(saved.attributes) - attributes)}")
    inputs: dict[str, tuple[str, ...]] = {}
    for key, argument in sorted(saved.inputs.items()):
        names = []
        for place, binding in enumerate(argument.arguments):
            if binding.WhichOneof("binding") == "value":
                inline = f"{saved.outputs[0].name}.{key}" + (f".{place}" if place else "")
                types[inline] = read_type(binding.value.type)
                read_constant(function, inline, binding.value)
                names.append(inline)
            else:
                names.append(binding.name)
        inputs[key] = tuple(names)
    operation = Operation(function.name, number, saved.type, title, inputs, tuple(outputs))
    known = {**{key: each.kind for key, each in types.items()}, **dict.fromkeys(function.states, "state")}
    missing = [each for names in inputs.values() for each in names if each not in known]
    if missing:
        raise ValueError(f"reads {missing[0]!r}, which nothing before it makes")
    again = [each for each in outputs if each in known] or [each.name for each in saved.outputs][len(outputs) :]
    if again:
        raise ValueError(f"makes {again[0]!r} again")
    rule = Rule("-> A") if saved.type == "const" else (OPERATIONS | CONSTANTS | STATES).get(saved.type)
    if rule is None:
        raise ValueError("is not known")
    rule.check(
        {key: [known[each] for each in names] for key, names in inputs.items()}, [t.kind for t in outputs.values()]
    )
    types.update(outputs)
    check_further(function, operation)
    if saved.type == "const":
        (output,) = outputs
        if "val" not in saved.attributes or read_type(saved.attributes["val"].type) != outputs[output]:
            raise ValueError("must have a val of its output's type")
        read_constant(function, output, saved.attributes["val"])
    return operation


def check_further(function: Function, operation: Operation) -> None:
    """Refuse what a rule cannot say: of states, of casts and of how weights are stored."""
    names = {key: given[0] for key, given in operation.inputs.items() if given}
    if operation.type in STATES:
        other = operation.outputs[0] if operation.outputs else names["data"]
        if function.types[other] != function.states[names["input"]]:
            raise ValueError(f"must be of the state's type {function.states[names['input']]}")
    elif operation.type == "cast":
        given = str(function.values.get(names["dtype"], names["dtype"]))
        if CASTS.get(given) != function.types[operation.outputs[0]].kind:
            raise ValueError(f"casts to {given}, but makes {function.types[operation.outputs[0]].kind}")
    elif operation.type in CONSTANTS:
        for each in names.values():
            if each not in function.stored and each not in function.values:
                raise ValueError(f"reads {each!r}, which is no constant")
        if "lut" in names:
            shape = function.types[names["lut"]].shape
            if shape[-2:-1] != (1 << BITS[function.types[names["indices"]].kind],):
                raise ValueError(f"must have a lut for every index, got {shape}")


def read_type(saved: Message) -> Tensor:
    """A tensor's type and shape."""
    if saved.WhichOneof("type") != "tensorType":
        raise ValueError(f"must have tensors, got {saved.WhichOneof('type')}")
    tensor = saved.tensorType
    if any(each.WhichOneof("dimension") != "constant" for each in tensor.dimensions) or tensor.attributes:
        raise ValueError("must have tensors of a fixed shape without attributes")
    shape = tuple(each.constant.size for each in tensor.dimensions)
    if tensor.rank != len(shape) or math.prod(shape) > LARGEST:
        raise ValueError(f"has a tensor of rank {tensor.rank} with the shape {shape}")
    return Tensor(MIL_pb2.DataType.Name(tensor.dataType).lower(), shape)


def read_constant(function: Function, name: str, saved: Message) -> None:
    """Add a constant to the function: its value, or its place in the weight file."""
    kind, shape = function.types.get(name) or read_type(saved.type)
    if saved.WhichOneof("value") == "blobFileValue":
        if saved.blobFileValue.fileName != WEIGHTS:
            raise ValueError(f"must lie in {WEIGHTS}, got {saved.blobFileValue.fileName!r}")
        function.stored[name] = saved.blobFileValue.offset
        return
    tensor, wanted = saved.immediateValue.tensor, FIELDS.get(kind)
    if saved.immediateValue.WhichOneof("value") != "tensor" or wanted is None or tensor.WhichOneof("value") != wanted:
        raise ValueError(f"must have a value in {wanted} for {kind}, got {tensor.WhichOneof('value')}")
    numbers: Sequence = getattr(tensor, wanted).values
    if kind == "string":
        value = np.array(list(numbers)).reshape(shape)
    elif wanted == "bytes":
        value = unpack(np.frombuffer(bytes(tensor.bytes.values), np.uint8), kind, shape).astype(carried(kind))
    else:
        value = np.array(list(numbers), carried(kind)).reshape(shape)
    function.values[name] = value
