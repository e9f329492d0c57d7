import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from mlx.utils import tree_flatten
from tiny_folder import ROOT

from trm_mlx import checkpoint
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.generate import GenerateConfig, generate, main, read_prompt, run

pytest_plugins = ["tiny_folder"]

PROMPT = "hello moon"
TIMES = r"\d+ tokens  \d+ tokens_per_s  first token after \d+ ms  stopped by (end|stop|length|context)\n"


def stdin_of(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def printed(capsys, *flags: object) -> str:
    """What the command writes to stdout; to stderr it writes the times."""
    main([str(flag) for flag in flags])
    out, err = capsys.readouterr()
    assert re.fullmatch(TIMES, err)
    return out


# The function.


def test_generate_gives_what_the_events_add_up_to(loaded):
    model, tokenizer = loaded
    reply = generate(loaded[0], PROMPT, max_tokens=15, depth=1, top_k=5, seed=9)
    ids = [tokenizer.bos, *tokenizer.encode(PROMPT)]
    config, sampling = StreamConfig(max_tokens=15, depth=1), SamplingConfig(top_k=5, seed=9)
    found = list(events(model, tokenizer, ids, config, sampling))
    assert reply.tokens == tuple(event.token for event in found)
    assert reply.text == "".join(event.text for event in found) == tokenizer.decode(reply.tokens)
    assert (reply.reason, reply.prompt_tokens) == (found[-1].reason, len(ids))


def test_chat_gives_the_prompt_as_a_users_message_and_prints_only_the_reply(folder, loaded, capsys):
    model, tokenizer = loaded
    ids = [tokenizer.bos, tokenizer.user, *tokenizer.encode(PROMPT), tokenizer.end, tokenizer.assistant]
    found = events(model, tokenizer, ids, StreamConfig(max_tokens=9), SamplingConfig(seed=4))
    reply = generate(loaded[0], PROMPT, chat=True, max_tokens=9, seed=4)
    assert reply.tokens == tuple(event.token for event in found)
    assert reply.tokens != generate(loaded[0], PROMPT, max_tokens=9, seed=4).tokens
    flags = ("--model", folder, "--prompt", PROMPT, "--chat", "--max-tokens", 9, "--seed", 4)
    assert printed(capsys, *flags) == reply.text + "\n"


def test_an_empty_prompt_begins_a_text(loaded):
    assert generate(loaded[0], "", max_tokens=3).prompt_tokens == 1


@pytest.mark.slow
def test_each_way_of_sampling_has_its_effect(loaded):
    def tokens(**options):
        return generate(loaded[0], PROMPT, max_tokens=12, **options).tokens

    greedy, usual = tokens(temperature=0), tokens(top_k=0)
    assert greedy == tokens(temperature=0, seed=8) == tokens(top_k=1) == tokens(min_p=1.0) == tokens(top_p=1e-9)
    assert tokens(temperature=0, repetition_penalty=2.0) != greedy
    assert tokens(temperature=0, presence_penalty=50.0) != greedy != tokens(temperature=0, frequency_penalty=50.0)
    changes = [{"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"seed": 1}, {"typical_p": 0.2}]
    for option in [*changes, {"bias": ("a=9",)}, {"ban": ("a", "e")}, {"beams": 3, "top_k": 40}, {"best_of": 8}]:
        assert tokens(**{"top_k": 0, **option}) != usual, option


def test_a_seed_may_be_any_64_bit_number(loaded):
    largest = generate(loaded[0], PROMPT, max_tokens=20, seed=2**64 - 1)
    assert largest.tokens == generate(loaded[0], PROMPT, max_tokens=20, seed=2**64 - 1).tokens


def test_what_is_held_back_for_a_stop_text_comes_at_the_end(loaded):
    whole = generate(loaded[0], PROMPT, max_tokens=20, temperature=0)
    held = generate(loaded[0], PROMPT, max_tokens=20, temperature=0, stop=(whole.text[-3:] + "never",))
    assert held.text == whole.text


def test_a_stop_text_cuts_the_text(loaded):
    whole = generate(loaded[0], PROMPT, max_tokens=20).text
    stop = whole[5:8]
    reply = generate(loaded[0], PROMPT, max_tokens=20, stop=(stop, "never"))
    assert (reply.text, reply.reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 3}, "unknown option 'max_token'; known are ban, beams, best_of, bias, cache_bits"),
        ({"seed": 2**64}, "seed must be at least 0 and below"),
        ({"stop": "END"}, "stop must be a tuple of texts"),
        ({"depth": 3}, "depth must be 1 to 2"),
        ({"beams": 2, "top_k": 3}, "beams draw nothing, so top_k must be left at 40, got 3"),
        ({"beams": 2, "best_of": 2}, "give beams or best_of, not both"),
        ({"ban": "moon"}, "ban must be a tuple of texts"),
    ],
)
def test_an_option_that_is_wrong_is_refused(loaded, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(loaded[0], PROMPT, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "import trm_mlx",
        "import trm_mlx; import trm_mlx.generate",
        "import trm_mlx; trm_mlx.generate; import trm_mlx.generate",
        "import trm_mlx; from trm_mlx import generate; trm_mlx.generate = generate",
        "import trm_mlx; from trm_mlx.generate import generate; trm_mlx.generate = generate",
        "import trm_mlx; import trm_mlx.generate as module; trm_mlx.generate = module",
    ],
)
def test_the_package_generates_whatever_was_imported_first(folder, loaded, lines):
    call = f"print(trm_mlx.generate(trm_mlx.load({str(folder)!r}), 'a', max_tokens=3, temperature=0).tokens)"
    done = subprocess.run([sys.executable, "-c", f"{lines}\n{call}"], cwd=ROOT, capture_output=True, text=True)
    expected = generate(loaded[0], "a", max_tokens=3, temperature=0).tokens
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


@pytest.mark.slow
def test_the_module_keeps_its_names_once_the_package_has_generated():
    script = (
        "import trm_mlx; trm_mlx.generate; import trm_mlx.generate; print(trm_mlx.generate.GenerateConfig.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("GenerateConfig\n", "")


# The prompt.


def test_the_prompt_comes_from_flag_file_or_standard_input(folder, tmp_path, monkeypatch, capsys):
    model = ("--model", folder, "--max-tokens", 8)
    file = tmp_path / "prompt"
    file.write_bytes("caf\u00e9\nmoon\n".encode())
    expected = printed(capsys, *model, "--prompt", "caf\u00e9\nmoon")
    assert expected.startswith("caf\u00e9\nmoon")
    assert printed(capsys, *model, "--prompt-file", file) == expected
    for flags in ((), ("--prompt-file", "-")):
        stdin_of(monkeypatch, file.read_bytes())
        assert printed(capsys, *model, *flags) == expected


@pytest.mark.parametrize(
    ("content", "prompt"),
    [(b"", ""), (b"\n", ""), (b"a\n\n", "a\n"), (b" a ", " a "), (b"a\r\n", "a\r"), (b"\x00", "\x00")],
)
def test_of_a_prompt_only_one_line_end_is_dropped(monkeypatch, content, prompt):
    stdin_of(monkeypatch, content)
    assert read_prompt(GenerateConfig()) == prompt


def test_a_prompt_that_is_empty_is_not_asked_for_again(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert read_prompt(GenerateConfig(prompt="")) == ""


# The command.


def test_the_command_writes_prompt_and_text_to_stdout_and_times_to_stderr(folder, loaded, capsys):
    flags = ("--model", folder, "--prompt", PROMPT, "--max-tokens", 15, "--seed", 4, "--depth", 1)
    expected = generate(loaded[0], PROMPT, max_tokens=15, seed=4, depth=1)
    assert printed(capsys, *flags) == f"{PROMPT}{expected.text}\n"


def test_json_holds_the_reply_and_how_it_was_made(folder, loaded, capsys):
    flags = (
        "--model",
        folder,
        "--prompt",
        PROMPT,
        "--max-tokens",
        9,
        "--top-p",
        0.9,
        "--json",
        "--stop",
        "a b",
        "c",
    )
    record = json.loads(printed(capsys, *flags))
    expected = generate(loaded[0], PROMPT, max_tokens=9, top_p=0.9, stop=("a b", "c"))
    assert (record["text"], tuple(record["tokens"])) == (expected.text, expected.tokens)
    assert (record["prompt"], record["model"], record["depth"]) == (PROMPT, "tiny", 2)
    assert (record["reason"], record["prompt_tokens"]) == (expected.reason, expected.prompt_tokens)
    assert record["sampling"] == dataclasses.asdict(SamplingConfig(top_p=0.9))
    assert 0 < record["seconds_to_first"] <= record["seconds"]
    assert record["tokens_per_second"] > 0


def test_a_search_prints_its_text_at_the_end_and_says_how_it_was_found(folder, loaded, capsys):
    model = ("--model", folder, "--prompt", PROMPT, "--max-tokens", 8)
    for flags, options in ((("--beams", 3), {"beams": 3}), (("--best-of", 3), {"best_of": 3})):
        expected = generate(loaded[0], PROMPT, max_tokens=8, ban=("e",), **options)
        assert printed(capsys, *model, *flags, "--ban", "e") == f"{PROMPT}{expected.text}\n"
        record = json.loads(printed(capsys, *model, *flags, "--ban", "e", "--json"))
        assert (record["text"], tuple(record["tokens"])) == (expected.text, expected.tokens)
        assert record["score"] == pytest.approx(expected.score)
        assert (record["words"]["ban"], record["search"] | options) == (["e"], record["search"])
        assert record["tokens_per_second"] < len(record["tokens"]) / record["seconds"] * 1.01


def test_beams_may_be_told_of_temperature_0(loaded):
    cold = generate(loaded[0], PROMPT, max_tokens=5, beams=2, temperature=0)
    assert cold.tokens == generate(loaded[0], PROMPT, max_tokens=5, beams=2).tokens


def test_run_gives_the_reply(folder, loaded, capsys):
    settings = GenerateConfig(prompt=PROMPT, model=folder, stream=StreamConfig(max_tokens=5))
    assert run(settings).tokens == generate(loaded[0], PROMPT, max_tokens=5).tokens


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "word " * 600], r"the prompt must have 1 to 511 tokens, .*, got \d+"),
        (["--prompt", "a", "--prompt-file", "b"], "give --prompt or --prompt-file, not both"),
        (["--prompt", "a", "--promt", "b"], "unknown flag --promt; did you mean --prompt"),
        (["--prompt", "a", "--depth", "3"], "depth must be 1 to 2, .* got 3"),
        (["--prompt", "a", "--depth", "0"], "depth must be 1 to 2, .* got 0"),
        (["--prompt", "a", "--depth", "x"], "--depth must be a whole number or none, got 'x'"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--prompt", "a", "--seed", "18446744073709551616"], "seed must be at least 0"),
        (["--prompt", "a", "--seed", "-1"], "seed must be at least 0"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature must be a finite number"),
        (["--prompt", "a", "--temperature", "-1"], "temperature must be finite and at least 0"),
        (["--prompt", "a", "--top-p", "0"], "top_p must be above 0"),
        (["--prompt", "a", "--top-k", "-1"], "top_k must be at least 0"),
        (["--prompt", "a", "--min-p", "2"], "min_p must lie between 0 and 1"),
        (["--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty must be finite and above 0"),
        (["--prompt", "a", "--typical-p", "0"], "typical_p must be above 0"),
        (["--prompt", "a", "--presence-penalty", "101"], "presence_penalty must lie between -100 and 100, got 101"),
        (["--prompt", "a", "--frequency-penalty", "nan"], "--frequency-penalty must be a finite number"),
        (["--prompt", "a", "--bias", "moon"], 'bias must be "word=X" or "#id=X", X from -100 to 100, got'),
        (["--prompt", "a", "--bias", "moon river=1"], "bias must be for one token, got 'moon river', which is 2"),
        (["--prompt", "a", "--bias", "#512=1"], "bias must be for ids from 0 to 511, got #512"),
        (["--prompt", "a", "--ban", ""], "a banned text must not be empty"),
        (["--prompt", "a", "--beams", "-1"], "beams must be at least 0, got -1"),
        (["--prompt", "a", "--beams", "2", "--temperature", "1"], "temperature must be left at 0.8, got 1.0"),
        (["--prompt", "a", "--beams", "2", "--best-of", "2"], "give beams or best_of, not both"),
        (["--prompt", "a", "--length-penalty", "1"], "length_penalty is of a beam search; give beams too"),
        (["--prompt", "a", "--beams", "2", "--length-penalty", "-1"], "length_penalty must be finite and at least 0"),
        (["--prompt", "a", "--best-of", "0"], "best_of must be at least 1, got 0"),
        (["--prompt", "a", "--best-of", "2", "--temperature", "0"], "best_of must have a temperature above 0"),
        (["--prompt", "a", "--stop", ""], "a stop text must not be empty"),
        (["--prompt", "a", "--model", "{tmp}/none"], "no model folder at .*none"),
        (["--prompt", "a", "--model", "{tmp}"], "no config.json in"),
        (["--prompt", "a\udcff"], r"lone surrogate U\+DCFF at character 1"),
        (["--prompt-file", "{tmp}/none"], "No such file or directory: .*none"),
        (["--prompt-file", "{tmp}/bad"], "bad must be UTF-8, got byte 0xFF at 3"),
        ([], "standard input must be UTF-8, got byte 0xC3 at 1"),
        (["--prompt-file", "-"], "standard input must be UTF-8, got byte 0xC3 at 1"),
    ],
    ids=lambda part: " ".join(part)[:40].replace("\udcff", "?") if isinstance(part, list) else "",
)
def test_asked_wrongly_it_says_so_in_one_line_and_writes_nothing(
    folder, tmp_path, monkeypatch, capsys, flags, message
):
    (tmp_path / "bad").write_bytes(b"caf\xff")
    stdin_of(monkeypatch, b"a\xc3")
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(folder), *flags])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


def test_a_terminal_is_not_waited_on_for_a_prompt(folder, monkeypatch, capsys):
    stdin_of(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(folder)])
    assert 'give --prompt "...", --prompt-file FILE, or pipe text in' in capsys.readouterr().err


def test_a_prompt_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trm_mlx.generate.LARGEST_PROMPT", 100)
    file = tmp_path / "long"
    file.write_text("a" * 101)
    with pytest.raises(ValueError, match="long must be at most 100 bytes"):
        read_prompt(GenerateConfig(prompt_file=file))


def test_a_model_whose_scores_are_no_numbers_writes_nothing(loaded, tmp_path, capsys):
    model, tokenizer = loaded
    named: Any = tree_flatten(model.parameters())
    weights = {name: array * math.nan for name, array in named}
    checkpoint.save(tmp_path / "nan", model.config, tokenizer, weights, named[0][1].dtype)
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(tmp_path / "nan"), "--prompt", PROMPT])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "logits must be finite, or -inf to forbid a token, got NaN at id 0" in err
