"""Vectors of the tokenizer for Swift: `python tests/golden/make_tokenizer.py`. Run it again when a tokenizer changes.

`tokenizer.json` has texts, bytes and chats with their ids, `tokenizer_decode.json` ids with the text they stream.
They are made with three kinds of tokenizer: those that ship in `trm_mlx/pretrained`; `tokenizer_small.model`, learnt
from many scripts when it is missing; and `tokenizer_ties.model`, the same pieces with scores that tie and without
some of the characters that pieces are made of. All is drawn from one seed: the same bytes every time.
"""

import hashlib
import json
import os
import struct
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece
from make_sampler import splitmix64
from make_tokenizer_texts import BLOCKS, EMOJI, LOOKALIKES, MALFORMED, ODD, PHRASES, SEPARATORS

from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import CONTROL, SPACE

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SMALL, TIES = HERE / "tokenizer_small.model", HERE / "tokenizer_ties.model"
ENCODE, DECODE = HERE / "tokenizer.json", HERE / "tokenizer_decode.json"
BOOK = ROOT / "docs/alice.txt"
RESERVED = ("unknown", "bos", "eos", "pad", "user", "assistant", "end")

ENCODE_DESCRIPTION = [
    "Tokenizer vectors, format trm.tokenizer/1, written by make_tokenizer.py from trm_mlx and sentencepiece.",
    "tokenizers: files relative to this one, the SHA-256 of each, and its reserved ids. Cases name one by its place.",
    "texts: encoding the text gives ids, and decoding those gives the text. bytes: hexadecimal, not always UTF-8.",
    "files: count ids, whose SHA-256 as little-endian int32 is here. chats: ids, or what is wrong as refused.",
]
DECODE_DESCRIPTION = [
    "Tokenizer vectors, format trm.tokenizer-decode/1, by make_tokenizer.py; tokenizers as in tokenizer.json.",
    "cases: pushing each id gives the delta at its place, finishing the last; joined they are the decoded text.",
]


class Draw:
    """Random numbers that are the same on every machine."""

    def __init__(self, seed: int):
        self.seed, self.step = seed, 0

    def below(self, limit: int) -> int:
        self.step += 1
        return splitmix64(self.seed, self.step - 1) % limit

    def one(self, choices: Sequence):
        return choices[self.below(len(choices))]

    def some(self, most: int, make: Callable[[], str]) -> str:
        return "".join(make() for _ in range(1 + self.below(most)))


def words() -> list[str]:
    """Words of every script, with their accents both composed and decomposed."""
    forms = [unicodedata.normalize(form, " ".join(PHRASES)) for form in ("NFC", "NFD")]
    return list(dict.fromkeys(word for text in forms for word in text.split(" ")))


def learn() -> bytes:
    """A tokenizer of many scripts, which has pieces that differ only in how an accent is written."""
    draw, known, book = Draw(1), words(), BOOK.read_text(encoding="utf-8")
    documents = [draw.some(60, lambda: draw.one(known) + draw.one([" ", " ", " ", ", ", "\r\n"])) for _ in range(300)]
    documents += [draw.some(12, lambda: draw.one(EMOJI)) for _ in range(60)]
    documents += [book[start : start + 500] for start in range(0, 60_000, 500)]
    return Tokenizer.train(documents, 1536).bytes


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protocol buffer message: numbers as varints, floats in four bytes."""
    parts = []
    for number, value in fields:
        if isinstance(value, bytes):
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
        elif isinstance(value, float):
            parts.append(varint(number << 3 | 5) + struct.pack("<f", value))
        else:
            parts.append(varint(number << 3) + varint(value))
    return b"".join(parts)


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def tied(small: bytes) -> bytes:
    """The pieces of another model in other order: few different scores, a third of the characters left out."""
    draw, processor = Draw(2), sentencepiece.SentencePieceProcessor(model_proto=small)
    pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    kinds = {"<unk>": 2} | dict.fromkeys(("<s>", "</s>", "<pad>", *CONTROL), 3)
    rows = [(1, message((1, piece.encode()), (2, 0.0), (3, kinds.get(piece, 6)))) for piece in pieces[:263]]
    more = ["aa", "aaa", "aaaa", "aaaaaaa", "\n\n\n", "\u200d\u200d", "e\u0301\u0301"]
    more += [SPACE * 2, SPACE * 5, SPACE * 3 + "a"]
    learnt = list(dict.fromkeys(more + [piece for piece in pieces[263:] if len(piece) > 1 or draw.below(3)]))
    for piece in learnt[: (len(learnt) + 263) // 32 * 32 - 263]:
        rows.append((1, message((1, piece.encode()), (2, -float(draw.below(7))))))
    spec = message((3, 2), (35, 1), (40, 0), (41, 1), (42, 2), (43, 3), (44, b"<?\xe2\x96\x81>"))
    return message(*rows, (2, spec), (3, message((3, 0), (4, 0), (5, 1))))


def tokenizers() -> list[Path]:
    return [SMALL, TIES, *sorted(ROOT.glob("trm_mlx/pretrained/*/tokenizer.model"))]


def random_text(draw: Draw, known: list[str], book: str) -> str:
    """A text of one of eight sorts."""
    start = draw.below(len(book))
    blocks = [draw.one(BLOCKS) for _ in range(1 + draw.below(3))]

    def scalar() -> str:
        first, last = draw.one(blocks)
        return chr(first + draw.below(last + 1 - first))

    sorts: list[Callable[[], str]] = [
        lambda: book[start : start + 10 + draw.below(70)],
        lambda: draw.some(5, lambda: draw.one(known) + draw.one(SEPARATORS)),
        lambda: draw.some(12, scalar),
        lambda: draw.some(6, lambda: scalar() + scalar() + draw.one(SEPARATORS)),
        lambda: draw.some(6, lambda: draw.one(EMOJI)),
        lambda: draw.some(4, lambda: draw.one(LOOKALIKES) + draw.one(["", " ", SPACE, "\n"])),
        lambda: draw.some(3, lambda: draw.one("a e1.\n\r\t\0" + SPACE) * (1 + draw.below(20))),
        lambda: unicodedata.normalize(draw.one(["NFC", "NFD"]), draw.some(4, lambda: draw.one(known) + " ")),
    ]
    return draw.one(sorts)()


def random_bytes(draw: Draw, text: str) -> bytes:
    """The bytes of a text after a few accidents."""
    data = bytearray(text.encode())
    for _ in range(1 + draw.below(3)):
        place = draw.below(len(data) + 1)
        size = draw.below(3)
        data[place : place + size] = draw.one([b"", draw.one(MALFORMED), bytes([draw.below(256)])])
    return bytes(data)


def ids_of_bytes(processor: sentencepiece.SentencePieceProcessor, data: bytes) -> list[int]:
    """As `Tokenizer.encode` parts a text, for bytes that may be no text."""
    space = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
    ids: list[int] = []
    for number, part in enumerate(data.split(SPACE.encode())):
        ids += (space if number else []) + (processor.encode(part) if part else [])
    return ids


def chats(tokenizer: Tokenizer, draw: Draw, known: list[str], book: str) -> list[dict]:
    turns = ["u", "uau", "su", "sua", "suau", "uaua", "", "s", "a", "uu", "us", "ssu", "sa", "ua", "uas"]
    names, rows = {"u": "user", "a": "assistant", "s": "system"}, []
    for roles in turns:
        for reply in (True, False):
            texts = [random_text(draw, known, book)[:40] for _ in roles]
            messages = [{"role": names[role], "content": text} for role, text in zip(roles, texts, strict=True)]
            row: dict = {"messages": messages, "reply": reply}
            try:
                row["ids"] = tokenizer.chat(messages, reply=reply)
            except ValueError as error:
                reasons = {"must be from": "roleOutOfTurn", "must have a user": "noUserMessage"}
                found = [reason for said, reason in reasons.items() if said in str(error)]
                row["refused"] = found[0] if found else "replyWithoutQuestion"
            rows.append(row)
    return rows


def described() -> list[dict]:
    rows = []
    for path in tokenizers():
        model = path.read_bytes()
        tokenizer = Tokenizer(model, path.name)
        reserved = {name: getattr(tokenizer, name) for name in RESERVED}
        file = Path(os.path.relpath(path, HERE)).as_posix()
        rows.append(
            {
                "file": file,
                "sha256": hashlib.sha256(model).hexdigest(),
                "vocabulary": tokenizer.vocabulary,
                **reserved,
            }
        )
    return rows


def encode_document() -> str:
    """The whole text of `tokenizer.json`."""
    draw, known, book = Draw(3), words(), BOOK.read_text(encoding="utf-8")
    rows: dict[str, list[dict]] = {"tokenizers": described(), "texts": [], "bytes": [], "files": [], "chats": []}
    loaded = [Tokenizer.load(path) for path in tokenizers()]
    for place, tokenizer in enumerate(loaded):
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.bytes)
        random = [random_text(draw, known, book) for _ in range(1500 // len(loaded))]
        for text in [*ODD, *PHRASES, *random]:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            rows["texts"].append({"tokenizer": place, "text": text, "ids": ids})
        broken = [random_bytes(draw, random_text(draw, known, book)[:40]) for _ in range(600 // len(loaded))]
        for data in [*MALFORMED, *broken]:
            rows["bytes"].append({"tokenizer": place, "bytes": data.hex(), "ids": ids_of_bytes(processor, data)})
        ids = tokenizer.encode(book)
        digest = hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()
        file = Path(os.path.relpath(BOOK, HERE)).as_posix()
        rows["files"].append({"tokenizer": place, "file": file, "count": len(ids), "sha256": digest})
        rows["chats"] += [{"tokenizer": place, **row} for row in chats(tokenizer, draw, known, book)]
    return written("trm.tokenizer/1", ENCODE_DESCRIPTION, rows)


def decode_document() -> str:
    """The whole text of `tokenizer_decode.json`."""
    draw, known, book = Draw(4), words(), BOOK.read_text(encoding="utf-8")
    rows: dict[str, list[dict]] = {"tokenizers": described(), "cases": []}
    loaded = [Tokenizer.load(path) for path in tokenizers()]
    for number in range(2400):
        place = number % len(loaded)
        tokenizer = loaded[place]
        data = random_bytes(draw, random_text(draw, known, book)[:20])
        start = draw.below(len(data) + 1)
        run = [7 + byte for byte in data[start : start + 8]]
        ids = [draw.one([draw.below(tokenizer.vocabulary), 7 + draw.below(256)]) for _ in range(draw.below(10))]
        ids = draw.one([ids, [*ids[:3], *run, *ids[3:]], [*run, draw.below(7), *run]])
        stream = tokenizer.stream()
        deltas = [*map(stream.push, ids), stream.finish()]
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.bytes)
        assert "".join(deltas) == (processor.decode(ids) if ids else "")
        rows["cases"].append({"tokenizer": place, "ids": ids, "deltas": deltas})
    return written("trm.tokenizer-decode/1", DECODE_DESCRIPTION, rows)


def written(form: str, description: list[str], lines: dict[str, list[dict]]) -> str:
    """A file of vectors as text, one a line, in ASCII, so that no editor changes a character."""
    parts = [f'"format": {json.dumps(form)}', f'"description": {json.dumps(description, indent=1)}']
    for key, rows in lines.items():
        parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    if not SMALL.exists():
        SMALL.write_bytes(learn())
    TIES.write_bytes(tied(SMALL.read_bytes()))
    ENCODE.write_bytes(encode_document().encode())
    DECODE.write_bytes(decode_document().encode())
