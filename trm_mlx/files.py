"""Replaces a file whole or not at all."""

import os
from pathlib import Path


def replace(path: Path, *parts: bytes | memoryview) -> None:
    """Make these bytes the content of a file; after a crash it holds the old content or the new, never half.

    Raises:
        OSError: it could not be written, and holds what it held; names the file.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        entry = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(entry)  # the rename itself
        finally:
            os.close(entry)
    except OSError as error:
        error.filename = str(path)  # a failed write does not name its file
        raise
    finally:
        beside.unlink(missing_ok=True)
