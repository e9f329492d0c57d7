"""A run that begins with the model of another folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from saved_folder import TEXTS
from saved_folder import TINY as SHORT

from trm_mlx import checkpoint, data, journal, objectives
from trm_mlx import train as verb
from trm_mlx.loop import FitConfig, passes
from trm_mlx.model import ModelConfig
from trm_mlx.runs import TrainConfig, adopted, start
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.train import train

TINY = replace(SHORT, context=64)

pytest_plugins = ["run_folder"]
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def settings(source: Path) -> Callable[..., TrainConfig]:
    def make(out: Path, length: int = 16, steps: int = 4, **more: Any) -> TrainConfig:
        fit = FitConfig(steps=steps, batch=2, length=length, warmup=1, depth_schedule="random")
        every = {"report_every": 1, "evaluate_every": 100, "save_every": 2, "sample_every": 0}
        named: dict[str, Any] = {"data": (str(source),), "evaluate_tokens": 64, "held_out": 0.1, **every}
        return TrainConfig(out=out, fit=fit, **(named | more))

    return make


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., TrainConfig]) -> Path:
    """A model trained at 16 of its 64 positions, so with a window of 16."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(settings(folder, model=TINY, dtype="float32"))
    return folder


def steps(folder: Path) -> list[tuple[int, float]]:
    reports = journal.read(folder / "metrics.jsonl")
    return [(report["step"], report["loss"]) for report in reports if report["kind"] == "step"]


def test_the_first_loss_is_that_of_the_loaded_model(tmp_path, settings, first):
    chosen = settings(tmp_path / "run", init=first, steps=1)
    train(chosen)
    model, tokenizer = checkpoint.load(first, mx.float32)
    corpus = data.Corpus.load(tmp_path / "run" / "corpus")
    batch = mx.array(data.Batches(corpus.train_path, window=16, batch=2, seed=0)[0])
    task = objectives.causal(batch, tokenizer.pad)
    _, plain, weight = objectives.loss(model, task, depth=passes(chosen.fit, 1, model.config.depth))
    assert steps(tmp_path / "run")[0][1] == pytest.approx(plain[-1].item() / weight.item(), rel=1e-5)


def test_a_stopped_run_goes_on_without_the_folder_it_began_with(tmp_path, settings, first):
    copy = tmp_path / "copy"
    start(settings(copy, init=first))
    for name in ("whole", "run"):
        start(replace(settings(tmp_path / name, init=copy), dtype="float32"))
    for path in [*(copy / "corpus").iterdir()]:
        path.unlink()
    (copy / "model.safetensors").unlink()
    train(TrainConfig(resume=tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(verb.Desk, "after", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(TrainConfig(resume=tmp_path / "run"))
    train(TrainConfig(resume=tmp_path / "run"))
    assert steps(tmp_path / "run") == steps(tmp_path / "whole")
    both = [dict(tree_flatten(checkpoint.load(tmp_path / name)[0].parameters())) for name in ("run", "whole")]
    assert all(mx.array_equal(array, both[1][name]) for name, array in both[0].items())


@pytest.mark.parametrize(
    ("length", "more", "given", "context", "window"),
    [
        (16, {}, (), 64, 16),
        (8, {}, (), 64, 16),  # it was trained at 16 before
        (32, {}, (), 64, 16),
        (32, {"window": 0}, ("window",), 64, 32),
        (32, {"window": 24}, ("window",), 64, 24),
        (64, {"window": 0}, ("window",), 64, 0),
        (96, {"context": 96}, ("context",), 96, 16),
    ],
)
def test_the_window_stays_unless_it_is_lifted(
    tmp_path, settings, first, capsys, length, more, given, context, window
):
    asked = settings(tmp_path / "run", length=length, init=first, model=replace(ModelConfig(), **more))
    shape = start(asked, frozenset(f"model.{name}" for name in given)).model
    assert shape == replace(TINY, context=context, window=window)
    assert ("--window 0 lifts that" in capsys.readouterr().err) == (0 < window < length)


def refused(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    with pytest.raises(SystemExit) as caught:
        verb.main([str(flag) for flag in flags])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width", 256], "--width must fit the model at"),  # which is the default, but was asked for
        (["--depth", 4], "whose depth is 2, got 4"),
        (["--preset", "nano"], "--preset must fit the model at"),
        (["--length", 128], "length must be at most the context of 64, got 128"),
        (["--init", "nowhere"], "no model folder at nowhere"),
    ],
)
def test_what_the_model_cannot_be_is_refused(tmp_path, capsys, source, first, flags, words):
    line = refused(capsys, "--data", source, "--out", tmp_path / "run", "--init", first, "--length", 16, *flags)
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_flags_that_say_what_the_model_is_are_accepted(settings, first, tmp_path):
    asked = settings(tmp_path / "run", init=first, model=replace(TINY, dropout=0.1))
    given = frozenset({"model.width", "model.dropout"})
    assert adopted(asked, given).model == replace(TINY, window=16, dropout=0.1)


def test_another_tokenizer_is_refused_and_its_own_accepted(tmp_path, capsys, settings, source, first):
    other = tmp_path / "other.model"
    other.write_bytes(Tokenizer.train(TEXTS[::2], 320).bytes)
    flags = ["--data", source, "--init", first, "--length", 16, "--out", tmp_path / "run", "--tokenizer"]
    assert "--tokenizer must be that of the model at" in refused(capsys, *flags, other)
    start(settings(tmp_path / "run", init=first, tokenizer=first / "tokenizer.model"))


def test_a_damaged_folder_is_refused_in_the_loaders_words(tmp_path, capsys, source, settings, first):
    start(settings(tmp_path / "copy", init=first))
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    line = refused(capsys, "--data", source, "--init", tmp_path / "copy", "--length", 16, "--out", tmp_path / "run")
    assert "model.safetensors must hold" in line
    assert not (tmp_path / "run").exists()
