"""What the benchmark of MLX measures, writes and refuses."""

import json
from hashlib import sha256

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from tiny_folder import save_tiny
from written_reports import FLAGS, PNG, SCHEMA, SMALL, refused, run

from trm_mlx import benchmark, checkpoint, machine, report, trials
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.trials import Procedure

pytest_plugins = ["written_reports", "tiny_folder"]


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


def sound(text, **options):
    """The summary of trials over a fake text."""
    procedure = Procedure(**{**SMALL, "trials": 3, **options})
    return trials.summary(trials.measure(text, 64, procedure), None, 6, 5)


@pytest.fixture
def here(monkeypatch):
    """Configurations are measured in this process."""
    monkeypatch.setattr(trials, "apart", lambda work, *arguments: work(*arguments))


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
@pytest.mark.parametrize("prompt", [3, 300])
def test_equal_texts_at_once_make_the_tokens_of_one(loaded, prompt):
    procedure = Procedure(prompt_tokens=prompt, new_tokens=6, trials=2, warmup=0)
    found = [
        trials.measure(text, 512, procedure)
        for text in (benchmark.Text(loaded[0], 2), benchmark.Texts(loaded[0], 2, 5))
    ]
    assert len({trial.tokens_sha256 for each in found for trial in each}) == 1


def test_tokens_per_second_are_of_all_texts_and_times_of_one_step(written):
    one, eight = (trials.summary(report.checked(written, "it").trials, None, 6, 5, batch) for batch in (1, 8))
    for rate in ("decode_tokens_per_s", "prefill_tokens_per_s"):
        assert eight[rate] == pytest.approx(8 * one[rate])
    assert eight["tpot_ms"] == one["tpot_ms"]


@pytest.mark.slow
def test_each_batch_has_a_report_and_a_line_of_its_own(folder, tmp_path, here, capsys):
    assert run("--model", folder, *FLAGS, "--batch", "1,3", "--json", tmp_path / "r.json") == 0
    for batch in (1, 3):
        data = json.loads((tmp_path / f"r-depth2-prompt6-batch{batch}.json").read_text())
        jsonschema.validate(data, SCHEMA)
        assert data["config"]["batch"] == batch
        steps = [gap for trial in data["trials"] for gap in trial["tpot_ns"]]
        assert data["summary"]["decode_tokens_per_s"] == pytest.approx(batch * 1e9 * len(steps) / sum(steps))
    out, err = capsys.readouterr()
    assert [line.split()[4] for line in out.splitlines()[-2:]] == ["1", "3"]
    assert "  batch 3  trial 1/2" in err


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
    monkeypatch.setattr(benchmark.Text, "append", lambda *_: np.full(512, np.nan, np.float32))
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
        (["--batch", "2,2"], "named once"),
        (["--batch", "4,0"], "batch must be at least 1, got 4 0"),
        (["--batch"], "batch must be at least 1, got none"),
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
