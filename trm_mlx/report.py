"""The report of a benchmark, `trm.bench/1`: what Python and Swift write, read as strictly as its schema says.

tests/golden/bench.schema.json is the schema. It lets some tables hold more than it names; that is not read. None
stands for what a report need not tell. Raw nanoseconds are kept, so that anyone can compute the summary again.
"""

import json
import re
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from trm_mlx import config, files
from trm_mlx.machine import Thermal

FORMAT = "trm.bench/1"
LARGEST = 1 << 26  # bytes; a report of a million tokens takes 20 MB

Units = Literal["cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Tool:
    name: Literal["trm-bench", "trm_mlx.benchmark", "TRMDemo"]
    version: str
    runtime: Literal["coreml", "mlx", "reference", "table"]
    runtime_version: str | None = None
    build: Literal["release", "debug", "python"]


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    revision: str
    manifest_sha256: str
    parameters: int
    recursions: int
    weights_bytes: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.manifest_sha256):
            raise ValueError(f"manifest_sha256 must be 64 digits from 0 to f, got {self.manifest_sha256[:80]!r}")


@dataclass(frozen=True, kw_only=True)
class Device:
    model: str
    chip: str | None = None
    os: Literal["iOS", "macOS", "Linux"]
    os_version: str
    cores: int
    memory_bytes: int
    simulator: bool | None = None
    power_source: str | None = None
    low_power_mode: bool | None = None
    charging: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    compute_units: Units
    effective_prefill_chunk: int | None = None
    prompt_tokens: int
    new_tokens: int
    warmup_trials: int
    trials: int
    cooldown_s: float
    prompt: str
    sampling: str  # as JSON: the schema says only that it is a table
    context_length: int | None = None
    batch: int = (
        1  # texts at once, of which the tokens per second are; our key, in a table that the schema leaves open
    )

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class Placement:
    ane_ops: int | None = None
    gpu_ops: int | None = None
    cpu_ops: int | None = None
    ane_cost: float | None = None
    gpu_cost: float | None = None
    cpu_cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class Load:
    compile_ms: float | None
    load_ms: float
    first_prediction_ms: float
    specialization_cached: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One text."""

    ttft_ns: int
    prefill_ns: int
    tpot_ns: tuple[int, ...]
    stop_reason: str
    thermal_before: Thermal
    thermal_after: Thermal
    memory_peak_bytes: int
    tokens_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Distribution:
    n: int
    min: float
    p50: float
    p90: float
    p95: float
    max: float
    mean: float

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    ttft_ms: Distribution
    tpot_ms: Distribution
    memory_peak_bytes: int | None = None
    valid: bool
    invalid_because: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Energy:
    method: Literal["battery_gauge", "powermetrics"] | None = None
    joules_per_token: float | None = None
    battery_before: float | None = None
    battery_after: float | None = None
    duration_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    format: Literal["trm.bench/1"]
    tool: Tool
    model: Model
    device: Device
    config: Setup
    placement: Placement | None = None
    load: Load
    trials: tuple[Trial, ...]
    summary: Summary
    energy: Energy | None = None

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("trials must hold at least one")


CLOSED = (Report, Trial, Distribution)  # tables that hold what the schema names and nothing else
NULLABLE = {
    "placement", "energy", "low_power_mode", "charging", "compile_ms", "specialization_cached", "joules_per_token",
}  # fmt: skip


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a report; after a crash the file holds the old content or the new, never half."""
    files.replace(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read(path: Path) -> Report:
    """The report in a file, whichever tool wrote it.

    Raises:
        FileNotFoundError, ValueError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} must be at most {LARGEST} bytes to be read as a report")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no report: it is not valid JSON: {error}") from error
    return checked(data, str(path))


def checked(data: Any, name: str) -> Report:
    """The report that came from `name` as plain JSON.

    Raises:
        ValueError: a key is missing, or a value is not as the schema wants it.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f'{name} must have "format": "{FORMAT}"; it is no report of a benchmark')
    return config.from_json(Report, _named(Report, data, name), name)


def _named(kind: Any, value: Any, where: str) -> Any:
    """A value with only those keys in its tables that our classes have."""
    kind, _ = config.without_none(kind)
    if get_origin(kind) is tuple and isinstance(value, list):
        return [_named(get_args(kind)[0], each, where) for each in value]
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{where}: texts must be printable, got {value[:60]!r}")
    if not is_dataclass(kind) or not isinstance(value, dict):
        return value
    kinds, found = {key.name: key.kind for key in config.keys(kind)}, {}
    for name, inner in value.items():
        if inner is None and name in kinds and name not in NULLABLE:
            raise ValueError(f"{where}: {name} must not be null")
        if name == "sampling" and kind is Setup:
            if not isinstance(inner, dict):
                raise ValueError(f"{where}: config.sampling must be a table")
            inner = json.dumps(inner, sort_keys=True)
        if name in kinds or kind in CLOSED:
            found[name] = _named(kinds.get(name), inner, where)
    return found
