import subprocess
import sys

import pytest

from trm_mlx import machine

QUIET = (
    "Note: No thermal warning level has been recorded\n"
    "Note: No performance warning level has been recorded\n"
    "Note: No CPU power status has been recorded\n"
)
LIMITS = "2026-01-02 03:04:05 +0000 CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= {}\n"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (QUIET, "nominal"),
        (LIMITS.format(100), "nominal"),
        (LIMITS.format(62), "fair"),
        (
            QUIET.replace("Note: No performance warning level has been recorded", "Performance Warning Level = 1"),
            "fair",
        ),
        ("Thermal Warning Level = 5\n", "serious"),
        ("Thermal Warning Level = 0\n", "nominal"),
        ("", "unknown"),
        ("pmset: what?\n", "unknown"),
    ],
)
def test_heat_is_read_from_what_pmset_says(monkeypatch, text, state):
    monkeypatch.setattr(machine, "told", lambda *command: text)
    assert machine.thermal() == state


@pytest.mark.parametrize(
    ("battery", "source", "charging"),
    [
        ("Now drawing from 'AC Power'\n", "ac", None),
        (
            "Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t81%; charging; 0:40 remaining present: true\n",
            "ac",
            True,
        ),
        (
            "Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t80%; AC attached; not charging present: true\n",
            "ac",
            False,
        ),
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t61%; discharging; 3:42 remaining\n",
            "battery",
            False,
        ),
        ("", "unknown", None),
    ],
)
def test_power_is_read_from_what_pmset_says(monkeypatch, battery, source, charging):
    texts = {"batt": battery, "-g": "Currently in use:\n standby  1\n lowpowermode         1\n"}
    monkeypatch.setattr(machine, "told", lambda *command: texts[command[-1]])
    assert machine.power() == {"power_source": source, "low_power_mode": True, "charging": charging}


def test_facts_hold_without_any_command_of_macos(monkeypatch):
    monkeypatch.setattr(machine, "told", lambda *command: "")
    found = machine.facts()
    assert found["memory_bytes"] > 0 and found["cores"] > 0
    assert found["low_power_mode"] is None and found["charging"] is None
    assert (found["chip"], found["power_source"]) == ("unknown", "unknown")


@pytest.mark.parametrize("error", [FileNotFoundError("pmset"), PermissionError("pmset")])
def test_a_command_that_cannot_run_says_nothing(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert machine.told("pmset", "-g") == ""
    assert machine.thermal() == "unknown"


def test_peak_memory_is_of_this_process_and_not_of_the_one_that_made_it():
    script = "from trm_mlx import machine; print(machine.peak_memory())"
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * (len(ballast) >> 12)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 150 << 20
    assert machine.peak_memory() > 200 << 20


def test_a_package_that_is_not_installed_has_an_unknown_version():
    assert machine.installed("no-such-package-of-ours") == "unknown"
