"""Text to ids and back without losing a byte: SentencePiece pieces, control tokens, the chat template.

`decode(encode(text)) == text` for any text. Control tokens cannot be typed: only their ids put them in.

V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path

from trm_mlx.vocabulary import SPACE, learn, open_model, passages, utf8

LARGEST_FILE = 16 * 2**20  # bytes; 8,192 pieces take 0.13 MiB


class Tokenizer:
    """A trained SentencePiece BPE model that loses nothing.

    Args:
        model: the bytes of a SentencePiece model file.
        name: what to call it in an error.

    Raises:
        ValueError: the bytes are not a model trained with this file's options.
    """

    unknown, bos, eos, pad, user, assistant, end = range(7)

    def __init__(self, model: bytes, name: str = "tokenizer model"):
        self.bytes = model
        self._processor = open_model(model, name)
        self.vocabulary: int = self._processor.vocab_size()

    @classmethod
    def train(cls, documents: Iterable[str], vocabulary: int) -> "Tokenizer":
        """A tokenizer learnt from documents; the same text gives the same bytes, whatever its order.

        Past 64 million characters it learns from the passages with the lowest hashes, so memory is bounded.

        Raises:
            ValueError: vocabulary is not a multiple of 32 from 320 up, or does not suit so little text.
        """
        return cls(learn(documents, vocabulary))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is too large, damaged, or of another kind.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} must be at most {LARGEST_FILE} bytes, got {path.stat().st_size}")
        return cls(path.read_bytes(), str(path))

    def encode(self, text: str) -> list[int]:
        """The ids of text, without bos or eos.

        Raises:
            ValueError: text holds a lone surrogate, which no UTF-8 can write.
        """
        utf8(text)
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE)):
            if number:
                ids += self._space_bytes
            for passage in passages(part, 1 << 16):  # SentencePiece takes some 40 bytes a character
                ids += self._processor.encode(passage)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control ids give nothing, each byte that is not UTF-8 gives U+FFFD.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        ids = [index(i) for i in ids]
        for i in ids:
            self._check(i)
        return self._processor.decode(ids) if ids else ""

    def stream(self) -> "DecodeStream":
        """A decoder that takes one id at a time."""
        return DecodeStream(self)

    def chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool) -> list[int]:
        """The ids of a conversation, without bos or eos: each turn is its role's id, its text, the end id.

        Args:
            messages: each with role and content; user and assistant take turns, user first. A system message
                may stand before them: its text opens the first user turn, with a blank line after it.
            reply: end with the assistant id, for the model to go on; the last message must be the user's.

        Raises:
            ValueError: the roles are out of order or unknown, or a content is not text.
        """
        ids: list[int] = []
        for role, content in _turns(messages):
            ids += [self.user if role == "user" else self.assistant, *self.encode(content), self.end]
        if reply and messages[-1]["role"] != "user":
            raise ValueError(f"a reply must follow a user message, got {messages[-1]['role']!r} last")
        return [*ids, self.assistant] if reply else ids

    @cached_property
    def byte_lengths(self) -> tuple[int, ...]:
        """(V,) UTF-8 bytes of text each id stands for; over `encode(text)` they add up to those of text."""
        lengths = [len(piece.encode()) if isinstance(piece, str) else 1 for piece in self.pieces]
        return (0, *lengths[1:])  # unknown is never encoded

    @cached_property
    def pieces(self) -> tuple[str | bytes, ...]:
        """(V,) what each id decodes to: text, or one byte."""
        processor, ids = self._processor, list(range(self.vocabulary))
        pieces: list[str | bytes] = [piece.replace(SPACE, " ") for piece in processor.id_to_piece(ids)]
        for i in ids:
            if processor.is_byte(i):
                pieces[i] = bytes([int(processor.id_to_piece(i)[3:-1], 16)])
            elif processor.is_control(i) or processor.is_unknown(i):
                pieces[i] = processor.decode([i])
        return tuple(pieces)

    @cached_property
    def _space_bytes(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def _check(self, i: int) -> None:
        if not 0 <= i < self.vocabulary:
            raise ValueError(f"ids must be from 0 to {self.vocabulary - 1}, got {i}")


class DecodeStream:
    """Text as it becomes certain: what `push` and `finish` gave, joined, is `decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pieces = tokenizer.pieces
        self._waiting = b""  # at most 3 bytes that may yet become one character

    def push(self, i: int) -> str:
        """The text this id made certain; never half a character."""
        self._tokenizer._check(i)
        piece = self._pieces[i]
        if isinstance(piece, str):  # SentencePiece ends a run of bytes at any other id, control ids included
            return self.finish() + piece
        self._waiting += piece
        return self._take(last=False)

    def finish(self) -> str:
        """The text of the bytes still waiting; the stream is then as new."""
        return self._take(last=True)

    def _take(self, last: bool) -> str:
        text = ""
        while waiting := self._waiting:
            size = _character_size(waiting[0])
            if len(waiting) < size and not last and all(byte >> 6 == 0b10 for byte in waiting[1:]):
                break
            try:
                text += waiting[:size].decode()
            except UnicodeDecodeError:
                text, size = text + "\ufffd", 1
            self._waiting = waiting[size:]
        return text


def _character_size(first: int) -> int:
    """Bytes of the UTF-8 character that begins with this byte; 1 if none does."""
    if 0xC2 <= first <= 0xDF:
        return 2
    if 0xE0 <= first <= 0xEF:
        return 3
    return 4 if 0xF0 <= first <= 0xF4 else 1


def _turns(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """(role, content) of each turn, the system message already put in front of the first user turn."""
    turns: list[tuple[str, str]] = []
    system = ""
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"message {number} must have a text as content, got {content!r}")
        if role == "system" and number == 0:
            system = content + "\n\n"
            continue
        expected = ("user", "assistant")[len(turns) % 2]
        if role != expected:
            raise ValueError(
                f"message {number} must be from {expected!r} (user and assistant take turns, a system message"
                f" may only come first), got role {role!r}"
            )
        turns.append((expected, content if turns else system + content))
    if not turns:
        raise ValueError(f"a chat must have a user message, got {len(messages)} messages and none from the user")
    return turns
