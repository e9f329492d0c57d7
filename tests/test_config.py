"""Settings as files and as command lines, and the door that turns errors into one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from trm_mlx import config


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of the model."""

    PRESETS: ClassVar[Mapping[str, Shape]]

    width: Annotated[int, "features per token"] = 64
    norm: Annotated[Literal["rms", "layer"], "normalization"] = "rms"
    exits: Annotated[tuple[int, ...], "passes that answer"] = (1, 2)

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")


Shape.PRESETS = {"tiny": Shape(), "small": Shape(width=256, exits=(1, 2, 4))}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of weights."""

    bits: Annotated[int, "bits per weight"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run at 100%."""

    data: Annotated[Path, "text to learn"]
    steps: Annotated[int, "optimizer steps"] = 1_000
    peak_rate: Annotated[float, "peak learning rate"] = 2e-3
    compile: Annotated[bool, "compile the step, 2% faster"] = True
    name: Annotated[str, "name of the run"] = ""
    seed: Annotated[int | None, "seed, or none for any"] = 0
    heads: Annotated[Literal[2, 4], "attention heads"] = 2
    tags: Annotated[tuple[str, ...], "words for the log"] = ()
    grid: Annotated[Grid | None, "weights are rounded to it"] = None
    model: Shape = field(default_factory=lambda: Shape(width=256, exits=(1, 2, 4)))


@dataclass(frozen=True, kw_only=True)
class Clash:
    """Two flags of one name."""

    width: int = 1
    model: Shape = Shape()


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A model that must be given."""

    model: Shape


FULL = Run(
    data=Path("a/b.txt"),
    steps=7,
    peak_rate=0.5,
    compile=False,
    name="é",
    seed=None,
    heads=4,
    tags=("x", "y,z"),
    grid=Grid(bits=4),
    model=Shape(width=128, norm="layer", exits=()),
)


def parse(*argv: str) -> Run:
    return config.parse(Run, ["--data", "d", *argv], program="trm_mlx.run")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr after which the command exits with 2."""
    with pytest.raises(SystemExit) as stop:
        config.parse(Run, argv, program="trm_mlx.run")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("trm_mlx.run: error: ")
    return err.removeprefix("trm_mlx.run: error: ").rstrip("\n")


def file_refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r".") as error:
        config.read(Run, path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), path.name)


def test_settings_become_plain_json():
    assert config.to_json(FULL) == {
        "data": "a/b.txt",
        "steps": 7,
        "peak_rate": 0.5,
        "compile": False,
        "name": "é",
        "seed": None,
        "heads": 4,
        "tags": ["x", "y,z"],
        "grid": {"bits": 4},
        "model": {"width": 128, "norm": "layer", "exits": []},
    }


def test_written_settings_read_back_equal(tmp_path):
    config.write(FULL, tmp_path / "run.json")
    assert config.read(Run, tmp_path / "run.json") == FULL
    assert (tmp_path / "run.json").read_text("utf-8").endswith("}\n")
    assert os.listdir(tmp_path) == ["run.json"]


def test_toml_holds_the_same_keys(tmp_path):
    (tmp_path / "run.toml").write_text('data = "d"\npeak_rate = 1\n[model]\nnorm = "layer"\n')
    settings = config.read(Run, tmp_path / "run.toml")
    assert settings == Run(data=Path("d"), peak_rate=1.0, model=Shape(width=256, norm="layer", exits=(1, 2, 4)))
    assert type(settings.peak_rate) is float


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"stpes": 3}, "here: unknown key 'stpes'; did you mean steps?"),
        ({"model": {"zzz": 3}}, "here: unknown key 'model.zzz'; known are width, norm, exits"),
        ({}, "here: missing key 'data', a path"),
        ({"grid": {}}, "here: grid: missing key 'bits', a whole number"),
        ({"steps": True}, "here: steps must be a whole number, got True"),
        ({"steps": 3.0}, "here: steps must be a whole number, got 3.0"),
        ({"compile": 1}, "here: compile must be true or false, got 1"),
        ({"peak_rate": float("nan")}, "here: peak_rate must be a finite number, got nan"),
        ({"peak_rate": 10**309}, f"here: peak_rate must be a finite number, got 1{'0' * 17}...{'0' * 19}"),
        ({"steps": "x" * 9999}, "here: steps must be a whole number, got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
        ({"heads": 3}, "here: heads must be one of 2, 4, got 3"),
        ({"heads": 2.0}, "here: heads must be one of 2, 4, got 2.0"),
        ({"data": ""}, "here: data must be a path, got ''"),
        ({"tags": "x"}, "here: tags must be a list, each text, got 'x'"),
        ({"tags": ["x", 1]}, "here: tags[1] must be text, got 1"),
        ({"model": 3}, "here: model must be a table of settings, got 3"),
        ({"model": {"norm": "batch"}}, "here: model.norm must be one of 'rms', 'layer', got 'batch'"),
        ({"data": "d", "model": {"width": 9}}, "here: width must be a multiple of 8, got 9"),
        ([1], "here must be a table of settings, got [1]"),
    ],
)
def test_wrong_data_is_refused_in_one_line_that_says_what_must_hold(data, line):
    with pytest.raises(ValueError, match=r".") as error:
        config.from_json(Run, data, "here")
    assert str(error.value) == line


def test_nested_table_without_a_default_must_be_in_a_file():
    with pytest.raises(ValueError, match="missing key 'model', a table of settings"):
        config.from_json(Plain, {}, "here")


def test_malformed_files_are_refused_in_one_line(tmp_path):
    assert file_refusal(tmp_path / "a.json", "{").startswith("a.json is not valid JSON: ")
    assert file_refusal(tmp_path / "a.toml", "steps = = 2\n").startswith("a.toml is not valid TOML: ")
    assert file_refusal(tmp_path / "b.json", b"\xff\xfe").startswith("b.json is not valid JSON: ")
    assert file_refusal(tmp_path / "c.json", "[" * 100_000).startswith("c.json is not valid JSON: ")
    assert file_refusal(tmp_path / "d.json", "[1]") == "d.json must be a table of settings, got [1]"
    assert file_refusal(tmp_path / "e.json", " " * (1 << 20) + "{}").startswith("e.json must be at most 1048576")
    assert file_refusal(tmp_path / "f.yaml", "{}").startswith("settings must be in a .json or .toml file, got")


def test_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.json"
    config.write(FULL, path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"run\.json"):
        config.write(replace(FULL, steps=8), path)
    assert config.read(Run, path) == FULL
    assert os.listdir(tmp_path) == ["run.json"]


def test_flags_set_fields_of_every_type():
    argv = "--data a/b.txt --steps 7 --peak-rate 5e-1 --no-compile --name é --seed none --heads 4 --tags x y,z"
    argv += " --width 128 --norm layer --exits"
    assert parse(*argv.split()) == replace(FULL, grid=None)


@pytest.mark.parametrize("words", [["1", "2", "3"], ["1,2,3"], ["1,2", "3"]])
def test_numbers_may_be_listed_with_spaces_or_commas(words):
    assert parse("--exits", *words).model.exits == (1, 2, 3)


def test_preset_holds_but_for_the_flags_beside_it():
    assert parse("--preset", "tiny").model == Shape()
    assert parse("--width", "8", "--preset", "tiny").model == Shape(width=8)


def test_flags_without_preset_keep_the_rest_of_the_default_model():
    assert parse("--width", "8").model == Shape(width=8, exits=(1, 2, 4))


def test_preset_of_the_command_itself_is_offered():
    settings = config.parse(Shape, ["--preset", "small", "--norm", "layer"], program="p")
    assert settings == Shape(width=256, norm="layer", exits=(1, 2, 4))


def test_config_file_lies_below_preset_and_flags(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"steps": 5, "seed": 9, "model": {"width": 8, "norm": "layer"}}))
    assert parse("--config", str(file), "--steps", "6") == Run(
        data=Path("d"), steps=6, seed=9, model=Shape(width=8, norm="layer", exits=(1, 2, 4))
    )
    assert parse("--config", str(file), "--preset", "tiny").model == Shape()


def test_config_file_may_give_what_is_required_and_what_has_no_flag(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "d"\n[grid]\nbits = 4\n')
    assert config.parse(Run, ["--config", str(file)], program="p") == Run(data=Path("d"), grid=Grid(bits=4))


def test_nested_settings_without_a_default_are_made_of_their_own():
    assert config.parse(Plain, [], program="p") == Plain(model=Shape())


def test_given_names_the_flags_on_the_command_line_only(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"steps": 5}')
    argv = ["--data", "d", "--config", str(file), "--seed", "0", "--preset", "tiny", "--width", "8"]
    settings, given = config.parse_given(Run, argv, program="p")
    assert settings.steps == 5
    assert given == {"data", "config", "seed", "model.preset", "model.width"}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--stpes 3", "unknown flag --stpes; did you mean --steps?"),
        ("--step=3", "unknown flag --step; did you mean --steps?"),
        ("--zzzzzzzz", "unknown flag --zzzzzzzz; see --help"),
        ("", "--data is required: text to learn"),
        ("--steps x", "--steps must be a whole number, got 'x'"),
        ("--heads 3", "--heads must be one of 2, 4, got '3'"),
        ("--exits 1,x", "--exits must be a whole number, got 'x'"),
        ("--preset huge", "--preset must be one of 'tiny', 'small', got 'huge'"),
        ("--data d --width 9", "width must be a multiple of 8, got 9"),
        ("--config absent.json", "No such file or directory: absent.json"),
        ("--steps", "argument --steps: expected one argument"),
    ],
)
def test_wrong_command_line_is_refused_in_one_line(capsys, argv, line):
    assert refusal(capsys, *argv.split()) == line


def test_wrong_config_file_is_named_in_one_line(capsys, tmp_path):
    (tmp_path / "run.json").write_text('{"stpes": 3}')
    line = refusal(capsys, "--config", str(tmp_path / "run.json"))
    assert line == f"{tmp_path / 'run.json'}: unknown key 'stpes'; did you mean steps?"


def test_help_shows_each_flag_with_its_text_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        config.parse(Run, ["--help"], program="trm_mlx.run", epilog="example:\n  run it")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "One run at 100%. options:" in text
    assert "--data PATH text to learn (required)" in text
    assert "--steps N optimizer steps (default: 1000)" in text
    assert "--compile, --no-compile compile the step, 2% faster (default: on)" in text
    assert "--name TEXT name of the run (default: empty)" in text
    assert "--heads {2,4} attention heads (default: 2)" in text
    assert "The shape of the model: --preset {tiny,small} where to start from (default: small)" in text
    assert "--exits [N ...] passes that answer (default: 1 2 4)" in text
    assert text.endswith("example: run it")


def test_two_fields_of_one_flag_are_a_mistake_of_ours():
    with pytest.raises(ValueError, match="must not share the flag --width; rename"):
        config.parse(Clash, [], program="p")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("steps must\nbe 1"), 2, "error: steps must be 1"),
        (FileNotFoundError("no run folder x"), 2, "error: no run folder x"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: Permission denied: x"),
        (OSError(errno.ENOSPC, "No space left", "x"), 1, "error: disk full while writing x; free some space"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_door_turns_an_expected_error_into_one_line_and_a_status(capsys, error, status, line):
    with pytest.raises(SystemExit) as stop, config.door("trm_mlx.run"):
        raise error
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(f"trm_mlx.run: {line}")
    assert said.count("\n") == 1


def test_door_lets_a_bug_through():
    with pytest.raises(KeyError), config.door("p"):
        raise KeyError("x")


def test_door_lets_the_traceback_through_when_asked(monkeypatch):
    monkeypatch.setenv("TRM_MLX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="x"), config.door("p"):
        raise ValueError("x")


def test_closed_pipe_ends_the_command_quietly():
    code = "from trm_mlx import config\nwith config.door('p'):\n    print('x' * 1_000_000)"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_importing_config_loads_nothing_heavy():
    code = "import sys, trm_mlx.config; print(sorted({'numpy', 'mlx', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
