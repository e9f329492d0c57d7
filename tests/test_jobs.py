"""A file of prompts becomes a file of results, whatever interrupts it."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from tiny_folder import ROOT, text

import trm_mlx
from trm_mlx import generate as verb
from trm_mlx.decode import batch, results
from trm_mlx.generate import generate, generate_batch, main

pytest_plugins = ["tiny_folder"]

PROMPTS = ["hello moon", "the", "caf\u00e9 and the river", "", text(30), "her friend", "over the lazy dogs"]
LINES = [{"prompt": prompt, "max_tokens": 3 + 5 * (index % 3), "seed": index} for index, prompt in enumerate(PROMPTS)]
DONE = r"\d+ results  \d+ tokens  \d+ tokens_per_s\n"


def write(path, lines=LINES) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def ask(folder, tmp_path, capsys):
    """Run the command on `prompts` to `results`, in this process; gives its exit status, stdout and stderr."""
    write(tmp_path / "prompts")

    def run(*flags: object):
        files = ["--input", tmp_path / "prompts", "--output", tmp_path / "results"]
        capsys.readouterr()
        try:
            main([str(flag) for flag in ("--model", folder, *files, "--batch", 3, *flags)])
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def stop_after(monkeypatch, count: int, error: BaseException) -> None:
    """Let so many results be written, and half of the next."""
    add, calls = results.Results.add, []

    def stopped(self, record) -> None:
        calls.append(1)
        if len(calls) > count:
            self.file.write(results.encoded(record)[:20])
            raise error
        add(self, record)

    monkeypatch.setattr(results.Results, "add", stopped)


def test_results_are_those_of_each_prompt_alone_in_the_order_given(ask, loaded, tmp_path):
    assert ask()[0] == 0
    found = read(tmp_path / "results")
    assert [record["prompt"] for record in found] == PROMPTS
    for number, (line, record) in enumerate(zip(LINES, found, strict=True), 1):
        alone = generate(loaded[0], line["prompt"], max_tokens=line["max_tokens"], seed=line["seed"])
        assert record == {
            "id": number,
            "prompt": line["prompt"],
            "text": alone.text,
            "tokens": list(alone.tokens),
            "reason": alone.reason,
            "prompt_tokens": alone.prompt_tokens,
        }


def test_settings_are_for_all_prompts_that_have_none_of_their_own(ask, loaded, tmp_path):
    messages = [
        {"role": "user", "content": "moon", "at": 1},
        {"role": "assistant", "content": "river"},
        {"role": "user", "content": "the"},
    ]
    lines = [
        {"prompt": "hello", "id": "a"},
        {"prompt": "the", "response": "x", "seed": 9},
        {"messages": messages, "id": 7},
    ]
    write(tmp_path / "prompts", lines)
    assert ask("--max-tokens", 6, "--seed", 4, "--top-k", 3, "--chat")[0] == 0
    first, second, third = read(tmp_path / "results")
    options = {"max_tokens": 6, "top_k": 3, "chat": True}
    assert first["text"] == generate(loaded[0], "hello", seed=4, **options).text
    assert second["text"] == generate(loaded[0], "the", seed=9, **options).text
    assert (first["id"], second["id"], third["id"]) == ("a", 2, 7)
    assert third["prompt_tokens"] == 1 + len(loaded[1].chat(messages, reply=True))
    assert third["messages"][0] == {"role": "user", "content": "moon"}


def test_standard_input_and_output_serve_too(folder, tmp_path, monkeypatch, capsys, ask):
    assert ask()[0] == 0
    lines = "\n\n".join(json.dumps(line) for line in LINES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + lines.encode())))
    main(["--model", str(folder), "--input", "-", "--output", "-"])
    out, err = capsys.readouterr()
    found, expected = [json.loads(line) for line in out.splitlines()], read(tmp_path / "results")
    assert [record | {"id": 0} for record in found] == [record | {"id": 0} for record in expected]
    assert re.fullmatch(DONE, err)


def test_a_result_is_written_as_soon_as_it_is_next(ask, tmp_path, monkeypatch):
    write(tmp_path / "prompts", [{"prompt": "a", "max_tokens": most} for most in (9, 1, 20, 1)])
    seen, replies = [], batch.replies

    def watched(*arguments):
        for index, reply in replies(*arguments):
            yield index, reply
            seen.append((index, len((tmp_path / "results").read_bytes().splitlines())))

    monkeypatch.setattr(batch, "replies", watched)
    assert ask("--temperature", 4)[0] == 0
    assert seen == [(1, 0), (3, 0), (0, 2), (2, 4)]


# Interruptions.


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "trm_mlx.generate: interrupted"),
        (RuntimeError("lightning"), 1, "trm_mlx.generate: error: lightning"),
    ],
)
def test_the_same_command_goes_on_to_the_same_bytes(ask, tmp_path, monkeypatch, error, status, line):
    out = tmp_path / "results"
    assert ask()[0] == 0
    whole = out.read_bytes()
    for count in (0, 3, 6):
        out.unlink()
        with monkeypatch.context() as patch:
            stop_after(patch, count, error)
            assert ask() == (status, "", line + "\n")
        assert out.read_bytes().count(b"\n") == count and not out.read_bytes().endswith(b"\n")
        code, _, err = ask("--batch", 2)
        assert code == 0 and re.search(DONE, err)
        assert ("going on" in err) == (count > 0)
        assert out.read_bytes() == whole
    code, _, err = ask()
    assert code == 0 and "7 of 7 results" in err and out.read_bytes() == whole


def test_a_full_disk_is_told_in_one_line_and_keeps_what_is_whole(ask, tmp_path, monkeypatch):
    out = tmp_path / "results"
    assert ask()[0] == 0
    whole = out.read_bytes()
    out.unlink()
    made = results.Results.__init__

    class Full:
        """Takes so many bytes."""

        def __init__(self, file, room: int) -> None:
            self.file, self.room = file, room

        def write(self, data) -> int:
            taken = self.file.write(data[: self.room])
            self.room -= taken
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return taken

        def __getattr__(self, name):
            return getattr(self.file, name)

    def small(self, *arguments) -> None:
        made(self, *arguments)
        self.file = Full(self.file, len(whole) // 2)

    with monkeypatch.context() as patch:
        patch.setattr(results.Results, "__init__", small)
        code, stdout, err = ask()
    assert (code, stdout) == (1, "")
    assert err == f"trm_mlx.generate: error: disk full while writing {out}; free some space and run again\n"
    kept = out.read_bytes()
    assert whole.startswith(kept) and kept.endswith(b"\n") and len(kept) < len(whole) // 2
    assert ask()[0] == 0
    assert out.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_process_goes_on(folder, tmp_path):
    lines = [{"prompt": text(4, index), "max_tokens": 120, "seed": index} for index in range(24)]
    write(tmp_path / "prompts", lines)

    def command(out):
        words = [sys.executable, "-m", "trm_mlx.generate", "--model", folder, "--input", tmp_path / "prompts"]
        return [*map(str, words), "--output", str(tmp_path / out), "--batch", "4"]

    assert subprocess.run(command("whole"), cwd=ROOT, capture_output=True).returncode == 0
    out, kills = tmp_path / "killed", 0
    for wanted in (2, 9, 15):
        with subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= wanted):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert (tmp_path / "whole").read_bytes().startswith(out.read_bytes())
        with out.open("ab") as file:
            file.write(b'{"id": 1')  # as a kill within a write would leave it
    assert kills
    done = subprocess.run(command("killed"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "of 24 results; going on" in done.stderr
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


# Refusals.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-tokens", "9"], "was begun with another max_tokens, 256 and not 9; give another --output"),
        (["--chat"], "was begun with another chat, false and not true"),
        (["--ban", "x"], 'was begun with another ban, [] and not ["x"]'),
    ],
)
def test_results_of_other_settings_are_left_alone(ask, tmp_path, flags, message):
    assert ask()[0] == 0
    before = (tmp_path / "results").read_bytes()
    code, out, err = ask(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert (tmp_path / "results").read_bytes() == before


def test_results_of_another_input_or_model_or_of_nobody_are_left_alone(ask, tmp_path, monkeypatch):
    assert ask()[0] == 0
    out, state = tmp_path / "results", tmp_path / "results.state"
    before, told = out.read_bytes(), state.read_bytes()

    def refused(message: str) -> None:
        code, _, err = ask()
        assert (code, err.count("\n")) == (2, 1) and message in err

    write(tmp_path / "prompts", LINES[:-1])
    refused("results was begun with another input")
    write(tmp_path / "prompts")
    state.write_bytes(told.replace(b'"model": "', b'"model": "0'))
    refused("results was begun with another model")
    state.write_bytes(told[:-9])
    refused("is damaged; give another --output, or remove")
    state.unlink()
    refused("results is there already, and no results.state tells of what")
    state.write_bytes(told)
    assert out.read_bytes() == before
    out.write_bytes(before.replace(b'"id": 2', b'"id": 3'))
    refused('results:2 must be the result of that prompt, got b\'{"id": 3')
    out.write_bytes(before)
    held = results.Results(
        out, {key: value for key, value in json.loads(told).items() if key != "format"}, range(1, 8)
    )
    code, _, err = ask()
    assert (code, err.count("\n")) == (1, 1) and "another process is writing" in err
    held.file.close()
    assert ask()[0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be one JSON object, got '{'"),
        ("[1]", "must be one JSON object, got '[1]'"),
        ("[" * 100_000, "must be one JSON object"),
        ('{"prompt": 3}', "prompt must be a text, got 3"),
        ('{"promt": "a"}', "unknown field 'promt'; did you mean prompt?"),
        ('{"id": 1}', "must have prompt or messages, and not both; got fields ['id']"),
        ('{"prompt": "a", "messages": []}', "must have prompt or messages, and not both"),
        ('{"messages": []}', "messages must be a list of messages, got []"),
        ('{"messages": [{"role": "user"}]}', "each message must have a role and a content as text"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "message 0 must be from 'user'"),
        ('{"prompt": "a", "id": 1.5}', "id must be a text or a whole number, got 1.5"),
        ('{"prompt": "a", "id": "\\ud800"}', "lone surrogate"),
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens must be a whole number, got true"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be at least 1, got 0"),
        ('{"prompt": "a", "seed": -1}', "seed must be at least 0"),
        (json.dumps({"prompt": "word " * 600}), "the prompt must have 1 to 511 tokens"),
        ("\udcff", "must be UTF-8, got byte 0xFF at 0"),
    ],
    ids=lambda part: "",
)
def test_a_bad_line_is_named_before_there_is_a_text(ask, tmp_path, line, message):
    lines = ['{"prompt": "a"}', "", line]
    (tmp_path / "prompts").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    code, out, err = ask()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'prompts'}:3: " in err and message in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x"], "--output and --batch are of a file of prompts; give --input"),
        (["--batch", "3"], "--output and --batch are of a file of prompts; give --input"),
        (["--input", "x", "--batch", "0"], "batch must be at least 1, got 0"),
        (["--input", "x", "--prompt", "a"], "--input has prompts of its own"),
        (["--input", "x", "--json"], "--input has prompts of its own and writes JSON"),
        (["--input", "x", "--beams", "2"], "a batch draws one text for each prompt"),
        (["--input", "x", "--best-of", "2"], "a batch draws one text for each prompt"),
        (["--input", "/nowhere/x"], "No such file or directory: /nowhere/x"),
        (["--input", "x", "--output", "/nowhere/x"], "--output must name a file in a folder that is there"),
        (["--input", os.devnull], "/dev/null must hold a prompt a line"),
        (["--input", "{prompts}", "--output", os.devnull], "--output must name a file, got /dev/null"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_flags_that_make_no_sense_are_refused_in_one_line(folder, tmp_path, capsys, flags, message):
    write(tmp_path / "prompts")
    flags = [flag.replace("{prompts}", str(tmp_path / "prompts")) for flag in flags]
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(folder), *flags])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and message in err


# The function.


def test_the_function_gives_what_generate_gives_one_by_one(loaded):
    found = trm_mlx.generate_batch(loaded[0], PROMPTS, batch=3, max_tokens=8, top_k=5, seed=2)
    for prompt, reply in zip(PROMPTS, found, strict=True):
        alone = generate(loaded[0], prompt, max_tokens=8, top_k=5, seed=2)
        assert (reply.text, reply.tokens, reply.reason) == (alone.text, alone.tokens, alone.reason)
    seeded = generate_batch(loaded[0], ["the"] * 3, max_tokens=8, seeds=[5, 6, 5], chat=True)
    assert seeded[0].tokens == generate(loaded[0], "the", max_tokens=8, seed=5, chat=True).tokens == seeded[2].tokens
    assert seeded[1].tokens != seeded[0].tokens
    assert generate_batch(loaded[0], []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seeds": [1]}, "seeds must be one for each prompt, got 1 for 2 prompts"),
        ({"beams": 2}, "a batch draws one text for each prompt; beams and best_of search one prompt at a time"),
        ({"max_token": 2}, "unknown option 'max_token'"),
    ],
)
def test_the_function_refuses_what_cannot_be(loaded, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate_batch(loaded[0], ["a", "b"], **options)


def test_the_package_still_generates_after_a_batch(loaded):
    trm_mlx.generate_batch(loaded[0], ["a"], max_tokens=1)
    assert trm_mlx.generate is verb and trm_mlx.generate(loaded[0], "a", max_tokens=1).tokens
