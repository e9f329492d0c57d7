"""Which reports are read, and which are not."""

import jsonschema
import pytest
from written_reports import SCHEMA, changed, refused, save

from trm_mlx import report

pytest_plugins = ["written_reports", "tiny_folder"]


def places(data, path=()):
    """The way to every value of a report, of each list the first one."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@pytest.mark.slow
def test_every_report_is_judged_as_the_schema_judges_it(written):
    placed = {f"{unit}_{kind}": 1 for unit in ("ane", "gpu", "cpu") for kind in ("ops", "cost")}
    energy = {"method": "powermetrics", "joules_per_token": 1, "battery_before": 1, "battery_after": 1}
    full = {**written, "placement": placed, "energy": {**energy, "duration_s": 1}}
    full = {**full, "trials": full["trials"][:1]}
    full["trials"][0]["tpot_ns"] = full["trials"][0]["tpot_ns"][:1]
    full["summary"] = {**full["summary"], "invalid_because": ["heat"]}
    validator, judged = jsonschema.Draft202012Validator(SCHEMA), {True: 0, False: 0}
    ours = {"chip", "power_source", "batch"}  # which the schema does not name
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
