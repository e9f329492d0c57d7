"""The protocol of a benchmark, and what its trials come to: the same for MLX and for Core ML.

Ids are given and drawn from SplitMix64, so no tokenizer is timed; decoding is greedy and the end of text is ignored;
warm-ups are not kept; every trial keeps the nanoseconds that the clock gave; each configuration has a process of its
own. A run that went wrong is reported with `valid` false and its reasons, and never left out.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np

from trm_mlx import __version__, config, machine
from trm_mlx.report import FORMAT, Trial
from trm_mlx.splitmix import WORD, splitmix64
from trm_mlx.tokenizer import Tokenizer

CONTROLS = Tokenizer.end + 1  # control tokens, which come first in every vocabulary
COOLING = 60  # seconds at most that a trial waits for a hot machine
UNMEASURED = 3  # exit status: there is no valid measurement

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How it is measured."""

    prompt_tokens: Annotated[int, "tokens read before the first one is made"] = 128
    new_tokens: Annotated[int, "tokens made"] = 128
    trials: Annotated[int, "texts that are measured"] = 10
    warmup: Annotated[int, "texts before them that are not"] = 2
    cooldown: Annotated[float, "seconds between two trials"] = 0.0
    seed: Annotated[int, "64-bit number that fixes the prompt"] = 0

    def __post_init__(self) -> None:
        for name, least in {"prompt_tokens": 1, "new_tokens": 2, "trials": 1, "warmup": 0, "cooldown": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed <= WORD:
            raise ValueError(f"seed must be at least 0 and below 2**64, got {self.seed}")


class Text(Protocol):
    """One text at a time, or several equal ones, read token by token."""

    def reset(self) -> None:
        """Begin a text."""
        ...

    def append(self, ids: Sequence[int]) -> np.ndarray:
        """(V,) float32 scores of the token after these."""
        ...


def synthetic(seed: int, count: int, vocabulary: int) -> list[int]:
    """Ids of a prompt, none of them a control token: outputs of SplitMix64(seed) modulo what is left.

    Raises:
        ValueError: nothing is left.
    """
    if vocabulary <= CONTROLS:
        raise ValueError(f"vocabulary must be above {CONTROLS}, got {vocabulary}")
    return [CONTROLS + splitmix64(seed, number) % (vocabulary - CONTROLS) for number in range(count)]


def measure(
    text: Text,
    vocabulary: int,
    procedure: Procedure,
    name: str = "",
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    memory: Callable[[], int] = machine.peak_memory,
) -> list[Trial]:
    """The trials of one configuration, after its warm-ups.

    Args:
        name: begins each line of progress.
        clock, sleep, memory: nanoseconds, seconds, most bytes held so far.

    Raises:
        ValueError: the text does not fit the context.
    """
    ids = synthetic(procedure.seed, procedure.prompt_tokens, vocabulary)
    trials: list[Trial] = []
    for number in range(1 - procedure.warmup, procedure.trials + 1):
        if number > 1:
            sleep(procedure.cooldown)
        for _ in range(COOLING):
            if machine.thermal() not in machine.HOT:
                break
            sleep(1)
        trial = measure_text(text, ids, procedure.new_tokens, clock, memory)
        if number > 0:
            trials.append(trial)
        label = f"trial {number}/{procedure.trials}" if number > 0 else "warm-up"
        line = f"{label}  ttft_ms {trial.ttft_ns / 1e6:.2f}  tokens {len(trial.tpot_ns) + 1}"
        print(f"{name}  {line}  decode_ms {sum(trial.tpot_ns) / 1e6:.2f}", file=sys.stderr, flush=True)
    return trials


def measure_text(
    text: Text, ids: list[int], count: int, clock: Callable[[], int], memory: Callable[[], int]
) -> Trial:
    """Read a prompt and make `count` tokens, fewer if scores are no numbers."""
    text.reset()
    before = machine.thermal()
    start = clock()
    logits = text.append(ids)
    read = clock()
    tokens = [int(logits.argmax())]  # the first NaN, if there is one
    times = [clock()]
    while len(tokens) < count and math.isfinite(logits[tokens[-1]]):
        logits = text.append(tokens[-1:])
        tokens.append(int(logits.argmax()))
        times.append(clock())
    return Trial(
        ttft_ns=times[0] - start,
        prefill_ns=read - start,
        tpot_ns=tuple(after - earlier for earlier, after in pairwise(times)),
        stop_reason="length" if math.isfinite(logits[tokens[-1]]) else "not_finite",
        thermal_before=before,
        thermal_after=machine.thermal(),
        memory_peak_bytes=memory(),
        tokens_sha256=sha256(np.array(tokens, "<i4").tobytes()).hexdigest(),
    )


def apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` gives in a process of its own, so that no configuration warms another."""
    silent = signal.signal, (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told once, by this process
    with ProcessPoolExecutor(1, get_context("spawn"), *silent) as pool:
        return pool.submit(work, *arguments).result()


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Percentiles as NumPy's linear method has them."""
    p50, p90, p95 = np.percentile(values, [50, 90, 95]).tolist()
    ends = {"min": float(min(values)), "max": float(max(values)), "mean": float(np.mean(values))}
    return {"n": len(values), "p50": p50, "p90": p90, "p95": p95, **ends}


def summary(
    trials: Sequence[Trial], low_power: bool | None, prompt_tokens: int, new_tokens: int, batch: int = 1
) -> dict[str, Any]:
    """What the trials come to, and why they do not count if they do not.

    Args:
        batch: equal texts at once; tokens per second are of all of them, times of one step.

    Raises:
        RuntimeError: no trial made a second token.
    """
    gaps = [gap for trial in trials for gap in trial.tpot_ns]
    if not gaps:
        raise RuntimeError("the scores of the first token must be numbers, got NaN or infinity in every trial")
    reasons = []
    for number, trial in enumerate(trials, 1):
        if trial.stop_reason != "length":
            made = f"{len(trial.tpot_ns) + 1} of {new_tokens} tokens"
            reasons.append(f"trial {number} stopped after {made}: {trial.stop_reason}")
        if states := {trial.thermal_before, trial.thermal_after} & {*machine.HOT}:
            reasons.append(f"trial {number} ran on a machine whose thermal state was {' and '.join(sorted(states))}")
    if len({trial.tokens_sha256 for trial in trials}) > 1:
        reasons.append("greedy trials must make the same tokens, and did not")
    if low_power:
        reasons.append("Low Power Mode was on")
    return {
        "decode_tokens_per_s": batch * len(gaps) * 1e9 / sum(gaps),
        "prefill_tokens_per_s": batch * prompt_tokens * len(trials) * 1e9 / sum(each.prefill_ns for each in trials),
        "ttft_ms": distribution([trial.ttft_ns / 1e6 for trial in trials]),
        "tpot_ms": distribution([gap / 1e6 for gap in gaps]),
        "memory_peak_bytes": max(trial.memory_peak_bytes for trial in trials),
        "valid": not reasons,
        "invalid_because": reasons,
    }


def report(
    procedure: Procedure,
    trials: Sequence[Trial],
    *,
    runtime: dict[str, str],
    model: dict[str, Any],
    units: str,
    chunk: int,
    context: int,
    load: dict[str, float | None],
    placement: dict[str, float] | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """One report in the format `trm.bench/1`, as plain JSON.

    Args:
        runtime: `runtime` and `runtime_version`.
        chunk: tokens that the prompt is read in.
        model, load, placement: those keys of the report.
        batch: as of `summary`.
    """
    device = machine.facts()
    return {
        "format": FORMAT,
        "tool": {"name": "trm_mlx.benchmark", "version": __version__, **runtime, "build": "python"},
        "model": model,
        "device": device,
        "config": {
            "compute_units": units,
            "effective_prefill_chunk": chunk,
            "prompt_tokens": procedure.prompt_tokens,
            "new_tokens": procedure.new_tokens,
            "warmup_trials": procedure.warmup,
            "trials": procedure.trials,
            "cooldown_s": procedure.cooldown,
            "prompt": f"splitmix64:{procedure.seed}",
            "sampling": {"temperature": 0, "ignore_eos": True},
            "context_length": context,
            "batch": batch,
        },
        "placement": placement,
        "load": load,
        "trials": [config.to_json(trial) for trial in trials],
        "summary": summary(trials, device["low_power_mode"], procedure.prompt_tokens, procedure.new_tokens, batch),
        "energy": None,
    }


def check_file(flag: str, path: Path | None) -> None:
    """Refuse a file that could not be written, before there is anything to write."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError(f"{flag} must name a file in a folder that is there, got {path}")
