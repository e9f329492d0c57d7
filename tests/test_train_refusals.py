import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from run_folder import complaint, ctrl_c, kill, stop
from saved_folder import TEXTS

from trm_mlx import checkpoint, config
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.train import TrainConfig, train

pytest_plugins = ["run_folder"]
pytestmark = pytest.mark.usefixtures("plain")


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
