"""`python -m convert.benchmark`: how fast Core ML runs an export on this Mac.

The protocol: ids are given and drawn from SplitMix64, so no tokenizer is timed; decoding is greedy and the end of
text is ignored; warm-ups are not kept; every trial keeps the nanoseconds that the clock gave; each configuration has
a process of its own. A run that went wrong is reported with `valid` false and its reasons, and never left out.

One report for each pair of compute units and depth, in the format `trm.bench/1` (convert/report.py).
"""

import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from convert import device, manifest
from convert.manifest import Manifest
from convert.report import FORMAT, Trial, summary, table
from convert.session import Session
from trm_mlx import __version__, config, files

PROGRAM = "convert.benchmark"
UNMEASURED = 3  # exit status: there is no valid measurement
WORD = (1 << 64) - 1
COOLING = 60  # seconds at most that a trial waits for a hot machine

Report = dict[str, Any]
Configuration = tuple[str, int]  # compute units, depth


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure an export with Core ML on this Mac."""

    export: Annotated[Path, "export folder"]
    units: Annotated[tuple[str, ...], f"compute units, of {','.join(device.UNITS)}"] = (
        "cpuOnly",
        "cpuAndGPU",
        "cpuAndNeuralEngine",
    )
    depths: Annotated[tuple[int, ...], "exported depths to measure; empty: the deepest"] = ()
    prompt_tokens: Annotated[int, "tokens read before the first one is made"] = 128
    new_tokens: Annotated[int, "tokens made; both are scaled down to a short context"] = 256
    trials: Annotated[int, "texts that are measured"] = 10
    warmup: Annotated[int, "texts before them that are not"] = 2
    cooldown: Annotated[float, "seconds between two trials"] = 5.0
    seed: Annotated[int, "64-bit number that fixes the prompt"] = 0
    json: Annotated[Path | None, "report to write; if there are several, one each: NAME-cpuOnly-depth4.json"] = None

    def __post_init__(self) -> None:
        for name in self.chosen:
            if name not in device.UNITS:
                raise ValueError(f"units must be of {', '.join(device.UNITS)}, got {name!r}")
        for name, least in {"prompt_tokens": 1, "new_tokens": 2, "trials": 1, "warmup": 0, "cooldown": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.chosen or len({*self.chosen}) < len(self.chosen) or len({*self.depths}) < len(self.depths):
            raise ValueError("units and depths must each be named once")
        if not 0 <= self.seed <= WORD:
            raise ValueError(f"seed must be at least 0 and below 2**64, got {self.seed}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The compute units; commas part them too."""
        return tuple(name for text in self.units for name in text.split(","))


def prepare(settings: BenchmarkConfig) -> tuple[Manifest, BenchmarkConfig, list[Configuration]]:
    """The export's manifest, the settings scaled to its context, and what to measure.

    Raises:
        FileNotFoundError, ValueError: there is no such export, depth, or place for the report.
    """
    export = manifest.read(settings.export)
    depths = [export.pair(depth).depth for depth in settings.depths or (None,)]
    if export.vocabulary <= len(fields(manifest.Tokens)):
        raise ValueError(f"vocabulary must be above {len(fields(manifest.Tokens))}, got {export.vocabulary}")
    if settings.json and (settings.json.is_dir() or not settings.json.parent.is_dir()):
        raise ValueError(f"--json must name a file in a folder that is there, got {settings.json}")
    fitted = scaled(settings, export.context)
    return export, fitted, [(units, depth) for units in settings.chosen for depth in depths]


def scaled(settings: BenchmarkConfig, context: int) -> BenchmarkConfig:
    """The settings with prompt and new tokens in proportion, so that they fit the context."""
    total, room = settings.prompt_tokens + settings.new_tokens, context + 1  # the last token is made and not read
    if total <= room:
        return settings
    prompt = min(max(1, settings.prompt_tokens * room // total), room - 2)
    return replace(settings, prompt_tokens=prompt, new_tokens=room - prompt)


def synthetic(seed: int, count: int, vocabulary: int) -> list[int]:
    """Ids of a prompt, none of them a control token: outputs of SplitMix64(seed) modulo what is left.

    Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    first, ids = len(fields(manifest.Tokens)), []
    for number in range(1, count + 1):
        z = seed + number * 0x9E3779B97F4A7C15 & WORD
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
        ids.append(first + (z ^ z >> 31) % (vocabulary - first))
    return ids


def measure(
    make: Callable[[], Session],
    settings: BenchmarkConfig,
    name: str = "",
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Trial]:
    """The trials of one configuration, after its warm-ups; `name` begins each line of progress.

    Raises:
        ValueError: the settings are not `scaled` to the context.
    """
    session = make()
    ids = synthetic(settings.seed, settings.prompt_tokens, session.manifest.vocabulary)
    trials: list[Trial] = []
    for number in range(1 - settings.warmup, settings.trials + 1):
        if number > 1:
            sleep(settings.cooldown)
        for _ in range(COOLING):
            if device.thermal() not in device.HOT:
                break
            sleep(1)
        trial = measure_text(session, ids, settings.new_tokens, clock)
        if number > 0:
            trials.append(trial)
        label = f"trial {number}/{settings.trials}" if number > 0 else "warm-up"
        line = f"{label}  ttft_ms {trial.ttft_ns / 1e6:.2f}  tokens {len(trial.tpot_ns) + 1}"
        print(f"{name}  {line}  decode_ms {sum(trial.tpot_ns) / 1e6:.2f}", file=sys.stderr, flush=True)
    return trials


def measure_text(session: Session, ids: list[int], count: int, clock: Callable[[], int]) -> Trial:
    """Read a prompt and make `count` tokens, fewer if scores are no numbers."""
    session.reset()
    before = device.thermal()
    start = clock()
    logits = session.append(ids)
    read = clock()
    tokens = [int(logits.argmax())]  # the first NaN, if there is one
    times = [clock()]
    while len(tokens) < count and math.isfinite(logits[tokens[-1]]):
        logits = session.append(tokens[-1:])
        tokens.append(int(logits.argmax()))
        times.append(clock())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Trial(
        ttft_ns=times[0] - start,
        prefill_ns=read - start,
        tpot_ns=[after - earlier for earlier, after in pairwise(times)],
        stop_reason="length" if math.isfinite(logits[tokens[-1]]) else "not_finite",
        thermal_before=before,
        thermal_after=device.thermal(),
        memory_peak_bytes=peak if sys.platform == "darwin" else 1024 * peak,
        tokens_sha256=sha256(np.array(tokens, "<i4").tobytes()).hexdigest(),
    )


def report(
    settings: BenchmarkConfig,
    configuration: Configuration,
    trials: Sequence[Trial],
    load: dict[str, float | None],
    placed: dict[str, float] | None,
) -> Report:
    """One report in the format `trm.bench/1`."""
    export, (units, depth) = manifest.read(settings.export), configuration
    blobs = [record.bytes for record in export.files if record.path.endswith("/weight.bin")]
    machine = device.facts()
    return {
        "format": FORMAT,
        "tool": {
            "name": "trm_mlx.benchmark",
            "version": __version__,
            "runtime": "coreml",
            "runtime_version": f"coremltools {_version('coremltools')}",
            "build": "python",
        },
        "model": {
            "name": export.name,
            "revision": export.revision,
            "manifest_sha256": sha256((settings.export / manifest.FILE).read_bytes()).hexdigest(),
            "parameters": export.stored_parameters,
            "recursions": depth,
            "weights_bytes": sum(blobs),
            "precision": export.precision,
        },
        "device": machine,
        "config": {
            "compute_units": units,
            "effective_prefill_chunk": export.chunk,
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": settings.new_tokens,
            "warmup_trials": settings.warmup,
            "trials": settings.trials,
            "cooldown_s": settings.cooldown,
            "prompt": f"splitmix64:{settings.seed}",
            "sampling": {"temperature": 0, "ignore_eos": True},
            "context_length": export.context,
        },
        "placement": placed,
        "load": load,
        "trials": [asdict(trial) for trial in trials],
        "summary": summary(trials, machine["low_power_mode"], settings.prompt_tokens, settings.new_tokens),
        "energy": None,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def measure_here(settings: BenchmarkConfig, configuration: Configuration) -> Report:
    """The report of one configuration, measured in this process; `placement` is that of `decode`."""
    export, (units, depth) = manifest.read(settings.export), configuration
    pair, package = export.pair(depth), settings.export / export.package
    functions = (pair.decode, pair.prefill)
    runner = device.CoreMLRunner(package, units, functions, stateful=export.state == "model")
    for function in functions:
        runner.load(function)
    trials = measure(lambda: Session(export, runner, depth), settings, f"{units}  depth {depth}")
    placed = None
    try:
        placed = device.placement(package, pair.decode, units)
    except (RuntimeError, ValueError) as error:
        print(f"no placement: {config.explain(error)}", file=sys.stderr)
    return report(settings, configuration, trials, runner.timings(), placed)


def measure_apart(settings: BenchmarkConfig, configuration: Configuration) -> Report:
    """The same in a process of its own, so that no configuration warms another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_here, settings, configuration).result()


def benchmark(settings: BenchmarkConfig, configurations: list[Configuration]) -> list[Report]:
    """The reports, each written as soon as it is measured; the seed draws the order of measuring.

    Raises:
        ValueError: the folder is not as it was exported.
        RuntimeError: Core ML does not run the package.
    """
    if paths := manifest.changed(settings.export, manifest.read(settings.export)):
        raise ValueError(f"{settings.export} must be as it was exported; changed: {', '.join(paths)}")
    found = {}
    for configuration in random.Random(settings.seed).sample(configurations, len(configurations)):
        found[configuration] = measure_apart(settings, configuration)
        if path := settings.json:
            units, depth = configuration
            many = path.with_name(f"{path.stem}-{units}-depth{depth}{path.suffix}")
            text = json.dumps(found[configuration], indent=1, allow_nan=False) + "\n"
            files.replace(many if len(configurations) > 1 else path, text.encode())
    return [found[configuration] for configuration in configurations]


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(BenchmarkConfig, argv, program=PROGRAM)
    with config.door(PROGRAM):
        export, fitted, configurations = prepare(settings)
        try:
            device.require()
        except RuntimeError as error:
            print(f"{PROGRAM}: {config.explain(error)}", file=sys.stderr)
            raise SystemExit(UNMEASURED) from None
        if fitted != settings:
            sizes = f"{fitted.prompt_tokens} tokens of prompt and {fitted.new_tokens} new ones"
            print(f"scaled down to the context of {export.context}: {sizes}", file=sys.stderr)
        reports = benchmark(fitted, configurations)
        print(table(reports))
        if not all(each["summary"]["valid"] for each in reports):
            raise SystemExit(UNMEASURED)


if __name__ == "__main__":
    main()
