"""What trials come to, in the format `trm.bench/1` (its schema is tests/golden/bench.schema.json), and for people.

Raw nanoseconds are kept, so that anyone can compute the summary again, and in another way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert import device

FORMAT = "trm.bench/1"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One text, with the keys of the report."""

    ttft_ns: int
    prefill_ns: int
    tpot_ns: list[int]
    stop_reason: str
    thermal_before: str
    thermal_after: str
    memory_peak_bytes: int
    tokens_sha256: str


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Percentiles as NumPy's linear method has them."""
    p50, p90, p95 = np.percentile(values, [50, 90, 95]).tolist()
    ends = {"min": float(min(values)), "max": float(max(values)), "mean": float(np.mean(values))}
    return {"n": len(values), "p50": p50, "p90": p90, "p95": p95, **ends}


def summary(trials: Sequence[Trial], low_power: bool | None, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """What the trials come to, and why they do not count if they do not.

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
        if states := {trial.thermal_before, trial.thermal_after} & {*device.HOT}:
            reasons.append(f"trial {number} ran on a machine whose thermal state was {' and '.join(sorted(states))}")
    if len({trial.tokens_sha256 for trial in trials}) > 1:
        reasons.append("greedy trials must make the same tokens, and did not")
    if low_power:
        reasons.append("Low Power Mode was on")
    return {
        "decode_tokens_per_s": len(gaps) * 1e9 / sum(gaps),
        "prefill_tokens_per_s": prompt_tokens * len(trials) * 1e9 / sum(each.prefill_ns for each in trials),
        "ttft_ms": distribution([trial.ttft_ns / 1e6 for trial in trials]),
        "tpot_ms": distribution([gap / 1e6 for gap in gaps]),
        "memory_peak_bytes": max(trial.memory_peak_bytes for trial in trials),
        "valid": not reasons,
        "invalid_because": reasons,
    }


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Reports of one export for people: what was measured where, a line for each, and why one does not count."""
    first = reports[0]
    tool, model, machine, setup = (first[key] for key in ("tool", "model", "device", "config"))
    lines = [
        f"{model['name']}  revision {model['revision'][:12]}  {model['precision']}  "
        f"weights_mb {model['weights_bytes'] / 1e6:.2f}  context {setup['context_length']}",
        f"{machine['model']}  {machine['os']} {machine['os_version']}  {tool['runtime_version']}  "
        f"trm_mlx {tool['version']}",
        f"prompt_tokens {setup['prompt_tokens']}  new_tokens {setup['new_tokens']}  trials {setup['trials']}  "
        f"warmup {setup['warmup_trials']}  {setup['prompt']}",
        "",
        f"{'units':18} {'depth':>5} {'prefill':>9} {'decode':>9} {'ttft':>8} {'token p50':>10} {'p90':>8} {'p95':>8} "
        f"{'load':>8} {'memory':>7}  ane/gpu/cpu operations",
        f"{'':24} {'tokens/s':>9} {'tokens/s':>9} {'p50 ms':>8} {'ms':>10} {'ms':>8} {'ms':>8} {'ms':>8} {'MB':>7}",
    ]
    for each in reports:
        result, placed = each["summary"], each["placement"]
        token = result["tpot_ms"]
        where = "/".join(str(placed[f"{name}_ops"]) for name in ("ane", "gpu", "cpu")) if placed else "not known"
        lines.append(
            f"{each['config']['compute_units']:18} {each['model']['recursions']:5} "
            f"{result['prefill_tokens_per_s']:9.1f} {result['decode_tokens_per_s']:9.1f} "
            f"{result['ttft_ms']['p50']:8.2f} {token['p50']:10.3f} {token['p90']:8.3f} {token['p95']:8.3f} "
            f"{each['load']['load_ms']:8.1f} {result['memory_peak_bytes'] / 1e6:7.1f}  {where}"
        )
        lines += [f"  not valid: {reason}" for reason in result["invalid_because"]]
    return "\n".join(lines)
