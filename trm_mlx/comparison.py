"""Reports of a benchmark side by side: whether they may be compared, a table of them, and a picture."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trm_mlx.report import Report

INCHES = (11, 1.6, 0.35)  # width of a picture, its height without rows, height of a row

ALIKE: dict[str, Callable[[Report], Any]] = {  # what reports must share to be compared
    "model revision": lambda each: each.model.revision,
    "parameters": lambda each: each.model.parameters,
    "prompt tokens": lambda each: each.config.prompt_tokens,
    "new tokens": lambda each: each.config.new_tokens,
    "prompt": lambda each: each.config.prompt,
    "sampling": lambda each: json.loads(each.config.sampling),
    "batch": lambda each: each.config.batch,
}


def comparable(reports: Sequence[tuple[str, Report]]) -> list[Report]:
    """The reports without their names, if their figures mean the same thing.

    Raises:
        ValueError: one is not valid, or of another model, text or way to pick tokens than the first.
    """
    for name, each in reports:
        if not each.summary.valid:
            reasons = "; ".join(each.summary.invalid_because) or "it does not say why"
            raise ValueError(f"{name} is not a valid measurement: {reasons}")
    first, base = reports[0]
    for name, each in reports[1:]:
        for what, of in ALIKE.items():
            if of(each) != of(base):
                found = f"its {what} is {of(each)}, and not {of(base)}"
                raise ValueError(f"{name} cannot be compared with {first}: {found}")
    return [each for _, each in reports]


def table(reports: Sequence[Report]) -> str:
    """Reports of one model for people: what was measured where, a line for each, and why one does not count."""
    first, places = reports[0], _places(reports)
    setup = first.config
    lines = [
        f"{first.model.name}  revision {first.model.revision[:12]}  parameters {first.model.parameters:,}",
        f"new_tokens {setup.new_tokens}  {setup.prompt}",
        *(f"[{number}] {place}" for number, place in enumerate(places, 1)),
        "",
        f"{'':22} {'depth':>5} {'prompt':>6} {'batch':>5} {'trials':>6} {'prefill':>9} {'decode':>9} {'ttft':>8} "
        f"{'token p50':>10} {'p90':>8} {'p95':>8} {'load':>8} {'memory':>7} {'weights':>7}",
        f"{'':22} {'':5} {'tokens':>6} {'':5} {'':6} {'tokens/s':>9} {'tokens/s':>9} {'p50 ms':>8} "
        f"{'ms':>10} {'ms':>8} {'ms':>8} {'ms':>8} {'MB':>7} {'MB':>7}  precision",
    ]
    for each in reports:
        result, token = each.summary, each.summary.tpot_ms
        line = (
            f"[{places.index(_place(each)) + 1}] {_runner(each):18} {each.model.recursions:5} "
            f"{each.config.prompt_tokens:6} {each.config.batch:5} {len(each.trials):6} "
            f"{result.prefill_tokens_per_s:9.1f} {result.decode_tokens_per_s:9.1f} {result.ttft_ms.p50:8.2f} "
            f"{token.p50:10.3f} {token.p90:8.3f} {token.p95:8.3f} {each.load.load_ms:8.1f} "
            f"{_megabytes(_memory(each))} {_megabytes(each.model.weights_bytes)}  {each.model.precision or ''}"
        )
        lines.append(line.rstrip() + _placed(each))
        lines += [f"  not valid: {reason}" for reason in result.invalid_because]
    return "\n".join(lines)


def _place(each: Report) -> str:
    """Where a report was made, and with what."""
    machine, tool = each.device, each.tool
    chip = f" ({machine.chip})" if machine.chip not in (None, "unknown") else ""
    source = f"  on {machine.power_source} power" if machine.power_source not in (None, "unknown") else ""
    built = "" if tool.build == "python" else f" {tool.build}"
    return (
        f"{machine.model}{chip}  {machine.os} {machine.os_version}{source}  {tool.runtime_version or tool.runtime}  "
        f"{tool.name} {tool.version}{built}"
    )


def _places(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(map(_place, reports)))


def _runner(each: Report) -> str:
    """Core ML's compute units, which no other runtime has, or the runtime."""
    return each.tool.runtime if each.config.compute_units == "n/a" else each.config.compute_units


def _memory(each: Report) -> int:
    return each.summary.memory_peak_bytes or max(trial.memory_peak_bytes for trial in each.trials)


def _megabytes(size: int | None) -> str:
    return f"{'':7}" if size is None else f"{size / 1e6:7.1f}"


def _placed(each: Report) -> str:
    """How many operations Core ML plans on each device."""
    if each.tool.runtime != "coreml":
        return ""
    if each.placement is None:
        return "  placement not known"
    counts = each.placement.ane_ops, each.placement.gpu_ops, each.placement.cpu_ops
    return "  ane/gpu/cpu operations " + "/".join("?" if count is None else str(count) for count in counts)


def plot(reports: Sequence[Report], out: Path) -> None:
    """Draw times, speed and memory of each report as a PNG; a whisker ends at the 95th percentile.

    Raises:
        ImportError: there is no matplotlib.
    """
    figures = drawing()
    places, width, (base, row) = _places(reports), INCHES[0], INCHES[1:]
    labels = []
    for each in reports:
        at = f"[{places.index(_place(each)) + 1}] " if len(places) > 1 else ""
        beside = "" if each.config.batch == 1 else f"  batch {each.config.batch}"
        end = "" if each.summary.valid else "  (not valid)"
        labels.append(
            f"{at}{_runner(each)}  depth {each.model.recursions}  prompt {each.config.prompt_tokens}{beside}{end}"
        )
    figure = figures.Figure(figsize=(width, base + row * len(reports)), layout="constrained")
    figure.suptitle(f"{reports[0].model.name}, {reports[0].config.new_tokens} new tokens")
    panels = figure.subplots(1, 4, sharey=True)
    spreads = [
        ("first token, ms", [each.summary.ttft_ms for each in reports]),
        ("token, ms", [each.summary.tpot_ms for each in reports]),
    ]
    for axes, (title, spread) in zip(panels[:2], spreads, strict=True):
        whiskers = [[0] * len(spread), [max(0.0, each.p95 - each.p50) for each in spread]]
        axes.barh(range(len(spread)), [each.p50 for each in spread], xerr=whiskers, capsize=3)
        axes.set_title(title)
    rates = [each.summary.decode_tokens_per_s for each in reports]
    for axes, title, values in (
        (panels[2], "decode, tokens/s", rates),
        (panels[3], "peak memory, MB", [_memory(each) / 1e6 for each in reports]),
    ):
        axes.barh(range(len(values)), values)
        axes.set_title(title)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()  # the first report on top, as in the table
    if len(places) > 1:
        figure.supxlabel("\n".join(f"[{number}] {place}" for number, place in enumerate(places, 1)), fontsize=7)
    figure.savefig(out, format="png", dpi=150)


def drawing() -> Any:
    """matplotlib's figures, without a window.

    Raises:
        ImportError: there is no matplotlib.
    """
    try:
        from matplotlib import figure
    except ImportError:
        raise ImportError('no plot without matplotlib; try: pip install -e ".[plot]"') from None
    return figure
