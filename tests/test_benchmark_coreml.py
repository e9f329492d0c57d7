import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from itertools import count
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from stand_in import HashRunner, describe, export, plant

from convert import benchmark, device
from convert.benchmark import BenchmarkConfig, scaled
from convert.session import Session
from trm_mlx import machine, report, trials
from trm_mlx.comparison import table
from trm_mlx.trials import Procedure, distribution, summary, synthetic

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "tests/golden/bench.schema.json").read_text())
SMALL = {"prompt_tokens": 6, "new_tokens": 5, "trials": 3, "warmup": 1, "cooldown": 0.0}


class Clock:
    """Each look at it is a little later than the last, by ever more."""

    def __init__(self):
        self.now, self.steps = 0, count(1000)

    def __call__(self):
        self.now += next(self.steps)
        return self.now


class Drifting(HashRunner):
    """Gives other scores in every text, as a machine that does not compute the same twice."""

    def call(self, function, inputs):
        outputs = super().call(function, inputs)
        return {**outputs, "logits": np.roll(outputs["logits"], self.resets)}


class Failing(HashRunner):
    """Gives no numbers in the third call of the third trial."""

    def reset(self):
        super().reset()
        self.calls.clear()

    def call(self, function, inputs):
        outputs = super().call(function, inputs)
        bad = self.resets == 5 and len(self.calls) == 3  # after resets of the session, a warm-up, two trials
        return {**outputs, "logits": outputs["logits"] * np.nan} if bad else outputs


def run(runner=HashRunner, **options):
    """Trials over a fake runner, and the session they ran on."""
    made = describe()
    text = Session(made, runner(made))
    procedure = Procedure(**{**SMALL, **options})
    return trials.measure(text, made.vocabulary, procedure, clock=Clock(), sleep=lambda seconds: None), text


def spent(found, low_power=None):
    return summary(found, low_power, SMALL["prompt_tokens"], SMALL["new_tokens"])


def door(*flags):
    """What the command says and how it ends, in a process of its own."""
    command = [sys.executable, "-m", "convert.benchmark", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def main(monkeypatch, *flags):
    """The command in this process, on what looks like a Mac; gives its exit status."""
    plant(monkeypatch)
    monkeypatch.setattr(trials, "apart", lambda work, *arguments: work(*arguments))
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    try:
        benchmark.main([*small, *map(str, flags)])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac measures")
def test_off_a_mac_one_line_says_that_nothing_was_measured(tmp_path):
    done = door("--export", export(tmp_path))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "nothing was measured" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--export is required"),
        (["--export", "/nowhere/at/all"], "no export folder"),
        (["--export", ROOT / "docs"], "no manifest.json"),
        (["--export", "HERE", "--depths", "1,3"], "one of [1, 2], got 3"),
        (["--export", "HERE", "--units", "cpuOnly,npu"], "got 'npu'"),
        (["--export", "HERE", "--units", "all,all"], "named once"),
        (["--export", "HERE", "--units"], "named once"),
        (["--export", "HERE", "--trials", "0"], "trials must be at least 1"),
        (["--export", "HERE", "--prompt-tokens", "0"], "prompt_tokens must be at least 1"),
        (["--export", "HERE", "--new-tokens", "1"], "new_tokens must be at least 2"),
        (["--export", "HERE", "--cooldown", "nan"], "finite number"),
        (["--export", "HERE", "--seed", "-1"], "seed must be at least 0"),
        (["--export", "HERE", "--json", "/nowhere/report.json"], "folder that is there"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(tmp_path, capsys, flags, words):
    folder = str(export(tmp_path))
    with pytest.raises(SystemExit) as stop:
        benchmark.main([folder if flag == "HERE" else str(flag) for flag in flags])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == "" and err.count("\n") == 1 and words in err


def test_a_folder_that_is_not_as_it_was_exported_is_not_measured(tmp_path, monkeypatch, capsys):
    (export(tmp_path) / "tokenizer.model").write_bytes(b"another")
    assert main(monkeypatch, "--export", tmp_path) == 2
    assert "changed: tokenizer.model" in capsys.readouterr().err


def test_a_report_follows_the_schema_and_names_its_export(tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.json"
    folder = export(tmp_path / "export")
    assert main(monkeypatch, "--export", folder, "--units", "cpuAndNeuralEngine", "--json", path) == 0
    report = json.loads(path.read_text())
    jsonschema.validate(report, SCHEMA)
    assert report["model"]["manifest_sha256"] == sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert report["model"]["weights_bytes"] == len(b"weights")
    assert report["config"]["compute_units"] == "cpuAndNeuralEngine"
    assert report["placement"]["ane_ops"] == 2
    assert [len(trial["tpot_ns"]) for trial in report["trials"]] == [4, 4, 4]
    assert "cpuAndNeuralEngine     2" in capsys.readouterr().out


def test_each_units_and_depth_has_a_report_and_a_line_of_its_own(tmp_path, monkeypatch, capsys):
    flags = ["--units", "cpuOnly,all", "--depths", "1,2", "--json", tmp_path / "report.json"]
    assert main(monkeypatch, "--export", export(tmp_path / "export"), *flags) == 0
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for units in ("cpuOnly", "all"):
        for depth in (1, 2):
            report = found.pop(f"report-{units}-depth{depth}.json")
            jsonschema.validate(report, SCHEMA)
            assert (report["config"]["compute_units"], report["model"]["recursions"]) == (units, depth)
    assert not found
    rows = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert rows == [["cpuOnly", "1"], ["cpuOnly", "2"], ["all", "1"], ["all", "2"]]


def test_an_invalid_run_is_reported_and_ends_with_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "power", lambda: {"low_power_mode": True, "charging": None})
    path = tmp_path / "report.json"
    flags = ["--export", export(tmp_path / "export"), "--units", "all", "--json", path]
    assert main(monkeypatch, *flags) == 3
    assert not json.loads(path.read_text())["summary"]["valid"]
    assert "not valid: Low Power Mode was on" in capsys.readouterr().out


def test_a_plan_that_core_ml_cannot_make_costs_no_measurement(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no plan\ntoday")

    monkeypatch.setattr(device, "placement", fail)
    path = tmp_path / "report.json"
    assert main(monkeypatch, "--export", export(tmp_path / "e"), "--units", "all", "--json", path) == 0
    assert json.loads(path.read_text())["placement"] is None
    assert "no placement: no plan today\n" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac measures")
def test_a_configuration_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    plant(monkeypatch)  # here, and not there
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="macOS only"):
        trials.apart(benchmark.measure_here, BenchmarkConfig(export=export(tmp_path)), ("all", 2))


def test_every_trial_reads_the_same_prompt_and_makes_the_same_tokens():
    found, text = run()
    assert len(found) == 3 and text.runner.resets == 1 + 1 + 3
    assert len({trial.tokens_sha256 for trial in found}) == 1
    once = [("prefill", 0, 3), ("prefill", 4, 1), *(("decode", 6 + number, 0) for number in range(4))]
    assert text.runner.calls == 4 * once


def test_time_to_the_first_token_holds_the_prefill_and_gaps_are_between_tokens():
    (trial,), _ = run(trials=1, warmup=0)
    assert (trial.prefill_ns, trial.ttft_ns) == (1001, 1001 + 1002)
    assert trial.tpot_ns == (1003, 1004, 1005, 1006)


def test_a_summary_has_numpys_percentiles_and_speeds_of_the_whole():
    made, _ = run()
    found = spent(made)
    gaps = [gap for trial in made for gap in trial.tpot_ns]
    assert found["valid"] and found["invalid_because"] == []
    assert found["decode_tokens_per_s"] == pytest.approx(12 / (sum(gaps) / 1e9))
    assert found["prefill_tokens_per_s"] == pytest.approx(18 / (sum(trial.prefill_ns for trial in made) / 1e9))
    for name, part in {"p50": 50, "p90": 90, "p95": 95}.items():
        assert found["tpot_ms"][name] == np.percentile(np.array(gaps) / 1e6, part)
    assert (found["tpot_ms"]["n"], found["ttft_ms"]["n"]) == (12, 3)


def test_one_value_is_its_own_distribution():
    assert distribution([2.5]) == {"n": 1, **dict.fromkeys(("min", "p50", "p90", "p95", "max", "mean"), 2.5)}


def test_greedy_trials_that_differ_make_a_run_invalid():
    found, _ = run(Drifting)
    assert spent(found)["invalid_because"] == ["greedy trials must make the same tokens, and did not"]


def test_a_trial_whose_scores_are_no_numbers_stops_and_makes_the_run_invalid():
    made, _ = run(Failing)
    assert [trial.stop_reason for trial in made] == ["length", "length", "not_finite"]
    found = spent(made)
    assert not found["valid"] and "trial 3 stopped after 2 of 5 tokens: not_finite" in found["invalid_because"]


def test_a_run_without_a_second_token_has_no_summary():
    found, _ = run()
    with pytest.raises(RuntimeError, match="NaN or infinity in every trial"):
        spent([replace(trial, tpot_ns=()) for trial in found])


def test_a_hot_machine_is_waited_for_and_then_told(monkeypatch):
    states = iter(["serious", "fair", "nominal", "nominal", "fair"])
    monkeypatch.setattr(machine, "thermal", lambda: next(states))
    (trial,), _ = run(trials=1, warmup=0)
    assert (trial.thermal_before, trial.thermal_after) == ("nominal", "fair")
    assert spent([trial])["invalid_because"] == ["trial 1 ran on a machine whose thermal state was fair"]


def test_trials_pause_between_them_and_warm_ups_do_not():
    pauses, made = [], describe()
    procedure = Procedure(**{**SMALL, "cooldown": 2.5})
    trials.measure(Session(made, HashRunner(made)), 50, procedure, clock=Clock(), sleep=pauses.append)
    assert pauses == [2.5, 2.5]


def test_a_prompt_is_splitmix64_over_all_but_the_control_tokens():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of seed 0
    assert synthetic(0, 3, 1 << 70) == [7 + output for output in published]
    assert synthetic(0, 3, 50) == [7 + output % 43 for output in published]
    assert {*synthetic(2026, 400, 50)} == {*range(7, 50)}


@pytest.mark.parametrize(("prompt", "new"), [(128, 256), (1, 400), (400, 2), (9, 9), (10**9, 2), (16, 2)])
def test_sizes_are_scaled_to_fill_the_context_and_no_more(prompt, new):
    found = scaled(Procedure(prompt_tokens=prompt, new_tokens=new), 16)
    assert found.prompt_tokens + found.new_tokens - 1 == 16
    assert 1 <= found.prompt_tokens <= prompt and 2 <= found.new_tokens <= new


def test_sizes_that_fit_are_kept():
    procedure = Procedure(prompt_tokens=15, new_tokens=2)
    assert scaled(procedure, 16) is procedure


def test_sizes_that_do_not_fit_are_scaled_with_a_word(tmp_path, monkeypatch, capsys):
    flags = ["--units", "all", "--prompt-tokens", "128", "--new-tokens", "256"]
    assert main(monkeypatch, "--export", export(tmp_path), *flags) == 0
    out, err = capsys.readouterr()
    assert "scaled down to the context of 16: 5 tokens of prompt and 12 new ones" in err
    assert "new_tokens 12" in out


def test_the_schema_refuses_a_report_without_its_trials(tmp_path, monkeypatch):
    plant(monkeypatch)
    settings = BenchmarkConfig(export=export(tmp_path), procedure=Procedure(**SMALL))
    data = benchmark.measure_here(settings, ("cpuOnly", 1))
    jsonschema.validate(data, SCHEMA)
    assert "cpuOnly" in table([report.checked(data, "it")])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "trials": []}, SCHEMA)
