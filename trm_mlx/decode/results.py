"""A file of results that a kill can interrupt: a JSON object a line, in order; a file beside it says what made them.

A line counts once its end is there; what a kill tore is cut off when the work goes on. NAME.state holds what the
results depend on, so that lines of two kinds never come to stand in one file.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from trm_mlx import files

FORMAT = {"format": "trm_mlx.results/1"}
LARGEST_STATE = 1 << 20  # bytes


class Results:
    """The results of some work, gone on with where they end.

    Args:
        path: the file, made if there is none.
        made: what the results depend on, by name.
        ids: of all results there will be, in order.

    Raises:
        ValueError: what is there is of other work.
        RuntimeError: another process is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, made: Mapping[str, Any], ids: Sequence[str | int]) -> None:
        self.path, self.count = path, 0
        self.state = path.with_name(path.name + ".state")
        if path.exists():
            self._check({**FORMAT, **made})
        else:
            files.replace(self.state, (json.dumps({**FORMAT, **made}, indent=1) + "\n").encode())
        self.file: BinaryIO = path.open("r+b" if path.exists() else "x+b", buffering=0)
        try:
            self._lock()
            self.end = self._read(ids)
            self.file.truncate(self.end)
            self.file.seek(self.end)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.file.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the next result; it is with the system when this returns.

        Raises:
            OSError: it could not be written, and the file holds what it held; names the file.
        """
        line = memoryview(encoded(record))
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.end)
            error.filename = str(self.path)
            raise
        self.end, self.count = self.file.tell(), self.count + 1

    def _check(self, made: Mapping[str, Any]) -> None:
        """Refuse a file that is of other work."""
        remedy = f"give another --output, or remove {self.path}"
        if not self.path.is_file():
            raise ValueError(f"--output must name a file, got {self.path}; - is standard output")
        try:
            with self.state.open("rb") as file:
                there = json.loads(file.read(LARGEST_STATE))
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is there already, and no {self.state.name} tells of what; {remedy}"
            ) from None
        except (ValueError, RecursionError):
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"{self.state} must tell what {self.path.name} depends on, and is damaged; {remedy}")
        for name in {**made, **there}:
            if there.get(name) != made.get(name):
                was, now = (json.dumps(each.get(name))[:60] for each in (there, made))
                raise ValueError(f"{self.path} was begun with another {name}, {was} and not {now}; {remedy}")

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is writing {self.path}; wait for it, or stop it") from None

    def _read(self, ids: Sequence[str | int]) -> int:
        """Count the whole lines; gives where they end."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                known = isinstance(record, dict) and self.count < len(ids) and record.get("id") == ids[self.count]
                if not known:
                    raise ValueError(
                        f"{self.path}:{self.count + 1} must be the result of that prompt, got {line[:40]!r}; "
                        f"give another --output, or remove {self.path}"
                    )
                self.count, end = self.count + 1, end + len(line)
        return end


def encoded(record: Mapping[str, Any]) -> bytes:
    """A record as a line."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
