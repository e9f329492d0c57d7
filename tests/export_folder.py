"""Fixtures: export folders of tiny models, each made once a session, with its model folder beside it.

PYTEST_DONT_REWRITE: tests import from here before pytest does.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folder import save_tiny

SMALL = {"heads": 1, "kv_heads": 1, "coda": 0, "context": 24}
SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def save_export(folder: Path, model: Path, **options: Any) -> Path:
    """An export folder; chunk 8."""
    from convert.__main__ import ExportConfig, export

    return export(ExportConfig(**{"model": model, "out": folder, "name": "Tiny", "chunk": 8, **options}))


def save_small(folder: Path, noise: float = 0.1, **options: Any) -> Path:
    """A model folder that can be exported: width 32, one head, depth 2, context 24."""
    return save_tiny(folder, noise, **{**SMALL, **options})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that can be exported."""
    return save_small(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture(scope="session")
def exported(small: Path) -> Path:
    """Its export; nobody changes it."""
    return save_export(small.with_name("export"), small)


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "export"))


@contextmanager
def edited(export: Path) -> Iterator[Any]:
    """The specification of an export's package, which is written back, with new hashes, when it is changed."""
    from coremltools.proto import Model_pb2

    file, spec = export / "Tiny.mlpackage" / SPEC, Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    yield spec
    file.write_bytes(spec.SerializeToString(deterministic=True))
    vouch(export)


def vouch(export: Path, **changes: Any) -> None:
    """Make the manifest agree with the files, as whoever tampers with them would, and change other keys of it."""
    from dataclasses import replace

    from convert import manifest

    told = manifest.read(export)
    told = replace(told, files=tuple(manifest.records(export)))
    record = json.loads(manifest.text(told)) | changes
    (export / manifest.FILE).write_text(json.dumps(record))


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def read(export: Path, ids: list[int], depth: int, cuts: list[int]) -> dict[int, np.ndarray]:
    """(V,) scores by the number of tokens read: the package run by our interpreter, so many tokens at once."""
    from convert import manifest
    from convert.execute import PLAIN, Package
    from convert.session import Session
    from convert.verify import Interpreted

    told = manifest.read(export)
    runner = Interpreted(Package(export / told.package), PLAIN, np.dtype(told.precision).type)
    text, rows = Session(told, runner, depth), {}
    for count in cuts:
        logits = text.append(ids[text.position : text.position + count])
        rows[text.position] = logits
    return rows


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give words to a command in this process: its exit status, stdout and stderr."""

    def ask(main: Callable[..., None], *words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return ask
