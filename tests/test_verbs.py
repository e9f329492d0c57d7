import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib import import_module

import pytest
from tiny_folder import ROOT

import trm_mlx
from trm_mlx import __main__ as door
from trm_mlx import doctor
from trm_mlx.config import leaves

pytest_plugins = ["tiny_folder"]

CONFIGS = {
    "train": "TrainConfig",
    "quantize": "QuantizeConfig",
    "generate": "GenerateConfig",
    "chat": "ChatConfig",
    "evaluate": "EvaluateConfig",
    "benchmark": "BenchmarkConfig",
    "doctor": "DoctorConfig",
}


def test_every_verb_is_listed():
    assert list(door.VERBS) == list(CONFIGS)


@pytest.mark.parametrize("verb", CONFIGS)
def test_help_names_every_flag_of_a_verb(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        door.main([verb, "--help"])
    out, err = capsys.readouterr()
    assert err == ""
    settings = getattr(import_module(f"trm_mlx.{verb}"), CONFIGS[verb])
    keys = list(leaves(settings))
    assert len(keys) >= 1
    for key in keys:
        assert re.search(rf"(?m)^\s+{key.flag}\b", out), key.flag
        assert key.help, f"{key.flag} has no help"
    assert settings.__doc__.splitlines()[0] in out
    assert out.isascii()  # any terminal can show it


@pytest.mark.slow
@pytest.mark.parametrize("verb", CONFIGS)
def test_help_is_quick(command, verb):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = command(f"trm_mlx.{verb}", "--help")
        seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, b"")
    assert statistics.median(seconds) < 1.5  # 0.3 on a quiet machine


@pytest.mark.parametrize("verb", CONFIGS)
def test_an_unknown_flag_is_one_line_and_2(verb, capsys):
    with pytest.raises(SystemExit, match="2"):
        door.main([verb, "--jsn"])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "unknown flag --jsn" in err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_verb_all_are_listed(words, capsys):
    door.main(words)
    out, err = capsys.readouterr()
    assert err == ""
    for verb, what in door.VERBS.items():
        assert re.search(rf"(?m)^  {verb} +{re.escape(what)}$", out)


def test_the_version_is_printed(capsys):
    door.main(["--version"])
    assert capsys.readouterr().out == f"{trm_mlx.__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("genrate", "did you mean generate?"),
        ("zzz", "see python -m trm_mlx"),
        ("--jsn", ""),
        ("__init__", ""),
    ],
)
def test_an_unknown_verb_is_one_line_and_2(word, hint, capsys):
    with pytest.raises(SystemExit, match="2"):
        door.main([word])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"unknown verb {word}" in err and hint in err


@pytest.mark.slow
def test_importing_the_package_imports_nothing_large():
    script = "import sys, trm_mlx; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert "trm_mlx" in loaded
    assert not loaded & {"numpy", "sentencepiece", "mlx", "matplotlib", "datasets", "argparse", "json"}


def test_the_package_lists_its_public_names_and_no_others():
    assert {"load", "generate", "stream", "PromptCache", "ModelConfig", "TinyRecursiveLM", "PRETRAINED"} <= set(
        dir(trm_mlx)
    )
    with pytest.raises(AttributeError, match="trm_mlx has no 'lod'"):
        trm_mlx.__getattr__("lod")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["trm_mlx"], ["trm_mlx", "--version"], ["trm_mlx", "doctor"]])
def test_a_reader_that_has_gone_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# Doctor.


def test_doctor_prints_each_finding_and_what_is_missing(capsys):
    doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    known = [field.name for field in dataclasses.fields(doctor.Findings)]
    assert list(dict.fromkeys(names)) == known
    found = dict(line.split(maxsplit=1) for line in lines)
    assert found["trm_mlx"] == trm_mlx.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert float(found["gemm_gflops"]) > 0


def test_doctor_prints_json(capsys):
    doctor.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [field.name for field in dataclasses.fields(doctor.Findings)]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", found["mlx"])
    assert found["gemm_gflops"] > 0
    assert all(isinstance(line, str) for line in found["missing"])


def test_doctor_names_what_is_missing_with_its_cure(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor.mx, "default_device", lambda: doctor.mx.Device(doctor.mx.cpu))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "gflops", lambda: 1.26)
    found = doctor.doctor()
    assert (found.gemm_gflops, found.compiler) == (1.3, "none")
    assert [line.split(":")[0] for line in found.missing] == [
        "a fast BLAS",
        "g++, without which MLX compiles nothing and trains more slowly",
        "matplotlib (optional)",
        "datasets (optional)",
        "coremltools (optional)",
        "outlines_core (optional)",
    ]
    assert doctor.backend.cure() in found.missing[0]
    assert 'pip install -e ".[hub]"' in found.missing[3]


def test_doctor_says_that_nothing_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    monkeypatch.setattr(doctor, "gflops", lambda: 50.0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    doctor.main([])
    assert capsys.readouterr().out.splitlines()[-1] == "missing          nothing"


def test_the_speed_of_products_counts_two_operations_a_multiply_and_add(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: float(next(ticks)))
    assert doctor.gflops(100) == pytest.approx(2 * 100**3 / 1e9)  # each takes one second
