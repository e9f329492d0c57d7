"""Documents to a folder of token files: streamed, split by a hash, written whole or not at all.

A corpus folder holds train.bin and held_out.bin (uint16, little endian; each document is bos, ids, eos),
tokenizer.model, and corpus.json with their counts and hashes, written last.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from trm_mlx.sources import Document, documents
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import BOS, EOS

FORMAT = {"format": "trm_mlx.corpus", "version": 1}
REPORT_SECONDS = 2.0
Writer = TypeVar("Writer", bound="_WholeFile")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What one token file holds."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0  # of text, as UTF-8
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A folder of token files, as its corpus.json describes it."""

    folder: Path
    vocabulary: int
    tokenizer_sha256: str
    sources: tuple[str, ...]
    seed: int
    train: Split
    held_out: Split

    @property
    def train_path(self) -> Path:
        return self.folder / "train.bin"

    @property
    def held_out_path(self) -> Path:
        return self.folder / "held_out.bin"

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.model"

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> "Corpus":
        """The corpus in a folder; `verify` reads every byte to compare the hashes, without it only sizes are.

        Raises:
            FileNotFoundError: the folder has no corpus.json (a broken prepare leaves none) or a file is gone.
            ValueError: corpus.json is not ours, or a file is not the one it describes.
        """
        folder = Path(folder)
        path = folder / "corpus.json"
        if not path.is_file():
            raise FileNotFoundError(f"no corpus at {folder}: it has no corpus.json; start a new run")
        try:
            record = json.loads(path.read_text("utf-8"))
            if {key: record.pop(key) for key in FORMAT} != FORMAT:
                raise ValueError("another format or version")
            train, held_out = Split(**record.pop("train")), Split(**record.pop("held_out"))
            sources = tuple(record.pop("sources"))
            corpus = cls(folder=folder, sources=sources, train=train, held_out=held_out, **record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} must be a description of version {FORMAT['version']}, got: {error!r}") from None
        for file, size, digest in (
            (corpus.train_path, 2 * corpus.train.tokens, corpus.train.sha256),
            (corpus.held_out_path, 2 * corpus.held_out.tokens, corpus.held_out.sha256),
            (corpus.tokenizer_path, None, corpus.tokenizer_sha256),
        ):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing from the corpus; start a new run")
            if size is not None and file.stat().st_size != size:
                raise ValueError(f"{file} must be {size} bytes, got {file.stat().st_size}; start a new run")
            if verify and _sha256(file) != digest:
                raise ValueError(f"{file} must have the sha256 {digest}, got {_sha256(file)}; start a new run")
        return corpus

    def json(self) -> bytes:
        """What corpus.json says."""
        record = FORMAT | {key: value for key, value in asdict(self).items() if key != "folder"}
        return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare(
    sources: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    held_out: float = 0.01,
    held_out_sources: Sequence[str | Path] = (),
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Corpus:
    """The corpus of the sources, written to a folder; an older one there is replaced only by a whole new one.

    Whether a document is held out depends on (seed, its text) alone, so order does not matter and copies stay
    together. If that leaves a split empty, the document nearest to the border changes sides; a lone document
    is parted.

    Args:
        sources: what `documents` reads.
        tokenizer: gives the ids; at most 65,536 of them.
        folder: made if missing.
        held_out: share of the documents kept for evaluation; 0 for none.
        held_out_sources: hold out these documents instead of a share.
        seed: chooses the documents held out.
        report: called with documents and tokens so far, every two seconds.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `documents` does.
        ValueError: held_out is not a share, or the vocabulary does not fit uint16.
    """
    if tokenizer.vocabulary > 1 << 16:
        raise ValueError(f"a token file holds ids below 65,536, got a vocabulary of {tokenizer.vocabulary}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be at least 0 and below 1, got {held_out}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    border = 0 if held_out_sources else int(held_out * 2**64)
    with (
        _TokenFile(folder / "train.bin", tokenizer) as train,
        _TokenFile(folder / "held_out.bin", tokenizer) as aside,
    ):
        lowest, highest = _fill(train, aside, documents(sources), seed, border, report)
        if held_out_sources:
            _fill(train, aside, documents(held_out_sources), seed, 1 << 64, report)
        elif held_out and not (train.documents and aside.documents):
            border = lowest + 1 if train.documents else highest
            train.restart()
            aside.restart()
            if lowest < highest:
                _fill(train, aside, documents(sources), seed, border, report)
            else:
                for document in documents(sources):  # one document, or copies of one
                    head, tail = document.cut(held_out)
                    train.add(head)
                    aside.add(tail)
        (folder / "corpus.json").unlink(missing_ok=True)
        corpus = Corpus(
            folder=folder,
            vocabulary=tokenizer.vocabulary,
            tokenizer_sha256=sha256(tokenizer.bytes).hexdigest(),
            sources=tuple(str(s) if str(s).startswith("hub:") else Path(s).name or str(s) for s in sources),
            seed=seed,
            train=train.split(),
            held_out=aside.split(),
        )
        train.keep()
        aside.keep()
    for path, content in ((corpus.tokenizer_path, tokenizer.bytes), (folder / "corpus.json", corpus.json())):
        with _WholeFile(path) as file:
            file.write(content)
            file.keep()
    return corpus


def _fill(
    train: "_TokenFile",
    aside: "_TokenFile",
    found: Iterator[Document],
    seed: int,
    border: int,
    report: Callable[[int, int], None] | None,
) -> tuple[int, int]:
    """Add each document to `aside` if its hash is below the border, else to `train`; lowest, highest hash."""
    lowest, highest = 1 << 64, -1
    due = time.monotonic() + REPORT_SECONDS
    for document in found:
        digest = blake2b(document.text.encode(), digest_size=8, key=str(seed).encode()).digest()
        place = int.from_bytes(digest, "big")
        lowest, highest = min(lowest, place), max(highest, place)
        (aside if place < border else train).add(document)
        if report and time.monotonic() >= due:
            report(train.documents + aside.documents, train.tokens + aside.tokens)
            due = time.monotonic() + REPORT_SECONDS
    return lowest, highest


class _WholeFile:
    """A file written beside its place: `keep` puts it there whole, leaving without `keep` removes it."""

    def __init__(self, path: Path):
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.file = self.partial.open("wb")
        self.digest = sha256()

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, *problem: object) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)

    def keep(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)


class _TokenFile(_WholeFile):
    """A token file being written, with its counts."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        super().__init__(path)
        self.tokenizer = tokenizer
        self.lengths = np.array(tokenizer.byte_lengths)
        self.tokens = self.documents = self.bytes = 0

    def add(self, document: Document) -> None:
        ids = np.array([BOS, *document.ids(self.tokenizer), EOS], dtype="<u2")
        self.write(ids.tobytes())
        self.tokens += len(ids)
        self.documents += 1
        self.bytes += int(self.lengths[ids].sum())

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = sha256()
        self.tokens = self.documents = self.bytes = 0

    def split(self) -> Split:
        return Split(tokens=self.tokens, documents=self.documents, bytes=self.bytes, sha256=self.digest.hexdigest())
