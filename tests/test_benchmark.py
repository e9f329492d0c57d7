"""What the benchmark of MLX writes; which reports it reads, compares, draws and refuses."""

import copy
import json
import sys
from hashlib import sha256

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from stand_in import export, plant
from tiny_folder import ROOT, save_tiny

import convert.benchmark
from trm_mlx import benchmark, checkpoint, comparison, machine, report, trials
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.trials import Procedure

pytest_plugins = ["tiny_folder"]

SCHEMA = json.loads((ROOT / "tests/golden/bench.schema.json").read_text())
SMALL = {"prompt_tokens": 6, "new_tokens": 5, "trials": 2, "warmup": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
PNG = b"\x89PNG\r\n\x1a\n"


class Words:
    """A text whose scores favour the same token, whatever it reads; in text `wrong` they favour another."""

    def __init__(self, token, wrong=None):
        self.token, self.wrong, self.texts = token, wrong, 0

    def reset(self):
        self.texts += 1

    def append(self, ids):
        scores = np.zeros(64, np.float32)
        scores[self.token + (self.texts == self.wrong)] = 1
        return scores


def run(*flags):
    """The command in this process; gives its exit status."""
    try:
        benchmark.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
    return 0


def refused(capsys, status, *flags):
    """The one line that the command says as it refuses."""
    assert run(*flags) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def sound(text, **options):
    """The summary of trials over a fake text."""
    procedure = Procedure(**{**SMALL, "trials": 3, **options})
    return trials.summary(trials.measure(text, 64, procedure), None, 6, 5)


@pytest.fixture
def here(monkeypatch):
    """Configurations are measured in this process."""
    monkeypatch.setattr(trials, "apart", lambda work, *arguments: work(*arguments))


@pytest.fixture(scope="module")
def written(folder):
    """A report as plain JSON; nobody changes it."""
    measured = benchmark.measure_here(folder, 2, Procedure(**SMALL))
    held = checkpoint.contents(folder)
    model = {"name": "tiny", "revision": held.revision, "manifest_sha256": benchmark.fingerprint(folder)}
    model |= {"parameters": held.config.stored_parameters(), "recursions": 2, "weights_bytes": 9, "precision": "x"}
    data = trials.report(
        Procedure(**SMALL),
        measured.trials,
        runtime={"runtime": "mlx", "runtime_version": "mlx 1"},
        model=model,
        units="n/a",
        chunk=256,
        context=512,
        load=measured.load,
    )
    return json.loads(json.dumps(data))


@pytest.fixture
def swift(written):
    """The report of another tool that tells only what it must, and something that we do not know."""
    data = copy.deepcopy(written)
    data["tool"] = {"name": "TRMDemo", "version": "1.0", "runtime": "coreml", "build": "release", "commit": "abc"}
    for name in ("weights_bytes", "precision"):
        del data["model"][name]
    names = ("model", "os", "os_version", "cores", "memory_bytes")
    data["device"] = dict(zip(names, ("iPhone17,1", "iOS", "18.1", 6, 8 << 30), strict=True))
    data["config"]["compute_units"] = "cpuAndNeuralEngine"
    del data["config"]["effective_prefill_chunk"], data["config"]["context_length"]
    del data["summary"]["memory_peak_bytes"], data["summary"]["invalid_because"], data["placement"], data["energy"]
    jsonschema.validate(data, SCHEMA)
    return data


def save(path, data):
    path.write_text(json.dumps(data))
    return path


# Measuring.


def test_a_report_follows_the_schema_and_names_its_folder(folder, tmp_path, here, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "peak_memory", lambda: 12_345_678)
    path = tmp_path / "report.json"
    assert run("--model", folder, *FLAGS, "--seed", 3, "--json", path) == 0
    data = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA)
    model = data["model"]
    parts = [(folder / name).read_bytes() for name in ("config.json", "model.safetensors")]
    assert model["manifest_sha256"] == sha256(b"".join(parts)).hexdigest()
    assert model["weights_bytes"] == (folder / "model.safetensors").stat().st_size
    held = checkpoint.contents(folder)
    assert (model["revision"], model["recursions"], model["name"]) == (held.revision, 2, "tiny")
    assert model["parameters"] == held.config.stored_parameters()
    assert (data["tool"]["runtime"], data["tool"]["build"]) == ("mlx", "python")
    assert (data["config"]["compute_units"], data["config"]["prompt"]) == ("n/a", "splitmix64:3")
    assert data["summary"]["memory_peak_bytes"] == 12_345_678
    assert [len(trial["tpot_ns"]) for trial in data["trials"]] == [4, 4]
    out, err = capsys.readouterr()
    assert "12.3" in out.splitlines()[-1] and "[1] mlx " in out
    assert [line.split("  ")[2] for line in err.splitlines()] == ["warm-up", "trial 1/2", "trial 2/2"]


@pytest.mark.slow
def test_each_depth_and_context_has_a_report_and_a_line_of_its_own(folder, tmp_path, here, capsys):
    flags = ["--depths", "1,2", "--context", "9,40", "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"]
    assert run("--model", folder, "--new-tokens=5", "--trials=1", "--warmup=0", *flags) == 0
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for depth in (1, 2):
        for prompt in (4, 35):
            data = found.pop(f"r-depth{depth}-prompt{prompt}.json")
            jsonschema.validate(data, SCHEMA)
            assert (data["model"]["recursions"], data["config"]["prompt_tokens"]) == (depth, prompt)
    assert not found
    rows = [line.split()[1:4] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert rows == [["mlx", "1", "4"], ["mlx", "1", "35"], ["mlx", "2", "4"], ["mlx", "2", "35"]]
    assert (tmp_path / "r.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_are_the_likeliest_ones_computed_without_a_cache(loaded, depth):
    model, _ = loaded
    ids = trials.synthetic(0, 300, 512)  # more than is read at once
    (trial,) = trials.measure(
        benchmark.Text(model, depth), 512, Procedure(prompt_tokens=300, new_tokens=4, trials=1, warmup=0)
    )
    made = []
    for _ in range(4):
        made.append(int(mx.argmax(model(mx.array([ids + made]), depth=depth)[0, -1])))
    assert trial.tokens_sha256 == sha256(np.array(made, "<i4").tobytes()).hexdigest()


@pytest.mark.slow
def test_a_configuration_has_a_process_of_its_own_whose_memory_is_told(folder, tmp_path):
    path = tmp_path / "report.json"
    assert run("--model", folder, *FLAGS, "--json", path) == 0
    data = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA)
    assert 10 << 20 < data["summary"]["memory_peak_bytes"] < 1 << 30
    assert data["load"]["load_ms"] > 0 and data["load"]["first_prediction_ms"] > 0


def test_the_end_of_text_does_not_end_a_trial():
    assert sound(Words(Tokenizer.eos))["valid"]


def test_greedy_trials_that_differ_make_a_run_invalid():
    found = sound(Words(9, wrong=3))  # after a warm-up, the second trial
    assert found["invalid_because"] == ["greedy trials must make the same tokens, and did not"]


def test_an_invalid_run_is_written_and_told_and_ends_with_3(folder, tmp_path, here, monkeypatch, capsys):
    monkeypatch.setattr(machine, "thermal", lambda: "serious")
    monkeypatch.setattr(trials, "COOLING", 0)
    path = tmp_path / "report.json"
    assert run("--model", folder, *FLAGS, "--json", path) == 3
    assert not json.loads(path.read_text())["summary"]["valid"]
    assert "  not valid: trial 1 ran on a machine whose thermal state was serious" in capsys.readouterr().out


def test_scores_that_are_no_numbers_end_with_1(folder, here, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "scores", lambda *_: np.full(512, np.nan, np.float32))
    assert run("--model", folder, *FLAGS) == 1
    assert "NaN or infinity in every trial" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_changes_while_it_is_measured_ends_with_1(tmp_path, here, monkeypatch, capsys):
    measure = benchmark.measure_here

    def disturbed(folder, *rest):
        found = measure(folder, *rest)
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        return found

    monkeypatch.setattr(benchmark, "measure_here", disturbed)
    assert run("--model", save_tiny(tmp_path / "tiny"), *FLAGS) == 1
    assert "changed while it was measured" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "/nowhere/at/all"], "no model folder"),
        (["--depths", "3"], "depth"),
        (["--depths", "1,1"], "named once"),
        (["--prompt-tokens", "510", "--new-tokens", "3"], "must fit the context of 512, got 510 and 3"),
        (["--context", "513"], "must fit the context of 512, got 385 and 128"),
        (["--context", "128"], "context must be above the 128 new tokens, got 128"),
        (["--context", "200", "--prompt-tokens", "5"], "not both"),
        (["--trials", "0"], "trials must be at least 1"),
        (["--new-tokens", "1"], "new_tokens must be at least 2"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--json", "/nowhere/report.json"], "--json must name a file in a folder that is there"),
        (["--plot", "/nowhere/picture.png"], "--plot must name a file in a folder that is there"),
        (["--plot", "picture.pdf"], "--plot must name a .png file"),
        (["--compare"], "--compare must name a report"),
        (["--compare", "a.json", "--depths", "1"], "so --depths has no place beside it"),
        (["--compare", "/nowhere/a.json"], "no report at /nowhere/a.json"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(folder, capsys, flags, words):
    model = [] if {"--model", "--compare"} & {*flags} else ["--model", folder]
    assert words in refused(capsys, 2, *model, *flags)


# Reading.


def places(data, path=()):
    """The way to every value of a report, of each list the first one."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(data, path, value):
    """A copy with another value there; `...` removes it."""
    made = copy.deepcopy(data)
    *way, last = path
    inner = made
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made


@pytest.mark.slow
def test_every_report_is_judged_as_the_schema_judges_it(written):
    placed = {f"{unit}_{kind}": 1 for unit in ("ane", "gpu", "cpu") for kind in ("ops", "cost")}
    energy = {"method": "powermetrics", "joules_per_token": 1, "battery_before": 1, "battery_after": 1}
    full = {**written, "placement": placed, "energy": {**energy, "duration_s": 1}}
    full = {**full, "trials": full["trials"][:1]}
    full["trials"][0]["tpot_ns"] = full["trials"][0]["tpot_ns"][:1]
    full["summary"] = {**full["summary"], "invalid_because": ["heat"]}
    validator, judged = jsonschema.Draft202012Validator(SCHEMA), {True: 0, False: 0}
    ours = {"chip", "power_source"}  # which the schema does not name
    for path in places(full):
        if ours & {*path}:
            continue
        for value in (..., None, "text", 1, 1.5, True, [], {}, {"other": 1}):
            data = changed(full, path, value)
            try:
                report.checked(data, "it")
                accepted = True
            except ValueError as error:
                accepted = False
                assert str(error).startswith("it") and "\n" not in str(error)
            assert accepted == validator.is_valid(data), (path, value)
            judged[accepted] += 1
    assert min(judged.values()) > 50


@pytest.mark.parametrize("key", ["tool", "model", "device", "config", "load", "summary"])
def test_what_an_open_table_holds_besides_is_not_read(written, key):
    data = changed(written, (key, "more"), {"any": None})
    jsonschema.validate(data, SCHEMA)
    assert report.checked(data, "it") == report.checked(written, "it")


@pytest.mark.parametrize("key", ["format", "summary"])
def test_what_a_closed_table_holds_besides_is_refused(written, key):
    data = changed(written, ("more",) if key == "format" else ("summary", "ttft_ms", "more"), 1)
    with pytest.raises(ValueError, match=r"unknown key '.*more'"):
        report.checked(data, "it")


def test_a_report_cannot_command_the_terminal(written):
    with pytest.raises(ValueError, match="printable"):
        report.checked(changed(written, ("model", "name"), "tiny\x1b[2J"), "it")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b"[]", "is no report of a benchmark"),
        (b'{"format": "trm.bench/2"}', 'must have "format": "trm.bench/1"'),
        (b'{"format": "trm.bench/1"}', "missing key"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    err = refused(capsys, 2, "--compare", path)
    assert words in err and str(path) in err


def test_a_report_that_is_not_finite_or_too_large_is_refused(written, tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "a.json", changed(written, ("load", "load_ms"), float("nan")))
    assert "load.load_ms must be a finite number" in refused(capsys, 2, "--compare", path)
    monkeypatch.setattr(report, "LARGEST", 100)
    assert "at most 100 bytes" in refused(capsys, 2, "--compare", path)


# Comparing.


@pytest.mark.slow
def test_reports_of_three_tools_stand_side_by_side(folder, written, swift, tmp_path, monkeypatch, capsys):
    model = written["model"]
    made = export(tmp_path / "export", revision=model["revision"], stored_parameters=model["parameters"])
    settings = convert.benchmark.BenchmarkConfig(export=made, procedure=Procedure(**SMALL))
    with monkeypatch.context() as mac:
        plant(mac)
        save(tmp_path / "coreml.json", convert.benchmark.measure_here(settings, ("cpuOnly", 2)))
    save(tmp_path / "mlx.json", written)
    save(tmp_path / "swift.json", swift)
    capsys.readouterr()
    paths = [tmp_path / f"{name}.json" for name in ("mlx", "coreml", "swift")]
    assert run("--compare", *paths, "--plot", tmp_path / "all.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["[1]", "mlx", "2"],
        ["[2]", "cpuOnly", "2"],
        ["[3]", "cpuAndNeuralEngine", "2"],
    ]
    assert "ane/gpu/cpu operations 2/0/1" in lines[-2] and "placement not known" in lines[-1]
    assert lines[4].startswith("[3] iPhone17,1  iOS 18.1") and lines[4].endswith("TRMDemo 1.0 release")
    rate = f"{written['summary']['decode_tokens_per_s']:.1f}"
    assert rate in lines[-3].split() and rate in lines[-1].split()
    assert (tmp_path / "all.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("model", "revision"), "another", "its model revision is another, and not"),
        (("model", "parameters"), 7, "its parameters is 7, and not"),
        (("config", "prompt_tokens"), 7, "its prompt tokens is 7, and not 6"),
        (("config", "new_tokens"), 7, "its new tokens is 7, and not 5"),
        (("config", "prompt"), "splitmix64:1", "its prompt is splitmix64:1, and not splitmix64:0"),
        (("config", "sampling", "temperature"), 0.5, "its sampling is"),
        (("summary", "valid"), False, "is not a valid measurement: it does not say why"),
        (("summary",), None, "summary must not be null"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(written, tmp_path, capsys, path, value, words):
    first = save(tmp_path / "a.json", written)
    second = save(tmp_path / "b.json", changed(written, path, value))
    err = refused(capsys, 2, "--compare", first, second)
    assert words in err and str(second) in err


def test_an_invalid_report_is_named_with_its_reasons(written, tmp_path, capsys):
    data = changed(changed(written, ("summary", "valid"), False), ("summary", "invalid_because"), ["heat", "haste"])
    err = refused(capsys, 2, "--compare", save(tmp_path / "a.json", data))
    assert "a.json is not a valid measurement: heat; haste" in err


def test_sampling_is_compared_by_value(written):
    other = changed(written, ("config", "sampling"), {"ignore_eos": True, "temperature": 0.0})
    assert comparison.comparable(
        [(name, report.checked(each, name)) for name, each in [("a", written), ("b", other)]]
    )


def test_a_picture_without_matplotlib_is_refused_before_the_work(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    err = refused(capsys, 1, "--model", folder, *FLAGS, "--plot", tmp_path / "a.png")
    assert 'pip install -e ".[plot]"' in err
