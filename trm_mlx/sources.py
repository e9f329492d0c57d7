"""Where text comes from: files, folders, globs and data sets of the hub, to documents, one at a time.

A source is a file (.txt or .jsonl, also as .gz or .xz), a folder of them, a glob, or
`hub:NAME?config=C&split=S` for `datasets.load_dataset(NAME, C, split=S)`; config may be left out, and split,
which is then train. A .txt file is one document unless lines of `<|endoftext|>` divide it. A JSON line, or a
row of the hub, has text, or prompt and response, or messages (each with role and content); further fields
are ignored, and so are blank documents.
"""

import glob
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qsl

from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import utf8

SEPARATOR = b"<|endoftext|>"
SUFFIXES = tuple(kind + packing for kind in (".txt", ".jsonl") for packing in ("", ".gz", ".xz"))
FORMS = (("text",), ("prompt", "response"), ("messages",))
SENTENCE_END = re.compile(r"\n\s*\n|[.!?]['\")\]]*\s+")  # or a paragraph's
WORD_END = re.compile(r"\s+")


@dataclass(frozen=True)
class Document:
    """One text or one conversation, and where it came from."""

    text: str  # of a conversation, its messages' contents
    where: str
    messages: tuple[Mapping[str, str], ...] = ()

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its ids, without bos and eos.

        Raises:
            ValueError: the messages do not make a chat.
        """
        if not self.messages:
            return tokenizer.encode(self.text)
        try:
            return tokenizer.chat(self.messages, reply=False)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None

    def cut(self, fraction: float) -> tuple["Document", "Document"]:
        """Head and tail, the tail about `fraction` of the text, parted where a paragraph or sentence ends.

        Raises:
            ValueError: it is a conversation, or one word.
        """
        first, last = len(self.text) - len(self.text.lstrip()), len(self.text.rstrip())
        for pattern in (SENTENCE_END, WORD_END):
            ends = [match.end() for match in pattern.finditer(self.text) if first < match.end() < last]
            if ends and not self.messages:
                goal = len(self.text) * (1 - fraction)
                end = min(ends, key=lambda place: abs(place - goal))
                return Document(self.text[:end], self.where), Document(self.text[end:], self.where)
        raise ValueError(
            f"{self.where} is the only document and cannot be parted, so nothing can be held out;"
            " give more documents, or held-out text of its own"
        )


def find(sources: Sequence[str | Path]) -> list[Path]:
    """The text files of files, folders (with all below them) and globs: sorted, each once.

    Raises:
        FileNotFoundError: a source is missing, or holds no text file.
        ValueError: a file is of another kind.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        if not str(source).strip():
            raise ValueError("a source must name a file, a folder or a glob, got an empty text")
        path = Path(source)
        if path.is_file():
            if not path.name.endswith(SUFFIXES):
                raise ValueError(f"a source must end in {', '.join(SUFFIXES)}, got {path}")
            paths = [path]
        elif path.is_dir():
            paths = [below for below in path.rglob("*") if below.name.endswith(SUFFIXES) and below.is_file()]
        else:
            matches = map(Path, glob.glob(str(source), recursive=True))
            paths = [match for match in matches if match.name.endswith(SUFFIXES) and match.is_file()]
        if not paths:
            raise FileNotFoundError(f"no {', '.join(SUFFIXES)} file at {source}")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def documents(sources: Sequence[str | Path]) -> Iterator[Document]:
    """The documents of the sources, one at a time: of the files in order, then of the hub's data sets.

    Raises:
        FileNotFoundError: a source is missing, or holds no text file.
        ImportError: a hub source needs the package `datasets`.
        ValueError: something in a source cannot be read, or it holds no text; the message says where.
    """
    if not sources:
        raise ValueError("documents need at least one source: a file, a folder, a glob or hub:NAME")
    hub = [str(source) for source in sources if str(source).startswith("hub:")]
    named = [(str(path), _from_file(path)) for path in find([s for s in sources if str(s) not in hub])]
    for name, rows in named + [(name, _from_hub(name)) for name in hub]:
        empty = True
        for document in rows:
            if document.text.strip():
                empty = False
                yield document
        if empty:
            raise ValueError(f"{name} must hold text, got nothing but blanks; remove it or fill it")


def _from_file(path: Path) -> Iterator[Document]:
    kind = Path(path.name.removesuffix(".gz").removesuffix(".xz")).suffix
    passage: list[str] = []
    first = 1
    for number, line in enumerate(_lines(path), 1):
        if kind == ".jsonl":
            if line.strip():
                yield _from_json(line, f"{path}:{number}")
        elif line.strip() == SEPARATOR.decode():
            yield Document("".join(passage).strip("\n"), f"{path}:{first}")
            passage, first = [], number + 1
        else:
            passage.append(line.replace("\r\n", "\n"))
    if kind == ".txt":
        yield Document("".join(passage).strip("\n"), f"{path}:{first}")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, packed or not, with their ends; a byte order mark is dropped."""
    unpack = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    offset = 0
    line = b""
    try:
        with unpack(path, "rb") as file:
            for line in file:
                text = line.decode()
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8, got byte 0x{line[error.start]:02X} at offset {offset + error.start}"
        ) from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole {path.suffix} file, got a damaged one: {error}") from None


def _from_json(line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be one JSON object, got {line.strip()[:40]!r}: {error}") from None
    return _from_record(record, where)


def _from_record(record: object, where: str) -> Document:
    """The document of one JSON line or one row of a data set."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    forms = [form for form in FORMS if all(field in record for field in form)]
    if len(forms) != 1:
        raise ValueError(
            f"{where} must have either text, or prompt and response, or messages; got fields {sorted(record)}"
        )
    for field in forms[0]:
        wanted = list if field == "messages" else str
        if not isinstance(record[field], wanted):
            raise ValueError(f"{where}: {field} must be a {wanted.__name__}, got {record[field]!r:.40}")
    messages: list[dict[str, str]] = record["messages"] if forms[0] == ("messages",) else []
    if forms[0] == ("prompt", "response"):
        messages = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["response"]},
        ]
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"{where}: each message must have a role and a content as text, got {message!r:.60}")
    text = record["text"] if forms[0] == ("text",) else "\n\n".join(message["content"] for message in messages)
    try:
        utf8(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Document(text, where, tuple(messages))


def _from_hub(source: str) -> Iterator[Document]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError:
        raise ImportError(f'{source} needs the package datasets: pip install -e ".[hub]"') from None
    name, _, query = source.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not name or set(options) - {"config", "split"}:
        raise ValueError(f"a hub source must read hub:NAME?config=C&split=S, got {source}")
    split = options.get("split", "train")
    try:
        rows = load_dataset(name, options.get("config"), split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source} must name a data set that can be loaded, got: {reason}") from None
    for number, row in enumerate(rows):
        yield _from_record(row, f"{source} row {number}")
