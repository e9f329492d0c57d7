"""Which inputs and types an operation of a Core ML program takes, as one line of text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convert.blob import BITS, holder

FLOATS = frozenset({"float16", "float32"})
NUMBERS = FLOATS | {"int32"}
INDICES = frozenset({"int32", "int16", "uint16", "int8", "uint8"})
KINDS = {  # letters of a rule: one type of the set, the same wherever the letter stands
    "A": frozenset({*BITS, "bool", "string"}),
    "F": FLOATS,
    "N": NUMBERS,
    "I": INDICES,
    "T": NUMBERS | INDICES | {"bool"},
    "U": NUMBERS | INDICES | {"bool"},
    "Q": frozenset({"int4", "uint4", "int8", "uint8"}),
    "O": FLOATS | {"int4", "uint4", "int8", "uint8"},
    "X": frozenset({"uint1", "uint2", "uint3", "uint4", "uint6", "uint8"}),
}
CASTS = {"fp16": "float16", "fp32": "float32", "bool": "bool"} | {name: name for name in INDICES}


@dataclass(frozen=True)
class Rule:
    """One operation: its inputs and outputs as "x:F axes?:int32 values*:T -> F", and its kernel.

    `?` marks an input that may be missing, `*` one of several values; a type is a letter of KINDS or a name.
    """

    form: str
    kernel: Callable[..., np.ndarray | list[np.ndarray]] | None = None
    rounds: bool = False  # the kernel makes numbers that half precision may not hold
    sums: bool = False  # the kernel takes `block`

    @cached_property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Type and mark ("", "?" or "*") of each input."""
        words = [word.split(":") for word in self.form.split("->")[0].split()]
        return {name.rstrip("?*"): (kind, name[len(name.rstrip("?*")) :]) for name, kind in words}

    def check(self, inputs: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> None:
        """Refuse types of inputs (a list each) and outputs that are not of this form.

        Raises:
            ValueError: an input is unknown, missing, several or of a wrong type, or an output is.
        """
        bound: dict[str, str] = {}
        for name in inputs.keys() - self.inputs.keys():
            raise ValueError(f"has an unknown input {name!r}")
        for name, (kind, mark) in self.inputs.items():
            given = inputs.get(name, [])
            if not given and mark != "?":
                raise ValueError(f"lacks the input {name!r}")
            if len(given) > 1 and mark != "*":
                raise ValueError(f"must have one {name!r}, got {len(given)}")
            for each in given:
                bind(bound, kind, each, name)
        kinds = self.form.split("->")[1].split()
        if kinds and kinds[0].endswith("*"):
            kinds = [kinds[0][:-1]] * len(outputs)
        if len(kinds) != len(outputs):
            raise ValueError(f"must have {len(kinds)} outputs, got {len(outputs)}")
        for kind, each in zip(kinds, outputs, strict=True):
            bind(bound, kind, each, "its output")


def bind(bound: dict[str, str], kind: str, given: str, name: str) -> None:
    """Hold a type against a letter or name, and remember what the letter stands for."""
    wanted = {bound[kind]} if kind in bound else KINDS.get(kind, {kind})
    if given not in wanted:
        raise ValueError(f"{name} must be {' or '.join(sorted(wanted))}, got {given}")
    bound[kind] = given


def carried(kind: str) -> np.dtype:
    """The NumPy type that values of a program's type are computed with."""
    if kind == "float16":
        return np.dtype("float32")
    return holder(kind) if kind in BITS else np.dtype(kind)
