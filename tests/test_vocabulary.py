import random
from pathlib import Path

import pytest

from trm_mlx import vocabulary
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import learn, passages

SENTENCES = [f"Number {n}: the {n * 7919 % 9973:x} came to {n * 104729 % 65537:x}.\n" for n in range(300)]


def test_the_same_documents_in_another_order_give_the_same_bytes():
    shuffled = random.Random(0).sample(SENTENCES, len(SENTENCES))
    assert learn(shuffled, 320) == learn(SENTENCES, 320)


def test_a_corpus_past_the_sample_gives_the_same_bytes_in_any_order(monkeypatch):
    monkeypatch.setattr(vocabulary, "SAMPLE", 6_000)
    sampled = learn(SENTENCES, 320)
    assert sampled == learn(reversed(SENTENCES), 320)
    monkeypatch.undo()
    assert sampled != learn(SENTENCES, 320)


def test_the_model_file_does_not_tell_where_it_was_made():
    assert str(Path.home()).encode() not in learn(SENTENCES, 320)


@pytest.mark.parametrize("size", [0, 288, 4_095])
def test_a_vocabulary_must_be_a_multiple_of_32_from_320(size):
    with pytest.raises(ValueError, match=rf"multiple of 32 and at least 320.*got {size}; try (320|4064)$"):
        learn(SENTENCES, size)


def test_too_little_text_names_the_largest_vocabulary_that_works():
    with pytest.raises(ValueError, match="ask for") as refusal:
        learn(SENTENCES[:40], 4_096)
    fits = int(str(refusal.value).split("ask for ")[1].split()[0])
    assert Tokenizer(learn(SENTENCES[:40], fits)).vocabulary == fits
    with pytest.raises(ValueError, match=rf"at most {fits}|at most {fits + 31}|at most \d+"):
        learn(SENTENCES[:40], fits + 32)


def test_a_few_words_are_too_little_for_any_vocabulary():
    with pytest.raises(ValueError, match=r"at most 26[0-9] for so little text, got 320; give more text$"):
        learn(["ab"], 320)


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_text_is_refused(documents):
    with pytest.raises(ValueError, match="must be learnt from text"):
        learn(documents, 320)


def test_an_alphabet_larger_than_the_vocabulary_is_refused_with_what_it_needs():
    alphabet = "".join(map(chr, range(0x4E00, 0x5200)))
    with pytest.raises(ValueError, match=r"must be at least 1\d\d\d for so many characters, got 320"):
        learn([alphabet], 320)


def test_a_word_longer_than_sentencepiece_allows_is_learnt_from():
    draw = random.Random(0)
    word = "".join(draw.choice("abcdefgh") for _ in range(150_000))
    tokenizer = Tokenizer(learn([word], 320))
    assert len(tokenizer.encode(word)) < len(word) / 1.5


def test_a_vocabulary_of_text_without_spaces_keeps_those_of_other_text():
    letters = random.Random(0)
    tokenizer = Tokenizer(learn(["".join(letters.choice("abcde\u65e5\u672c") for _ in range(4_000))], 320))
    for text in ("a b", "  a\n b ", "\u2581 \u2581", "c\u65e5 \u00e9"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_in_a_document_is_refused():
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800"):
        learn(["a\ud800"], 320)


def test_passages_join_to_the_text_and_begin_at_a_space_after_a_word():
    text = "one  two   three four\n five      "
    parts = list(passages(text, 4))
    assert "".join(parts) == text
    assert parts == ["one  two", "   three", " four\n", " five", "      "]
