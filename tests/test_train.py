import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_checkpoint import Disk, Killed

from trm_mlx import checkpoint, config, data, journal, loop, objectives, runs
from trm_mlx import train as verb
from trm_mlx.loop import FitConfig, most_passes
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.train import TrainConfig, train

ROOT = Path(__file__).parent.parent
TEXTS = [f"{name} walked {n} miles and saw {n * 37} birds." for n in range(60) for name in ("Ann", "Ben", "Eve")]
TINY = ModelConfig(vocabulary=320, width=32, heads=2, kv_heads=1, prelude=1, core=1, coda=0, depth=2, context=32)
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


@pytest.fixture(scope="module", autouse=True)
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


# Unbroken


def test_a_run_leaves_a_model_that_scores_as_the_run_says(tmp_path, settings):
    chosen = settings(tmp_path / "run", "masked", steps=3)
    scores = train(chosen)
    model, tokenizer = checkpoint.load(tmp_path / "run", mx.float32)
    corpus = data.Corpus.load(tmp_path / "run" / "corpus", verify=True)
    for depth, score in scores.items():
        assert verb.held_out_score(model, corpus, tokenizer, chosen, depth) == score
    assert sorted(scores) == [1, 2]
    names = ["config.json", "corpus", "metrics.jsonl", "model.safetensors", "tokenizer.model", "train.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [*names, "training.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_saved_weights_are_the_averages_where_there_are_any(unbroken):
    folder = unbroken("causal")
    arrays, facts = checkpoint.load_training(folder)
    saved = dict(tree_flatten(checkpoint.load(folder, mx.float16)[0].parameters()))
    assert facts["step"] == "8"
    for name, array in saved.items():
        average = arrays[f"averages.{name}"]
        assert mx.array_equal(array, average.astype(mx.float16)), name
    moved = [name for name in saved if not mx.array_equal(arrays[f"averages.{name}"], arrays[f"weights.{name}"])]
    assert len(moved) > len(saved) / 2


@pytest.mark.parametrize("case", CASES)
def test_the_same_settings_give_the_same_run(tmp_path, settings, unbroken, case):
    train(settings(tmp_path / "again", case))
    assert_same_run(tmp_path / "again", unbroken(case))


def test_another_seed_gives_another_run(tmp_path, settings, unbroken):
    chosen = settings(tmp_path / "run")
    train(replace(chosen, fit=replace(chosen.fit, seed=1)))
    assert figures(tmp_path / "run")[0] != figures(unbroken("causal"))[0]


# Stopped and resumed


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by", [ctrl_c, kill])
def test_a_stopped_run_goes_on_to_the_very_losses_and_weights(tmp_path, settings, unbroken, case, by):
    for step in (3, 5):
        folder = tmp_path / str(step)
        stop(settings(folder, case), step, by)
        train(TrainConfig(resume=folder))
        assert_same_run(folder, unbroken(case))


def test_a_run_that_stops_many_times_goes_on_each_time(tmp_path, settings, unbroken):
    stop(settings(tmp_path / "run"), 2, ctrl_c)
    for step, by in ((3, kill), (4, ctrl_c), (7, kill), (7, ctrl_c)):
        stop(TrainConfig(resume=tmp_path / "run"), step, by)
        checkpoint.load(tmp_path / "run")
    train(TrainConfig(resume=tmp_path / "run"))
    assert_same_run(tmp_path / "run", unbroken("causal"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, settings, capsys):
    stop(settings(tmp_path / "run"), 2, ctrl_c)
    assert checkpoint.load_training(tmp_path / "run")[1]["step"] == "2"
    assert f"go on with: python -m trm_mlx.train --resume {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_termination_signal_saves_as_ctrl_c_does(tmp_path, settings):
    stop(settings(tmp_path / "run"), 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert checkpoint.load_training(tmp_path / "run")[1]["step"] == "2"


def test_the_signals_mean_afterwards_what_they_meant_before(tmp_path, settings):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop(settings(tmp_path / "run"), 2, ctrl_c)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_stops_at_once(tmp_path, settings):
    stop(settings(tmp_path / "run"), 2, lambda: (ctrl_c(), ctrl_c()))
    assert checkpoint.load_training(tmp_path / "run")[1]["step"] == "0"


def test_ctrl_c_while_a_step_is_saved_stops_after_the_next_one(tmp_path, settings, unbroken):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write = journal.Journal.write

        def interrupting(self: journal.Journal, kind: str, **named: Any) -> None:
            write(self, kind, **named)
            if kind == "save":
                ctrl_c()

        patch.setattr(journal.Journal, "write", interrupting)
        train(settings(tmp_path / "run"))
    assert checkpoint.load_training(tmp_path / "run")[1]["step"] == "4"
    train(TrainConfig(resume=tmp_path / "run"))
    assert_same_run(tmp_path / "run", unbroken("causal"))


def test_a_finished_run_is_resumed_to_its_scores_alone(tmp_path, unbroken):
    folder = Path(shutil.copytree(unbroken("causal"), tmp_path / "run"))
    scores = train(TrainConfig(resume=folder))
    assert scores[2].tokens == 64
    assert_same_run(folder, unbroken("causal"))


def test_more_steps_are_remembered_by_the_next_resume(tmp_path, settings):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    for each in (whole, folder):
        train(settings(each, steps=4))
    train(TrainConfig(resume=whole), steps=8)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 6, ctrl_c)
        train(TrainConfig(resume=folder), steps=8)
    train(TrainConfig(resume=folder))
    assert_same_run(folder, whole)
    assert checkpoint.load_training(folder)[1]["step"] == "8"


@pytest.mark.slow
def test_a_run_killed_at_any_change_of_a_file_goes_on_as_if_nothing_had_been(tmp_path, brief):
    whole = tmp_path / "whole"
    chosen = brief(whole)
    with pytest.MonkeyPatch.context() as patch:
        changes = Disk(patch, writes=False)
        train(chosen)
    folder, seen = tmp_path / "run", []
    for number in range(1, changes.calls + 1, 2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Disk(patch, kill=number, writes=False)
            train(replace(chosen, out=folder))
        if folder.exists():
            checkpoint.load(folder)
            train(TrainConfig(resume=folder))
        else:
            train(replace(chosen, out=folder))
        seen.append(sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")))
        assert_same_run(folder, whole)
        shutil.rmtree(folder)
    assert len(seen) > 25
    assert set(map(tuple, seen)) == {("run", "whole")}


@pytest.mark.parametrize("after", ["model.safetensors", "training.safetensors"])
def test_a_kill_between_the_files_of_the_first_save_loses_nothing(tmp_path, settings, unbroken, after):
    folder, replaced = tmp_path / "run", os.replace

    def replacing(old: Any, new: Any) -> None:
        replaced(old, new)
        if Path(new) == folder / after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replacing)
        train(settings(folder))
    assert (
        checkpoint.load_training(folder)[1]["step"] == {"model.safetensors": "0", "training.safetensors": "3"}[after]
    )
    train(TrainConfig(resume=folder))
    assert_same_run(folder, unbroken("causal"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, brief, capsys):
    chosen = brief(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        changes = Disk(patch, writes=False)
        train(chosen)
    folder = tmp_path / "run"
    for number in range(1, changes.calls + 1, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
            Disk(patch, full=number, writes=False)
            with config.door("trm_mlx.train"):
                train(replace(chosen, out=folder))
        assert caught.value.code == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch("trm_mlx.train: error: disk full while writing .+; free some space and run again", line)
        if folder.exists():
            checkpoint.load(folder)
            train(TrainConfig(resume=folder))
            assert_same_run(folder, tmp_path / "whole")
            shutil.rmtree(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]


# Early stopping


def scoring(patch: pytest.MonkeyPatch, scores: dict[int, float], seen: dict[int, dict[str, mx.array]]) -> None:
    """Give the evaluations these scores by step, and note the weights that they saw."""
    real, reached = loop.fit, [0]

    def fit(*arguments: Any) -> Iterator[loop.Step]:
        for event in real(*arguments):
            reached[0] = event.step
            yield event

    def score(model: TinyRecursiveLM, *_: object) -> objectives.Score:
        seen.setdefault(reached[0], dict(tree_flatten(model.parameters())))
        return objectives.Score(scores[reached[0]], 0.1, 2.0, 64, 64)

    patch.setattr(verb, "fit", fit)
    patch.setattr(verb, "held_out_score", score)


SCORES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.0, 5: 3.5, 6: 1.0, 0: 9.0}


def same_numbers(folder: Path, numbers: dict[str, mx.array]) -> bool:
    saved = tree_flatten(checkpoint.load(folder, mx.float32)[0].parameters())
    return all(np.array_equal(np.array(array), np.array(numbers[name])) for name, array in saved)


def test_training_stops_when_patience_ends_and_keeps_the_best_model(tmp_path, settings):
    case = "causal"
    chosen, seen = settings(tmp_path / "run", case, evaluate_every=1, patience=3, dtype="float32"), {}
    with pytest.MonkeyPatch.context() as patch:
        scoring(patch, SCORES, seen)
        train(chosen)
    assert [figure[1] for figure in figures(tmp_path / "run") if figure[0] == "evaluate"] == [1, 2, 3, 4, 5]
    assert same_numbers(tmp_path / "run", seen[2])
    assert not same_numbers(tmp_path / "run", seen[5])


def test_a_run_that_stopped_early_stays_as_it_is_when_resumed(tmp_path, settings):
    chosen = settings(tmp_path / "run", evaluate_every=1, patience=3, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        scoring(patch, SCORES, {})
        train(chosen)
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
        train(TrainConfig(resume=tmp_path / "run"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


@pytest.mark.parametrize("by", [ctrl_c, kill])
def test_patience_and_the_best_model_survive_a_stop(tmp_path, settings, by):
    chosen = settings(tmp_path / "whole", evaluate_every=1, patience=3, save_every=1)
    with pytest.MonkeyPatch.context() as patch:
        scoring(patch, SCORES, {})
        train(chosen)
    with pytest.MonkeyPatch.context() as patch:
        scoring(patch, SCORES, {})
        at_step(patch, 4, by)
        with pytest.MonkeyPatch.context() as inner, pytest.raises((KeyboardInterrupt, Killed)):
            inner.setattr(verb, "held_out_score", lambda model, *_: objectives.Score(next(scores), 0.1, 2.0, 64, 64))
            scores = iter([SCORES[step] for step in (1, 2, 3, 4)])
            train(replace(chosen, out=tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        scoring(patch, SCORES, {})
        train(TrainConfig(resume=tmp_path / "run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# Refusals


def test_a_loss_that_is_no_number_is_one_line_and_the_last_save_stays(tmp_path, settings, capsys):
    chosen = settings(tmp_path / "run", "isolated", save_every=1)
    broken = replace(chosen, fit=replace(chosen.fit, rate=1e30, clip_norm=0.0, warmup=0, schedule="constant"))
    with pytest.raises(SystemExit) as caught, config.door("trm_mlx.train"):
        train(broken)
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"trm_mlx.train: error: the loss became \w+ at step \d; try a lower rate, or more warmup", line
    )
    assert int(checkpoint.load_training(tmp_path / "run")[1]["step"]) == int(line.split("step ")[1][0]) - 1


FLAGS = ["--vocabulary", "320", "--width", "32", "--heads", "2", "--kv-heads", "1", "--length", "16", "--steps", "1"]
BAD_DATA: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("none.txt", None, "no .txt"),
    "empty": ("a.txt", b"", "must hold text, got nothing but blanks"),
    "blank": ("a.txt", b" \n\n\t ", "must hold text, got nothing but blanks"),
    "of another kind": ("a.csv", b"a,b", "a source must end in .txt"),
    "too small to learn from": ("a.txt", b"One. Two.", "give more text"),
    "not UTF-8": ("a.txt", b"caf\xe9 and more", "must be UTF-8, got byte 0xE9 at offset 3"),
    "a line that is not JSON": ("a.jsonl", b'{"text": "a"}\nhello\n', "a.jsonl:2 must be one JSON object"),
    "a line without text": ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl:2 must have either text"),
    "a text that is a number": ("a.jsonl", b'{"text": 7}\n', "a.jsonl:1: text must be a str"),
    "a damaged archive": ("a.txt.gz", b"\x1f\x8b damaged", "must be a whole .gz file"),
}


@pytest.mark.parametrize(("name", "content", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, capsys, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert words in complaint(capsys, "--data", tmp_path / name, "--out", tmp_path / "run", *FLAGS)
    assert sorted(tmp_path.iterdir()) == before


def test_text_shorter_than_a_sequence_is_refused_and_leaves_nothing(tmp_path, capsys, source, learnt):
    (tmp_path / "a.txt").write_text("Ann walked 3 miles. Ben saw 5 birds.")
    flags = [*FLAGS, "--tokenizer", learnt, "--length", 64, "--context", 64]
    line = complaint(capsys, "--data", tmp_path / "a.txt", "--out", tmp_path / "run", *flags)
    assert "the training text must have more than 64 tokens" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--data must name the text to train on"),
        (["--length", 64, "--context", 32], "length must be at most the context of 32, got 64"),
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--vocabulary", 321], "vocabulary must be a multiple of 32"),
        (["--tokenizer", "nowhere.model"], "no tokenizer at nowhere.model"),
        (["--stepps", 3], "unknown flag --stepps; did you mean --steps?"),
    ],
)
def test_flags_that_make_no_sense_are_one_line_and_leave_nothing(tmp_path, capsys, source, flags, words):
    data = ["--data", source] if flags else []
    assert words in complaint(capsys, *data, "--out", tmp_path / "run", *FLAGS, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_size_is_refused_and_leaves_nothing(tmp_path, capsys, source, learnt):
    flags = ["--data", source, "--out", tmp_path / "run", *FLAGS, "--tokenizer", learnt, "--vocabulary", 352]
    assert "must have the model's 352 tokens, got 320; try --vocabulary 320" in complaint(capsys, *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_not_trained_into(tmp_path, capsys, source):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    line = complaint(capsys, "--data", source, "--out", tmp_path / "run", *FLAGS)
    assert f"must be a new folder; go on with --resume {tmp_path / 'run'}" in line
    line = complaint(capsys, "--data", source, "--out", tmp_path / "run" / "notes.txt", *FLAGS)
    assert "must be a new folder" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path, capsys):
    assert "it has no train.json" in complaint(capsys, "--resume", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    assert "it has no train.json" in complaint(capsys, "--resume", tmp_path)
    assert "it has no train.json" in complaint(capsys, "--resume", tmp_path / "notes.txt")


def test_other_flags_with_resume_are_refused_by_name(capsys, unbroken):
    folder = unbroken("causal")
    line = complaint(capsys, "--resume", folder, "--rate", 0.1, "--width", 64)
    assert line == (
        "--resume goes on as the run was started, so only --steps may be given with it, got --rate, --width"
    )
    assert "got --data" in complaint(capsys, "--resume", folder, "--data", "x.txt", "--steps", 9)


@pytest.fixture
def stopped(tmp_path: Path, settings: Callable[..., TrainConfig]) -> Path:
    stop(settings(tmp_path / "run"), 2, ctrl_c)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "corpus/corpus.json", "corpus/train.bin"])
def test_a_run_folder_that_misses_a_file_is_refused(capsys, stopped, name):
    (stopped / name).unlink()
    capsys.readouterr()
    assert Path(name).name in complaint(capsys, "--resume", stopped)


def test_text_that_changed_since_is_not_trained_on(capsys, stopped):
    tokens = np.fromfile(stopped / "corpus" / "train.bin", "<u2")
    tokens[7] ^= 1
    tokens.tofile(stopped / "corpus" / "train.bin")
    capsys.readouterr()
    assert "train.bin must have the sha256" in complaint(capsys, "--resume", stopped)


def test_the_corpus_of_another_run_is_not_trained_on(capsys, stopped, tmp_path, settings, learnt):
    chosen = settings(tmp_path / "other")
    stop(replace(chosen, fit=replace(chosen.fit, seed=1)), 1, ctrl_c)
    shutil.rmtree(stopped / "corpus")
    shutil.copytree(tmp_path / "other" / "corpus", stopped / "corpus")
    capsys.readouterr()
    assert "corpus is not the corpus that this run was trained on" in complaint(capsys, "--resume", stopped)


def test_a_corpus_of_another_tokenizer_is_not_trained_on(capsys, tmp_path, settings, stopped):
    other = tmp_path / "other.model"
    other.write_bytes(Tokenizer.train(TEXTS[::2], 320).bytes)
    stop(settings(tmp_path / "other", tokenizer=other), 1, kill)
    shutil.rmtree(tmp_path / "other" / "corpus")
    shutil.copytree(stopped / "corpus", tmp_path / "other" / "corpus")
    capsys.readouterr()
    line = complaint(capsys, "--resume", tmp_path / "other")
    assert "corpus was made with another tokenizer than tokenizer.model" in line


def restamped(folder: Path, facts: dict[str, str | None], **arrays: mx.array) -> None:
    """Another training state that its own checks vouch for."""
    old, said = checkpoint.load_training(folder)
    mx.eval(old)
    kept = {name: fact for name, fact in (said | facts).items() if fact is not None}
    checkpoint.save_training(folder, old | arrays, kept)


@pytest.mark.parametrize("name", ["step", "best", "waited"])
@pytest.mark.parametrize("fact", [None, "", "many", "9" * 5000 + "x"])
def test_a_training_state_with_false_facts_is_refused(capsys, stopped, name, fact):
    restamped(stopped, {name: fact})
    capsys.readouterr()
    assert "training.safetensors must say its step" in complaint(capsys, "--resume", stopped)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("weights.final_norm.weight", mx.zeros((8, 4)), "must be (32,), got (8, 4)"),
        ("weights.final_norm.weight", mx.zeros((32,), mx.uint32), "must be mlx.core.float32, got mlx.core.uint32"),
        ("weights.final_norm.weight", mx.zeros((32,), mx.float16), "must be mlx.core.float32, got mlx.core.float16"),
        ("weights.spare", mx.zeros((32,)), "'weights.spare' is unknown"),
        ("../../spare", mx.zeros((0,)), "'../../spare' is unknown"),
    ],
)
def test_a_training_state_of_another_model_is_refused(capsys, stopped, name, array, words):
    restamped(stopped, {}, **{name: array})
    capsys.readouterr()
    line = complaint(capsys, "--resume", stopped)
    assert "training.safetensors: " in line
    assert words in line


@pytest.mark.slow
def test_a_training_state_with_a_changed_or_missing_byte_is_refused(stopped):
    path = stopped / "training.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 29), *range(header, len(content), len(content) // 37)]
    damaged = [content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :] for at in places]
    damaged += [content[:at] for at in (0, 7, 8, 100, header - 1, header, header + 1, len(content) - 1)]
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(ValueError, match=r"training\.safetensors") as caught:
            train(TrainConfig(resume=stopped))
        assert type(caught.value) is ValueError
        assert "\n" not in str(caught.value)


# As a user runs it


def start(*flags: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trm_mlx.train", *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=os.environ | environment)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until the run has reported a step."""
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        path = folder / "metrics.jsonl"
        if path.exists() and any(report.get("step", 0) >= step for report in journal.read(path)):
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"the run ended before step {step}: {process.communicate()}")


@pytest.mark.slow
def test_compiled_runs_of_other_processes_stopped_by_signals_give_the_very_losses(tmp_path, settings):
    chosen = settings(tmp_path / "whole", steps=300, evaluate_every=1000, save_every=1000, sample_every=0)
    shape, fitting = (
        replace(TINY, dropout=0.1, prelude=0),
        replace(chosen.fit, exit_weight=0.0, depth_schedule="fixed"),
    )
    chosen = replace(chosen, model=shape, fit=fitting, save_every=20)
    mx.enable_compile()
    try:
        train(chosen)
    finally:
        mx.disable_compile()
    runs.start(replace(chosen, out=tmp_path / "run"))

    process = start("--resume", tmp_path / "run", MPLBACKEND="agg")
    wait_for_step(process, tmp_path / "run", 7)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: python -m trm_mlx.train --resume {tmp_path / 'run'}" in said
    assert said.splitlines()[-1] == "trm_mlx.train: interrupted"
    reached = int(checkpoint.load_training(tmp_path / "run")[1]["step"])
    assert 7 <= reached < 200

    process = start("--resume", tmp_path / "run")
    wait_for_step(process, tmp_path / "run", reached + random.randrange(5, 60))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    checkpoint.load(tmp_path / "run")

    process = start("--resume", tmp_path / "run")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert re.fullmatch(r"depth 2  bits_per_byte \d\.\d{4} \+- \d\.\d{4}\n", printed)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_the_command_trains_a_nano_model_from_text(tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randrange(3, 10))) for _ in range(6000)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(2000)))
    flags = ["--preset", "nano", "--steps", 2, "--batch", 1, "--length", 16, "--evaluate-tokens", 32]
    process = start("--data", tmp_path / "a.txt", "--out", tmp_path / "run", *flags, MLX_DISABLE_COMPILE="1")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [line.split()[:2] for line in printed.splitlines()] == [["depth", str(d)] for d in (1, 2, 3)]
    assert checkpoint.load(tmp_path / "run")[0].config == ModelConfig.PRESETS["nano"].trained_at(16)
    assert [figure[:2] for figure in figures(tmp_path / "run")] == [("step", 2), ("evaluate", 2)]


def test_a_run_without_its_training_state_is_refused_and_its_model_kept(tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unbroken("causal"), folder)
    (folder / "training.safetensors").unlink()
    model = (folder / "model.safetensors").read_bytes()
    assert "training.safetensors is missing, so this run cannot go on" in complaint(capsys, "--resume", folder)
    assert (folder / "model.safetensors").read_bytes() == model


def test_fewer_steps_than_taken_are_refused_and_not_remembered(tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unbroken("causal"), folder)
    before = (folder / "train.json").read_bytes()
    line = complaint(capsys, "--resume", folder, "--steps", 5)
    assert "--steps must be above the 8 steps that this run has taken, got 5" in line
    assert (folder / "train.json").read_bytes() == before


def test_a_second_process_is_kept_out_of_the_folder(tmp_path, unbroken, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unbroken("causal"), folder)
    with checkpoint.alone(folder):
        line = complaint(capsys, "--resume", folder, "--steps", 20, status=1)
    assert "another process is training in" in line


def test_depths_that_still_grow_do_not_use_up_the_patience(tmp_path, settings, monkeypatch):
    worse = iter(range(1, 100))
    score = objectives.Score(1.0, 0.1, 2.0, 10, 10)
    monkeypatch.setattr(verb, "held_out_score", lambda *_: replace(score, bits_per_byte=float(next(worse))))
    chosen = settings(tmp_path / "run", steps=12, patience=2, evaluate_every=1, sample_every=0)
    chosen = replace(chosen, fit=replace(chosen.fit, depth_schedule="grow"))
    train(chosen)
    steps = [r["step"] for r in journal.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    first = next(n for n in range(1, 13) if most_passes(chosen.fit, n, chosen.model.depth) == chosen.model.depth)
    assert steps[-1] == first + 2  # the first score at full depth is the best one, and two are worse
