"""`python -m trm_mlx.train`: from text to a model folder, with a run that can stop and go on anywhere."""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import mlx.core as mx
from mlx.utils import tree_unflatten

from trm_mlx import checkpoint, config, data, journal, objectives
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.loop import FitConfig, Run, fit, most_passes
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.tokenizer import Tokenizer

SETTINGS, METRICS, CORPUS = "train.json", "metrics.jsonl", "corpus"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a tiny recursive language model on text."""

    data: Annotated[tuple[str, ...], "files, folders, globs or hub:NAME, of .txt or .jsonl"] = ()
    held_out_data: Annotated[tuple[str, ...], "text to evaluate on, instead of a share of the data"] = ()
    held_out: Annotated[float, "share of the documents kept for evaluation"] = 0.01
    out: Annotated[Path, "run folder to make, which is also the model's"] = Path("runs/model")
    resume: Annotated[Path | None, "go on with this run folder; alone, or with --steps"] = None
    tokenizer: Annotated[Path | None, "use this tokenizer.model; none: learn one from the data"] = None
    dtype: Annotated[Literal["float16", "bfloat16", "float32"], "of the saved weights"] = "float16"
    report_every: Annotated[int, "steps between progress lines"] = 10
    evaluate_every: Annotated[int, "steps between evaluations on held-out text"] = 250
    evaluate_tokens: Annotated[int, "most held-out tokens in such an evaluation"] = 32_768
    sample_every: Annotated[int, "steps between samples; 0: none"] = 500
    sample_prompt: Annotated[str, "how samples begin"] = "Once upon a time"
    save_every: Annotated[int, "steps between saves"] = 250
    patience: Annotated[int, "evaluations without a better one before training stops early; 0: never"] = 0
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["tiny"])
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        for name in ("report_every", "evaluate_every", "evaluate_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("sample_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be above 0 and below 1, got {self.held_out}")
        if self.fit.length > self.model.context:
            raise ValueError(f"length must be at most the context of {self.model.context}, got {self.fit.length}")


def train(settings: TrainConfig, steps: int | None = None) -> dict[int, objectives.Score]:
    """Train, or go on training; the score of the saved model on the held-out text, by depth.

    Args:
        settings: with `resume`, all else is as the run was started.
        steps: with `resume`, another last step than the run was started with.

    Raises:
        ValueError, FileNotFoundError: the data, the folder or a setting is not usable.
        RuntimeError: the loss is no longer a number.
        KeyboardInterrupt: Ctrl-C or a termination signal came; the run is saved.
    """
    folder = settings.resume or settings.out
    if settings.resume is None:
        start(settings)
    else:
        settings = _restarted(folder, steps)
    with checkpoint.alone(folder):
        _go_on(folder, settings)
    return finish(folder, settings)


def _go_on(folder: Path, settings: TrainConfig) -> None:
    """Train from where the run folder stands to the last step."""
    model, tokenizer = checkpoint.load(folder, mx.float32)
    corpus = data.Corpus.load(folder / CORPUS, verify=True)
    if corpus.tokenizer_sha256 != checkpoint.digest(tokenizer.bytes):
        raise ValueError(f"{folder / CORPUS} was made with another tokenizer than {checkpoint.TOKENIZER}")
    facts = {"train": corpus.train.sha256}
    best, waited = float("inf"), 0
    if (folder / checkpoint.TRAINING).exists():
        run = Run(model, settings.fit)
        best, waited = _restore(run, folder, facts)
    else:  # the first save may have been cut between the model and the training state: begin with new weights
        if any(report["kind"] == "save" for report in _reports(folder)):
            raise ValueError(
                f"{folder / checkpoint.TRAINING} is missing, so this run cannot go on; the model in {folder} is whole"
            )
        run = Run(TinyRecursiveLM(model.config, settings.fit.seed), settings.fit)
        model = run.model

    fitting = settings.fit
    batches = data.Batches(corpus.train_path, window=fitting.length, batch=fitting.batch, seed=fitting.seed)
    task = _task(fitting, tokenizer)

    def save_model() -> None:
        checkpoint.save(folder, model.config, tokenizer, run.weights(), getattr(mx, settings.dtype))

    def save() -> None:
        if not settings.patience:  # else the folder's model is the best one so far
            save_model()
        state = {"step": str(run.step), "best": repr(best), "waited": str(waited)}
        checkpoint.save_training(folder, run.arrays(), facts | state)

    steps = fitting.steps
    with (
        journal.Journal(folder / METRICS, total=steps, resume=run.step) as log,
        _interruptible() as interrupted,
    ):
        stopped = 0 < settings.patience <= waited  # a run that stopped early has nothing to go on with
        for event in fit(run, lambda number: mx.array(batches[number]), task) if not stopped else ():
            number = event.step
            if number % settings.report_every == 0 or number == steps:
                log.write(
                    "step",
                    step=number,
                    loss=event.loss,
                    tokens_per_s=event.tokens / event.seconds,
                    depth=event.depth,
                    rate=event.rate,
                    gradient_norm=event.gradient_norm,
                    memory_mb=mx.get_peak_memory() / 1e6,
                )
            if number % settings.evaluate_every == 0 or number == steps:
                with averaged(run):
                    depth = most_passes(fitting, number, model.config.depth)
                    score = held_out_score(model, corpus, tokenizer, settings, depth)
                log.write(
                    "evaluate",
                    step=number,
                    depth=depth,
                    bits_per_byte=score.bits_per_byte,
                    standard_error=score.standard_error,
                )
                growing = depth < model.config.depth  # other depths do not compare
                better = growing or score.bits_per_byte < best
                best, waited = best if growing else min(best, score.bits_per_byte), 0 if better else waited + 1
                if better and settings.patience:
                    save_model()
            if settings.sample_every and (number % settings.sample_every == 0 or number == steps):
                with averaged(run):
                    log.text(f"sample at step {number}", sample_text(model, tokenizer, settings, number))
            stopping = number == steps or 0 < settings.patience <= waited
            leaving = interrupted()  # asked once: a signal after this is for the next step
            if stopping or leaving or number % settings.save_every == 0:
                save()
                log.write("save", step=number, folder=str(folder))
            if leaving and not stopping:
                log.text("stopped", f"go on with: python -m trm_mlx.train --resume {shlex.quote(str(folder))}")
                raise KeyboardInterrupt
            if stopping:
                break


def start(settings: TrainConfig) -> None:
    """Make the run folder: settings, corpus, tokenizer and the untrained model, under its name only when whole."""
    folder = settings.out
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be a new folder; go on with --resume {folder}, or choose another --out")
    if not settings.data:
        raise ValueError("--data must name the text to train on: files, folders or globs of .txt or .jsonl")
    settings = replace(settings, model=settings.model.trained_at(settings.fit.length))
    shape, aside = settings.model, folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    data.find([source for source in (*settings.data, *settings.held_out_data) if not source.startswith("hub:")])
    try:
        if settings.tokenizer:
            tokenizer = Tokenizer.load(settings.tokenizer)
        else:
            _say(f"learning a tokenizer of {shape.vocabulary} tokens")
            tokenizer = Tokenizer.train((each.text for each in data.documents(settings.data)), shape.vocabulary)
        if tokenizer.vocabulary != shape.vocabulary:
            raise ValueError(
                f"the tokenizer must have the model's {shape.vocabulary} tokens, got {tokenizer.vocabulary}; "
                f"try --vocabulary {tokenizer.vocabulary}"
            )
        weights = named(TinyRecursiveLM(shape, settings.fit.seed).parameters())
        checkpoint.save(aside, shape, tokenizer, weights, mx.float32)
        corpus = data.prepare(
            settings.data,
            tokenizer,
            aside / CORPUS,
            held_out=settings.held_out,
            held_out_sources=settings.held_out_data,
            seed=settings.fit.seed,
            report=lambda documents, tokens: _say(f"reading  documents {documents}  tokens {tokens}"),
        )
        held, needed = corpus.train.tokens, settings.fit.length
        if held <= needed:
            line = f"the training text must have more than {needed} tokens, got {held}"
            raise ValueError(f"{line}; give more text or a shorter --length")
        config.write(replace(settings, out=folder), aside / SETTINGS)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    train_, held = corpus.train, corpus.held_out
    _say(f"corpus  documents {train_.documents} + {held.documents} held out  tokens {train_.tokens} + {held.tokens}")
    stored, effective = shape.stored_parameters(), shape.effective_parameters()
    epochs = settings.fit.steps * settings.fit.tokens_per_step / train_.tokens
    seen = f"context {shape.context}  window {shape.window or 'all'}"
    _say(f"model  stored {stored}  effective {effective}  passes {shape.depth}  {seen}  epochs {epochs:.2f}")


def finish(folder: Path, settings: TrainConfig) -> dict[int, objectives.Score]:
    """Score the saved model at every depth it was trained at, and plot the run."""
    model, tokenizer = checkpoint.load(folder)
    corpus = data.Corpus.load(folder / CORPUS)
    elastic = settings.fit.depth_schedule.endswith("random") or settings.fit.exit_weight > 0
    depths = range(1 if elastic else model.config.depth, model.config.depth + 1)
    scores = {depth: held_out_score(model, corpus, tokenizer, settings, depth) for depth in depths}
    journal.plot(folder / METRICS, folder / "loss.png", folder.name)
    return scores


def held_out_score(
    model: TinyRecursiveLM, corpus: data.Corpus, tokenizer: Tokenizer, settings: TrainConfig, depth: int
) -> objectives.Score:
    """The score on the first held-out tokens, by the run's own objective."""
    fitting = settings.fit
    tokens = data.read_tokens(corpus.held_out_path)[: settings.evaluate_tokens + 1]
    windows = data.held_out_windows(tokens, fitting.length)
    mx.random.seed(fitting.seed)  # a masked model is always asked for the same tokens
    task = _task(fitting, tokenizer)
    return objectives.score(objectives.score_windows(model, windows, tokenizer.byte_lengths, task, depth))


def sample_text(model: TinyRecursiveLM, tokenizer: Tokenizer, settings: TrainConfig, step: int) -> str:
    """A text that begins with the sample prompt."""
    if settings.fit.objective != "causal":
        return "(a masked model does not write)"
    prompt = [tokenizer.bos, *tokenizer.encode(settings.sample_prompt)][: max(1, model.config.context // 2)]
    length = StreamConfig(max_tokens=100, depth=most_passes(settings.fit, step, model.config.depth))
    written = events(model, tokenizer, prompt, length, SamplingConfig(seed=step))
    return tokenizer.decode(prompt) + "".join(event.text for event in written)


@contextmanager
def averaged(run: Run) -> Generator[None]:
    """The model with its averaged weights, if it has any, ready to use; back in training after."""
    own = run.model.parameters()
    if run.averages:
        run.model.update(tree_unflatten(list(run.averages.items())))
    run.model.eval()
    try:
        yield
    finally:
        run.model.update(own)
        run.model.train()


@contextmanager
def _interruptible() -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C or a termination came since; the second one is no longer held back."""
    came: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals are the main thread's
        return

    def note(number: int, _: object) -> None:
        came.append(number)
        for kind in kinds:
            signal.signal(kind, before[kind])
        os.write(2, b"\nstopping after this step, to save it; press Ctrl-C again to stop at once without saving\n")

    before = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield lambda: bool(came)
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])


def _task(fitting: FitConfig, tokenizer: Tokenizer) -> Callable[[mx.array], objectives.Task]:
    bos = tokenizer.bos if fitting.isolate else None
    if fitting.objective == "masked":
        return lambda batch: objectives.masked(batch, tokenizer.pad, tokenizer.unknown, tokenizer.vocabulary, bos)
    return lambda batch: objectives.causal(batch, tokenizer.pad, bos)


def _restarted(folder: Path, steps: int | None) -> TrainConfig:
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume at {folder}: it has no {SETTINGS}, which trm_mlx.train writes")
    settings = config.read(TrainConfig, path)
    if steps and steps != settings.fit.steps:
        reached = max((report.get("step", 0) for report in _reports(folder)), default=0)
        if steps <= reached:
            raise ValueError(f"--steps must be above the {reached} steps that this run has taken, got {steps}")
        settings = replace(settings, fit=replace(settings.fit, steps=steps))
        config.write(settings, path)  # else a second --resume would end where the first run did
    return settings


def _reports(folder: Path) -> list[dict]:
    path = folder / METRICS
    return journal.read(path) if path.is_file() else []


def _restore(run: Run, folder: Path, facts: dict[str, str]) -> tuple[float, int]:
    """Put a run back where it was saved; its best score, and the evaluations since."""
    path = folder / checkpoint.TRAINING
    arrays, saved = checkpoint.load_training(folder)
    if any(saved.get(name) != fact for name, fact in facts.items()):
        raise ValueError(f"{folder / CORPUS} is not the corpus that this run was trained on")
    try:
        step, best, waited = int(saved["step"]), float(saved["best"]), int(saved["waited"])
    except (KeyError, ValueError):
        raise ValueError(f"{path} must say its step, best score and wait, got {sorted(saved)}") from None
    own = run.arrays()
    checkpoint.check_shapes(path, {name: array.shape for name, array in own.items()}, arrays)
    for name, array in arrays.items():
        if array.dtype != own[name].dtype:
            raise ValueError(f"{path}: {name!r} must be {own[name].dtype}, got {array.dtype}")
    run.restore(arrays, step)
    return best, waited


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    settings, given = config.parse_given(TrainConfig, argv, program="trm_mlx.train")
    with config.door("trm_mlx.train"):
        if settings.resume and (more := sorted(given - {"resume", "fit.steps"})):
            raise ValueError(
                f"--resume goes on as the run was started, so only --steps may be given with it, "
                f"got {', '.join('--' + name.rpartition('.')[2].replace('_', '-') for name in more)}"
            )
        steps = settings.fit.steps if "fit.steps" in given else None
        for depth, score in train(settings, steps).items():
            print(f"depth {depth}  bits_per_byte {score.bits_per_byte:.4f} +- {score.standard_error:.4f}")


if __name__ == "__main__":
    main()
