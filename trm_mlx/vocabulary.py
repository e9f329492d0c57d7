"""A vocabulary learnt from text by SentencePiece BPE, and the check that a model file is one of ours.

The options keep every character: identity normalisation, bytes for what is rare, no space added or removed.

Ids: 0 unknown, 1 bos, 2 eos, 3 pad, 4 <|user|>, 5 <|assistant|>, 6 <|end|>, 7 to 262 the bytes, then text.
"""

import heapq
import io
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

UNKNOWN, BOS, EOS, PAD = range(4)
CONTROL = ("<|user|>", "<|assistant|>", "<|end|>")
SMALLEST = 320  # 7 control ids and 256 bytes leave 57 pieces; 288 would leave 25, less than an alphabet
SAMPLE = 64_000_000  # characters a vocabulary is learnt from; 45 million take 6 s on one core
SPACE = "\u2581"  # how SentencePiece writes a space
COVERAGES = (
    0.9999,
    0.98,
)  # 0.9995 loses Q, V, X and Z in stories; 0.98, the least allowed, suits wide alphabets
GAP = re.compile("(?<=[^ ]) ")
# The fields of trainer_spec that give the ids of unk, bos, eos and pad, and what a missing one means.
RESERVED = {40: 0, 41: 1, 42: 2, 43: -1}


def learn(documents: Iterable[str], vocabulary: int) -> bytes:
    """A SentencePiece model; the same documents give the same bytes, whatever their order.

    Past 64 million characters it learns from the passages with the lowest hashes, so memory is bounded.

    Raises:
        ValueError: vocabulary is not a multiple of 32 from 320 up, or does not suit so little text.
    """
    if vocabulary < SMALLEST or vocabulary % 32:
        raise ValueError(
            f"vocabulary must be a multiple of 32 and at least {SMALLEST}, since 263 ids are reserved"
            f" (7 control, 256 bytes), got {vocabulary}; try {max(SMALLEST, vocabulary // 32 * 32)}"
        )
    chosen = _sample(documents)
    if not chosen:
        raise ValueError("a vocabulary must be learnt from text, got no document with a character in it")
    return _train(chosen, vocabulary)


def utf8(text: str) -> bytes:
    """The bytes of text, or a ValueError that says which lone surrogate keeps it from having any."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be valid Unicode, got the lone surrogate U+{ord(text[error.start]):04X}"
            f" at character {error.start}"
        ) from None


def passages(text: str, size: int) -> Iterator[str]:
    """Text cut before a space, after `size` characters or more; no piece spans such a place, so ids stay."""
    start = 0
    while start < len(text):
        gap = GAP.search(text, start + size)
        stop = gap.start() if gap else len(text)
        yield text[start:stop]
        start = stop


def _sample(documents: Iterable[str]) -> list[str]:
    """Passages in the order of their hashes: all of them, or the lowest `SAMPLE` characters."""
    kept: list[tuple[int, str]] = []  # a heap with the highest hash on top
    size = 0
    for document in documents:
        for passage in passages(document, 4096):
            for start in range(0, len(passage), 16_384):  # SentencePiece stops at words of 65,536 characters
                part = passage[start : start + 16_384]
                digest = blake2b(utf8(part), digest_size=8).digest()
                heapq.heappush(kept, (-int.from_bytes(digest, "big"), part))
                size += len(part)
                while size > SAMPLE:
                    size -= len(heapq.heappop(kept)[1])
    return [part for _, part in sorted(kept, reverse=True)]


def _train(chosen: list[str], vocabulary: int) -> bytes:
    import sentencepiece

    for coverage in COVERAGES:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(chosen),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocabulary,
                character_coverage=coverage,
                normalization_rule_name="identity",
                byte_fallback=True,
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                required_chars=SPACE,  # a text without a space is no reason to lose those of others
                control_symbols=list(CONTROL),
                unk_id=UNKNOWN,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=PAD,
                max_sentence_length=1_048_576,  # bytes; longer ones are dropped unsaid, ours are shorter
                num_threads=1,  # more threads give other bytes
                minloglevel=2,
            )
            return model.getvalue()
        except RuntimeError as error:
            message = str(error)
        if "smaller than required_chars" not in message:
            break
    if most := re.search(r"set it to a value <= (\d+)", message):
        fits = int(most[1]) // 32 * 32
        remedy = f"ask for {fits} or give more text" if fits >= SMALLEST else "give more text"
        raise ValueError(f"vocabulary must be at most {most[1]} for so little text, got {vocabulary}; {remedy}")
    if least := re.search(r"\d+ vs (\d+)", message):
        needed = -(-int(least[1]) // 32) * 32
        raise ValueError(f"vocabulary must be at least {needed} for so many characters, got {vocabulary}")
    raise ValueError(f"SentencePiece could not learn from this text: {message}")


def open_model(model: bytes, name: str) -> "SentencePieceProcessor":
    """The processor of a model.

    Args:
        model: the bytes of a SentencePiece model file.
        name: what to call it in an error.

    Raises:
        ValueError: it is damaged, or an option that changes ids or text is not ours.
    """
    import sentencepiece

    try:
        file = _fields(model)
        trainer, normalizer, denormalizer = (_fields(file.get(number, b"")) for number in (2, 3, 5))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    except (ValueError, RuntimeError, TypeError, IndexError):
        raise ValueError(f"{name} must be a whole SentencePiece model, got {len(model)} bytes that are not") from None
    rules = {
        "BPE": trainer.get(3, 1) == 2,
        "byte fallback": trainer.get(35, 0) == 1,
        "no space as suffix": trainer.get(24, 0) == 0,
        "no normalisation": not normalizer.get(2, b"") and not denormalizer.get(2, b""),
        "no dummy prefix": normalizer.get(3, 1) == 0,
        "no removal of spaces": normalizer.get(4, 1) == 0,
        "escaped spaces": normalizer.get(5, 1) == 1,
        "reserved ids 0 1 2 3": [trainer.get(field, default) for field, default in RESERVED.items()] == [0, 1, 2, 3],
        f"control ids 4 5 6 {' '.join(CONTROL)}": tuple(pieces[4:7]) == CONTROL
        and all(processor.is_control(i) for i in range(1, 7)),
        "no piece over two words": not any(re.search(f"[^ {SPACE}][ {SPACE}]", piece) for piece in pieces),
        "a vocabulary that is a multiple of 32": len(pieces) % 32 == 0,
    }
    wrong = [rule for rule, holds in rules.items() if not holds]
    if wrong:
        raise ValueError(f"{name} must be a tokenizer of Tokenizer.train, got one without: {', '.join(wrong)}")
    return processor


def _fields(message: bytes) -> dict[int, Any]:
    """The last value of each field of a protocol buffer message, int or bytes.

    Source: protobuf.dev/programming-guides/encoding.
    """
    fields: dict[int, Any] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("not a protocol buffer")

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            fields[key >> 3] = varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(message):
            raise ValueError("not a protocol buffer")
        fields[key >> 3] = message[at : at + size]
        at += size
    return fields
