"""`make train-demo`: its text, and its commands as make gives them, with fewer steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trm_mlx import data, generate, train
from trm_mlx.config import parse

ROOT = Path(__file__).parent.parent


def commands(work: Path) -> list[list[str]]:
    """The words of each Python command that `make train-demo` would run in a folder."""
    (work / "pyproject.toml").touch()
    dry = ["make", "--dry-run", "--file", str(ROOT / "Makefile"), "PYTHON=python3", "train-demo"]
    lines = subprocess.run(dry, cwd=work, capture_output=True, check=True, text=True).stdout.replace("\\\n", " ")
    found = [shlex.split(line) for line in lines.splitlines() if re.search(r"python -m trm_mlx\.", line)]
    return [words[1:] for words in found]


def outcome(words: list[str], work: Path) -> str:
    """What a command prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=work, capture_output=True, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_text_is_the_twelve_chapters_and_nothing_of_its_file():
    chapters = [each.text for each in data.documents([ROOT / "docs/alice.txt"])]
    assert len(chapters) == 12
    assert chapters[0].startswith("Down the Rabbit-Hole\n\nAlice was beginning to get very tired")
    assert chapters[-1].endswith("and the happy summer days.")
    whole = "\n".join(chapters)
    assert whole.isascii() and not re.search(r"[`_\[\]<>]|  |EDITION|VERY|CHAPTER|\w-\n", whole)


def test_commands_say_what_their_verbs_take(tmp_path):
    training, writing = commands(tmp_path)
    settings = parse(train.TrainConfig, training[2:], program="train")
    assert settings.out == parse(generate.GenerateConfig, writing[2:], program="generate").model
    assert all((ROOT / source).is_file() for source in settings.data)


@pytest.mark.slow
def test_demo_trains_writes_and_goes_on_with_its_run_when_made_again(tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    training, writing = commands(tmp_path)
    few = ["--steps", "2", "--evaluate-tokens", "256", "--sample-every", "0"]
    assert "depth 2  bits_per_byte" in outcome([*training, *few], tmp_path)
    assert outcome([*writing, "--max-tokens", "5"], tmp_path).startswith("Alice")
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/alice/*.safetensors")}
    again, same = commands(tmp_path)
    assert again[1:] == ["trm_mlx.train", "--resume", "runs/alice"] and same == writing
    assert "depth 2  bits_per_byte" in outcome(again, tmp_path)
    assert {path: path.read_bytes() for path in before} == before
