"""Fixtures: reports of benchmarks as plain JSON, ways to change them, and the command that reads them.

PYTEST_DONT_REWRITE: tests import from here before pytest does.
"""

import copy
import json

import jsonschema
import pytest
from tiny_folder import ROOT

from trm_mlx import benchmark, checkpoint, trials
from trm_mlx.trials import Procedure

SCHEMA = json.loads((ROOT / "tests/golden/bench.schema.json").read_text())
SMALL = {"prompt_tokens": 6, "new_tokens": 5, "trials": 2, "warmup": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
PNG = b"\x89PNG\r\n\x1a\n"


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
