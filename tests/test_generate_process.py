"""`python -m trm_mlx.generate` as a process of its own: pipes, signals, terminals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_generate import PROMPT, TIMES
from tiny_folder import ROOT, text

pytest_plugins = ["tiny_folder"]


def started(*words: object) -> subprocess.Popen[bytes]:
    """A command that is still running."""
    command = [sys.executable, "-m", "trm_mlx.generate", *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


@pytest.mark.slow
def test_text_is_written_while_more_is_being_made(folder):
    with started("--model", folder, "--prompt", PROMPT, "--max-tokens", 100, "--temperature", 0) as process:
        assert process.stdout and process.stderr
        pieces = []
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
        err = process.stderr.read().decode()
    assert len(pieces) > 10
    assert b"".join(pieces).startswith(PROMPT.encode())
    assert process.returncode == 0
    assert re.fullmatch(TIMES, err)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(folder, command):
    flags = ("trm_mlx.generate", "--model", folder, "--prompt", PROMPT, "--max-tokens", 30, "--seed", 11)
    assert command(*flags).stdout == command(*flags).stdout != command(*flags[:-1], 12).stdout


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(folder):
    with started("--model", folder, "--prompt", PROMPT, "--max-tokens", 500, "--temperature", 0) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(5) == b"hello"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_it_with_one_line_and_130(folder):
    with started("--model", folder, "--prompt", PROMPT, "--max-tokens", 500, "--temperature", 0) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(5) == b"hello"
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"trm_mlx.generate: interrupted\n")
    assert rest.endswith(b"\n")  # so that the word of the interruption has a line of its own


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_narrow_terminal_gets_question_marks_for_what_it_cannot_show(folder, command, encoding):
    flags = ("trm_mlx.generate", "--model", folder, "--max-tokens", 30, "--temperature", 4)
    wide = command(*flags, given="caf\u00e9 \u4f60".encode(), PYTHONIOENCODING="utf-8")
    narrow = command(*flags, given="caf\u00e9 \u4f60".encode(), PYTHONIOENCODING=encoding)
    assert narrow.returncode == 0
    assert narrow.stdout == wide.stdout.decode().encode(encoding, errors="replace")
    assert re.fullmatch(TIMES, narrow.stderr.decode())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--prompt-file", "-")])
def test_a_closed_standard_input_is_asked_wrongly(folder, flags):
    words = [sys.executable, "-m", "trm_mlx.generate", "--model", str(folder), *flags]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "give --prompt" in done.stderr


@pytest.mark.slow
def test_standard_input_of_a_pipe_is_the_prompt(folder, command, tmp_path: Path):
    words = ("trm_mlx.generate", "--model", folder, "--max-tokens", 5)
    prompt = text(200)
    assert command(*words, given=prompt.encode()).stdout == command(*words, "--prompt", prompt).stdout
