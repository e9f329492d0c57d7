"""`python -m convert` as a user runs it: what it refuses, in one line, and what it leaves behind."""

import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("coremltools")

from export_folder import save_export, save_small
from tiny_folder import ROOT, save_tiny

from convert import __main__ as convert
from convert import folder, lint, manifest
from trm_mlx import quantize

pytest_plugins = ["export_folder", "tiny_folder"]
WITHOUT = "import sys, runpy; sys.modules[{!r}] = None; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


@pytest.fixture(scope="module")
def rounded(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounded") / "model"
    quantize.quantize(quantize.QuantizeConfig(model=small, out=folder, max_tokens=50))
    return folder


def left(place):
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in place.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "nowhere"], "no model folder at nowhere"),
        (["--depths", 3], "depth must be 1 to 2"),
        (["--depths", "2,1"], "depths must ascend"),
        (["--depths", 0], "depth must be 1 to 2"),
        (["--context", 25], "context must be 3 to the 24"),
        (["--context", 2], "context must be 3 to the 24"),
        (["--chunk", 1], "chunk must be 2 to 23"),
        (["--chunk", 24], "chunk must be 2 to 23"),
        (["--chunk", 8, "--precision", "float32"], "a Core ML state holds float16 only"),
        (["--name", "../x"], "name must be letters and digits"),
        (["--compress", "int3"], "--compress must be one of"),
    ],
)
def test_what_does_not_suit_the_model_is_refused_in_one_line(words, line, small, tmp_path, asked):
    status, out, told = asked(convert.main, "--model", small, "--out", tmp_path / "export", *words)
    assert (status, out) == (2, "") and line in told and len(told.splitlines()) == 1
    assert not left(tmp_path)


@pytest.mark.slow
def test_heads_that_the_neural_engine_refuses_are_refused(tmp_path, asked):
    model = save_tiny(tmp_path / "model")
    status, _, told = asked(convert.main, "--model", model, "--out", tmp_path / "export")
    assert status == 2 and "multiple of 32 wide" in told


@pytest.mark.slow
def test_a_quantized_model_is_not_rounded_again(rounded, tmp_path, asked):
    words = ("--model", rounded, "--out", tmp_path / "export", "--chunk", 8, "--compress", "int8")
    status, _, told = asked(convert.main, *words)
    assert status == 2 and "is quantized already" in told and not left(tmp_path)


@pytest.mark.slow
def test_what_is_there_is_kept_without_force(small, copied, asked):
    before = (copied / manifest.FILE).read_bytes()
    status, _, told = asked(convert.main, "--model", small, "--out", copied, "--chunk", 8)
    assert status == 2 and "give --force" in told and (copied / manifest.FILE).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"name": "an app of the web"}', "[]", "{"])
def test_force_does_not_replace_a_folder_that_is_no_export(content, small, tmp_path, asked):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / manifest.FILE).write_text(content)
    status, _, told = asked(convert.main, "--model", small, "--out", tmp_path / "site", "--chunk", 8, "--force")
    assert status == 2 and "is no export folder" in told and left(tmp_path / "site") == [manifest.FILE]


@pytest.fixture
def quick(monkeypatch):
    """A folder is filled with a manifest alone."""

    def fill(place, held, plan, name, how, told):
        (place / manifest.FILE).write_text("new")

    monkeypatch.setattr(folder, "fill", fill)


@pytest.mark.slow
def test_force_replaces_the_export_that_a_link_leads_to_and_keeps_the_link(quick, small, copied):
    link = copied.with_name("link")
    link.symlink_to(copied)
    save_export(link, small, force=True)
    assert link.is_symlink() and left(copied) == [manifest.FILE]
    assert left(copied.parent) == ["export", "link"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("no")])
def test_an_export_that_fails_leaves_what_was_there(error, small, copied, monkeypatch, asked):
    def fail(path):
        raise error

    monkeypatch.setattr(lint, "check", fail)
    before = (copied / manifest.FILE).read_bytes()
    words = ("--model", small, "--out", copied, "--chunk", 8, "--depths", 1, "--force")
    status, _, told = asked(convert.main, *words)
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1) and "Traceback" not in told
    assert left(copied.parent) == ["export"] and (copied / manifest.FILE).read_bytes() == before


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(small, tmp_path):
    words = [sys.executable, "-m", "convert", "--model", small, "--out", tmp_path / "export", "--chunk", "8"]
    with subprocess.Popen(map(str, words), cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert "decode_r1" in child.stderr.readline()  # it has begun
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        told = child.stderr.read()
    assert child.returncode == 130 and told.splitlines()[-1] == "convert: interrupted"
    assert not left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "module", "words", "line"),
    [
        ("coremltools", "convert", [], "coremltools must be installed"),
        ("sklearn", "convert", ["--compress", "lut4"], "scikit-learn must be installed"),
    ],
)
def test_a_missing_package_is_named_with_what_to_run(missing, module, words, line, small, tmp_path):
    words = ["--model", small, "--out", tmp_path / "export", "--chunk", "8", *words]
    code = [sys.executable, "-c", WITHOUT.format(missing, module), *map(str, words)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert line in done.stderr and "pip install" in done.stderr and not left(tmp_path)


@pytest.mark.slow
def test_an_export_that_rounds_says_what_it_costs(tmp_path, asked):
    model = save_small(tmp_path / "model", depth=1)
    words = ("--model", model, "--out", tmp_path / "export", "--chunk", 8, "--compress", "int8")
    status, told, _ = asked(convert.main, *words)
    line = told.splitlines()[-1]
    found = {key: float(value) for key, value in re.findall(r"(\w+) ([\d.e+-]+)", line.removeprefix("damage"))}
    assert status == 0 and found["positions"] == 24
    assert 1e-3 < found["weight_error"] < 2e-2 and 0 < found["kl_nats"] < 1e-2 and found["top1_agreement"] > 50


@pytest.mark.slow
def test_a_short_context_gets_a_short_chunk(small, tmp_path, asked):
    status, _, told = asked(convert.main, "--model", small, "--out", tmp_path / "export", "--depths", 1)
    assert status == 0, told
    assert manifest.read(tmp_path / "export").chunk == 12


def test_ctrl_c_while_libraries_are_imported_counts_after_them():
    done = []
    with pytest.raises(KeyboardInterrupt), convert.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("imported")
    assert done == ["imported"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("text", "name"), [("tiny-stories-4m", "TinyStories4M"), ("4m", "Model4M"), ("-", "Model"), ("a_b", "AB")]
)
def test_the_package_is_named_after_the_model_folder(text, name):
    assert convert.class_name(text) == name
