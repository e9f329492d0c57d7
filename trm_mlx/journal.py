"""What a run reports: metrics.jsonl, the progress display, and a plot of both.

One report is one JSON line, {"kind": "step", "step": 400, "loss": 1.732}, and for people one line with
the same keys, units in the key: `step 400/1000  loss 1.732  tokens_per_s 8120  memory_mb 412  eta_s 95`.
On a terminal the step line is rewritten in place; elsewhere every report is a line of its own.

    with Journal(run / "metrics.jsonl", total=1_000, quiet=rank != 0) as journal:
        journal.write("step", step=400, loss=1.732)
        journal.write("evaluate", step=400, bits_per_byte=2.31, standard_error=0.02)
        journal.text("sample", "Once upon a time")
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from trm_mlx import files

REPORTS = ("step", "evaluate", "sample", "save", "done")  # other kinds go to the file alone
BAR = 10  # cells of the live bar
SMOOTH = 0.7  # of the plotted loss: the share that stays of what came before


class Journal:
    """Writes a run's reports to a file and to people.

    Args:
        path: metrics.jsonl; its folder is made. Lines already there are kept, a torn last one is not.
        total: the last step, for the bar and for `eta_s`.
        resume: the step that the run goes on from; the file is cut before its first line past that step.
        quiet: write and print nothing, as every rank but 0 does.
        stream: where people read; stderr if None.
        clock: seconds, for `eta_s`.

    Raises:
        ValueError: the file holds a whole line that is not a report.
    """

    def __init__(
        self,
        path: Path,
        *,
        total: int,
        resume: int | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.total, self.quiet, self.clock = path, total, quiet, clock
        self.stream = stream or sys.stderr
        self.live = ""  # the step line that now stands on the terminal
        self.first, self.start = resume or 0, clock()
        if quiet:
            return
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            cut(path, math.inf if resume is None else resume)
        self.file = path.open("ab", buffering=0)  # unbuffered: each line is in the file when write returns

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last step line standing, and close the file."""
        if not self.quiet:
            self.show("\n" if self.live else "")
            self.live = ""
            self.file.close()

    def write(self, kind: str, **figures: Any) -> None:
        """Add one report; a `step` without `eta_s` is given one.

        Args:
            figures: numbers, text, lists of them, scalar arrays; a number that is not finite becomes null.

        Raises:
            OSError: the line could not be written; names the file.
        """
        if self.quiet:
            return
        if kind == "step" and figures["step"] > self.first:
            figures.setdefault("eta_s", round(self.eta(figures["step"])))
        figures = {name: plain(figure) for name, figure in figures.items()}
        line = json.dumps({"kind": kind, **figures}, allow_nan=False).encode() + b"\n"
        try:
            written = self.file.write(line)
        except OSError as error:
            error.filename = str(self.path)  # a failed write does not name its file
            raise
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if kind == "step":
            self.step(phrase(kind, figures, self.total), figures["step"])
        elif kind in REPORTS:
            self.say(phrase(kind, figures, self.total))

    def text(self, title: str, body: str) -> None:
        """Print a block of text, such as a sample, without the control characters it may hold."""
        if not self.quiet:
            safe = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in body)
            self.say("\n".join([title, *(f"  {line}" for line in safe.splitlines())]))

    def eta(self, step: int) -> float:
        """Seconds to the last step, at the mean speed since this journal began."""
        return (self.total - step) * (self.clock() - self.start) / (step - self.first)

    def step(self, line: str, step: int) -> None:
        """Print the step line: in place of the last one on a terminal, else below it."""
        if self.terminal:
            done = min(BAR, BAR * step // max(1, self.total))
            self.live = f"[{'#' * done}{'.' * (BAR - done)}] {line}"[: columns(self.stream) - 1]
            self.show(f"\r{self.live}\x1b[K")
        else:
            self.say(line)

    def say(self, text: str) -> None:
        """Print lines that stay, above the live one."""
        self.show(f"\r\x1b[K{text}\n{self.live}" if self.live else f"{text}\n")

    def show(self, text: str) -> None:
        """Write to the reader; when that one has gone, the file alone goes on."""
        with suppress(BrokenPipeError):
            self.stream.write(text)
            self.stream.flush()


def plain(figure: Any) -> Any:
    """The JSON value of a figure: Python's scalars and lists from any array's, null for NaN and infinity."""
    if isinstance(figure, float):
        return figure if math.isfinite(figure) else None
    if isinstance(figure, list | tuple):
        return [plain(each) for each in figure]
    if hasattr(figure, "item"):
        return plain(figure.item())
    return str(figure) if isinstance(figure, Path) else figure


def phrase(kind: str, figures: dict[str, Any], total: int) -> str:
    """One report for people: `evaluate  step 400/1000  bits_per_byte 2.31`."""
    words = [f"{name} {short(figure)}" for name, figure in figures.items() if name != "step"]
    if "step" in figures:
        words.insert(0, f"step {figures['step']}/{total}")
    return "  ".join(words if kind == "step" else [kind, *words])


def short(figure: Any) -> str:
    """A figure in four significant digits, never with an exponent for a large one."""
    if isinstance(figure, list):
        return ",".join(short(each) for each in figure)
    if isinstance(figure, float):
        return f"{figure:.0f}" if abs(figure) >= 1000 else f"{figure:.4g}"
    return "none" if figure is None else str(figure)


def columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def read(path: Path) -> list[dict[str, Any]]:
    """The reports in a metrics.jsonl, without a last line that a killed run left torn.

    Raises:
        ValueError: a whole line is not a report; names the file and the line.
    """
    reports = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            report = json.loads(line)
        except ValueError:
            report = None
        if not isinstance(report, dict) or type(report.get("step", 0)) is not int or "kind" not in report:
            raise ValueError(f"{path}, line {number} must be a report with a kind, got {line[:40]!r}; delete it")
        reports.append(report)
    return reports


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def cut(path: Path, step: float) -> None:
    """Drop a torn last line, and the first report past `step` with all that follow it."""
    past = (index for index, report in enumerate(read(path)) if report.get("step", 0) > step)
    kept = b"".join(whole_lines(path)[: next(past, None)])
    if len(kept) == path.stat().st_size:
        return
    files.replace(path, kept)


def plot(path: Path, out: Path, title: str) -> Path | None:
    """Draw loss and held-out bits per byte over the steps of a metrics.jsonl.

    Returns:
        The PNG written; None, after one line on stderr, if there is no loss to draw or no matplotlib.
    """
    reports = read(path)
    trained = [each for each in reports if each["kind"] == "step" and each.get("loss") is not None]
    held_out = [each for each in reports if each["kind"] == "evaluate" and each.get("bits_per_byte") is not None]
    if not trained:
        print(f"nothing to plot: {path} holds no step with a loss", file=sys.stderr)
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print('no plot without matplotlib; try: pip install -e ".[plot]"', file=sys.stderr)
        return None

    steps, raw = [each["step"] for each in trained], [each["loss"] for each in trained]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no window, and a notebook's own backend is left as it is
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    axes.plot(steps, raw, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(steps, smooth(raw), color="tab:blue", label="loss, smoothed")
    if held_out:
        right = axes.twinx()
        right.set_ylabel("held-out bits per byte")
        right.errorbar(
            [each["step"] for each in held_out],
            [each["bits_per_byte"] for each in held_out],
            [each.get("standard_error") or 0 for each in held_out],
            color="tab:orange",
            marker="o",
            label="held-out bits per byte",
        )
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(out, dpi=150)
    return out


def smooth(values: list[float]) -> list[float]:
    """The running mean of values, each older one counting SMOOTH of the next."""
    means, weighted, weight = [], 0.0, 0.0
    for value in values:
        weighted, weight = SMOOTH * weighted + value, SMOOTH * weight + 1
        means.append(weighted / weight)
    return means
