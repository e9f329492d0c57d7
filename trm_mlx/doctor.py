"""`python -m trm_mlx doctor`: what this machine has, how fast it is, and what is missing."""

import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated

import mlx.core as mx

from trm_mlx import __version__, backend, config, fused, machine

SLOW = 10.0  # GFLOP/s on one core; a reference BLAS reaches 1 to 5, a real one 20 to 100
EXTRAS = {"plot": "matplotlib", "hub": "datasets", "convert": "coremltools"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Say what this machine has, how fast it is, and what is missing."""

    json: Annotated[bool, "print one JSON object"] = False


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found; `missing` holds one line for each thing, with its cure."""

    trm_mlx: str
    python: str
    system: str
    mlx: str
    device: str
    blas: str
    compiler: str
    forms: str
    gemm_gflops: float
    missing: tuple[str, ...]


def doctor() -> Findings:
    """Look and measure: takes about a second."""
    speed, missing = gflops(), []
    linux_cpu = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
    compiler = shutil.which("g++") if linux_cpu else "not needed"
    if linux_cpu and speed < SLOW:
        missing.append(f"a fast BLAS: {backend.cure()}")
    if not compiler:
        missing.append("g++, without which MLX compiles nothing and trains more slowly: sudo apt-get install g++")
    for extra, module in EXTRAS.items():
        if find_spec(module) is None:
            missing.append(f'{module} (optional): pip install -e ".[{extra}]"')
    return Findings(
        trm_mlx=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        mlx=machine.installed("mlx"),
        device=_device(),
        blas=(backend.blas or ("MLX's own" if linux_cpu else "not needed"))
        + (", rows by ours" if backend.rows else ""),
        compiler=compiler or "none",
        forms=fused.active(),
        gemm_gflops=round(speed, 1),
        missing=tuple(missing),
    )


def gflops(size: int = 512) -> float:
    """Billions of additions and multiplications a second in a float32 product of two (size, size) matrices."""
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(a, b, a @ b)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(a @ b)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


def _device() -> str:
    name = str(mx.default_device())
    if mx.default_device() == mx.Device(mx.cpu):
        return f"{name}, {platform.processor() or platform.machine()}"
    return f"{name}, {mx.device_info().get('device_name', 'unknown')}"


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(DoctorConfig, argv, program="trm_mlx doctor")
    with config.door("trm_mlx doctor"):
        findings = asdict(doctor())
        if settings.json:
            print(json.dumps(findings))
            return
        missing = findings.pop("missing")
        for name, value in findings.items():
            print(f"{name:16} {value}")
        print(
            "missing          nothing" if not missing else "\n".join(f"missing          {line}" for line in missing)
        )


if __name__ == "__main__":
    main()
