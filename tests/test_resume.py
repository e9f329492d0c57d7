import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folder import CASES, assert_same_run, at_step, ctrl_c, kill, stop
from saved_folder import Disk, Killed

from trm_mlx import checkpoint, config, journal
from trm_mlx.train import TrainConfig, train

pytest_plugins = ["run_folder"]
pytestmark = pytest.mark.usefixtures("plain")


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
