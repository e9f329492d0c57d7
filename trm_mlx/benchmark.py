"""`python -m trm_mlx.benchmark`: how fast MLX writes with a model here, and how that compares with other reports.

The protocol is that of trm_mlx/trials.py. One report for each depth, prompt and batch, in the format `trm.bench/1`
(trm_mlx/report.py). A batch is so many equal texts at once: tokens per second are of all, times of one step. In a
report `load_ms` is reading, checking and placing the folder, which was read a moment before, and without imports;
`first_prediction_ms` is the first prompt and the first single token.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import mlx.core as mx
import numpy as np

from trm_mlx import PRETRAINED, checkpoint, comparison, config, machine, report, trials
from trm_mlx.decode.rows import Rows
from trm_mlx.decode.step import PREFILL, StepModel
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.report import Report
from trm_mlx.trials import UNMEASURED, Procedure

PROGRAM = "trm_mlx.benchmark"
SHOWING = {"compare", "plot"}  # flags that may stand beside --compare


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure how fast a model writes, or compare reports of that."""

    model: Annotated[Path, "model folder"] = PRETRAINED
    depths: Annotated[tuple[int, ...], "passes to measure at; empty: the most"] = ()
    context: Annotated[
        tuple[int, ...], "tokens of a whole text to measure at, of which --new-tokens are made; empty: one prompt"
    ] = ()
    batch: Annotated[tuple[int, ...], "equal texts at once to measure with; tokens per second are of all"] = (1,)
    json: Annotated[
        Path | None, "report to write; if there are several, one each: NAME-depth3-prompt128.json, -batch8 after it"
    ] = None
    plot: Annotated[Path | None, "picture to draw, .png"] = None
    compare: Annotated[tuple[Path, ...], "reports to put side by side, of any tool; measures nothing"] = ()
    procedure: Procedure = field(default_factory=Procedure)

    def __post_init__(self) -> None:
        for each in (self.depths, self.context, self.batch):
            if len({*each}) < len(each):
                raise ValueError("depths, context and batch must each be named once")
        if not self.batch or min(self.batch) < 1:
            raise ValueError(f"batch must be at least 1, got {' '.join(map(str, self.batch)) or 'none'}")
        if self.plot and self.plot.suffix != ".png":
            raise ValueError(f"--plot must name a .png file, got {self.plot}")
        for context in self.context:
            if context <= self.procedure.new_tokens:
                raise ValueError(f"context must be above the {self.procedure.new_tokens} new tokens, got {context}")

    @property
    def procedures(self) -> list[Procedure]:
        """One for each prompt."""
        made = self.procedure.new_tokens
        return [replace(self.procedure, prompt_tokens=n - made) for n in self.context] or [self.procedure]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the process of one configuration hands back."""

    trials: list[report.Trial]
    load: dict[str, float | None]
    precision: str  # of the computation


class Text:
    """Texts that a model reads at one depth; `first` holds the seconds of the first calls."""

    def __init__(self, model: TinyRecursiveLM, depth: int) -> None:
        self.step = StepModel(model, depth)
        self.first: dict[bool, float] = {}  # by whether it was a single token

    def reset(self) -> None:
        self.step.reset()

    def append(self, ids: Sequence[int]) -> np.ndarray:
        start = time.perf_counter()
        logits = self.scores(ids)
        self.first.setdefault(len(ids) == 1, time.perf_counter() - start)
        return logits

    def scores(self, ids: Sequence[int]) -> np.ndarray:
        """(V,)"""
        return self.step.scores(ids)


class Texts(Text):
    """Equal texts at once, as `generate --batch` reads them; all are computed, and the first one is looked at."""

    def __init__(self, model: TinyRecursiveLM, depth: int, batch: int) -> None:
        super().__init__(model, depth)
        self.model, self.depth, self.batch = model, depth, batch

    def reset(self) -> None:
        self.rows = Rows(self.model, self.batch, self.depth)

    def scores(self, ids: Sequence[int]) -> np.ndarray:
        if self.rows.column == 0:
            logits = self.rows.read(dict.fromkeys(range(self.batch), ids))
        else:
            logits = self.rows.append([*ids] * self.batch)
        mx.eval(logits)
        return np.array(logits[0])


def measure_here(folder: Path, depth: int, procedure: Procedure, batch: int = 1) -> Measured:
    """One configuration, measured in this process."""
    start = time.perf_counter()
    model, tokenizer = checkpoint.load(folder)
    seconds = time.perf_counter() - start
    text = Text(model, depth) if batch == 1 else Texts(model, depth, batch)
    name = f"depth {depth}  prompt_tokens {procedure.prompt_tokens}" + (f"  batch {batch}" if batch > 1 else "")
    found = trials.measure(text, tokenizer.vocabulary, procedure, name, memory=peak_memory)
    return Measured(
        trials=found,
        load={
            "compile_ms": None,
            "load_ms": 1e3 * seconds,
            "first_prediction_ms": 1e3 * sum(text.first.values()),
            "specialization_cached": None,
        },
        precision=str(model.final_norm.weight.dtype).removeprefix("mlx.core."),
    )


def peak_memory() -> int:
    """Most bytes that this process held at once; on a GPU the system may not count all of MLX's."""
    return max(machine.peak_memory(), mx.get_peak_memory())


def fingerprint(folder: Path) -> str:
    """`manifest_sha256`: of the bytes of config.json and, after them, of model.safetensors."""
    hashed = sha256()
    for name in (checkpoint.CONFIG, checkpoint.MODEL):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                hashed.update(block)
    return hashed.hexdigest()


def benchmark(settings: BenchmarkConfig) -> list[Report]:
    """The reports, each written as soon as it is measured.

    Raises:
        FileNotFoundError, ValueError: there is no such model or depth, or a text does not fit the context.
        RuntimeError: the folder changed meanwhile, or no score was a number.
    """
    held = checkpoint.contents(settings.model)
    shape, revision = held.config, held.revision
    del held  # and with it the tensors
    depths = [shape.at_depth(depth) for depth in settings.depths or (None,)]
    cases = [(depth, each, batch) for depth in depths for each in settings.procedures for batch in settings.batch]
    for _, each, _ in cases:
        if each.prompt_tokens + each.new_tokens > shape.context:
            sizes = f"{each.prompt_tokens} and {each.new_tokens}"
            raise ValueError(f"prompt and new tokens must fit the context of {shape.context}, got {sizes}")
    before, found = fingerprint(settings.model), []
    for depth, procedure, batch in cases:
        measured = trials.apart(measure_here, settings.model, depth, procedure, batch)
        if fingerprint(settings.model) != before:
            raise RuntimeError(f"{settings.model} changed while it was measured; measure a copy")
        data = trials.report(
            procedure,
            measured.trials,
            runtime={"runtime": "mlx", "runtime_version": f"mlx {machine.installed('mlx')}"},
            model={
                "name": settings.model.resolve().name,
                "revision": revision,
                "manifest_sha256": before,
                "parameters": shape.stored_parameters(),
                "recursions": depth,
                "weights_bytes": (settings.model / checkpoint.MODEL).stat().st_size,
                "precision": measured.precision,
            },
            units="n/a",
            chunk=PREFILL,
            context=shape.context,
            load=measured.load,
            batch=batch,
        )
        if path := settings.json:
            ending = f"-batch{batch}" if len(settings.batch) > 1 else ""
            many = path.with_name(f"{path.stem}-depth{depth}-prompt{procedure.prompt_tokens}{ending}{path.suffix}")
            report.write(many if len(cases) > 1 else path, data)
        found.append(report.checked(data, "the report"))
    return found


def check(settings: BenchmarkConfig, given: frozenset[str]) -> None:
    """Refuse what cannot be, before the work.

    Raises:
        ValueError: flags that do not go together, or a file that could not be written.
        ImportError: a picture is wanted, and there is no matplotlib.
    """
    flags = {name.rpartition(".")[2] for name in given}
    if "compare" in flags and not settings.compare:
        raise ValueError("--compare must name a report")
    if settings.compare and (other := sorted(flags - SHOWING - {"config"})):
        raise ValueError(f"--compare measures nothing, so --{other[0].replace('_', '-')} has no place beside it")
    if settings.context and "prompt_tokens" in flags:
        raise ValueError("give --context or --prompt-tokens, not both: what --new-tokens leave is the prompt")
    trials.check_file("--json", settings.json)
    trials.check_file("--plot", settings.plot)
    if settings.plot:
        comparison.drawing()


def main(argv: Sequence[str] | None = None) -> None:
    settings, given = config.parse_given(BenchmarkConfig, argv, program=PROGRAM)
    with config.door(PROGRAM):
        check(settings, given)
        if settings.compare:
            reports = comparison.comparable([(str(path), report.read(path)) for path in settings.compare])
        else:
            reports = benchmark(settings)
        print(comparison.table(reports))
        if settings.plot:
            comparison.plot(reports, settings.plot)
        if not all(each.summary.valid for each in reports):
            raise SystemExit(UNMEASURED)


if __name__ == "__main__":
    main()
