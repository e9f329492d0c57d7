"""`trm-bench`, the Swift command, writes what Python writes, and measures in the same format.

Both engines compute in float32 and add in another order, so a score may differ in its last digits, and a draw that
falls between two tokens go the other way. No text here meets it; were one to, take another seed, not another claim.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from test_generate import TIMES
from tiny_folder import ROOT

from trm_mlx import PRETRAINED, benchmark, checkpoint, generate, report, trials
from trm_mlx.splitmix import splitmix64

APP = ROOT / "ios_demo"
SWIFT = shutil.which(os.environ.get("SWIFT") or "swift")
SCHEMA = json.loads((ROOT / "tests/golden/bench.schema.json").read_text())
MANIFEST = json.loads((ROOT / "tests/golden/manifest.json").read_text())["valid"][0]
MODEL = ("--model", str(PRETRAINED))
FOX, GARDEN, TIME = "One morning the little fox", "In the garden", "Once upon a time"
STRANGE = "\u00c9l ni\u00f1o e\u0301 \u4f60\u597d \U0001f98a\u200d\U0001f525 \u2581 \ufffd"
LONG = GARDEN * 340  # of 1,021 tokens, where 1,024 is the context

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SWIFT is None, reason="swift is not installed: the app's command was not run"),
]


@pytest.fixture(scope="session")
def built() -> Path:
    """The command, built for speed."""
    assert SWIFT
    words = [SWIFT, "build", "-c", "release", "--product", "trm-bench"]
    made = subprocess.run(words, cwd=APP, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    place = subprocess.run([*words, "--show-bin-path"], cwd=APP, capture_output=True, text=True, check=True)
    return Path(place.stdout.strip()) / "trm-bench"


@pytest.fixture
def swift(built):
    """Run the command to its end; bytes in, bytes out."""

    def run(*words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([built, *map(str, words)], input=given, capture_output=True, cwd=ROOT, timeout=120)

    return run


@pytest.fixture(scope="session")
def shipped():
    return checkpoint.load(PRETRAINED)


@pytest.fixture
def python(shipped, monkeypatch, capsys):
    """Run `trm_mlx.generate` in this process, with a model that is loaded once; gives status, output and errors."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(checkpoint, "load", lambda folder: shipped)
        capsys.readouterr()
        try:
            generate.main(list(map(str, words)))
        except SystemExit as end:
            return (int(end.code or 0), *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


# Writing.

SAMPLED = [
    (FOX, "--temperature 0"),
    (TIME, "--temperature 0 --repetition-penalty 1.3"),
    (GARDEN, "--temperature 0 --presence-penalty 1.5 --frequency-penalty 0.4"),
    (FOX, "--temperature 0 --ban girl --ban 'little' --bias king=3"),
    (TIME, "--seed 1"),
    (FOX, "--seed 18446744073709551615 --temperature 1.2 --top-k 0"),
    (GARDEN, "--seed 3 --top-p 0.9"),
    (FOX, "--seed 4 --min-p 0.05 --top-k 200"),
    (TIME, "--seed 5 --typical-p 0.7 --top-k 0"),
    (GARDEN, "--seed 6 --top-p 0.8 --min-p 0.02 --typical-p 0.95 --temperature 0.6"),
    (FOX, "--seed 7 --repetition-penalty 1.15 --presence-penalty -0.5 --frequency-penalty 0.3"),
    (TIME, "--seed 8 --ban ' the' --ban a"),
    (FOX, "--temperature 0 --no-repeat-ngram 3"),
    (GARDEN, "--seed 9 --bias 'queen=4' --bias '#300=-2.5' --bias fox=1e1"),
    (TIME, "--seed 10 --stop . --stop 'and the'"),
    (FOX, "--seed 11 --stop \u00e9 --stop ' w' --max-tokens 80"),
    (FOX, "--seed 12 --max-tokens 1"),
    ("", "--seed 13"),
    (STRANGE, "--seed 14 --temperature 2 --top-k 0"),
    ("one\r\n\ttwo  three\u00a0<s></s><|user|> 1234", "--seed 15 --temperature 1.5"),
    ("Write a story with these words: fox, river, lantern.", "--chat --temperature 0"),
    ("Write a story with these words: \u00e9toile, river.", "--chat --seed 17 --temperature 0.6 --stop '!'"),
]  # fmt: skip


# What a reply of Python's tells of ways to write that Swift does not have.
PYTHON_ALONE = {
    "score",
    "search",
    "cache",
    "constrain",
    "exits",
    "speculation",
    "mean_depth",
    "drafts",
    "cached_tokens",
}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("prompt", "flags"), SAMPLED, ids=[f"{number}" for number in range(len(SAMPLED))])
def test_swift_writes_the_tokens_and_the_text_of_python(prompt, flags, depth, swift, python):
    words = (*MODEL, "--max-tokens", 48) if "--max-tokens" not in flags else MODEL
    words = (*words, "--depth", depth, "--json", "--prompt", prompt, *shlex.split(flags))

    done, (status, wanted, _) = swift("generate", *words), python(*words)

    assert (done.returncode, status) == (0, 0), done.stderr
    found, expected = json.loads(done.stdout), json.loads(wanted)
    for name in ("seconds", "seconds_to_first", "tokens_per_second"):
        assert found.pop(name) >= 0 <= expected.pop(name)
    assert found == {name: value for name, value in expected.items() if name not in PYTHON_ALONE}
    assert re.fullmatch(TIMES, done.stderr.decode())


@pytest.mark.parametrize(
    ("reason", "prompt", "flags"),
    [
        ("end", TIME, "--seed 2 --bias '#2=9'"),
        ("stop", TIME, "--seed 2 --stop ' a'"),
        ("length", TIME, "--max-tokens 3"),
        ("context", LONG, "--depth 1"),
    ],
)
def test_a_text_ends_where_that_of_python_ends(reason, prompt, flags, swift, python):
    words = (*MODEL, "--json", "--prompt", prompt, *shlex.split(flags))
    found, wanted = (json.loads(text) for text in (swift("generate", *words).stdout, python(*words)[1]))
    assert (found["reason"], found["tokens"]) == (wanted["reason"], wanted["tokens"])
    assert found["reason"] == reason


@pytest.mark.parametrize("flags", [(), ("--chat",), ("--stop", "e", "--temperature", 0)])
def test_streamed_text_is_that_of_python(flags, swift, python):
    words = (*MODEL, "--prompt", "caf\u00e9 \U0001f98a", "--seed", 2, "--temperature", 3, "--max-tokens", 40)
    words = words if "--temperature" not in flags else words[:-4]
    done = swift("generate", *words, *flags)
    assert done.stdout.decode() == python(*words, *flags)[1]
    assert re.fullmatch(TIMES, done.stderr.decode())


def test_a_prompt_that_fills_the_context_is_refused(swift, python):
    words = (*MODEL, "--depth", 1)
    done = swift("generate", *words, given=2 * LONG.encode())
    assert (done.returncode, python(*words, "--prompt", 2 * LONG)[0]) == (2, 2)
    assert re.fullmatch(rb"trm-bench: error: The prompt must have 1 to 1023 tokens, .*\n", done.stderr)


def test_a_prompt_comes_from_a_file_or_from_standard_input(swift, tmp_path):
    words, file = ("generate", *MODEL, "--max-tokens", 5), tmp_path / "prompt.txt"
    file.write_text(f"{FOX}\n")
    wanted = swift(*words, "--prompt", FOX).stdout
    assert wanted.startswith(FOX.encode())
    assert swift(*words, given=file.read_bytes()).stdout == wanted
    assert swift(*words, "--prompt-file", file).stdout == wanted
    assert swift(*words, "--prompt-file", "-", given=file.read_bytes()).stdout == wanted


@pytest.mark.parametrize(
    "flags",
    [
        "--temperature -1", "--temperature nan", "--temperature x", "--top-k -1", "--top-k 1.5", "--top-p 0",
        "--top-p 1.1", "--min-p -0.1", "--min-p 2", "--typical-p 0", "--repetition-penalty 0",
        "--presence-penalty 101", "--frequency-penalty -101", "--seed -1", "--seed 18446744073709551616",
        "--max-tokens 0", "--depth 0", "--depth 3", "--stop ''", "--ban ''", "--ban \ufffd", "--bias fox",
        "--bias fox=101", "--bias '#4096=1'", "--no-repeat-ngram 1", "--bias unfriendly=1", "--other", "--temp 1",
        "--json=1", "--max-tokens", "--prompt-file nowhere/prompt.txt",
    ],
)  # fmt: skip
def test_what_python_refuses_swift_refuses_in_one_line(flags, swift, python):
    words = (*MODEL, *(("--prompt", "A") if "--prompt-file" not in flags else ()), *shlex.split(flags))
    done = swift("generate", *words)
    status, out, errors = python(*words)
    assert (done.returncode, status) == (2, 2)
    assert (done.stdout, out) == (b"", "")
    assert done.stderr.startswith(b"trm-bench: error: ")
    assert done.stderr.decode().count("\n") == errors.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_a_folder_that_is_no_whole_model_is_refused_with_the_status_of_python(command, swift, tmp_path):
    prompt = ("--prompt", "A") if command == "generate" else ()
    broken = tmp_path / "broken"
    shutil.copytree(PRETRAINED, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    for folder in (tmp_path / "nowhere", tmp_path, broken, broken / "config.json"):
        done = swift(command, "--model", folder, *prompt)
        with pytest.raises(SystemExit) as end:
            generate.main(["--model", str(folder), "--prompt", "A"])
        assert done.returncode == end.value.code == 2
        assert (done.stdout, done.stderr.count(b"\n")) == (b"", 1)
        assert str(folder).encode() in done.stderr


def started(built, *words: str) -> subprocess.Popen[bytes]:
    """A text of many tokens that is still being written."""
    return subprocess.Popen(
        [built, "generate", *MODEL, "--prompt", FOX, "--max-tokens", "990", "--temperature", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def test_ctrl_c_ends_it_with_what_was_written_and_130(built):
    with started(built) as process:
        assert process.stdout and process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert re.fullmatch(rb"\d+ tokens .* stopped by stopped\ntrm-bench: interrupted\n", errors)


def test_a_reader_that_has_enough_ends_it_quietly(built):
    with started(built) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(30)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# Measuring.

SIZES = ("-p", 9, "-g", 5, "-n", 2, "--warmup", 0, "--cooldown", 0, "--seed", 4)


@pytest.fixture(scope="session")
def measured(built, tmp_path_factory) -> Path:
    """A report of the model that ships."""
    file = tmp_path_factory.mktemp("reports") / "swift.json"
    words = [built, "bench", *MODEL, "--depth", 1, *SIZES, "--json", file]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return file


def test_a_report_follows_the_schema_and_compares_with_one_of_python(measured, tmp_path, capsys):
    jsonschema.validate(json.loads(measured.read_text()), SCHEMA)
    file = tmp_path / "python.json"
    plan = trials.Procedure(prompt_tokens=9, new_tokens=5, trials=2, warmup=0, seed=4)
    benchmark.benchmark(benchmark.BenchmarkConfig(depths=(1,), json=file, procedure=plan))
    capsys.readouterr()

    benchmark.main(["--compare", str(measured), str(file)])

    table = capsys.readouterr().out
    assert re.search(r"^\[1\] reference +1 +9 +1 +2 ", table, re.M)
    assert re.search(r"^\[2\] mlx +1 +9 +1 +2 ", table, re.M)
    found, wanted = report.read(measured), report.read(file)
    assert {trial.tokens_sha256 for trial in (*found.trials, *wanted.trials)} == {wanted.trials[0].tokens_sha256}
    assert found.model.manifest_sha256 == wanted.model.manifest_sha256
    assert (found.tool.name, found.tool.build, found.summary.valid) == ("trm-bench", "release", True)


def test_a_report_of_the_table_follows_the_schema_and_the_rule_of_its_scores(swift):
    done = swift("--backend", "table", *SIZES, "--json", "-")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    jsonschema.validate(record, SCHEMA)
    state, tokens = splitmix64(0, 1), trials.synthetic(4, 9, 8192)
    made: list[int] = []
    for _ in range(5):
        for token in tokens:
            state = splitmix64(state, token)
        tokens = [max(range(8192), key=lambda token: (splitmix64(state, token) >> 40, -token))]
        made += tokens
    digest = hashlib.sha256(struct.pack("<5i", *made)).hexdigest()
    assert [trial["tokens_sha256"] for trial in record["trials"]] == [digest, digest]
    assert (record["tool"]["runtime"], record["summary"]["valid"]) == ("table", True)


def test_reports_of_two_models_are_not_compared(measured, swift, tmp_path, capsys):
    file = tmp_path / "table.json"
    assert swift("--backend", "table", *SIZES, "--json", file).returncode == 0
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--compare", str(measured), str(file)])
    assert end.value.code == 2
    assert "its model revision is" in capsys.readouterr().err


def test_speeds_are_printed(swift):
    done = swift("speed", *MODEL, "--text", ROOT / "docs/fables.txt")
    lines = ["encode  MB_per_s", "decode  MB_per_s", "sample  tokens_per_s"]
    figures = [
        re.fullmatch(r"(.+) ([\d.]+)  from ([\d.]+) to ([\d.]+)", line) for line in done.stdout.decode().splitlines()
    ]
    assert [figure and figure[1] for figure in figures] == lines
    assert all(figure and 0 < float(figure[3]) <= float(figure[2]) <= float(figure[4]) for figure in figures)


@pytest.fixture
def export(tmp_path) -> Path:
    (tmp_path / "manifest.json").write_text(MANIFEST)
    return tmp_path


def test_functions_of_an_export_folder_are_listed(export, swift):
    pairs = json.loads(MANIFEST)["functions"]
    lines = [f"depth {each['depth']}  decode {each['decode']}  prefill {each['prefill']}" for each in pairs]
    done = swift("--model", export, "--list-functions")
    assert (done.returncode, done.stdout.decode().splitlines()) == (0, lines)
    (export / "manifest.json").write_text("{}")
    for folder in (export, PRETRAINED):
        done = swift("--model", folder, "--list-functions")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
@pytest.mark.parametrize("command", [("generate", "--prompt", "A"), ("bench",), ("bench", "--units", "cpuOnly")])
def test_an_export_folder_needs_core_ml(command, export, swift):
    done = swift(*command, "--model", export)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == (
        b"trm-bench: an export folder runs on Core ML, which only Apple's systems have; give a model folder\n"
    )
