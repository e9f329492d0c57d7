import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from saved_folder import FILES, Disk, Killed, bits
from tiny_folder import save_tiny, text

import trm_mlx
from trm_mlx import checkpoint, config, data, evaluate, quantize, train
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.evaluate import EvaluateConfig
from trm_mlx.quantize import QuantizeConfig, Quantized
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["run_folder", "saved_folder", "tiny_folder"]

PLAIN = ("embedding.weight", "core.0.attention.out.weight", "coda.0.feed_forward.up.weight")
EVERY = [(method, bits, group) for method in ("affine", "lut") for bits in (8, 6, 4) for group in (None, 0, 32)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(text(100, seed=3))
    return str(path)


@pytest.fixture
def ask(folder: Path, story: str, tmp_path: Path):
    """Settings for the tiny model, a short text and a new folder."""

    def make(**named: Any) -> QuantizeConfig:
        return QuantizeConfig(**{"model": folder, "out": tmp_path / "out", "data": (story,)} | named)

    return make


@pytest.fixture(scope="module")
def made(folder: Path, story: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantized]:
    """A quantized folder and what was said of it; nobody changes them."""
    out = tmp_path_factory.mktemp("made") / "rounded"
    return out, quantize.quantize(QuantizeConfig(model=folder, out=out, data=(story,), bits=4))


def broken(folder: Path, out: Path, name: str, number: float) -> Path:
    """A model one of whose numbers is another."""
    held = checkpoint.contents(folder)
    spoiled = np.array(held.arrays[name])
    spoiled.flat[3] = number
    checkpoint.save(out, held.config, held.tokenizer, held.arrays | {name: mx.array(spoiled)}, mx.float32)
    return out


def refused(capsys, *words: object) -> str:
    """The line that the command ends with when it is asked wrongly; it says nothing else but what it measured."""
    with pytest.raises(SystemExit, match="2"):
        quantize.main([str(word) for word in words])
    out, err = capsys.readouterr()
    *before, line = err.splitlines()
    assert out == ""
    assert all(each.startswith("measuring") for each in before)
    assert line.startswith("trm_mlx.quantize: error: ")
    return line


# What is made


@pytest.mark.parametrize(("method", "bits", "group"), EVERY)
def test_a_quantized_folder_holds_what_fit_gives(folder, ask, tmp_path, method, bits, group):
    quantize.quantize(ask(method=method, bits=bits, group=group, max_tokens=32))
    plain, held = checkpoint.contents(folder), checkpoint.contents(tmp_path / "out")
    usual = 0 if method == "lut" or bits == 8 else 32
    chosen = Grid(method=method, bits=bits, group=usual if group is None else group)
    assert held.grids == dict.fromkeys(plain.config.matrices(), chosen)
    dense = held.dense()
    for name in plain.config.matrices():
        tensors = grid.fit(name, np.array(plain.arrays[name]), chosen)
        assert np.array_equal(np.array(dense[name]), grid.values(name, tensors, chosen)), name


def test_embedding_and_core_are_rounded_apart(ask, tmp_path):
    quantize.quantize(ask(bits=6, embedding_bits=8, core_bits=4, max_tokens=32))
    found = {name: (each.bits, each.group) for name, each in checkpoint.load_grids(tmp_path / "out").items()}
    assert found["embedding.weight"] == (8, 0)
    assert {each for name, each in found.items() if name.startswith("core.")} == {(4, 32)}
    assert {each for name, each in found.items() if name.startswith(("prelude.", "coda."))} == {(6, 32)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_what_is_no_matrix_is_left_bit_for_bit(tmp_path, story, dtype):
    save_tiny(tmp_path / "wide", pass_lora=2, position="learned", feed_forward="swiglu")
    held = checkpoint.contents(tmp_path / "wide")
    checkpoint.save(tmp_path / "plain", held.config, held.tokenizer, held.arrays, dtype)
    quantize.quantize(
        QuantizeConfig(model=tmp_path / "plain", out=tmp_path / "out", data=(story,), max_tokens=32, bits=4)
    )
    before, after = (checkpoint.contents(tmp_path / name).arrays for name in ("plain", "out"))
    rest = before.keys() - held.config.matrices().keys()
    assert any("lora_a" in name for name in rest) and "positions" in rest
    assert bits({name: after[name] for name in rest}) == bits({name: before[name] for name in rest})


def test_the_plain_folder_is_left_as_it_is(folder, ask):
    before = {name: (folder / name).read_bytes() for name in FILES}
    quantize.quantize(ask(max_tokens=32))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_quantized_twice_gives_the_same_bytes(ask, tmp_path):
    for name in ("a", "b"):
        quantize.quantize(ask(out=tmp_path / name, bits=4, method="lut", max_tokens=32))
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# What is said


def test_bytes_are_those_on_the_disk(folder, made):
    out, told = made
    sizes = [(each / "model.safetensors").stat().st_size for each in (folder, out)]
    assert [told.bytes_before, told.bytes_after] == sizes
    assert told.bytes_after < 0.2 * told.bytes_before


def test_bits_per_byte_are_those_that_evaluate_gives(folder, made, story):
    out, told = made
    for which, name in ((folder, "before"), (out, "after")):
        depths = evaluate.evaluate(EvaluateConfig(model=which, data=(story,), depth=(1, 2), stride=512))
        for one in told.damage:
            assert getattr(one, name) == pytest.approx(depths[one.depth].bits_per_byte, rel=1e-5)


def test_the_difference_is_of_the_same_text_at_each_depth(made):
    _, told = made
    assert [one.depth for one in told.damage] == [1, 2]
    for one in told.damage:
        assert one.difference == pytest.approx(one.after - one.before, abs=1e-6)
        assert one.difference != 0


def test_the_error_of_the_difference_is_paired_by_window(tmp_path, story):
    save_tiny(tmp_path / "short", context=32)
    told = quantize.quantize(QuantizeConfig(model=tmp_path / "short", out=tmp_path / "out", data=(story,)))
    alone = evaluate.evaluate(EvaluateConfig(model=tmp_path / "short", data=(story,), depth=(1, 2), stride=32))
    for one in told.damage:
        assert 0 < one.difference_error < 0.2 * alone[one.depth].standard_error


def test_a_lone_window_has_no_error(ask, capsys):
    words = ["--model", ask().model, "--data", *ask().data, "--max-tokens", 30]
    quantize.main([*map(str, words), "--out", str(ask().out), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert [one["difference_error"] for one in record["damage"]] == [None, None]
    quantize.main([*map(str, words), "--out", str(ask().out) + "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bytes ") and " -> " in lines[0] and " seconds " in lines[0]
    assert [line.split()[:3] for line in lines[1:]] == [["depth", n, "bits_per_byte"] for n in "12"]
    assert not any("+-" in line or "nan" in line for line in lines)
    assert all(line.endswith("tokens 30") for line in lines[1:])


def test_the_held_out_text_of_a_run_folder_is_measured(tmp_path, story):
    model = save_tiny(tmp_path / "run")
    tokenizer = Tokenizer.load(model / "tokenizer.model")
    corpus = data.prepare([story], tokenizer, model / "corpus", held_out=0.3, seed=1)
    told = quantize.quantize(QuantizeConfig(model=model, out=tmp_path / "out"))
    assert told.tokens == corpus.held_out.tokens - 1


def test_the_held_out_text_of_another_tokenizer_is_refused(tmp_path, story, capsys):
    model = save_tiny(tmp_path / "run")
    data.prepare([story], Tokenizer.train([text(300)], 320), model / "corpus", held_out=0.3, seed=1)
    assert "made with another tokenizer" in refused(capsys, "--model", model, "--out", tmp_path / "out")


# Where a quantized folder is used


@pytest.mark.parametrize("packed", [True, False])
def test_a_quantized_model_writes_text(made, packed):
    model = checkpoint.load(made[0], packed=packed)[0]
    reply = trm_mlx.generate(model, "the quick", max_tokens=12, temperature=0)
    assert len(reply.tokens) == 12


def test_packed_and_dense_models_write_the_same(made):
    written = []
    for packed in (True, False):
        model = checkpoint.load(made[0], packed=packed)[0]
        written.append(trm_mlx.generate(model, "the quick", max_tokens=12, temperature=0).tokens)
    assert written[0] == written[1]


def test_training_begins_with_a_quantized_model(made, plain, story, tmp_path):
    fit = train.FitConfig(steps=2, batch=2, length=16, warmup=1)
    settings = train.TrainConfig(init=made[0], out=tmp_path / "run", data=(story,), held_out=0.3, fit=fit)
    train.train(settings)
    assert not checkpoint.load_grids(tmp_path / "run")
    begun, ended = (checkpoint.contents(each).dense() for each in (made[0], tmp_path / "run"))
    for name in PLAIN:
        moved = np.abs(np.array(begun[name].astype(mx.float32)) - np.array(ended[name].astype(mx.float32)))
        assert 0 < moved.max() < 0.1


def test_training_does_not_go_on_in_a_quantized_folder(made, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--resume", str(made[0])])
    assert "no run to resume at" in capsys.readouterr().err


# Refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", "5"], "--bits must be one of 8, 6, 4, got '5'"),
        (["--method", "ternary"], "--method must be one of 'affine', 'lut'"),
        (["--group", "7"], "embedding.weight: group must divide the 32 inputs of a matrix, got 7"),
        (["--group", "9" * 60], "group must divide the 32 inputs of a matrix, got 99999999999999999999"),
        (["--group", "-1"], "group must not be negative, got -1"),
        (["--method", "lut", "--group", "48"], "embedding.weight: group must divide the 512 rows"),
        (["--embedding-bits", "3"], "--embedding-bits must be one of 8, 6, 4 or none"),
        (["--core-bits", "0"], "--core-bits must be one of 8, 6, 4 or none"),
        (["--max-tokens", "1"], "max_tokens must be at least 2, got 1"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--model", "nowhere"], "no model folder at nowhere"),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_one_line_and_makes_nothing(ask, tmp_path, capsys, words, said):
    line = refused(capsys, "--model", ask().model, "--out", ask().out, "--data", *ask().data, *words)
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_left_alone(made, folder, capsys):
    before = {path.name: path.read_bytes() for path in made[0].iterdir()}
    assert "must be a new folder" in refused(capsys, "--model", folder, "--out", made[0])
    assert "must be a new folder" in refused(capsys, "--model", folder, "--out", folder)
    assert {path.name: path.read_bytes() for path in made[0].iterdir()} == before


def test_an_output_below_a_file_is_refused(folder, capsys):
    line = refused(capsys, "--model", folder, "--out", folder / "config.json" / "out")
    assert "must be in a folder" in line


def test_a_quantized_model_rounded_again_by_the_same_grid_is_the_same_model(made, story, tmp_path, capsys):
    settings = QuantizeConfig(model=made[0], out=tmp_path / "again", data=(story,), bits=4)
    assert [one.difference for one in quantize.quantize(settings).damage] == [0, 0]
    assert "is quantized already" in capsys.readouterr().err
    first, second = (checkpoint.contents(each).dense() for each in (made[0], tmp_path / "again"))
    assert all(np.array_equal(np.array(first[name]), np.array(second[name])) for name in first)


def test_a_width_that_32_does_not_divide_is_refused(tmp_path, capsys):
    save_tiny(tmp_path / "odd", width=48)
    line = refused(capsys, "--model", tmp_path / "odd", "--out", tmp_path / "out")
    assert "embedding.weight: a matrix to be rounded must have a multiple of 32 inputs, got 48" in line


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize("method", ["affine", "lut"])
def test_a_matrix_of_what_is_no_number_is_named(ask, tmp_path, capsys, method, number):
    name = "coda.0.feed_forward.down.weight"
    model = broken(ask().model, tmp_path / "broken", name, number)
    line = refused(capsys, "--model", model, "--out", ask().out, "--data", *ask().data, "--method", method)
    assert f"{name} must hold finite numbers" in line
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_model_that_cannot_be_measured_is_refused(ask, tmp_path, capsys):
    model = broken(ask().model, tmp_path / "broken", "final_norm.weight", math.nan)
    line = refused(capsys, "--model", model, "--out", ask().out, "--data", *ask().data)
    assert "the loss at depth 1 must be finite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


# Stopped in the middle


@pytest.mark.parametrize("place", [1, 7, 13])
def test_ctrl_c_leaves_nothing_and_a_line_of_its_own(ask, tmp_path, capsys, monkeypatch, place):
    calls, fit = [], grid.fit

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == place:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(grid, "fit", stop)
    monkeypatch.setattr(quantize, "REPORT_SECONDS", 0.0)
    words = ["--model", str(ask().model), "--out", str(ask().out), "--data", *ask().data]
    with pytest.raises(SystemExit, match="130"):
        quantize.main(words)
    *progress, line = capsys.readouterr().err.splitlines()
    assert line == "trm_mlx.quantize: interrupted"
    assert progress == [f"rounding  matrices {number}/13" for number in range(place)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [1, 7, 14, 20])
def test_a_full_disk_leaves_no_part_of_a_folder(ask, tmp_path, monkeypatch, full):
    disk = Disk(monkeypatch, full=full)
    with pytest.raises(OSError, match="No space left") as caught:
        quantize.quantize(ask(max_tokens=32))
    assert not disk.full
    assert "disk full while writing" in config.explain(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kill", [1, 7, 14, 20])
def test_a_kill_leaves_no_folder_of_that_name(ask, tmp_path, kill):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, kill=kill)
        with pytest.raises(Killed):
            quantize.quantize(ask(max_tokens=32))
    assert not (tmp_path / "out").exists()
    quantize.quantize(ask(max_tokens=32))
    assert checkpoint.load_grids(tmp_path / "out")


def test_ctrl_c_while_the_result_is_measured_leaves_a_whole_folder(ask, monkeypatch):
    scores = quantize._scores

    def stop(folder: Path, *rest: Any) -> Any:
        if folder == ask().out:
            raise KeyboardInterrupt
        return scores(folder, *rest)

    monkeypatch.setattr(quantize, "_scores", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize.quantize(ask(max_tokens=32))
    assert checkpoint.contents(ask().out).grids
