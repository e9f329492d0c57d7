"""Two processes on this machine train one model, as `mlx.launch` would start them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from trm_mlx import checkpoint, config, journal, ranks
from trm_mlx.ranks import ALONE, join
from trm_mlx.train import TrainConfig, train

ROOT = Path(__file__).parent.parent
SHAPE = "--vocabulary 320 --width 32 --heads 2 --kv-heads 1 --prelude 1 --core 1 --coda 0 --depth 2 --context 32"
EVERY = "--report-every 1 --evaluate-every 5 --save-every 4 --sample-every 5 --evaluate-tokens 64 --held-out 0.1"
HOW = "--length 16 --batch 4 --steps 10 --warmup 2 --depth-schedule random"
FLAGS = f"{SHAPE} {EVERY} {HOW}".split()
CASES = {
    "causal": ["--accumulate", "2", "--exit-weight", "0.3", "--exit-from", "0", "--isolate"],
    "masked": ["--objective", "masked", "--accumulate", "2", "--optimizer", "adamw"],
}


pytest_plugins = ["run_folder"]
pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Start two ranks. The second one gets no flags and an empty folder: all it needs comes from the first."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: object, **environment: str) -> list[subprocess.Popen[str]]:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # so that the ports are free
        hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
        (tmp_path / "hosts.json").write_text(json.dumps(hosts))
        (tmp_path / "empty").mkdir(exist_ok=True)
        for each in sockets:
            each.close()
        for rank in range(2):
            environment |= {"MLX_HOSTFILE": str(tmp_path / "hosts.json"), "MLX_RANK": str(rank)}
            environment |= {"MLX_DISABLE_COMPILE": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
            process = subprocess.Popen(
                [sys.executable, "-m", "trm_mlx.train", *([] if rank else map(str, flags))],
                cwd=tmp_path / ("empty" if rank else "."),
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    """Exit statuses, stdout, and stderr without MLX's own lines about sockets."""
    printed = [process.communicate(timeout=240) for process in processes]
    said = ["".join(line for line in err.splitlines(True) if "[ring]" not in line) for _, err in printed]
    return [process.returncode for process in processes], [out for out, _ in printed], said


def wait_for_step(folder: Path, step: int) -> None:
    until, path = time.monotonic() + 240, folder / "metrics.jsonl"
    while not (path.exists() and any(each.get("step", 0) >= step for each in journal.read(path))):
        assert time.monotonic() < until, f"no step {step} in {folder}"
        time.sleep(0.005)


def figures(folder: Path, kind: str, *names: str) -> list[list[Any]]:
    reports = [report for report in journal.read(folder / "metrics.jsonl") if report["kind"] == kind]
    return [[report[name] for name in names] for report in reports]


def assert_same_losses(folder: Path, whole: Path) -> None:
    assert figures(folder, "step", "step", "depth") == figures(whole, "step", "step", "depth")
    for kind, names in {"step": ("loss", "gradient_norm"), "evaluate": ("bits_per_byte",)}.items():
        for one, other in zip(figures(folder, kind, *names), figures(whole, kind, *names), strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def alone(*flags: object, steps: int | None = None) -> None:
    train(config.parse(TrainConfig, [str(flag) for flag in flags], program="trm_mlx.train"), steps)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_losses_of_one_and_the_first_alone_writes(tmp_path, source, launch, case):
    flags = ["--data", source, *FLAGS, *CASES[case]]
    processes = launch(*flags, "--out", tmp_path / "run")
    alone(*flags, "--out", tmp_path / "whole")
    statuses, printed, said = ended(processes)
    assert (statuses, printed[1], said[1]) == ([0, 0], "", ""), said
    assert [line.split()[:2] for line in printed[0].splitlines()] == [["depth", "1"], ["depth", "2"]]
    assert_same_losses(tmp_path / "run", tmp_path / "whole")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_loses_a_rank_goes_on_with_any_number_of_ranks(tmp_path, source, launch):
    folder, flags = tmp_path / "run", ["--data", source, *FLAGS, *CASES["causal"], "--steps", 2000]
    flags += ["--evaluate-every", 1000, "--sample-every", 0, "--schedule", "constant"]
    hint = f"go on with: python -m trm_mlx.train --resume {folder}"

    processes = launch(*flags, "--out", folder)
    wait_for_step(folder, 3)
    processes[1].send_signal(signal.SIGINT)  # all stop in the same step, whoever is told
    statuses, _, said = ended(processes)
    assert (statuses, said[1]) == ([130, 130], "")
    assert said[0].count(hint) == 1
    reached = int(checkpoint.load_training(folder)[1]["step"])
    assert figures(folder, "step", "step")[-1] == [reached]

    for lost in (1, 0):
        processes = launch("--resume", folder)
        wait_for_step(folder, reached + 9)
        processes[lost].kill()
        statuses, _, said = ended(processes)
        reached = int(checkpoint.load_training(folder)[1]["step"])
        assert (statuses[lost], statuses[1 - lost]) == (-signal.SIGKILL, 1)
        line = said[1 - lost].splitlines()[-1]
        assert line.startswith(f"trm_mlx.train: error: rank {lost} was lost after step ")
        held = {reached, reached - 4 * (lost == 0)}  # rank 0 may be lost between a save and the word of it
        assert line.partition("; ")[2] in {f"{folder} holds step {step}; {hint}" for step in held}

    last = reached + 3
    alone("--resume", folder, steps=last)
    alone(*flags, "--steps", last, "--out", tmp_path / "whole")
    assert_same_losses(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_run_after_the_timeout(tmp_path, source, launch):
    folder = tmp_path / "run"
    processes = launch("--data", source, *FLAGS, "--steps", 2000, "--out", folder, TRM_MLX_TIMEOUT="6")
    wait_for_step(folder, 3)
    processes[1].send_signal(signal.SIGSTOP)
    _, said = processes[0].communicate(timeout=240)
    assert processes[0].returncode == 1
    assert "trm_mlx: error: rank 1 was silent for 6 seconds after step " in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--batch", 3], 2, "batch must be a multiple of the 2 ranks, got 3"),
        (["--stepps", 3], 2, "unknown flag --stepps"),
        (["--rate", 1e30, "--clip-norm", 0, "--warmup", 0, "--optimizer", "sgd"], 1, "the loss became"),
    ],
)
def test_what_ends_the_run_is_said_once_and_ends_all_ranks(tmp_path, source, launch, flags, status, words):
    processes = launch("--data", source, *FLAGS, "--out", tmp_path / "run", *flags)
    statuses, printed, said = ended(processes)
    assert (statuses, printed, said[1]) == ([status, status], ["", ""], "")
    assert said[0].count("error: ") == 1
    assert words in said[0].splitlines()[-1]


@pytest.mark.parametrize(
    "environment", [{}, {"MLX_RANK": "1"}, {"MLX_HOSTFILE": "nowhere.json"}, {"MLX_RANK": "0", "MLX_HOSTFILE": ""}]
)
def test_a_process_that_was_not_launched_is_alone(monkeypatch, environment):
    monkeypatch.setattr(mx.distributed, "init", None)  # nor does it ask
    for name in ("MLX_RANK", *ranks.MARKS.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert join() is ALONE


def test_one_launched_rank_is_alone(monkeypatch, tmp_path):
    (tmp_path / "hosts.json").write_text("\n")  # as mlx.launch -n 1 writes it
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    assert join() is ALONE


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MLX_HOSTFILE", "nowhere.json", "MLX_HOSTFILE must name the hosts of a ring, and nowhere.json is not there"),
        ("TRM_MLX_TIMEOUT", "soon", "TRM_MLX_TIMEOUT must be seconds above 0, got soon"),
        ("TRM_MLX_TIMEOUT", "-1", "TRM_MLX_TIMEOUT must be seconds above 0, got -1"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, tmp_path, name, value, words):
    (tmp_path / "hosts.json").write_text("[[], []]")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        join()
