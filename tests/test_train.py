import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from run_folder import CASES, ROOT, assert_same_run, at_step, ctrl_c, figures, kill
from saved_folder import TINY, Killed

from trm_mlx import checkpoint, data, journal, loop, objectives, runs
from trm_mlx import train as verb
from trm_mlx.loop import most_passes
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.train import TrainConfig, train

pytest_plugins = ["run_folder"]
pytestmark = pytest.mark.usefixtures("plain")


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
    assert [line.split()[:2] for line in printed.splitlines()] == [["depth", str(d)] for d in (1, 2)]
    assert checkpoint.load(tmp_path / "run")[0].config == ModelConfig.PRESETS["nano"].trained_at(16)
    assert [figure[:2] for figure in figures(tmp_path / "run")] == [("step", 2), ("evaluate", 2)]
