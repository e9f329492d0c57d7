"""Core ML itself, on macOS.

coremltools is imported when it is needed, so that everything else of `convert` works where it is missing.
"""

import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np

from convert.session import Runner

UNITS = {  # Core ML's name, coremltools' name
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
    "all": "ALL",
}
INSTEAD = "python -m convert.verify DIR checks the package on any machine, with our own interpreter"


def require() -> ModuleType:
    """coremltools, where it can predict.

    Raises:
        RuntimeError: it cannot here.
    """
    if sys.platform != "darwin":
        raise RuntimeError(f"nothing was measured: Core ML predicts on macOS only; {INSTEAD}")
    try:
        module = import_module("coremltools")
    except ImportError as error:
        cure = 'pip install -e ".[convert]"'
        raise RuntimeError(f"nothing was measured: coremltools is missing ({error}); {cure}") from error
    try:
        import_module("coremltools.libcoremlpython")
    except ImportError as error:
        raise RuntimeError(
            f"nothing was measured: this coremltools has no link to Core ML ({error}); try another version of Python "
            f"or of coremltools; {INSTEAD}"
        ) from error
    return module


class CoreMLRunner(Runner):
    """Core ML on the given compute units: each function a model of its own, one state for all of them.

    Args:
        package: an .mlpackage.
        units: a key of UNITS.
        functions: those that may be called; the first one makes the state.
        stateful: the package has a state.

    Raises:
        RuntimeError: Core ML cannot predict here.
    """

    def __init__(self, package: Path, units: str, functions: Sequence[str], stateful: bool = True) -> None:
        self.coremltools = require()
        self.package, self.units, self.functions, self.stateful = package, units, tuple(functions), stateful
        self.models: dict[str, Any] = {}
        self.compile_seconds: dict[str, float | None] = {}  # None: Core ML did not tell it from loading
        self.load_seconds: dict[str, float] = {}
        self.first_seconds: dict[str, float] = {}  # of the first prediction
        self.state: Any = None

    def load(self, function: str) -> Any:
        """The model of a function, made when it is first asked for.

        Raises:
            ValueError: that function is not one of ours.
            RuntimeError: Core ML does not load it.
        """
        if function not in self.functions:
            raise ValueError(f"function must be one of {list(self.functions)}, got {function!r}")
        if function in self.models:
            return self.models[function]
        units = self.coremltools.ComputeUnit[UNITS[self.units]]
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as told:  # where coremltools says why a model did not load
            warnings.simplefilter("always")
            model = self.coremltools.models.MLModel(str(self.package), compute_units=units, function_name=function)
        seconds = time.perf_counter() - start
        try:
            model.get_compiled_model_path()
        except Exception as error:  # a plain Exception, and the only public sign of a model that cannot predict
            reason = told[-1].message if told else "its format may need a newer macOS; iOS 18 packages need macOS 15"
            raise RuntimeError(f"Core ML does not load {function} of {self.package}: {reason}") from error
        nanoseconds = model.load_duration_in_nano_seconds
        loading = seconds if nanoseconds is None else nanoseconds / 1e9
        self.compile_seconds[function] = None if nanoseconds is None else max(0.0, seconds - loading)
        self.load_seconds[function] = loading
        self.models[function] = model
        return model

    def reset(self) -> None:
        if self.stateful:
            self.state = self.load(self.functions[0]).make_state()

    def call(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        model = self.load(function)
        if self.stateful and self.state is None:
            self.reset()
        start = time.perf_counter()
        outputs = model.predict(dict(inputs), state=self.state)  # a copy: predict changes the dictionary it gets
        self.first_seconds.setdefault(function, time.perf_counter() - start)
        return outputs

    def timings(self) -> dict[str, float | None]:
        """Milliseconds for all functions that were loaded and called: `load` of the report.

        Compiling is what making a model took beyond Core ML's own loading.
        """
        compiling = [seconds for seconds in self.compile_seconds.values() if seconds is not None]
        whole = len(compiling) == len(self.compile_seconds)
        return {
            "compile_ms": 1e3 * sum(compiling) if whole else None,
            "load_ms": 1e3 * sum(self.load_seconds.values()),
            "first_prediction_ms": 1e3 * sum(self.first_seconds.values()),
            "specialization_cached": None,  # Core ML does not say
        }


def placement(package: Path, function: str, units: str) -> dict[str, float] | None:
    """Where Core ML plans to run a function: operations and shares of the estimated cost on ane, gpu and cpu.

    Keys are those of the report, `ane_ops` to `cpu_cost`; constants have no device and are not counted. No costs
    if Core ML estimates none; None if it plans nothing for that function.
    """
    coremltools = require()
    plans, devices = (import_module(f"coremltools.models.{name}") for name in ("compute_plan", "compute_device"))
    kinds = {
        "ane": devices.MLNeuralEngineComputeDevice,
        "gpu": devices.MLGPUComputeDevice,
        "cpu": devices.MLCPUComputeDevice,
    }
    counts, costs = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    with TemporaryDirectory() as folder:
        compiled = coremltools.models.utils.compile_model(str(package), str(Path(folder) / "package.mlmodelc"))
        plan = plans.MLComputePlan.load_from_path(compiled, coremltools.ComputeUnit[UNITS[units]])
        program = plan.model_structure.program
        if program is None or function not in program.functions:
            return None
        for operation in program.functions[function].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            device = usage and usage.preferred_compute_device
            name = next((name for name, kind in kinds.items() if isinstance(device, kind)), None)
            if name is None:
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            counts[name] += 1
            costs[name] += cost.weight if cost else 0.0
    if not any(counts.values()):
        return None
    found: dict[str, float] = {f"{name}_ops": count for name, count in counts.items()}
    if total := sum(costs.values()):
        found |= {f"{name}_cost": cost / total for name, cost in costs.items()}
    return found
