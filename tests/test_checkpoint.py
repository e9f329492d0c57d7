import errno
import io
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trm_mlx import checkpoint, config
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

TINY = ModelConfig(vocabulary=320, width=32, heads=2, kv_heads=1, prelude=1, core=1, coda=0, depth=2, context=32)
TEXTS = [f"{name} walked {n} miles and saw {n * 37} birds." for n in range(60) for name in ("Ann", "Ben", "Eve")]
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
def folder(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


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


# Saved and loaded


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_saved_weights_are_loaded_bit_for_bit(tmp_path, tokenizer, dtype):
    numbers = weights(1)
    checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, dtype)
    stored = {name: array.astype(dtype) for name, array in numbers.items()}
    assert bits(loaded(tmp_path / "model", dtype)) == bits(stored)
    in_float32 = {name: array.astype(mx.float32) for name, array in stored.items()}
    assert bits(loaded(tmp_path / "model", mx.float32)) == bits(in_float32)
    assert checkpoint.load_config(tmp_path / "model") == TINY
    assert checkpoint.load(tmp_path / "model")[1].bytes == tokenizer.bytes


def test_numbers_that_are_no_common_ones_survive(tmp_path, tokenizer):
    numbers = weights(1)
    numbers["final_norm.weight"] = mx.array([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3e38] * 5 + [1e-40, 7.0])
    checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, mx.float32)
    assert bits(loaded(tmp_path / "model", mx.float32)) == bits(numbers)


def test_a_model_saved_twice_gives_the_same_bytes_and_no_other_files(tmp_path, tokenizer):
    numbers = weights(1)
    checkpoint.save(tmp_path / "a", TINY, tokenizer, numbers, mx.float16)
    checkpoint.save(tmp_path / "b", TINY, tokenizer, dict(reversed(numbers.items())), mx.float16)
    checkpoint.save(tmp_path / "b", TINY, tokenizer, numbers, mx.float16)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["a", "b", *FILES, *FILES])


def test_other_programs_read_the_weights(folder):
    foreign = mx.load(str(folder / "model.safetensors"))
    assert isinstance(foreign, dict)
    assert bits(foreign) == bits(weights(1))


def test_saving_again_replaces_the_weights_alone(folder, tokenizer):
    before = {name: (folder / name).stat().st_mtime_ns for name in (*FILES, "training.safetensors")}
    checkpoint.save(folder, TINY, tokenizer, weights(2), mx.float32)
    assert bits(loaded(folder)) == bits(weights(2))
    for name in ("config.json", "tokenizer.model", "training.safetensors"):
        assert (folder / name).stat().st_mtime_ns == before[name]


def test_training_state_comes_back_with_its_facts(folder):
    arrays, facts = checkpoint.load_training(folder)
    assert arrays["weights.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["optimizer.step"].dtype == mx.uint64
    assert arrays["optimizer.step"].item() == 3
    assert (facts["step"], facts["best"]) == ("3", "inf")


def test_a_folder_of_another_model_is_not_overwritten(folder, tokenizer):
    other = replace(TINY, depth=3)
    before = {name: (folder / name).read_bytes() for name in FILES}
    refusal(lambda: checkpoint.save(folder, other, tokenizer, weights(1, other), mx.float32), "another model")
    assert {name: (folder / name).read_bytes() for name in FILES} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path, tokenizer):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    refusal(lambda: checkpoint.save(tmp_path / "model", TINY, tokenizer, weights(1), mx.float32), "other files")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_an_empty_folder_becomes_the_model_folder(tmp_path, tokenizer):
    (tmp_path / "model").mkdir()
    checkpoint.save(tmp_path / "model", TINY, tokenizer, weights(1), mx.float32)
    assert bits(loaded(tmp_path / "model")) == bits(weights(1))


# Kills and full disks


def test_a_save_killed_at_any_moment_leaves_a_whole_folder_or_none(tmp_path, tokenizer):
    folder, numbers = tmp_path / "model", weights(1)
    seen = set()
    for kill in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, kill=kill)
            try:
                checkpoint.save(folder, TINY, tokenizer, numbers, mx.float32)
                break
            except Killed:
                pass
        seen.add(folder.exists())
        if folder.exists():
            assert bits(loaded(folder)) == bits(numbers)
            shutil.rmtree(folder)
    assert kill > 20
    assert seen == {False}  # the folder's rename is the last change
    assert bits(loaded(folder)) == bits(numbers)  # although all those kills left files beside it


def test_new_weights_killed_at_any_moment_leave_the_old_ones_or_themselves(folder, tokenizer):
    old, new = bits(weights(1)), bits(weights(2))
    seen = []
    for kill in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, kill=kill)
            try:
                checkpoint.save(folder, TINY, tokenizer, weights(2), mx.float32)
                break
            except Killed:
                pass
        found = bits(loaded(folder))
        assert found in (old, new)
        seen.append(found == new)
    assert seen == sorted(seen)
    assert {False, True} == set(seen)
    assert bits(loaded(folder)) == new


def test_a_full_disk_leaves_the_old_files_and_nothing_else(folder, tokenizer):
    old, new = bits(weights(1)), bits(weights(2))
    names = sorted(path.name for path in folder.iterdir())
    for full in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, full=full)
            try:
                checkpoint.save(folder, TINY, tokenizer, weights(2), mx.float32)
            except OSError as error:
                assert config.explain(error) == (
                    f"disk full while writing {folder / 'model.safetensors'}; free some space and run again"
                )
        if disk.full:
            break
        assert bits(loaded(folder)) in (old, new)
        assert sorted(path.name for path in folder.iterdir()) == names
    assert full > 10
    assert bits(loaded(folder)) == new


def test_a_full_disk_leaves_no_part_of_a_new_folder(tmp_path, tokenizer):
    numbers = weights(1)
    for full in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, full=full)
            try:
                checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, mx.float32)
            except OSError as error:
                assert "disk full while writing" in config.explain(error)
        if disk.full:
            break
        assert list(tmp_path.iterdir()) == []
    assert full > 20
    assert bits(loaded(tmp_path / "model")) == bits(numbers)


# Damaged folders


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refusal(lambda: checkpoint.load(folder), f"no {name} in {folder}")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refusal(lambda: checkpoint.load(folder), f"no {name} in {folder}")


def test_a_folder_that_is_none_is_named(tmp_path, folder):
    refusal(lambda: checkpoint.load(tmp_path / "nowhere"), "no model folder at", "nowhere")
    refusal(lambda: checkpoint.load(folder / "config.json"), "no model folder at", "config.json")


def test_a_missing_training_state_is_named(folder):
    (folder / "training.safetensors").unlink()
    refusal(lambda: checkpoint.load_training(folder), "no training.safetensors in")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_too_long_is_refused(folder, name):
    content = (folder / name).read_bytes()
    around = {0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content), max(1, len(content) // 97))}
    if name.endswith("safetensors"):
        around |= {8 + struct.unpack("<Q", content[:8])[0] + more for more in (-1, 0, 1)}
    for length in sorted(around):
        (folder / name).write_bytes(content[:length])
        refusal(lambda: checkpoint.load(folder), name)
    for more in (b"\0", b" ", content):
        (folder / name).write_bytes(content + more)
        refusal(lambda: checkpoint.load(folder), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_changed_byte_is_refused(folder, name):
    content = (folder / name).read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0] if name.endswith("safetensors") else 0
    step = 1 if name == "config.json" else 17
    heads = (changed + content[start:] for changed in flips(content[:start], 3))
    tails = (content[:start] + changed for changed in flips(content[start:], max(step, len(content) // 101)))
    for changed in (*heads, *tails):
        (folder / name).write_bytes(changed)
        refusal(lambda: checkpoint.load(folder), name)


def test_a_changed_byte_of_a_training_state_is_refused_or_seen_in_its_names(folder):
    content, name = (folder / "training.safetensors").read_bytes(), "training.safetensors"
    arrays, facts = checkpoint.load_training(folder)
    for changed in flips(content, 1):
        (folder / name).write_bytes(changed)
        try:
            found, said = checkpoint.load_training(folder)
        except (ValueError, FileNotFoundError) as error:
            assert type(error) is ValueError
            assert name in str(error)
            assert "\n" not in str(error)
            continue
        assert said == facts
        kinds = {key: (array.shape, array.dtype) for key, array in arrays.items()}
        assert {key: (array.shape, array.dtype) for key, array in found.items()} != kinds


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_models_are_not_mixed(folder, tmp_path, name):
    other = replace(TINY, rope_base=500.0)
    checkpoint.save(tmp_path / "other", other, Tokenizer.train(TEXTS[::2], 320), weights(2), mx.float32)
    shutil.copy(tmp_path / "other" / name, folder / name)
    refusal(lambda: checkpoint.load(folder), "model.safetensors", "restore both from one model")


def test_weights_of_another_shape_are_counted_before_they_are_read(folder, tmp_path, tokenizer):
    other = replace(TINY, width=64)
    checkpoint.save(tmp_path / "other", other, tokenizer, weights(2, other), mx.float32)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    wanted, got = TINY.stored_parameters(), other.stored_parameters()
    refusal(lambda: checkpoint.load(folder), "model.safetensors", f"{wanted} numbers", f"got {got}")


def test_the_training_state_of_another_model_is_refused(folder, tmp_path, tokenizer):
    other = replace(TINY, rope_base=500.0)
    checkpoint.save(tmp_path / "other", other, tokenizer, weights(2), mx.float32)
    shutil.copy(folder / "training.safetensors", tmp_path / "other")
    refusal(lambda: checkpoint.load_training(tmp_path / "other"), "training.safetensors", "another model")


def test_a_tokenizer_of_another_size_is_refused(folder):
    (folder / "tokenizer.model").write_bytes(
        Tokenizer.train([*TEXTS, "A far longer tale of cats, dogs, kings and queens."], 352).bytes
    )
    stamped(folder, *parts(folder))
    refusal(lambda: checkpoint.load(folder), "must have 320 tokens, got 352")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"text", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 64])
def test_a_tokenizer_that_is_none_is_refused_even_if_the_weights_vouch_for_it(folder, content):
    (folder / "tokenizer.model").write_bytes(content)
    stamped(folder, *parts(folder))
    refusal(lambda: checkpoint.load(folder), "tokenizer.model")


# Hostile weights


def tensors(**change: Any) -> Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]:
    """What changes one entry of a header, and leaves the data."""

    def apply(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        header["final_norm.weight"] |= change
        return header, data

    return apply


def more(name: str, data: bytes = b"", **entry: Any) -> Callable[[dict[str, Any], bytes], Any]:
    """What adds an entry, and data after all others."""

    def apply(header: dict[str, Any], old: bytes) -> tuple[dict[str, Any], bytes]:
        offsets = {"data_offsets": [len(old), len(old) + len(data)]}
        return {**header, name: {"dtype": "F32", "shape": [len(data) // 4], **offsets, **entry}}, old + data

    return apply


def renamed(old: str, new: str) -> Callable[[dict[str, Any], bytes], Any]:
    return lambda header, data: ({new if name == old else name: header[name] for name in header}, data)


FORGED = {
    "overlapping tensors": lambda h, d: (h | {"final_norm.weight": h["embedding.weight"]}, d),
    "a gap": lambda h, d: ({name: h[name] for name in list(h)[1:]}, d),
    "negative shape": tensors(shape=[-32]),
    "two negative sides": tensors(shape=[-4, -8]),
    "negative offset": tensors(data_offsets=[-128, 0]),
    "offsets that run backwards": tensors(data_offsets=[128, 0]),
    "offsets past the end": tensors(data_offsets=[10**12, 10**12 + 128]),
    "one offset": tensors(data_offsets=[0]),
    "three offsets": tensors(data_offsets=[0, 128, 256]),
    "offsets of text": tensors(data_offsets="ab"),
    "no offsets": tensors(data_offsets=None),
    "shape of text": tensors(shape="32"),
    "shape of fractions": tensors(shape=[32.0]),
    "shape of truth": tensors(shape=[True, 32]),
    "shape of nothing": tensors(shape=None),
    "shape of nine sides": tensors(shape=[1] * 8 + [32]),
    "another shape": tensors(shape=[4, 8]),
    "a side that 32 bits do not hold": tensors(shape=[2**32 + 32]),
    "a side of 3,000 digits": tensors(shape=[10**3000]),
    "bytes of whole numbers": tensors(dtype="U32"),
    "longer numbers": tensors(dtype="F64"),
    "unknown numbers": tensors(dtype="F33"),
    "numbers of no type": tensors(dtype=None),
    "numbers of a list": tensors(dtype=["F32"]),
    "halves that are too few": tensors(dtype="F16"),
    "an entry that is a number": lambda h, d: (h | {"final_norm.weight": 7}, d),
    "an entry that is a list": lambda h, d: (h | {"final_norm.weight": []}, d),
    "a name that climbs": renamed("final_norm.weight", "../../x"),
    "an absolute name": renamed("final_norm.weight", "/etc/passwd"),
    "an empty name": renamed("final_norm.weight", ""),
    "a name with a NUL": renamed("final_norm.weight", "final_norm.weight\0"),
    "a name with a lone surrogate": renamed("final_norm.weight", "\ud800"),
    "a name with a new line": renamed("final_norm.weight", "final\nnorm"),
    "an unknown tensor": more("spare.weight", b"\0" * 128),
    "an empty tensor": more("spare.weight"),
    "an empty tensor of endless sides": more("spare.weight", shape=[0, 2**62, 2**62]),
    "a tensor less": lambda h, d: ({n: e for n, e in h.items() if e["data_offsets"][1] != len(d)}, d),
    "no tensor": lambda h, d: ({}, b""),
    "data left over": lambda h, d: (h, d + b"\0" * 8),
    "data missing": lambda h, d: (h, d[:-4]),
    "nesting": lambda h, d: (h | {"x": json.loads("[" * 400 + "]" * 400)}, d),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_forged_weights_are_refused(folder, forge):
    stamped(folder, *forge(*parts(folder)))
    refusal(lambda: checkpoint.load(folder), "model.safetensors")


def test_the_forger_by_hand_makes_a_file_that_loads(folder):
    stamped(folder, *parts(folder))
    assert bits(loaded(folder)) == bits(weights(1))


def raw_headers() -> dict[str, Callable[[bytes], bytes]]:
    """Headers that JSON readers disagree on, or that are no header, from a right one."""
    nested = b'{"a":' * 100_000
    return {
        "a tensor twice": lambda h: h[:-1] + b', "final_norm.weight": ' + h[h.rindex(b'{"dtype') :],
        "metadata twice": lambda h: h[:-1] + b', "__metadata__": {}}',
        "UTF-16": lambda h: h.decode().encode("utf-16"),
        "UTF-32": lambda h: h.decode().encode("utf-32"),
        "not a number in metadata": lambda h: h.replace(b'{"config"', b'{"x": NaN, "config"', 1),
        "a number in metadata": lambda h: h.replace(b'{"config"', b'{"x": 1, "config"', 1),
        "a list in metadata": lambda h: h.replace(b'{"config"', b'{"x": [1], "config"', 1),
        "a surrogate in metadata": lambda h: h.replace(b'{"config"', b'{"x": "\\ud800", "config"', 1),
        "broken UTF-8": lambda h: h.replace(b'{"config"', b'{"x": "\xff", "config"', 1),
        "a surrogate's bytes": lambda h: h.replace(b'{"config"', b'{"x": "\xed\xa0\x80", "config"', 1),
        "metadata of text": lambda h: b'{"__metadata__": "x"}',
        "metadata of a list": lambda h: b'{"__metadata__": []}',
        "no metadata": lambda h: b"{}",
        "a list": lambda h: b"[]",
        "null": lambda h: b"null",
        "nothing": lambda h: b"",
        "blanks": lambda h: b" " * 64,
        "half": lambda h: h[: len(h) // 2],
        "deep nesting": lambda h: nested,
        "deep lists": lambda h: b"[" * 1_000_000,
        "a number of 100,000 digits": lambda h: b'{"__metadata__": ' + b"9" * 100_000 + b"}",
        "5 MiB": lambda h: h + b" " * (5 << 20),
    }


@pytest.mark.parametrize("change", raw_headers().values(), ids=raw_headers())
def test_a_header_that_is_not_plain_json_is_refused(folder, change):
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    stamped(folder, change(content[8 : 8 + length].rstrip()), content[8 + length :])
    began = time.perf_counter()
    refusal(lambda: checkpoint.load(folder), "model.safetensors")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**62, 2**32, 1 << 22, 10**6, 0])
def test_a_header_length_that_lies_is_refused_without_reading_so_much(folder, length):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    refusal(lambda: checkpoint.load(folder), "model.safetensors must be a safetensors file")


def test_weights_of_other_programs_are_refused(folder):
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), weights(1))
    refusal(lambda: checkpoint.load(folder), "model.safetensors must be a safetensors file saved by trm_mlx")
    mx.save_safetensors(str(path), weights(1), {"format": "mlx"})
    refusal(lambda: checkpoint.load(folder), "model.safetensors is damaged")
    mx.savez(str(folder / "weights.npz"), **weights(1))
    (folder / "weights.npz").replace(path)
    refusal(lambda: checkpoint.load(folder), "model.safetensors must be a safetensors file")
    path.write_text("weights")
    refusal(lambda: checkpoint.load(folder), "model.safetensors must be a safetensors file", "got 7 bytes")


# Hostile config


def reconfigured(folder: Path, document: bytes) -> None:
    """Another config.json, which the weights vouch for."""
    (folder / "config.json").write_bytes(document)
    stamped(folder, *parts(folder))


def document(top: dict[str, Any] | None = None, **model: Any) -> bytes:
    shape = config.to_json(TINY) | model
    return json.dumps({"format": "trm_mlx.model", "version": 1, "model": shape} | (top or {})).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (document({"version": 2}), "version 2, this program reads 1; upgrade"),
        (document({"version": "1"}), "version '1'"),
        (document({"version": None}), "version None"),
        (document({"format": "other"}), 'must have "format": "trm_mlx.model"'),
        (document({"extra": 1}), "unknown key 'extra'"),
        (document({"model": []}), "must be a table"),
        (document({"model": None}), "must be a table"),
        (document(layers=3), "unknown key 'layers'"),
        (document(heads_=3), "did you mean heads?"),
        (document(width="32"), "width must be a whole number, got '32'"),
        (document(width=32.0), "width must be a whole number, got 32.0"),
        (document(width=True), "width must be a whole number, got True"),
        (document(width=0), "width must be 1 to 1048576, got 0"),
        (document(width=-32), "width must be 1 to 1048576, got -32"),
        (document(dropout=float("nan")), "dropout"),
        (document(rope_base=float("inf")), "rope_base"),
        (document(position="polar"), "position must be one of"),
        (b"", "config.json"),
        (b"[]", 'must have "format"'),
        (b"null", 'must have "format"'),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (document().decode().encode("utf-16"), "config.json is not valid JSON"),
        (b'{"a":' * 50_000, "config.json is not valid JSON"),
        (b"[" * 500_000, "config.json is not valid JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "config.json is not valid JSON"),
        (b" " * (1 << 20) + document(), "config.json must be at most"),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_a_config_that_is_not_understood_is_refused(folder, content, words):
    reconfigured(folder, content)
    refusal(lambda: checkpoint.load(folder), "config.json", words)


ENORMOUS = [
    *({name: 10**9} for name in ("prelude", "core", "coda", "depth", "pass_lora", "vocabulary")),
    *({name: 2**62} for name in ("vocabulary", "width", "context", "window", "depth", "prelude", "kv_heads")),
    *({"pass_scale": False, "depth": 2**62}, {"width": 2**31, "heads": 2**30, "kv_heads": 2**30}),
    *({"width": 10**4000}, {"position": "learned", "context": 2**30}, {"coda": 10**3000}),
]


@pytest.mark.parametrize("change", ENORMOUS, ids=lambda change: repr(change)[:40])
def test_enormous_numbers_are_refused_at_once_and_nothing_is_allocated(folder, change):
    reconfigured(folder, document(**change))
    mx.clear_cache()
    mx.reset_peak_memory()
    began, before = time.perf_counter(), mx.get_active_memory()
    refusal(lambda: checkpoint.load(folder), "config.json")
    assert time.perf_counter() - began < 5
    assert mx.get_peak_memory() - before < 10_000_000


def test_many_blocks_in_one_tensor_are_refused_before_they_are_made(folder):
    block: dict[str, Any] = {
        "width": 1,
        "heads": 1,
        "kv_heads": 1,
        "position": "none",
        "qk_norm": False,
        "prelude": 300_000,
    }
    shape = replace(TINY, **block)
    (folder / "config.json").write_bytes(document(**block))
    size = 2 * shape.stored_parameters()
    stamped(folder, {"x": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}, bytes(size))
    began = time.perf_counter()
    refusal(lambda: checkpoint.load(folder), "model.safetensors", "300001 blocks, got 1 tensors")
    assert time.perf_counter() - began < 5
