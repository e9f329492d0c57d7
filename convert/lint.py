"""What can be known of a package without running it: the faults that make a silently wrong or a slow model.

`Package` has refused what is malformed by the time these look; docs/export.md says why each matters.
"""

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convert.blob import UNIT
from convert.execute import Package
from convert.operations import CONSTANTS
from convert.parse import Operation

# constexpr_sparse_to_dense, while_loop and gather_nd, among others, leave the Neural Engine or go wrong there.
EMITTED = {
    *("add", "cast", "concat", "const", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense", "conv"),
    *("expand_dims", "floor_div", "gather", "greater", "layer_norm", "less", "less_equal", "logical_and", "matmul"),
    *("mul", "read_state", "relu", "reshape", "silu", "slice_by_size", "slice_update", "softmax", "split", "squeeze"),
    *("sub", "transpose", "write_state"),
}
LARGEST_RANK = 4  # five do not compile for the Neural Engine
WIDEST, MOST_CHANNELS = 16_384, 65_536  # along the last two axes, and the second
STATE_MULTIPLE = 32  # of a state's last axis
SPARE = UNIT  # bytes between two records: what aligns them


@dataclass(frozen=True, kw_only=True)
class Census:
    """What the package consists of."""

    operations: dict[str, int]  # by type, in all functions
    weight_bytes: int
    integer_operations: int  # int32 and bool, which run on the CPU, in the deepest decode function


def check(path: Path) -> Census:
    """Look through a package.

    Raises:
        RuntimeError: it has a fault; the line names the first, and how many there are.
    """
    package = Package(path)
    found = list(faults(package))
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise RuntimeError(f"{path.name} is not sound: {found[0]}{more}")
    every = [each for name in package.functions for each in package.operations(name) if each.type != "const"]
    default = package.spec.description.defaultFunctionName
    whole = ("int32", "bool")
    counted = [
        each
        for each in package.operations(default)
        if each.type != "const" and any(package.kind(default, name).kind in whole for name in each.outputs)
    ]
    return Census(
        operations=dict(sorted(Counter(each.type for each in every).items())),
        weight_bytes=package.weight_file.stat().st_size,
        integer_operations=len(counted),
    )


def faults(package: Package) -> Iterator[str]:
    """One line for each fault."""
    yield from _modes(package.path)
    yield from _description(package)
    yield from _file(package)
    for function in package.functions:
        yield from _states(package, function)
        for each in package.operations(function):
            if each.type not in EMITTED:
                yield f"{each} is not one that this exporter writes"
            for name in each.outputs:
                yield from _extent(package, each, name)


def _modes(path: Path) -> Iterator[str]:
    for each in sorted(path.rglob("*")):
        needed = 0o755 if each.is_dir() else 0o644
        if stat.S_IMODE(each.stat().st_mode) & needed != needed:
            yield f"{each.relative_to(path)} cannot be read by everybody, which an app needs"


def _description(package: Package) -> Iterator[str]:
    told = package.spec.description
    if told.defaultFunctionName not in package.functions:
        yield f"the default function {told.defaultFunctionName!r} is none of its functions"
    for function in told.functions:
        for feature in (*function.input, *function.output, *function.state):
            if not feature.shortDescription:
                yield f"{function.name} does not describe {feature.name}"


def _file(package: Package) -> Iterator[str]:
    """Records that overlap, bytes that nothing uses, and weights that functions do not share."""
    spans = sorted({package.record(offset) for offset in package.offsets()})
    end = UNIT
    for start, stop in spans:
        if start < end:
            yield f"two records of {package.weight_file.name} overlap at byte {start}"
        if start - end >= SPARE:
            yield f"nothing uses bytes {end} to {start} of {package.weight_file.name}"
        end = max(end, stop)
    if package.weight_file.stat().st_size - end >= SPARE:
        yield f"nothing uses {package.weight_file.name} from byte {end} on"
    places: dict[str, int] = {}
    for function in package.functions:
        for name, offset in package.stored(function).items():
            if "weight" in name and places.setdefault(name, offset) != offset:
                yield f"{function} has a copy of its own of {name}"


def _states(package: Package, function: str) -> Iterator[str]:
    states = package.states(function)
    if len(states) > 1:
        yield f"{function} has {len(states)} states, and the Neural Engine takes one"
    for name, (kind, shape) in states.items():
        if kind != "float16" or len(shape) != 4 or shape[-1] % STATE_MULTIPLE:
            yield f"{function}: the state {name} must be float16 of rank 4, a multiple of 32 last, got {kind} {shape}"
    read: dict[str, str] = {}  # name, the state it was read from
    stale: set[str] = set()
    for each in package.operations(function):
        if old := [name for names in each.inputs.values() for name in names if name in stale]:
            yield f"{each} uses {old[0]}, which was read before the state was written"
        if each.type == "read_state":
            read |= dict.fromkeys(each.outputs, each.inputs["input"][0])
        elif each.type == "write_state":
            stale |= {name for name, state in read.items() if state == each.inputs["input"][0]}


def _extent(package: Package, operation: Operation, name: str) -> Iterator[str]:
    kind, shape = package.kind(operation.function, name)
    if kind not in ("float16", "float32"):
        return
    if len(shape) > LARGEST_RANK:
        yield f"{operation} makes a tensor of rank {len(shape)}, and the Neural Engine takes at most {LARGEST_RANK}"
    elif operation.type in ("const", *CONSTANTS) or len(shape) < LARGEST_RANK:
        return
    elif max(shape[2:]) > WIDEST or shape[1] > MOST_CHANNELS:
        yield f"{operation} makes {shape}, which is wider than the Neural Engine takes"
