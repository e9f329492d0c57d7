import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--vocabulary", "32", "--width", "16", "--heads", "4", "--depth", "2", "--batch", "2", "--length", "70"]


def bench(*flags):
    command = [sys.executable, "benchmarks/train.py", *TINY, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is an extra of the benchmarks")
def test_pytorch_learns_the_very_losses_of_ours():
    done = bench("--rounds", "3", "--no-parts", "--json")
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout)["losses"].values()
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[-1] < ours[0] - 1e-3


@pytest.mark.slow
def test_a_comparison_that_pytorch_cannot_make_is_skipped_aloud():
    done = bench("--rounds", "2", "--window", "20")
    assert done.returncode == 0, done.stderr
    assert "torch    skipped: " in done.stdout
    assert "tokens_per_s" in done.stdout
    assert "optimizer" in done.stdout
