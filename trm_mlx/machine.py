"""What a machine says of itself: its kind, the memory a process takes, and on a Mac its heat and its power.

Nothing here names one machine: a report may be passed on.
"""

import os
import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

PATIENCE = 5.0  # seconds for a command that says something of the machine
HOT = ("fair", "serious", "critical")

Thermal = Literal["nominal", "fair", "serious", "critical", "unknown"]


def told(*command: str) -> str:
    """What a command of macOS prints; nothing if it fails or elsewhere."""
    if sys.platform != "darwin":
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout


def thermal() -> Thermal:
    """From `pmset -g therm`: a thermal warning is serious, a slowed CPU fair."""
    text = told("pmset", "-g", "therm")
    warned, slowed = (
        [int(level) for level in re.findall(rf"{name} warning level\s*[=:]?\s*(\d+)", text, re.IGNORECASE)]
        for name in ("thermal", "performance")
    )
    limits = [int(limit) for limit in re.findall(r"CPU_(?:Speed|Scheduler)_Limit\s*=\s*(\d+)", text)]
    if any(warned):
        return "serious"
    if any(slowed) or any(limit < 100 for limit in limits):
        return "fair"
    quiet = "No thermal warning level has been recorded" in text
    return "nominal" if quiet or warned or limits else "unknown"


def power() -> dict[str, Any]:
    """Where the power comes from, whether the battery is being charged, whether Low Power Mode is on.

    The first is ac, battery, ups or unknown; None of the others: not known, or no battery.
    """
    text = told("pmset", "-g", "batt")
    source, state = re.search(r"drawing from '(\w+)", text), re.search(r"\d+%;\s*([^;\n]+)", text)
    mode = re.search(r"^\s*lowpowermode\s+(\d)", told("pmset", "-g"), re.MULTILINE)
    return {
        "power_source": source[1].lower() if source else "unknown",
        "low_power_mode": mode and mode[1] == "1",
        "charging": state and state[1].strip() in ("charging", "finishing charge"),
    }


def facts() -> dict[str, Any]:
    """`device` of a report: the kind of machine."""
    mac = sys.platform == "darwin"
    memory = told("sysctl", "-n", "hw.memsize").strip()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "model": told("sysctl", "-n", "hw.model").strip() or platform.machine(),
        "chip": told("sysctl", "-n", "machdep.cpu.brand_string").strip() or "unknown",
        "os": "macOS" if mac else "Linux",
        "os_version": platform.mac_ver()[0] if mac else platform.release(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": int(memory) if memory.isdigit() else pages,
        "simulator": False,
        **power(),
    }


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once.

    Linux also counts what its parent held into `ru_maxrss`, so VmHWM comes first there.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def installed(package: str) -> str:
    """The version of a package, or unknown."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
