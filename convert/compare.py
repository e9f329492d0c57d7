"""Where two packages differ: the first operation, in the order in which it runs."""

from collections.abc import Iterator

import numpy as np

from convert.execute import Package
from convert.parse import Operation


def first_difference(saved: Package, made: Package) -> str | None:
    """One line for the first thing in which a saved package is not the one that was made anew; None: they are equal.

    Names, types, attributes and every number of every operation are compared, those of the weight file by their bits.
    """
    if saved.functions != made.functions:
        return f"its functions are {', '.join(saved.functions)} and must be {', '.join(made.functions)}"
    for function in made.functions:
        if found := next(_differences(saved, made, function), None):
            return found
    if saved.spec.description != made.spec.description:
        return "its description of functions, inputs and outputs is another one"
    if saved.spec != made.spec:
        return "it stores a constant at another place, or says something else of itself"
    for path in sorted({each.relative_to(saved.path) for each in saved.path.rglob("*") if each.is_file()}):
        if not (made.path / path).is_file():
            return f"{path} does not belong to it"
        if (saved.path / path).read_bytes() != (made.path / path).read_bytes():
            return f"{path} has other bytes, where no operation reads"
    return None


def _differences(saved: Package, made: Package, function: str) -> Iterator[str]:
    for sort in ("inputs", "states", "outputs"):
        there, here = (getattr(each, sort)(function) for each in (saved, made))
        if there != here:
            yield f"{function}: its {sort} are {there} and must be {here}"
    there, here = saved.operations(function), made.operations(function)
    for number, (one, other) in enumerate(zip(there, here, strict=False)):
        if one != other:
            yield f"{one} must be {other.type} {other.name} of {_inputs(other)}, got {one.type} of {_inputs(one)}"
        names = [*other.outputs, *(name for names in other.inputs.values() for name in names if "." in name)]
        for name in names:
            if saved.kind(function, name) != made.kind(function, name):
                yield f"{one} makes {saved.kind(function, name)} and must make {made.kind(function, name)}"
            if not _same(saved.constant(function, name), made.constant(function, name)):
                yield f"{one}: its numbers are not those of the model, from {_place(saved, made, function, name)} on"
        assert number == other.number
    if len(there) != len(here):
        yield f"{function} has {len(there)} operations and must have {len(here)}"


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _place(saved: Package, made: Package, function: str, name: str) -> str:
    one, other = saved.constant(function, name), made.constant(function, name)
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return "the first"
    apart = np.frombuffer(one.tobytes(), np.uint8) != np.frombuffer(other.tobytes(), np.uint8)
    place = np.unravel_index(int(np.flatnonzero(apart)[0]) // one.itemsize, one.shape or (1,))
    return f"[{', '.join(map(str, map(int, place)))}]"


def _inputs(operation: Operation) -> str:
    return ", ".join(f"{key} = {' '.join(names)}" for key, names in operation.inputs.items()) or "nothing"
