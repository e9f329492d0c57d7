"""Which reports stand side by side, in a table and in a picture."""

import sys

import pytest
from stand_in import export, plant
from written_reports import FLAGS, PNG, SMALL, changed, refused, run, save

import convert.benchmark
from trm_mlx import comparison, report
from trm_mlx.trials import Procedure

pytest_plugins = ["written_reports", "tiny_folder"]


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
        (("config", "batch"), 8, "its batch is 8, and not 1"),
        (("config", "batch"), 0, "batch must be at least 1, got 0"),
        (("summary", "valid"), False, "is not a valid measurement: it does not say why"),
        (("summary",), None, "summary must not be null"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(written, tmp_path, capsys, path, value, words):
    first = save(tmp_path / "a.json", written)
    second = save(tmp_path / "b.json", changed(written, path, value))
    err = refused(capsys, 2, "--compare", first, second)
    assert words in err and str(second) in err


def test_a_report_that_tells_of_no_batch_is_of_one_text(written):
    other = changed(written, ("config", "batch"), ...)
    assert (
        len(
            comparison.comparable(
                [(name, report.checked(each, name)) for name, each in [("a", written), ("b", other)]]
            )
        )
        == 2
    )


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
