"""`python -m trm_mlx.train`: from text to a model folder, with a run that can stop and go on anywhere."""

import json
import os
import shlex
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from trm_mlx import checkpoint, config, data, journal, objectives, runs
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.loop import FitConfig, Run, Step, fit, most_passes
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.ranks import ALONE, Ranks, join
from trm_mlx.runs import CORPUS, METRICS, TrainConfig
from trm_mlx.tokenizer import Tokenizer

AHEAD = 16  # batches that rank 0 sends at a time


def train(
    settings: TrainConfig, steps: int | None = None, given: frozenset[str] = frozenset(), ranks: Ranks = ALONE
) -> dict[int, objectives.Score]:
    """Train, or go on training; the score of the saved model on the held-out text, by depth.

    Args:
        settings: with `resume`, all else is as the run was started.
        steps: with `resume`, another last step than the run was started with.
        given: with `init`, what of the shape was asked for, as in `runs.adopted`.
        ranks: whose rank 0 this process is; the others `follow`.

    Raises:
        ValueError, FileNotFoundError: the data, the folder or a setting is not usable.
        RuntimeError: the loss is no longer a number.
        ConnectionError: another rank was lost.
        KeyboardInterrupt: Ctrl-C or a termination signal came; the run is saved.
    """
    folder = settings.resume or settings.out
    with ExitStack() as held:

        def begin() -> Desk:
            asked = runs.restarted(folder, steps) if settings.resume else settings
            if asked.fit.batch % ranks.size:
                raise ValueError(f"batch must be a multiple of the {ranks.size} ranks, got {asked.fit.batch}")
            chosen = asked if settings.resume else runs.start(asked, given)
            held.enter_context(checkpoint.alone(folder))
            stood = runs.restore(folder, chosen)
            log = journal.Journal(folder / METRICS, total=chosen.fit.steps, resume=stood.run.step)
            return Desk(folder, chosen, stood, held.enter_context(log))

        desk, _ = ranks.lead(begin)
        assert isinstance(desk, Desk)
        stood, chosen = desk.stood, desk.settings
        batches = data.Batches(
            stood.corpus.train_path, window=chosen.fit.length, batch=chosen.fit.batch, seed=chosen.fit.seed
        )
        ranks.send_bytes(json.dumps(config.to_json(chosen)).encode())
        ranks.send_bytes(stood.tokenizer.bytes)
        # A run that stopped early has nothing to go on with.
        stopped, _ = ranks.lead(lambda: 0 < chosen.patience <= stood.waited)
        if not stopped:
            _train(chosen, stood.run, stood.tokenizer, ranks, batches.__getitem__, desk)
    return finish(folder, chosen)


def follow(ranks: Ranks) -> None:
    """Train as one of the ranks that rank 0 leads, and sends all that is needed."""
    ranks.lead(lambda: None)
    settings = config.from_json(TrainConfig, json.loads(ranks.send_bytes()), "rank 0")
    tokenizer, fitting = Tokenizer(ranks.send_bytes(), "rank 0's tokenizer"), settings.fit
    blank = np.zeros((fitting.batch, fitting.length + 1), np.int32)
    stopped, _ = ranks.lead(lambda: False)
    if not stopped:
        _train(settings, Run(TinyRecursiveLM(settings.model), fitting), tokenizer, ranks, lambda _: blank, None)


def _train(
    settings: TrainConfig,
    run: Run,
    tokenizer: Tokenizer,
    ranks: Ranks,
    batches: Callable[[int], np.ndarray],
    desk: "Desk | None",
) -> None:
    """Take the steps that are left. Rank 0 has the batches and the desk; at other ranks batches give the shape."""
    folder, task = settings.out, _task(settings.fit, tokenizer)
    if ranks.size > 1:
        run.restore(ranks.send(run.arrays()), ranks.send({"step": mx.array(run.step)})["step"].item())
    saved, ahead = run.step, {}

    def batch(number: int) -> mx.array:
        if number not in ahead:  # a message for each would cost more than what it holds
            ahead.clear()
            numbers = range(number, number + (AHEAD if ranks.size > 1 else 1))
            ahead.update(ranks.send({each: mx.array(batches(each)) for each in numbers}))
        return ahead[number]

    def note(step: int) -> None:
        nonlocal saved
        saved = step if step % settings.save_every == 0 else saved
        ranks.place = f"after step {step}; {folder} holds step {saved}; go on with: {_resume(folder)}"

    def after(event: Step) -> bool:
        stopping = bool(desk and desk.after(event))
        note(event.step)
        return stopping

    with _interruptible(quiet=ranks.rank > 0) as interrupted:
        for event in fit(run, batch, task, ranks):
            own = interrupted()  # asked once: a signal after this is for the next step
            stopping, leaving = ranks.lead(lambda event=event: after(event), own)
            if leaving and not stopping:
                ranks.lead(lambda number=event.step: desk and desk.leave(number))
                raise ranks.alike(KeyboardInterrupt())
            if stopping:
                return
            note(event.step)


@dataclass
class Desk:
    """Rank 0's work between the steps: reports, evaluations, samples and saves."""

    folder: Path
    settings: TrainConfig
    stood: runs.Standing
    log: journal.Journal

    def after(self, event: Step) -> bool:
        """Do what a step calls for; whether it is the last one."""
        settings, number, log = self.settings, event.step, self.log
        last = number == settings.fit.steps
        if number % settings.report_every == 0 or last:
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
        if number % settings.evaluate_every == 0 or last:
            self.evaluate(number)
        if settings.sample_every and (number % settings.sample_every == 0 or last):
            with averaged(self.stood.run):
                text = sample_text(self.stood.run.model, self.stood.tokenizer, settings, number)
            log.text(f"sample at step {number}", text)
        stopping = last or 0 < settings.patience <= self.stood.waited
        if stopping or number % settings.save_every == 0:
            self.save()
        return stopping

    def leave(self, number: int) -> None:
        """End an interrupted run after a step."""
        if number % self.settings.save_every:  # else it is saved
            self.save()
        self.log.text("stopped", f"go on with: {_resume(self.folder)}")

    def evaluate(self, number: int) -> None:
        """Score the held-out text; with patience, save the model where it is the best one so far."""
        settings, stood = self.settings, self.stood
        model, most = stood.run.model, stood.run.model.config.depth
        depth = most_passes(settings.fit, number, most)
        with averaged(stood.run):
            score = held_out_score(model, stood.corpus, stood.tokenizer, settings, depth)
        self.log.write(
            "evaluate",
            step=number,
            depth=depth,
            bits_per_byte=score.bits_per_byte,
            standard_error=score.standard_error,
        )
        growing = depth < most  # other depths do not compare
        better = growing or score.bits_per_byte < stood.best
        if not growing:
            stood.best = min(stood.best, score.bits_per_byte)
        stood.waited = 0 if better else stood.waited + 1
        if better and settings.patience:
            self.save_model()

    def save_model(self) -> None:
        stood = self.stood
        weights, dtype = stood.run.weights(), getattr(mx, self.settings.dtype)
        checkpoint.save(self.folder, stood.run.model.config, stood.tokenizer, weights, dtype)

    def save(self) -> None:
        """Save all that going on needs, and the model."""
        if not self.settings.patience:  # else the folder's model is the best one so far
            self.save_model()
        runs.save(self.folder, self.stood)
        self.log.write("save", step=self.stood.run.step, folder=str(self.folder))


def _resume(folder: Path) -> str:
    return f"python -m trm_mlx.train --resume {shlex.quote(str(folder))}"


def finish(folder: Path, settings: TrainConfig) -> dict[int, objectives.Score]:
    """Score the saved model at every depth it was trained at, and plot the run."""
    model, tokenizer = checkpoint.load(folder)
    corpus = data.Corpus.load(folder / CORPUS)
    depths = range(1 if settings.fit.elastic else model.config.depth, model.config.depth + 1)
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
def _interruptible(quiet: bool) -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C or a termination came since; the second one is no longer held back."""
    came: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    line = b"\nstopping after this step, to save it; press Ctrl-C again to stop at once without saving\n"

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals are the main thread's
        return

    def note(number: int, _: object) -> None:
        came.append(number)
        for kind in kinds:
            signal.signal(kind, before[kind])
        os.write(2, b"" if quiet else line)

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


def _asked(argv: Sequence[str] | None) -> tuple[TrainConfig, int | None, frozenset[str]]:
    """What the command line asks for, as `train` takes it."""
    settings, given = config.parse_given(TrainConfig, argv, program="trm_mlx.train")
    if settings.resume and (more := sorted(given - {"resume", "fit.steps"})):
        raise ValueError(
            f"--resume goes on as the run was started, so only --steps may be given with it, "
            f"got {', '.join('--' + name.rpartition('.')[2].replace('_', '-') for name in more)}"
        )
    return settings, settings.fit.steps if "fit.steps" in given else None, given


def main(argv: Sequence[str] | None = None) -> None:
    with config.door("trm_mlx.train"):
        ranks = join()
        asked, _ = ranks.lead(lambda: _asked(argv))
        if ranks.rank:
            follow(ranks)
            return
        assert isinstance(asked, tuple)
        for depth, score in train(*asked, ranks).items():
            print(f"depth {depth}  bits_per_byte {score.bits_per_byte:.4f} +- {score.standard_error:.4f}")


if __name__ == "__main__":
    main()
