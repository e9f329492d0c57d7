import json
import sys

import context
import decode
import pytest

from trm_mlx import fused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(fused.active() != "fused", reason="what is compared is the step of the Linux CPU"),
]


def test_decoding_is_compared_and_what_is_missing_is_left_out_aloud(monkeypatch, capsys):
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    decode.main(["--rounds", "1", "--tasks", "decode", "--json"])
    printed = capsys.readouterr()
    found = {each["decoder"]: each for each in json.loads(printed.out)["found"]}
    assert set(found) == {"ours", "numpy"}
    assert found["ours"]["clock"] == [1, 1, 1]
    assert found["numpy"]["tokens_per_s"] > 0
    assert "left out: mlx-lm, as mlx_lm cannot be imported" in printed.err
    assert "left out: llama.cpp, as llama_cpp and gguf cannot be imported" in printed.err


def test_a_decoder_that_fails_ends_the_comparison(monkeypatch, capsys):
    monkeypatch.setattr(decode, "NEEDS", {"mlx-lm": ["nowhere"], "mlx-lm as installed": ["nowhere"]})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit) as left:
        decode.main(["--rounds", "1"])
    assert left.value.code == 1
    assert "a decoder ended with 1" in capsys.readouterr().err


def test_a_window_holds_its_size_while_the_others_grow(capsys):
    context.main(["--lengths", "300", "700", "--rounds", "1", "--json"])
    found = {each["kind"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) == {"full", "window", "shared", "8 bits", "all three"}
    assert found["window"]["bytes_at_end"] < found["full"]["bytes_at_end"] / 2
    assert found["8 bits"]["bytes_per_token"] < found["full"]["bytes_per_token"] / 3


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (decode, ["--rounds", "0"], "rounds must be at least 1, got 0"),
        (decode, ["--tasks", "sing"], "tasks must be some of decode, prefill, batch, got sing"),
        (context, ["--lengths", "5000"], "lengths must leave 16 tokens of the context of 4608"),
        (context, ["--data", "x.txt"], "--data needs --model"),
    ],
)
def test_wrong_wishes_end_with_2(program, flags, message, capsys):
    with pytest.raises(SystemExit) as left:
        program.main(flags)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
