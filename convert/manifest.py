"""What an export folder says of itself: `manifest.json`, read as strictly as it is written.

The app reads the same file; docs/export.md explains every key.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from trm_mlx import config
from trm_mlx.tokenizer import Tokenizer

FILE, TOKENIZER, GOLDEN = "manifest.json", "tokenizer.model", "golden.json"
FORMAT, VERSION = "trm.export", 1
LARGEST = 1 << 20  # of a size; with the next one, what keeps a reader's products in 64 bits
CACHE = 1 << 31  # numbers
COUNTED = 1 << 40  # parameters, or bytes of a file

StateKind = Literal["model", "host"]
Compression = Literal["none", "int8", "int4", "lut8", "lut6", "lut4"]
Precision = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class FunctionPair:
    """The two functions of one depth."""

    depth: Annotated[int, "passes through the core"]
    decode: Annotated[str, "function that reads one token"]
    prefill: Annotated[str, "function that reads a chunk"]
    slots: Annotated[int, "slots of the cache that this depth uses, the first ones"]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of the control tokens."""

    unknown: int = Tokenizer.unknown
    bos: int = Tokenizer.bos
    eos: int = Tokenizer.eos
    pad: int = Tokenizer.pad
    user: int = Tokenizer.user
    assistant: int = Tokenizer.assistant
    end: int = Tokenizer.end


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What an app's controls start from."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"sampling must be what generate takes, got {self}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"sampling must have a repetition_penalty above 0, got {self.repetition_penalty}")


@dataclass(frozen=True, kw_only=True)
class SelfTestStep:
    """One token read, and the five likeliest next ones by the reference, likeliest first."""

    id: int
    top: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What the app asks a loaded package: its likeliest token must be among the reference's five at each step."""

    depth: int
    steps: tuple[SelfTestStep, ...]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of the folder."""

    path: Annotated[str, "relative to the folder, with /"]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that an app has to know before it loads the package."""

    format: Literal["trm.export"] = FORMAT
    version: Literal[1] = VERSION
    name: Annotated[str, "of the package and of the class that Xcode makes"]
    package: Annotated[str, "file name of the package"]
    revision: Annotated[str, "hash of the config, tokenizer and tensors that it was made from"]
    stored_parameters: int
    effective_parameters: Annotated[int, "at the deepest exported depth"]
    weights: Annotated[str, "how the matrices are stored, for people"]
    compress: Annotated[Compression, "what coremltools rounded at export, which MLX did not"]
    precision: Precision
    state: Annotated[StateKind, "who owns the cache: a state of the package, or the app"]
    vocabulary: int
    context: int
    window: Annotated[int, "positions a token looks back on; 0: all"]
    chunk: Annotated[int, "tokens that prefill reads"]
    slots: Annotated[int, "S of the cache's shape (2 S, kv_heads, context, head_width)"]
    kv_heads: int
    head_width: int
    functions: Annotated[tuple[FunctionPair, ...], "by depth, ascending; the last one is the default"]
    tokens: Tokens
    sampling: Sampling
    self_test: SelfTest
    files: Annotated[tuple[FileRecord, ...], "every other file of the folder, by path"]

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_functions()
        self._check_ids()
        self._check_files()

    def _check_sizes(self) -> None:
        for name in ("vocabulary", "context", "chunk", "slots", "kv_heads", "head_width"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must be from 1 to {LARGEST}, got {getattr(self, name)}")
        if not 0 <= self.window <= LARGEST:
            raise ValueError(f"window must be from 0 to {LARGEST}, got {self.window}")
        if math.prod(self.cache_shape) > CACHE:
            raise ValueError(f"the cache must hold at most {CACHE} numbers, got {math.prod(self.cache_shape)}")
        for name in ("stored_parameters", "effective_parameters"):
            if not 1 <= getattr(self, name) <= COUNTED:
                raise ValueError(f"{name} must be from 1 to {COUNTED}, got {getattr(self, name)}")
        if not 1 < self.chunk < self.context:
            raise ValueError(f"chunk must be above 1 and below the context of {self.context}, got {self.chunk}")

    def _check_functions(self) -> None:
        depths = [pair.depth for pair in self.functions]
        if not depths or depths != sorted({*depths}) or not 1 <= depths[0] <= depths[-1] <= LARGEST:
            raise ValueError(f"functions must have ascending depths from 1, got {depths}")
        names = [name for pair in self.functions for name in (pair.decode, pair.prefill)]
        if len({*names}) != len(names) or not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in names):
            raise ValueError(f"functions must have a name each, letters, digits and _, got {names}")
        slots = [pair.slots for pair in self.functions]
        if slots != sorted({*slots}) or slots[0] < 1 or slots[-1] != self.slots:
            raise ValueError(f"functions must use more slots the deeper, and at last {self.slots}, got {slots}")

    def _check_ids(self) -> None:
        ids = list(vars(self.tokens).values())
        if len({*ids}) != len(ids) or not all(0 <= each < self.vocabulary for each in ids):
            raise ValueError(f"tokens must be different ids below {self.vocabulary}, got {ids}")
        if self.self_test.depth not in [pair.depth for pair in self.functions]:
            raise ValueError(f"self_test must be of an exported depth, got {self.self_test.depth}")
        if len(self.self_test.steps) > self.context:
            raise ValueError(f"self_test must fit in the context, got {len(self.self_test.steps)} steps")
        for step in self.self_test.steps:
            if not step.top or len({*step.top}) != len(step.top):
                raise ValueError(f"self_test must name different likeliest ids, got {list(step.top)}")
            if not all(0 <= each < self.vocabulary for each in (step.id, *step.top)):
                raise ValueError(f"self_test must have ids below {self.vocabulary}, got {step}")

    def _check_files(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,63}", self.name):
            raise ValueError(f"name must be letters and digits, a letter first, got {self.name!r}")
        if self.package != f"{self.name}.mlpackage":
            raise ValueError(
                f"package must be the name of an .mlpackage, {self.name}.mlpackage, got {self.package!r}"
            )
        for record in self.files:
            parts = record.path.split("/")
            plain = re.fullmatch(
                r"[ -\[\]-~]+", record.path
            )  # ASCII, no backslash: readers spell the rest in many ways
            if not plain or any(part in ("", ".", "..") for part in parts) or parts == [FILE]:
                raise ValueError(f"files must have paths inside the folder, got {record.path!r}")
            if not 0 <= record.bytes <= COUNTED or not re.fullmatch(r"[0-9a-f]{64}", record.sha256):
                raise ValueError(f"files must have a size and a sha256, got {record}")
        paths = [record.path.lower() for record in self.files]  # one file, on a disk that does not tell case
        if len({*paths}) != len(paths):
            raise ValueError("files must have a path each, whatever its case")

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """(2 S, N, C, K)."""
        return 2 * self.slots, self.kv_heads, self.context, self.head_width

    def pair(self, depth: int | None = None) -> FunctionPair:
        """The functions of a depth; None: the deepest.

        Raises:
            ValueError: that depth was not exported.
        """
        if depth is None:
            return self.functions[-1]
        for pair in self.functions:
            if pair.depth == depth:
                return pair
        raise ValueError(f"depth must be one of {[pair.depth for pair in self.functions]}, got {depth}")


def read(folder: Path) -> Manifest:
    """The manifest of an export folder.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not one that this version writes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no export folder at {folder}; make one with: python -m convert --out {folder}")
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE} in {folder}; an export folder is what python -m convert writes")
    record = config.load(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f'{path} must have "format": "{FORMAT}"; it is no export of trm_mlx')
    if record.get("version") != VERSION:
        raise ValueError(f"{path} has version {record.get('version')!r}, this program reads {VERSION}")
    return config.from_json(Manifest, record, str(path))


def is_export(folder: Path) -> bool:
    """Whether a folder says of itself that it is an export, of whatever version."""
    if not (folder / FILE).is_file():
        return False
    with contextlib.suppress(ValueError):
        record = config.load(folder / FILE)
        return isinstance(record, dict) and record.get("format") == FORMAT
    return False


def records(folder: Path) -> Iterator[FileRecord]:
    """Every file of an export folder but the manifest, by path.

    Raises:
        ValueError: one is a link or no plain file.
    """
    found = [Path(place) / name for place, folders, names in os.walk(folder) for name in (*folders, *names)]
    for path in sorted(found, key=lambda path: path.relative_to(folder).as_posix()):
        inside = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path} must be a plain file")
        if inside != FILE and path.name != ".DS_Store":  # which the Finder leaves
            yield FileRecord(path=inside, bytes=path.stat().st_size, sha256=_digest(path))


def changed(folder: Path, manifest: Manifest) -> list[str]:
    """The paths that are missing, added or not as they were written."""
    told = {record.path: record for record in manifest.files}
    found = {record.path: record for record in records(folder)}
    return sorted(path for path in told.keys() | found.keys() if told.get(path) != found.get(path))


def _digest(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def folder_first(words: Sequence[str]) -> list[str]:
    """The words of a command, with the --export that people leave out before the folder."""
    return ["--export", *words] if words and not words[0].startswith("-") else list(words)


def text(manifest: Manifest) -> bytes:
    """The manifest as its file holds it."""
    return (json.dumps(config.to_json(manifest), indent=1, ensure_ascii=False) + "\n").encode()
