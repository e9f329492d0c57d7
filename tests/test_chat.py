"""`python -m trm_mlx.chat`: pipes, a terminal, commands, Ctrl-C."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_folder import ROOT, save_tiny, text

import trm_mlx
from trm_mlx import chat
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.step import StepModel

pytest_plugins = ["tiny_folder"]


def piped(monkeypatch, capsys, folder, lines: str | bytes, *flags: object) -> tuple[str, str]:
    """What a chat with these lines writes to stdout and stderr."""
    content = lines.encode() if isinstance(lines, str) else lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    chat.main(["--model", str(folder), "--max-tokens", "9", *map(str, flags)])
    return capsys.readouterr()


def replies(out: str) -> list[str]:
    return [json.loads(line)["text"] for line in out.splitlines()]


# Lines of a pipe.


def test_each_line_of_a_pipe_is_a_message_and_each_reply_a_line(folder, monkeypatch, capsys):
    out, _ = piped(monkeypatch, capsys, folder, "hello moon\n\n  \nthe river", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["message"] for record in records] == ["hello moon", "the river"]
    assert [record["seed"] for record in records] == [0, 1]
    assert [(record["depth"], record["dropped_turns"]) for record in records] == [(2, 0), (2, 0)]
    assert records[1]["cached_tokens"] > 5
    plain, _ = piped(monkeypatch, capsys, folder, "hello moon\nthe river\n")
    assert plain == "".join(record["text"] + "\n" for record in records)


def test_the_first_reply_is_that_of_generate(folder, monkeypatch, capsys):
    out, err = piped(monkeypatch, capsys, folder, "hello moon\n", "--seed", 3, "--depth", 1)
    reply = trm_mlx.generate(trm_mlx.load(folder), "hello moon", chat=True, max_tokens=9, seed=3, depth=1)
    assert out == reply.text + "\n"
    assert err == ("cut off after 9 tokens by --max-tokens\n" if reply.reason == "length" else "")


def test_commands_change_what_comes_after_them(folder, monkeypatch, capsys):
    lines = "a\n/reset\n/seed 0\na\n/seed 0\n/system be kind\na\n/system\n/seed 0\na\n/reset\n/depth 1\n/seed 0\na\n"
    one, again, system, without, shallow = replies(piped(monkeypatch, capsys, folder, lines, "--json")[0])
    assert one == again == without
    assert len({one, system, shallow}) == 3
    flags = ("--json", "--system", "be kind")
    assert replies(piped(monkeypatch, capsys, folder, "a", *flags)[0]) == [system]


def test_quit_ends_it_before_the_lines_do(folder, monkeypatch, capsys):
    assert piped(monkeypatch, capsys, folder, "/quit\nhello\n") == ("", "")


def test_help_names_every_command(folder, monkeypatch, capsys):
    _, err = piped(monkeypatch, capsys, folder, "/help\n")
    assert err == chat.HELP + "\n"
    assert set(re.findall(r"^(/\w+)", err, re.M)) == {
        "/reset", "/system", "/save", "/load", "/depth", "/seed", "/quit",
    }  # fmt: skip
    assert all(len(line) < 90 and line.isascii() for line in err.splitlines())


def test_a_conversation_is_saved_and_gone_on_with(folder, monkeypatch, capsys, tmp_path):
    path = tmp_path / "talk.jsonl"
    whole = replies(piped(monkeypatch, capsys, folder, f"a\nb\n/save {path}\nc\n/save {path}\n", "--json")[0])
    messages = json.loads(path.read_bytes())["messages"]
    assert [each["content"] for each in messages] == ["a", whole[0], "b", whole[1], "c", whole[2]]
    for flags, lines in ((("--load", path), "/seed 9\nd\n"), ((), f"x\n/load {path}\n/seed 9\nd\n")):
        out, err = piped(monkeypatch, capsys, folder, lines, "--json", *flags)
        assert f"loaded 6 messages from {path}\n" in err
        found = replies(out)[-1]
        whole.append(found)
    assert whole[-1] == whole[-2]


def test_turns_that_no_longer_fit_are_dropped_with_a_line(folder, monkeypatch, capsys):
    lines = "".join(text(40, seed=number) + "\n" for number in range(14))
    out, err = piped(monkeypatch, capsys, folder, lines)
    line = r"^the context of 512 tokens is full; oldest turns that the model is no longer told: (\d)$"
    counts = [int(count) for count in re.findall(line, err, re.M)]
    assert len(counts) >= 2
    assert counts == sorted(set(counts))
    assert out.count("\n") >= 14


def test_a_long_system_text_is_read_once(folder, monkeypatch, capsys, tmp_path):
    path, counts, append = tmp_path / "system.safetensors", [], StepModel.append
    monkeypatch.setattr(
        StepModel, "append", lambda self, ids, **how: counts.append(len(ids)) or append(self, ids, **how)
    )
    flags = ("--system", text(60), "--prompt-cache", path)
    first = piped(monkeypatch, capsys, folder, "hello\n", *flags)
    whole = path.read_bytes()
    assert counts[0] > 60
    counts.clear()
    assert piped(monkeypatch, capsys, folder, "hello\n", *flags) == first
    assert max(counts) < 9
    assert path.read_bytes() == whole
    assert PromptCache.load(path, trm_mlx.load(folder)).position > 60
    assert piped(monkeypatch, capsys, folder, "hello\n", *flags[:2]) == first


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ("word " * 600, [], r"the prompt must have 1 to 511 tokens, as the context is 512, got \d+; shorten it, or"),
        (b"a\xc3\n", [], r"standard input must be UTF-8, got byte 0xC3 in b'a\\xc3\\n'"),
        ("/rest\n", [], "unknown command /rest; did you mean /reset"),
        ("/\n", [], "unknown command /; /help lists them"),
        ("/depth 3\n", [], "depth must be 1 to 2, .* got 3"),
        ("/depth x\n", [], "/depth must be a whole number, got 'x'"),
        ("/seed -1\n", [], "/seed must be a whole number, got '-1'"),
        ("/seed 18446744073709551616\n", [], "seed must be at least 0 and below"),
        ("/save\n", [], "/save must have a file's name"),
        ("/save {tmp}/a.jsonl\n", [], "a conversation must have a reply before it is saved"),
        ("/save {tmp}/there.jsonl\n", [], "there.jsonl is there already; give /save another name"),
        ("/load {tmp}/none.jsonl\n", [], "no conversation at .*none.jsonl"),
        ("/load {tmp}/there.jsonl\n", [], "there.jsonl:1 must be one JSON object"),
        ("a\n", ["--depth", "3"], "depth must be 1 to 2, .* got 3"),
        ("a\n", ["--load", "{tmp}/none.jsonl"], "no conversation at .*none.jsonl"),
        ("a\n", ["--load", "a.jsonl", "--system", "b"], "give --load or --system, not both"),
        ("a\n", ["--prompt-cache", "a.safetensors"], "--prompt-cache keeps the system text; give --system, too"),
        ("a\n", ["--system", "b", "--prompt-cache", "{tmp}/there.jsonl"], "must be in a .safetensors file"),
        ("a\n", ["--system", "b\udcff"], r"lone surrogate U\+DCFF at character 1"),
        ("a\n", ["--system", "moon " * 600], r"the prompt must have 1 to 511 tokens, .* got \d+; shorten it, or"),
        ("a\n", ["--model", "{tmp}/none"], "no model folder at .*none"),
        ("a\n", ["--beams", "2"], "unknown flag --beams"),
    ],
    ids=lambda part: str(part)[:40].replace("\udcff", "?"),
)
def test_asked_wrongly_in_a_pipe_it_ends_with_one_line_and_2(
    folder, tmp_path, monkeypatch, capsys, lines, flags, message
):
    (tmp_path / "there.jsonl").write_text("{")
    lines = lines if isinstance(lines, bytes) else lines.replace("{tmp}", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        piped(monkeypatch, capsys, folder, lines, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


def test_a_line_without_end_and_a_closed_input_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(chat, "LARGEST_LINE", 100)
    with pytest.raises(SystemExit, match="2"):
        piped(monkeypatch, capsys, folder, "a" * 200)
    assert "a line of standard input must be at most 100 bytes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="chat must have messages on standard input, got a closed one"):
        chat.piped_line()


@pytest.mark.slow
def test_ctrl_c_ends_a_chat_with_a_pipe(folder):
    command = [sys.executable, "-m", "trm_mlx.chat", "--model", str(folder), "--max-tokens", "400"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, cwd=ROOT, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"hello moon\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.splitlines()[-1]) == (130, b"trm_mlx.chat: interrupted")


# A terminal.


class Terminal:
    """A chat at a terminal of its own."""

    def __init__(self, *flags: object) -> None:
        self.mine, theirs = os.openpty()
        command = [sys.executable, "-m", "trm_mlx.chat", *map(str, flags)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self.mine, line.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def until(self, pattern: str, seconds: float = 30) -> str:
        """What is shown up to a pattern, which is then past."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < end, f"{pattern} must come, got {self.shown!r}"
            if select.select([self.mine], [], [], 0.1)[0]:
                self.shown += os.read(self.mine, 1 << 12).decode(errors="replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def ended(self) -> int:
        status = self.process.wait(timeout=30)
        os.close(self.mine)
        return status


@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_a_reply_and_not_the_chat(tmp_path):
    path: Path = tmp_path / "talk.jsonl"
    folder = save_tiny(tmp_path / "tiny", context=1 << 15, window=64)
    ends = ("#2=-100", "#6=-100")  # what ends a reply, which is to be stopped first
    terminal = Terminal("--model", folder, "--max-tokens", 30_000, "--temperature", 0, "--bias", *ends)
    assert "tiny, 2 passes; /help lists commands, Ctrl-D leaves" in terminal.until("> ")
    time.sleep(0.5)  # after the prompt is shown, keys are waited for
    terminal.interrupt()
    terminal.until("Ctrl-D or /quit leaves")
    terminal.until("> ")
    terminal.type("hello moon\n")
    terminal.until("hello moon\r\n")
    terminal.until(r"\S")
    terminal.interrupt()
    terminal.until("stopped")
    terminal.until("> ")
    terminal.type("/dept 1\n")
    terminal.until(r"unknown command /dept; did you mean /depth\?")
    terminal.until("> ")
    terminal.type(f"/save {path}\n")
    terminal.until("saved 2 messages to")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    user, assistant = json.loads(path.read_bytes())["messages"]
    assert user == {"role": "user", "content": "hello moon"}
    events = trm_mlx.stream(
        trm_mlx.load(folder), "hello moon", chat=True, max_tokens=30_000, temperature=0, bias=ends
    )
    whole = ""
    while len(whole) < len(assistant["content"]):
        whole += next(events).text
    assert whole == assistant["content"] != ""


@pytest.mark.slow
def test_at_a_terminal_a_message_that_is_too_long_does_not_end_the_chat(folder):
    terminal = Terminal("--model", folder, "--max-tokens", 3)
    terminal.until("> ")
    terminal.type("/system " + "moon " * 600 + "\n")
    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("the prompt must have 1 to 511 tokens")
    terminal.until("> ")
    terminal.type("/quit\n")
    assert terminal.ended() == 0
