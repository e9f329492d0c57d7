"""Fixtures: text to train on, runs of a tiny model, and ways to stop them.

PYTEST_DONT_REWRITE: tests import from here before pytest does.
"""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from saved_folder import TEXTS, TINY, Killed

from trm_mlx import journal, loop
from trm_mlx import train as verb
from trm_mlx.loop import FitConfig
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.train import TrainConfig, train

ROOT = Path(__file__).parent.parent
SAVED = ("model.safetensors", "training.safetensors", "config.json", "tokenizer.model")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the model, of fit
    "causal": (
        {"dropout": 0.1},
        {"accumulate": 2, "average": 0.9, "depth_schedule": "random", "exit_weight": 0.3, "exit_from": 0.0},
    ),
    "masked": (
        {"dropout": 0.1},
        {"objective": "masked", "optimizer": "adamw", "depth_schedule": "grow-random", "clip_value": 0.1},
    ),
    "isolated": (
        {"position": "learned", "pass_lora": 2, "feed_forward": "swiglu"},
        {"isolate": True, "optimizer": "sgd", "recompute": True, "schedule": "cosine", "smoothing": 0.1},
    ),
}


@pytest.fixture(scope="module")
def plain() -> Iterator[None]:
    """No plots, and no compiled kernels but where a test asks for them: they take long to build."""
    mx.disable_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "plot", lambda *_: None)
        yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(Tokenizer.train(TEXTS, 320).bytes)
    return path


@pytest.fixture(scope="module")
def settings(source: Path, learnt: Path) -> Callable[..., TrainConfig]:
    """The settings of a case, its run folder beside others."""

    def make(out: Path, case: str = "causal", steps: int = 8, **more: Any) -> TrainConfig:
        shape, fitting = CASES[case]
        fit = FitConfig(steps=steps, batch=2, length=16, warmup=2, **fitting)
        every = {"report_every": 1, "evaluate_every": 3, "save_every": 3, "sample_every": 4}
        named: dict[str, Any] = {
            "data": (str(source),),
            "evaluate_tokens": 64,
            "held_out": 0.1,
            "tokenizer": learnt,
            **every,
        }
        return TrainConfig(out=out, model=replace(TINY, **shape), fit=fit, **(named | more))

    return make


@pytest.fixture(scope="module")
def brief(source: Path, settings: Callable[..., TrainConfig]) -> Callable[[Path], TrainConfig]:
    """Settings of a quick run that saves at each of its two steps, on few documents."""
    path = source.with_name("few.jsonl")
    path.write_text("".join(json.dumps({"text": " ".join(TEXTS[n::4])}) + "\n" for n in range(4)))

    def make(out: Path) -> TrainConfig:
        chosen = settings(out, steps=2, save_every=1, sample_every=0, evaluate_every=2, data=(str(path),))
        fit = replace(chosen.fit, optimizer="sgd", accumulate=1, exit_weight=0.0)
        return replace(chosen, fit=fit, evaluate_tokens=16)

    return make


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., TrainConfig]) -> Callable[[str], Path]:
    """The run folder of a case that nothing disturbed; made once, not to be changed."""
    made: dict[str, Path] = {}

    def folder(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("unbroken") / "run"
            train(settings(made[case], case))
        return made[case]

    return folder


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """All that a run measured and that does not depend on the clock: JSON keeps every bit of a number."""
    kept = ("kind", "step", "loss", "depth", "rate", "gradient_norm", "bits_per_byte", "standard_error")
    reports = [report for report in journal.read(folder / "metrics.jsonl") if report["kind"] in ("step", "evaluate")]
    return [tuple(report.get(key) for key in kept) for report in reports]


def assert_same_run(folder: Path, whole: Path) -> None:
    assert figures(folder) == figures(whole)
    for name in SAVED:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something when a step is done and not yet reported."""

    def fit(*arguments: Any) -> Iterator[loop.Step]:
        for event in loop.fit(*arguments):
            if event.step == step:
                act()
            yield event

    patch.setattr(verb, "fit", fit)


def stop(settings: TrainConfig, step: int, by: Callable[[], object]) -> None:
    """Train until something ends the run at a step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, Killed)):
        at_step(patch, step, by)
        train(settings)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def kill() -> None:
    raise Killed


def complaint(capsys: pytest.CaptureFixture[str], *flags: object, status: int = 2) -> str:
    """The last line on stderr of a command that must fail; there is no other on an error."""
    with pytest.raises(SystemExit) as caught:
        verb.main([str(flag) for flag in flags])
    printed = capsys.readouterr()
    assert caught.value.code == status
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.count("error: ") == 1
    line = printed.err.splitlines()[-1]
    assert line.startswith("trm_mlx.train: error: ")
    return line.removeprefix("trm_mlx.train: error: ")
