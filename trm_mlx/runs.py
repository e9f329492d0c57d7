"""The run folder: a model folder, with the settings, the text and the training state that going on needs.

train.json             the settings of the run
corpus/                token files
metrics.jsonl          what was reported
training.safetensors   weights, optimizer and averages, from the start on
"""

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import mlx.core as mx

from trm_mlx import checkpoint, config, data, journal, tensors
from trm_mlx.loop import FitConfig, Run
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.tokenizer import Tokenizer

SETTINGS, METRICS, CORPUS = "train.json", "metrics.jsonl", "corpus"
FREE = {"dropout", "window", "context"}  # of a model, what --init may choose anew: no tensor depends on it


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a tiny recursive language model on text."""

    data: Annotated[tuple[str, ...], "files, folders, globs or hub:NAME, of .txt or .jsonl"] = ()
    held_out_data: Annotated[tuple[str, ...], "text to evaluate on, instead of a share of the data"] = ()
    held_out: Annotated[float, "share of the documents kept for evaluation"] = 0.01
    out: Annotated[Path, "run folder to make, which is also the model's"] = Path("runs/model")
    resume: Annotated[Path | None, "go on with this run folder; alone, or with --steps"] = None
    init: Annotated[Path | None, "begin with the weights, shape and tokenizer of this model folder"] = None
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
        if self.fit.length > self.model.context and not self.init:  # whose context is not known yet
            raise ValueError(f"length must be at most the context of {self.model.context}, got {self.fit.length}")
        if self.model.halting and (self.model.depth < 2 or not self.fit.exit_weight):
            raise ValueError(
                "halting is learned where earlier passes are read: depth must be at least 2 and exit_weight above 0, "
                f"got {self.model.depth} and {self.fit.exit_weight}"
            )


def start(settings: TrainConfig, given: frozenset[str] = frozenset()) -> TrainConfig:
    """Make the run folder, under its name only when it is whole: settings, corpus, and the model at step 0.

    Args:
        given: as in `adopted`.

    Returns:
        The settings, with the shape that the model got.
    """
    folder = settings.out
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be a new folder; go on with --resume {folder}, or choose another --out")
    if not settings.data:
        raise ValueError("--data must name the text to train on: files, folders or globs of .txt or .jsonl")
    data.find([source for source in (*settings.data, *settings.held_out_data) if not source.startswith("hub:")])
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        model, tokenizer = _adopted_model(settings, given) if settings.init else _new_model(settings)
        settings, fitting = replace(settings, model=model.config), settings.fit
        checkpoint.save(aside, model.config, tokenizer, named(model.parameters()), mx.float32)
        corpus = data.prepare(
            settings.data,
            tokenizer,
            aside / CORPUS,
            held_out=settings.held_out,
            held_out_sources=settings.held_out_data,
            seed=fitting.seed,
            report=lambda documents, tokens: _say(f"reading  documents {documents}  tokens {tokens}"),
        )
        held, needed = corpus.train.tokens, fitting.length
        if held <= needed:
            line = f"the training text must have more than {needed} tokens, got {held}"
            raise ValueError(f"{line}; give more text or a shorter --length")
        save(aside, Standing(Run(model, fitting), tokenizer, corpus))
        config.write(replace(settings, out=folder), aside / SETTINGS)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shape, train, held = model.config, corpus.train, corpus.held_out
    _say(f"corpus  documents {train.documents} + {held.documents} held out  tokens {train.tokens} + {held.tokens}")
    stored, effective = shape.stored_parameters(), shape.effective_parameters()
    epochs = fitting.steps * fitting.tokens_per_step / train.tokens
    seen = f"context {shape.context}  window {shape.window or 'all'}"
    _say(f"model  stored {stored}  effective {effective}  passes {shape.depth}  {seen}  epochs {epochs:.2f}")
    return settings


def _new_model(settings: TrainConfig) -> tuple[TinyRecursiveLM, Tokenizer]:
    shape = settings.model.trained_at(settings.fit.length)
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
    return TinyRecursiveLM(shape, settings.fit.seed), tokenizer


def _adopted_model(settings: TrainConfig, given: frozenset[str]) -> tuple[TinyRecursiveLM, Tokenizer]:
    assert settings.init
    model, tokenizer = checkpoint.load(settings.init, mx.float32, packed=False)
    if settings.tokenizer and Tokenizer.load(settings.tokenizer).bytes != tokenizer.bytes:
        raise ValueError(f"--tokenizer must be that of the model at {settings.init}; leave it out")
    old, shape, length = model.config, adopted(settings, given).model, settings.fit.length
    replace(settings, init=None, model=shape)  # a length that its context does not hold is refused here
    # What it was trained at before counts too: a shorter length takes no distance away from it.
    shape = shape.trained_at(max(length, old.window or old.context))
    if 0 < shape.window < length:
        _say(f"a token looks back on {shape.window} of {length} positions, as before; --window 0 lifts that")
    trained = TinyRecursiveLM(shape)
    trained.update(model.parameters())
    return trained, tokenizer


def adopted(settings: TrainConfig, given: frozenset[str]) -> TrainConfig:
    """Settings with the shape of the model in `init`, but for what may be chosen anew and was.

    Args:
        given: the dotted names of what was asked for even where it is the default, as `config.parse_given` gives it.

    Raises:
        ValueError: a number of the shape was asked for, and the model has another.
        FileNotFoundError: no model folder is there.
    """
    assert settings.init
    own, usual, chosen = checkpoint.load_config(settings.init), ModelConfig(), {}
    preset = "model.preset" in given
    for name in (each.name for each in fields(ModelConfig)):
        asked, held = getattr(settings.model, name), getattr(own, name)
        plain = f"model.{name}" in given or (asked != getattr(usual, name) and not preset)
        if name in FREE and not (name == "context" and own.position == "learned"):  # which is a tensor's size
            chosen |= {name: asked} if plain else {}
        elif asked != held and (plain or preset):
            flag = f"--{name.replace('_', '-')}" if plain else "--preset"
            raise ValueError(f"{flag} must fit the model at {settings.init}, whose {name} is {held}, got {asked}")
    return replace(settings, model=replace(own, **chosen))


def restarted(folder: Path, steps: int | None) -> TrainConfig:
    """The settings of the run in a folder; steps: another last step than it was started with, which is kept."""
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


@dataclass
class Standing:
    """Where a run stands: what trains, its text, the best score so far and the evaluations since."""

    run: Run
    tokenizer: Tokenizer
    corpus: data.Corpus
    best: float = float("inf")
    waited: int = 0


def restore(folder: Path, settings: TrainConfig) -> Standing:
    """The run in a folder, as it was saved last."""
    model, tokenizer = checkpoint.load(folder, mx.float32, packed=False)
    corpus = data.Corpus.load(folder / CORPUS, verify=True)
    if corpus.tokenizer_sha256 != checkpoint.digest(tokenizer.bytes):
        raise ValueError(f"{folder / CORPUS} was made with another tokenizer than {checkpoint.TOKENIZER}")
    path = folder / checkpoint.TRAINING
    if not path.exists():
        raise ValueError(f"{path} is missing, so this run cannot go on; the model in {folder} is whole")
    arrays, facts = checkpoint.load_training(folder)
    if facts.get("train") != corpus.train.sha256:
        raise ValueError(f"{folder / CORPUS} is not the corpus that this run was trained on")
    try:
        step, best, waited = int(facts["step"]), float(facts["best"]), int(facts["waited"])
    except (KeyError, ValueError):
        raise ValueError(f"{path} must say its step, best score and wait, got {sorted(facts)}") from None
    run = Run(model, settings.fit)
    own = run.arrays()
    tensors.check_shapes(path, {name: array.shape for name, array in own.items()}, arrays)
    for name, array in arrays.items():
        if array.dtype != own[name].dtype:
            raise ValueError(f"{path}: {name!r} must be {own[name].dtype}, got {array.dtype}")
    run.restore(arrays, step)
    return Standing(run, tokenizer, corpus, best, waited)


def save(folder: Path, stood: Standing) -> None:
    """Replace the training state in a folder."""
    facts = {"step": str(stood.run.step), "best": repr(stood.best), "waited": str(stood.waited)}
    checkpoint.save_training(folder, stood.run.arrays(), facts | {"train": stood.corpus.train.sha256})


def _reports(folder: Path) -> list[dict]:
    path = folder / METRICS
    return journal.read(path) if path.is_file() else []


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
