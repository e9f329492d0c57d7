"""Fixtures: a saved model folder, a disk that fills up, and ways to damage a folder.

PYTEST_DONT_REWRITE: tests import from here before pytest does.
"""

import errno
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trm_mlx import checkpoint, config
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

TINY = ModelConfig(vocabulary=320, width=32, heads=2, kv_heads=1, prelude=1, core=1, coda=0, depth=2, context=32)
TEXTS = [f"{name} walked {n} miles and saw {n * 37} birds." for n in range(60) for name in ("Ann", "Ben", "Eve")]
GRIDS = {  # all kinds, and matrices that are not rounded
    "embedding.weight": Grid(method="affine", bits=8),
    "prelude.0.attention.qkv.weight": Grid(method="affine", bits=6, group=32),
    "core.0.attention.qkv.weight": Grid(method="affine", bits=4, group=16),
    "core.0.feed_forward.up.weight": Grid(method="lut", bits=4, group=48),
    "core.0.feed_forward.down.weight": Grid(method="lut", bits=6),
}
FILES = ("config.json", "tokenizer.model", "model.safetensors")


class Killed(BaseException):
    """What stands for SIGKILL: nothing catches it, and nothing that comes after it reaches the disk."""


class Disk:
    """Counts what changes files, and stops it at one change: for ever as a kill does, or once as a full disk does."""

    CHANGES = ("replace", "fsync", "mkdir", "unlink", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, *, kill: int = 0, full: int = 0, writes: bool = True) -> None:
        self.calls, self.kill, self.full, self.writes, self.open_file = 0, kill, full, writes, io.open
        for name in self.CHANGES:
            patch.setattr(os, name, self.guarded(name, getattr(os, name)))
        patch.setattr(io, "open", self.open)  # what pathlib calls

    def change(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        self.calls += name != "write" or self.writes
        if 0 < self.kill <= self.calls:
            if self.kill == self.calls:
                half()
            raise Killed
        if self.full and self.full <= self.calls and name not in ("unlink", "rmdir"):
            self.full = 0
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name != "mkdir" or not os.path.isdir(arguments[0]):
                self.change(name)
            return function(*arguments, **named)

        return call

    def open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode in ("r", "rb"):
            return self.open_file(path, mode, *arguments, **named)
        self.change("open")
        return DiskFile(self, self.open_file(path, mode, *arguments, **named))


class DiskFile:
    """A file that writes half of what it is given when its disk stops."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self.disk, self.file = disk, file

    def write(self, content: Any) -> int:
        self.disk.change("write", lambda: self.file.write(content[: len(content) // 2]))
        return self.file.write(content)

    def __enter__(self) -> "DiskFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def weights(seed: int, shape: ModelConfig = TINY) -> dict[str, mx.array]:
    """Numbers of every size, none of them as a new model has it."""
    named: Any = tree_flatten(TinyRecursiveLM(shape, seed).parameters())
    keys = mx.random.split(mx.random.key(seed), len(named))
    return {name: mx.random.normal(a.shape, key=key) for (name, a), key in zip(named, keys, strict=True)}


def rounded_weights(seed: int) -> dict[str, mx.array]:
    """The tensors of a quantized model, for `GRIDS`."""
    numbers = weights(seed)
    for name, each in GRIDS.items():
        numbers |= grid.fit(name, np.array(numbers.pop(name)), each)
    return numbers


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model folder with a training state, to be copied and not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    checkpoint.save(folder, TINY, tokenizer, weights(1), mx.float32)
    state = {"weights.a": mx.arange(6.0).reshape(2, 3), "optimizer.step": mx.array(3, mx.uint64)}
    checkpoint.save_training(folder, state, {"step": "3", "best": "inf"})
    return folder


@pytest.fixture
def saved(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def rounded(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """The folder of a quantized model."""
    checkpoint.save(tmp_path / "rounded", TINY, tokenizer, rounded_weights(1), mx.float32, GRIDS)
    return tmp_path / "rounded"


def refusal(call: Callable[[], object], *words: str) -> str:
    """The one line that a call is refused with; it has these words."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    line = config.explain(caught.value)
    assert type(caught.value) in (ValueError, FileNotFoundError)
    assert "\n" not in str(caught.value)
    assert len(line) < 500
    for word in words:
        assert word in line
    return line


def bits(arrays: dict[str, mx.array]) -> dict[str, bytes]:
    return {name: np.array(a.view(mx.uint8)).tobytes() for name, a in arrays.items()}


def loaded(folder: Path, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
    return dict(tree_flatten(checkpoint.load(folder, dtype)[0].parameters()))


def stamped(folder: Path, header: dict[str, Any] | bytes, data: bytes, name: str = "model.safetensors") -> None:
    """Write a safetensors file by hand, its metadata as true as an attacker would make them."""
    if isinstance(header, dict):
        facts = {
            "config": sha256((folder / "config.json").read_bytes()).hexdigest(),
            "tokenizer": sha256((folder / "tokenizer.model").read_bytes()).hexdigest(),
            "sha256": sha256(data).hexdigest(),
        }
        header = json.dumps({"__metadata__": facts, **header}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + data)


def parts(folder: Path, name: str = "model.safetensors") -> tuple[dict[str, Any], bytes]:
    """The tensors that a header tells of, and the data after it."""
    content = (folder / name).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    return header, content[8 + length :]


def flips(content: bytes, step: int) -> Iterator[bytes]:
    for place in range(0, len(content), step):
        mask = (0x01, 0x13, 0x20, 0x80)[place % 4]  # 0x13 makes U of F, 0x20 another case
        yield content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def reconfigured(folder: Path, document: bytes) -> None:
    """Another config.json, which the weights vouch for."""
    (folder / "config.json").write_bytes(document)
    stamped(folder, *parts(folder))


def document(top: dict[str, Any] | None = None, **model: Any) -> bytes:
    shape = config.to_json(TINY) | model
    return json.dumps({"format": "trm_mlx.model", "version": 1, "model": shape} | (top or {})).encode()
