import gzip
import io
import random
from typing import Any

import pytest
import sentencepiece

from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import SPACE

TEXT = "The quick Queen Vera jumps over 12 lazy dogs and Zoe said hello to her friend in the garden"
WORDS = TEXT.split(" ")
ODD = [
    "",
    " ",
    "  two  spaces  ",
    "a\n\nb\r\nc\td\x00e",
    "\u2581",
    "a\u2581 \u2581\u2581b",
    "<|user|> <s> </s> <unk> <0x41>",
    "cafe\u0301 caf\u00e9 \ufeff\ufffd\ufffe \ue000 \U0010ffff",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2585 \u4f60\u597d",
]


def stories(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    marks = [". ", "!\n\n", '."\n\n"', ", "]
    return ["".join(draw.choice(WORDS) + draw.choice([" ", " ", *marks]) for _ in range(60)) for _ in range(count)]


def random_text(draw: random.Random) -> str:
    kinds = [(32, 127), (0, 32), (0x80, 0x800), (0x2580, 0x2583), (0x800, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(draw.randrange(*draw.choice(kinds))) for _ in range(draw.randrange(30)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(stories(200), 416)


def model(**options) -> bytes:
    """A SentencePiece model trained with other options than ours."""
    ours: dict[str, Any] = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "pad_id": 3,
    }
    ours |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "vocab_size": 416}
    ours |= {"control_symbols": ["<|user|>", "<|assistant|>", "<|end|>"], "minloglevel": 2}
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories(200)), model_writer=file, **(ours | options)
    )
    return file.getvalue()


@pytest.mark.parametrize("text", ODD)
def test_odd_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_whole_and_its_ids_count_its_bytes(tokenizer):
    draw = random.Random(1)
    for _ in range(2_000):
        text = random_text(draw)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode())


def test_ids_are_those_of_plain_sentencepiece_even_past_the_passage_limit(tokenizer):
    plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.bytes)
    long = "  ".join(stories(400, seed=3))
    assert len(long) > 2 * 65_536
    for text in [text for text in ODD if SPACE not in text] + [long]:
        assert tokenizer.encode(text) == plain.encode(text)


def test_common_words_and_paragraph_ends_are_single_pieces(tokenizer):
    assert tokenizer.decode(tokenizer.encode("lazy dogs!\n\n")[-1:]).endswith("\n\n")
    assert len(tokenizer.encode(" lazy")) == 1
    assert len(tokenizer.encode("12")) == 2


def test_typed_control_tokens_stay_text(tokenizer):
    assert not set(range(7)) & set(tokenizer.encode("<|user|><|assistant|><|end|><s></s><pad><unk>"))


def test_control_ids_decode_to_nothing_and_bad_bytes_to_replacement_characters(tokenizer):
    controls = [
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
        tokenizer.user,
        tokenizer.assistant,
        tokenizer.end,
    ]
    assert controls == [1, 2, 3, 4, 5, 6]
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([*controls, *hello, tokenizer.end]) == "hello"
    assert tokenizer.decode([7 + 0xE2, 7 + 0x96, *hello]) == "\ufffd\ufffdhello"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("i", [-1, 416])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, i):
    with pytest.raises(ValueError, match=rf"ids must be from 0 to 415, got {i}"):
        tokenizer.decode([10, i])
    with pytest.raises(ValueError, match=rf"ids must be from 0 to 415, got {i}"):
        tokenizer.stream().push(i)


def test_lone_surrogates_are_refused_with_their_place(tokenizer):
    with pytest.raises(ValueError, match=r"lone surrogate U\+DC80 at character 2"):
        tokenizer.encode("ab\udc80")


def test_streamed_text_is_the_decoded_text_for_any_ids(tokenizer):
    draw = random.Random(2)
    bytes_of_interest = [
        0xE2,
        0x96,
        0x81,
        0xF0,
        0x9F,
        0x98,
        0x80,
        0xED,
        0xA0,
        0xE0,
        0xEF,
        0xBF,
        0xBD,
        0xC3,
        0xFF,
    ]
    stream = tokenizer.stream()
    for _ in range(5_000):
        ids = [draw.choice([draw.randrange(416), 7 + draw.choice(bytes_of_interest)]) for _ in range(10)]
        deltas = [stream.push(i) for i in ids] + [stream.finish()]
        assert "".join(deltas) == tokenizer.decode(ids)


def test_stream_holds_a_character_back_until_its_last_byte(tokenizer):
    stream = tokenizer.stream()
    deltas = [stream.push(7 + byte) for byte in "\U0001f600".encode()]
    assert deltas == ["", "", "", "\U0001f600"]
    assert stream.push(7 + 0xE2) == ""
    assert stream.push(7 + 0x41) == "\ufffdA"
    assert stream.finish() == ""


def test_chat_puts_the_system_text_before_the_first_user_turn(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "said"},
        {"role": "user", "content": "<|end|>"},
    ]
    encode = tokenizer.encode
    assert tokenizer.chat(messages, reply=True) == (
        [4, *encode("Be kind.\n\nhello"), 6, 5, *encode("said"), 6, 4, *encode("<|end|>"), 6, 5]
    )
    assert tokenizer.chat(messages[1:3], reply=False) == [4, *encode("hello"), 6, 5, *encode("said"), 6]


@pytest.mark.parametrize(
    ("roles", "reply", "said"),
    [
        (["assistant"], False, "message 0 must be from 'user'"),
        (["user", "user"], False, "message 1 must be from 'assistant'"),
        (["user", "system"], False, "message 1 must be from 'assistant'"),
        (["user", "tool"], False, "got role 'tool'"),
        (["system"], False, "must have a user message"),
        ([], True, "must have a user message"),
        (["user", "assistant"], True, "a reply must follow a user message, got 'assistant' last"),
    ],
)
def test_chat_out_of_order_is_refused(tokenizer, roles, reply, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.chat([{"role": role, "content": "x"} for role in roles], reply=reply)


def test_chat_content_must_be_text(tokenizer):
    with pytest.raises(ValueError, match="message 0 must have a text as content, got None"):
        tokenizer.chat([{"role": "user", "content": None}], reply=True)


def test_saved_tokenizer_loads_with_the_same_ids(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.bytes)
    loaded = Tokenizer.load(path)
    assert (loaded.vocabulary, loaded.bytes) == (416, tokenizer.bytes)
    assert loaded.encode(stories(1, seed=9)[0]) == tokenizer.encode(stories(1, seed=9)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "unigram", "vocab_size": 352}, "without: BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "without: no normalisation"),
        ({"add_dummy_prefix": True}, "without: no dummy prefix"),
        ({"remove_extra_whitespaces": True}, "without: no removal of spaces"),
        ({"byte_fallback": False, "vocab_size": 96}, "without: byte fallback"),
        ({"pad_id": -1}, "without: reserved ids 0 1 2 3, control ids 4 5 6"),
        ({"control_symbols": ["<a>", "<b>", "<c>"]}, "without: control ids 4 5 6"),
        ({"user_defined_symbols": ["lazy dogs"]}, "without: no piece over two words"),
        ({"vocab_size": 417}, "without: a vocabulary that is a multiple of 32"),
    ],
)
def test_foreign_models_are_refused_by_name_and_reason(tmp_path, options, said):
    path = tmp_path / "foreign.model"
    path.write_bytes(model(**options))
    with pytest.raises(ValueError, match=rf"foreign\.model .*{said}"):
        Tokenizer.load(path)


def test_damaged_files_are_refused_by_name(tokenizer, tmp_path):
    path = tmp_path / "damaged.model"
    half = tokenizer.bytes[: len(tokenizer.bytes) // 2]
    for content in (b"", b"\x80" * 100_000, b"not a model", gzip.compress(tokenizer.bytes), half):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.model must be"):
            Tokenizer.load(path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "missing.model")


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large.model"
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ValueError, match=r"large\.model must be at most 16777216 bytes"):
        Tokenizer.load(path)
