"""How fast one token after another is made, against mlx-lm, llama.cpp and NumPy, in turns on one machine.

    pip install mlx-lm llama-cpp-python gguf       # each may be missing, and is then left out aloud
    taskset -c 1 python benchmarks/decode.py       # one core, if the machine has others for everything else

Greedy, random weights, the same shapes (benchmarks/decoders.py), a process and one BLAS thread for each. Three tasks:
64 tokens after a prompt of 128; a prompt of 512; 64 texts of 64 tokens after prompts of 32. A round is each decoder
once; a ratio is that of two neighbours in a round, by the clock and by CPU time, which other work disturbs less.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from decoders import DECODERS, LONG, NEW, ROWS

from trm_mlx import config, machine  # before mlx_lm is looked for, which may import mlx.core

NEEDS = {"mlx-lm": ["mlx_lm"], "mlx-lm as installed": ["mlx_lm"], "llama.cpp": ["llama_cpp", "gguf"]}
TOKENS = {"decode": NEW, "prefill": LONG, "batch": ROWS * NEW}


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Time decoding against other libraries."""

    rounds: Annotated[int, "rounds that count, after one that warms up"] = 9
    tasks: Annotated[tuple[str, ...], "decode, prefill, batch"] = tuple(TOKENS)
    json: Annotated[bool, "print one JSON object"] = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if unknown := {*self.tasks} - {*TOKENS}:
            raise ValueError(f"tasks must be some of {', '.join(TOKENS)}, got {min(unknown)}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One decoder at one task: tokens a second; times of ours that it takes, with the middle half."""

    task: str
    decoder: str
    tokens_per_s: float
    clock: tuple[float, float, float]  # median, lower and upper quartile
    cpu: tuple[float, float, float]


class Served:
    """A decoder in its process."""

    def __init__(self, name: str) -> None:
        environment = dict(os.environ) | ({"TRM_MLX_BLAS": "none"} if name == "mlx-lm as installed" else {})
        command = [sys.executable, str(Path(__file__).with_name("decoders.py")), name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.tasks = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a decoder ended with {self.process.wait()}; its own words are above")
        return line

    def round(self, task: str) -> dict[str, float]:
        """Seconds and CPU seconds of one round."""
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        return json.loads(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and lower and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def measure(settings: DecodeConfig) -> list[Found]:
    """Each decoder at each task that it knows, ours first."""
    there = []
    for name in DECODERS:
        missing = [module for module in NEEDS.get(name, []) if find_spec(module) is None]
        if missing:
            print(f"left out: {name}, as {' and '.join(missing)} cannot be imported", file=sys.stderr)
        else:
            there.append(name)
    served = {name: Served(name) for name in there}
    found = []
    for task in settings.tasks:
        names = [name for name in there if task in served[name].tasks]
        rounds = []
        for number in range(settings.rounds + 1):
            print(f"{task}  round {number}/{settings.rounds}", file=sys.stderr)
            rounds.append({name: served[name].round(task) for name in names})
        for name in names:
            ratios = {
                kind: quartiles([each[name][kind] / each["ours"][kind] for each in rounds[1:]])
                for kind in ("seconds", "cpu_seconds")
            }
            seconds = statistics.median(each[name]["seconds"] for each in rounds[1:])
            rate = TOKENS[task] / seconds
            clock, cpu = ratios["seconds"], ratios["cpu_seconds"]
            found.append(Found(task=task, decoder=name, tokens_per_s=rate, clock=clock, cpu=cpu))
    for each in served.values():
        each.close()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(DecodeConfig, argv, program="benchmarks/decode.py")
    with config.door("benchmarks/decode.py"):
        found = measure(settings)
        if settings.json:
            versions = {name: machine.installed(name) for name in ("mlx", "mlx-lm", "llama-cpp-python", "numpy")}
            print(json.dumps({"versions": versions, "found": [asdict(each) for each in found]}))
            return
        for each in found:
            clock, cpu = ("{:.2f}x ({:.2f} to {:.2f})".format(*ratio) for ratio in (each.clock, each.cpu))
            print(f"{each.task:8} {each.decoder:20} {each.tokens_per_s:8.0f} tokens/s  clock {clock}  cpu {cpu}")


if __name__ == "__main__":
    main()
