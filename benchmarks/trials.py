"""Training runs that are compared: one text prepared once, one line of JSON a run, so a study can stop and go on."""

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np

import trm_mlx  # before mlx.core
from trm_mlx import backend, data, files, fused, journal, objectives
from trm_mlx.loop import FitConfig, Run, Step, exits, fit, passes
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.ranks import ALONE, Ranks
from trm_mlx.tokenizer import Tokenizer

# isort: split
import mlx.core as mx
from mlx.utils import tree_unflatten


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text that runs learn from and are scored on."""

    data: Annotated[tuple[str, ...], "files, folders or globs of .txt or .jsonl"] = ()
    held_out_data: Annotated[tuple[str, ...], "text to score on"] = ()
    tokenizer: Annotated[Path | None, "use this tokenizer.model; none: learn one from the data"] = None
    work: Annotated[Path, "folder that keeps the tokenized text between runs"] = Path("runs/trials")
    score_tokens: Annotated[int, "most held-out tokens scored"] = 65_536


class Text:
    """Tokenized text of one vocabulary, made at first use and kept in the work folder, by what it was made from."""

    def __init__(self, settings: TextConfig, vocabulary: int) -> None:
        if not settings.data or not settings.held_out_data:
            raise ValueError("--data and --held-out-data must name the text to train on and to score on")
        made_from = [sorted(settings.data), sorted(settings.held_out_data), str(settings.tokenizer), vocabulary]
        folder = settings.work / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
        if not folder.exists():
            print(f"preparing {folder}", file=sys.stderr)
            if settings.tokenizer:
                made = Tokenizer.load(settings.tokenizer)
            else:
                made = Tokenizer.train((each.text for each in data.documents(settings.data)), vocabulary)
            data.prepare(settings.data, made, folder, held_out_sources=settings.held_out_data)
        self.corpus = data.Corpus.load(folder)
        self.tokenizer = Tokenizer.load(self.corpus.tokenizer_path)
        if self.tokenizer.vocabulary != vocabulary:
            raise ValueError(f"the tokenizer must have {vocabulary} tokens, got {self.tokenizer.vocabulary}")
        self.score_tokens = settings.score_tokens
        self.facts = {split: getattr(self.corpus, split).sha256[:16] for split in ("train", "held_out")}

    def task(self, batch: mx.array) -> objectives.Task:
        return objectives.causal(batch, self.tokenizer.pad)

    def score(self, model: TinyRecursiveLM, length: int, depth: int) -> float:
        """Bits per byte of the held-out text."""
        tokens = data.read_tokens(self.corpus.held_out_path)[: self.score_tokens + 1]
        windows = data.held_out_windows(tokens, length)
        parts = objectives.score_windows(model, windows, self.tokenizer.byte_lengths, self.task, depth)
        return objectives.score(parts).bits_per_byte


def run(text: Text, shape: ModelConfig, fitting: FitConfig, label: str) -> tuple[TinyRecursiveLM, dict[str, Any]]:
    """A trained model, ready to use, and what its training cost."""
    batches = data.Batches(text.corpus.train_path, window=fitting.length, batch=fitting.batch, seed=fitting.seed)
    training = Run(TinyRecursiveLM(shape.trained_at(fitting.length), fitting.seed), fitting)
    began, speeds = time.perf_counter(), {}
    for step in fit(training, lambda number: mx.array(batches[number]), text.task):
        speeds.setdefault(step.depth, []).append(step.tokens / step.seconds)
        if step.step % 100 == 0:
            print(f"{label}  step {step.step}/{fitting.steps}  loss {step.loss:.3f}", file=sys.stderr, flush=True)
    model = training.model
    model.update(tree_unflatten(list(training.weights().items())) if training.averages else {})
    model.eval()
    cost = {
        "tokens": fitting.steps * fitting.tokens_per_step,
        "stored_parameters": shape.stored_parameters(),
        "training_flops": work(shape, fitting),
        "seconds": round(time.perf_counter() - began, 1),
        "tokens_per_s": round(float(np.median(speeds[max(speeds)]))),
    }
    return model, cost


def work(shape: ModelConfig, fitting: FitConfig) -> int:
    """Floating-point operations of the matrix products of a whole training run: three times those forward."""
    length = fitting.length // 2
    each = {depth: shape.flops_per_token(depth, length) for depth in range(1, shape.depth + 1)}
    coda = replace(shape, coda=2 * shape.coda).flops_per_token(1, length) - each[1]
    again = coda + 2 * shape.vocabulary * shape.width  # what each earlier exit runs once more
    total = 0
    for step in range(1, fitting.steps + 1):
        depth = passes(fitting, step, shape.depth)
        total += each[depth] + again * len(exits(fitting, step, depth))
    return 3 * fitting.tokens_per_step * total


class Records:
    """Lines of JSON in a file, one a run, written as soon as it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = journal.read(path) if path.exists() else []

    def find(self, **facts: Any) -> dict[str, Any] | None:
        """The first run recorded with these facts."""
        return next(
            (line for line in self.lines if all(line.get(name) == value for name, value in facts.items())), None
        )

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(self.path, "".join(json.dumps(each) + "\n" for each in self.lines).encode())


def stepper(run: Run, batch: mx.array, ranks: Ranks = ALONE) -> Callable[[], Step]:
    """Takes a training step on the same batch (B, T + 1) each time."""
    steps = fit(run, lambda number: batch, lambda batch: objectives.causal(batch, Tokenizer.pad), ranks)
    return lambda: next(steps)


def random_batch(shape: ModelConfig, fitting: FitConfig) -> mx.array:
    """(B, T + 1) ids, the same each time."""
    return mx.random.randint(7, shape.vocabulary, (fitting.batch, fitting.length + 1), key=mx.random.key(0))


def place() -> dict[str, str]:
    """What figures hold for: commit (with a plus if files differ from it), versions, BLAS, processor."""
    root, cpus = str(Path(__file__).parent), Path("/proc/cpuinfo")
    asked = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty=+"], capture_output=True, text=True)
    told = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return {
        "trm_mlx": trm_mlx.__version__,
        "commit": asked.stdout.strip() or "unknown",
        "mlx": version("mlx"),
        "blas": Path(backend.blas or "MLX's own").name,
        "forms": fused.active(),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    values = np.array(list(values))
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)
