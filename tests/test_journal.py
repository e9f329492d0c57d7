"""metrics.jsonl, the display on and off a terminal, and the plot."""

from __future__ import annotations

import errno
import io
import json
import sys

import pytest

from trm_mlx import journal
from trm_mlx.journal import Journal


class Terminal(io.StringIO):
    """A stream that says it is a terminal, 80 columns wide."""

    def isatty(self) -> bool:
        return True


class Scalar:
    """A scalar array, as MLX and NumPy have."""

    def __init__(self, value: float) -> None:
        self.value = value

    def item(self) -> float:
        return self.value


@pytest.fixture(autouse=True)
def _terminal_type(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def ticking(*seconds: float):
    return iter(seconds).__next__


def fill(path, *steps: int, resume: int | None = None) -> None:
    with Journal(path, total=10, resume=resume, stream=io.StringIO(), clock=lambda: 0.0) as log:
        for step in steps:
            log.write("step", step=step, loss=1 / step)
            log.write("evaluate", step=step, bits_per_byte=2 / step, standard_error=0.1)


def test_report_has_the_same_keys_in_the_file_and_for_people(path):
    stream = io.StringIO()
    with Journal(path, total=1000, stream=stream) as log:
        log.write("step", step=400, loss=1.73249, tokens_per_s=8120.4, memory_mb=412, eta_s=95)
        log.write("evaluate", step=400, bits_per_byte=2.0, standard_error=0.00012345)
    assert stream.getvalue() == (
        "step 400/1000  loss 1.732  tokens_per_s 8120  memory_mb 412  eta_s 95\n"
        "evaluate  step 400/1000  bits_per_byte 2  standard_error 0.0001234\n"
    )
    assert journal.read(path) == [
        {"kind": "step", "step": 400, "loss": 1.73249, "tokens_per_s": 8120.4, "memory_mb": 412, "eta_s": 95},
        {"kind": "evaluate", "step": 400, "bits_per_byte": 2.0, "standard_error": 0.00012345},
    ]


def test_line_is_in_the_file_when_write_returns(path):
    log = Journal(path, total=10, stream=io.StringIO())
    log.write("save", step=3)
    assert path.read_text() == '{"kind": "save", "step": 3}\n'
    log.close()


def test_numbers_that_json_lacks_become_null(path):
    stream = io.StringIO()
    with Journal(path, total=10, stream=stream) as log:
        log.write("evaluate", step=1, a=float("nan"), b=float("inf"), c=[1.5, float("nan")], d=Scalar(0.25))
    assert json.loads(path.read_text()) == {
        "kind": "evaluate",
        "step": 1,
        "a": None,
        "b": None,
        "c": [1.5, None],
        "d": 0.25,
    }
    assert stream.getvalue() == "evaluate  step 1/10  a none  b none  c 1.5,none  d 0.25\n"


@pytest.mark.parametrize(
    ("figure", "text"),
    [(123456.7, "123457"), (0.0015, "0.0015"), (1.5e-7, "1.5e-07"), (0.0, "0"), (12, "12")],
)
def test_figures_are_short(figure, text):
    assert journal.short(figure) == text


def test_time_left_follows_from_the_steps_of_this_run(path):
    with Journal(path, total=100, resume=20, stream=io.StringIO(), clock=ticking(0.0, 50.0)) as log:
        log.write("step", step=30, loss=1.0)
    assert journal.read(path)[0]["eta_s"] == 350


def test_kind_that_is_no_report_goes_to_the_file_alone(path):
    stream = io.StringIO()
    with Journal(path, total=10, stream=stream) as log:
        log.write("start", seed=0)
    assert stream.getvalue() == ""
    assert journal.read(path) == [{"kind": "start", "seed": 0}]


def test_quiet_journal_writes_and_prints_nothing(path, capsys):
    with Journal(path, total=10, quiet=True) as log:
        log.write("step", step=1, loss=1.0)
        log.text("sample", "x")
    assert not path.parent.exists()
    assert capsys.readouterr() == ("", "")


def test_journal_speaks_on_stderr(path, capsys):
    with Journal(path, total=10) as log:
        log.write("save", step=1)
    assert capsys.readouterr() == ("", "save  step 1/10\n")


def test_step_line_is_rewritten_in_place_on_a_terminal(path):
    stream = Terminal()
    with Journal(path, total=10, stream=stream) as log:
        log.write("step", step=5, loss=1.0, eta_s=1)
        log.write("save", step=5)
        log.write("step", step=10, loss=0.5, eta_s=0)
    half, whole = "[#####.....] step 5/10  loss 1  eta_s 1", "[##########] step 10/10  loss 0.5  eta_s 0"
    assert stream.getvalue() == f"\r{half}\x1b[K\r\x1b[Ksave  step 5/10\n{half}\r{whole}\x1b[K\n"


def test_live_line_is_cut_to_the_width_of_the_terminal(path):
    stream = Terminal()
    with Journal(path, total=10, stream=stream) as log:
        log.write("step", step=5, note="x" * 200, eta_s=1)
    assert len(stream.getvalue().strip("\r\n").removesuffix("\x1b[K")) == 79


def test_dumb_terminal_gets_plain_lines(path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Journal(path, total=10, stream=stream) as log:
        log.write("step", step=5, eta_s=1)
    assert stream.getvalue() == "step 5/10  eta_s 1\n"


def test_sample_is_an_indented_block_that_cannot_steer_the_terminal(path):
    stream = io.StringIO()
    with Journal(path, total=10, stream=stream) as log:
        log.text("sample", "Once\x1b[2J\nupon a tïme")
    assert stream.getvalue() == "sample\n  Once\N{REPLACEMENT CHARACTER}[2J\n  upon a tïme\n"


def test_resumed_file_equals_an_unbroken_one(tmp_path):
    broken, unbroken = tmp_path / "broken.jsonl", tmp_path / "unbroken.jsonl"
    fill(unbroken, 1, 2, 3, 4)
    fill(broken, 1, 2, 3)
    fill(broken, 3, 4, resume=2)
    assert broken.read_bytes() == unbroken.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken.jsonl", "unbroken.jsonl"]


def test_torn_last_line_is_dropped(path):
    fill(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "step", "st')
    assert len(journal.read(path)) == 2
    fill(path)
    assert path.read_bytes() == whole


def test_journal_continues_a_file_unless_told_to_resume(path):
    fill(path, 1)
    fill(path, 2)
    assert [each["step"] for each in journal.read(path)] == [1, 1, 2, 2]


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', '{"kind": "step", "step": "1"}', ""])
def test_whole_line_that_is_no_report_is_named(path, line):
    fill(path, 1)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3 must be a report with a kind, got"):
        journal.read(path)


def test_full_disk_names_the_file(path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    log = Journal(path, total=10, stream=io.StringIO())
    log.file.close()
    monkeypatch.setattr(log, "file", Full())
    with pytest.raises(OSError, match=r"metrics\.jsonl") as error:
        log.write("save", step=1)
    assert error.value.errno == errno.ENOSPC


def test_half_written_line_is_a_full_disk(path, monkeypatch):
    class Half(io.BytesIO):
        def write(self, line):
            return super().write(line[:5])

    log = Journal(path, total=10, stream=io.StringIO())
    log.file.close()
    monkeypatch.setattr(log, "file", Half())
    with pytest.raises(OSError, match=r"metrics\.jsonl") as error:
        log.write("save", step=1)
    assert error.value.errno == errno.ENOSPC


def test_smoothed_loss_starts_at_the_first_and_leans_on_the_past():
    assert journal.smooth([2.0, 1.0]) == pytest.approx([2.0, (0.7 * 2 + 1) / 1.7])


@pytest.mark.slow
def test_plot_draws_a_picture(path, tmp_path):
    pytest.importorskip("matplotlib")
    fill(path, 1, 2, 3)
    assert journal.plot(path, tmp_path / "loss.png", "base") == tmp_path / "loss.png"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_names_the_cure(path, tmp_path, monkeypatch, capsys):
    fill(path, 1)
    for name in [*(each for each in sys.modules if each.startswith("matplotlib")), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert journal.plot(path, tmp_path / "loss.png", "base") is None
    assert capsys.readouterr().err == 'no plot without matplotlib; try: pip install -e ".[plot]"\n'


def test_plot_of_no_steps_says_so(path, tmp_path, capsys):
    fill(path)
    assert journal.plot(path, tmp_path / "loss.png", "base") is None
    assert capsys.readouterr().err == f"nothing to plot: {path} holds no step with a loss\n"


def test_a_reader_that_has_gone_does_not_stop_the_file(tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Journal(tmp_path / "metrics.jsonl", total=2, stream=Gone()) as log:
        log.write("step", step=1, loss=1.0)
        log.write("step", step=2, loss=0.5)
    assert [report["step"] for report in journal.read(tmp_path / "metrics.jsonl")] == [1, 2]
