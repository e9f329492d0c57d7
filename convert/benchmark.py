"""`python -m convert.benchmark`: how fast Core ML runs an export on this Mac.

The protocol is that of trm_mlx/trials.py. One report for each pair of compute units and depth, in the format
`trm.bench/1` (trm_mlx/report.py).
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from convert import device, manifest
from convert.manifest import Manifest
from convert.session import Session
from trm_mlx import comparison, config, machine, report, trials
from trm_mlx.trials import UNMEASURED, Procedure

PROGRAM = "convert.benchmark"
Configuration = tuple[str, int]  # compute units, depth


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure an export with Core ML on this Mac; sizes are scaled down to a short context."""

    export: Annotated[Path, "export folder; may be given without the flag"]
    units: Annotated[tuple[str, ...], f"compute units, of {','.join(device.UNITS)}"] = (
        "cpuOnly",
        "cpuAndGPU",
        "cpuAndNeuralEngine",
    )
    depths: Annotated[tuple[int, ...], "exported depths to measure; empty: the deepest"] = ()
    json: Annotated[Path | None, "report to write; if there are several, one each: NAME-cpuOnly-depth4.json"] = None
    procedure: Procedure = field(default_factory=lambda: Procedure(new_tokens=256, cooldown=5.0))

    def __post_init__(self) -> None:
        for name in self.chosen:
            if name not in device.UNITS:
                raise ValueError(f"units must be of {', '.join(device.UNITS)}, got {name!r}")
        if not self.chosen or len({*self.chosen}) < len(self.chosen) or len({*self.depths}) < len(self.depths):
            raise ValueError("units and depths must each be named once")

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
    trials.check_file("--json", settings.json)
    fitted = replace(settings, procedure=scaled(settings.procedure, export.context))
    return export, fitted, [(units, depth) for units in settings.chosen for depth in depths]


def scaled(procedure: Procedure, context: int) -> Procedure:
    """The procedure with prompt and new tokens in proportion, so that they fit the context."""
    total, room = procedure.prompt_tokens + procedure.new_tokens, context + 1  # the last token is made and not read
    if total <= room:
        return procedure
    prompt = min(max(1, procedure.prompt_tokens * room // total), room - 2)
    return replace(procedure, prompt_tokens=prompt, new_tokens=room - prompt)


def measure_here(settings: BenchmarkConfig, configuration: Configuration) -> dict[str, Any]:
    """The report of one configuration, measured in this process; `placement` is that of `decode`."""
    export, (units, depth) = manifest.read(settings.export), configuration
    pair, package = export.pair(depth), settings.export / export.package
    functions = (pair.decode, pair.prefill)
    runner = device.CoreMLRunner(package, units, functions, stateful=export.state == "model")
    for function in functions:
        runner.load(function)
    text = Session(export, runner, depth)
    found = trials.measure(text, export.vocabulary, settings.procedure, f"{units}  depth {depth}")
    placed = None
    try:
        placed = device.placement(package, pair.decode, units)
    except (RuntimeError, ValueError) as error:
        print(f"no placement: {config.explain(error)}", file=sys.stderr)
    return trials.report(
        settings.procedure,
        found,
        runtime={"runtime": "coreml", "runtime_version": f"coremltools {machine.installed('coremltools')}"},
        model={
            "name": export.name,
            "revision": export.revision,
            "manifest_sha256": sha256((settings.export / manifest.FILE).read_bytes()).hexdigest(),
            "parameters": export.stored_parameters,
            "recursions": depth,
            "weights_bytes": sum(record.bytes for record in export.files if record.path.endswith("/weight.bin")),
            "precision": export.precision,
        },
        units=units,
        chunk=export.chunk,
        context=export.context,
        load=runner.timings(),
        placement=placed,
    )


def benchmark(settings: BenchmarkConfig, configurations: list[Configuration]) -> list[report.Report]:
    """The reports, each written as soon as it is measured; the seed draws the order of measuring.

    Raises:
        ValueError: the folder is not as it was exported.
        RuntimeError: Core ML does not run the package.
    """
    if paths := manifest.changed(settings.export, manifest.read(settings.export)):
        raise ValueError(f"{settings.export} must be as it was exported; changed: {', '.join(paths)}")
    found = {}
    for configuration in random.Random(settings.procedure.seed).sample(configurations, len(configurations)):
        data = trials.apart(measure_here, settings, configuration)
        if path := settings.json:
            units, depth = configuration
            many = path.with_name(f"{path.stem}-{units}-depth{depth}{path.suffix}")
            report.write(many if len(configurations) > 1 else path, data)
        found[configuration] = report.checked(data, "the report")
    return [found[configuration] for configuration in configurations]


def main(argv: Sequence[str] | None = None) -> None:
    words = manifest.folder_first(sys.argv[1:] if argv is None else argv)
    settings = config.parse(BenchmarkConfig, words, program=PROGRAM)
    with config.door(PROGRAM):
        export, fitted, configurations = prepare(settings)
        try:
            device.require()
        except RuntimeError as error:
            print(f"{PROGRAM}: {config.explain(error)}", file=sys.stderr)
            raise SystemExit(UNMEASURED) from None
        if fitted != settings:
            prompt, new = fitted.procedure.prompt_tokens, fitted.procedure.new_tokens
            sizes = f"{prompt} tokens of prompt and {new} new ones"
            print(f"scaled down to the context of {export.context}: {sizes}", file=sys.stderr)
        reports = benchmark(fitted, configurations)
        print(comparison.table(reports))
        if not all(each.summary.valid for each in reports):
            raise SystemExit(UNMEASURED)


if __name__ == "__main__":
    main()
