import json
from pathlib import Path

import numpy as np
import pytest

from trm_mlx.corpus import Corpus, prepare
from trm_mlx.tokenizer import Tokenizer

NAMES = ["Ann", "Ben", "Cat", "Dan", "Eve"]
TEXTS = [f"{NAMES[n % 5]} walked {n} miles.\n\n{NAMES[n % 3]} saw {n * 37} birds." for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The documents of a token file, each checked to stand between bos and eos."""
    found, ids = [], np.fromfile(path, dtype="<u2").tolist()
    while ids:
        end = ids.index(tokenizer.eos)
        assert ids[0] == tokenizer.bos
        found.append(tokenizer.decode(ids[1:end]))
        ids = ids[end + 1 :]
    return found


def both(corpus: Corpus, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    return read(corpus.train_path, tokenizer), read(corpus.held_out_path, tokenizer)


def test_every_document_is_in_one_split_and_the_counts_are_true(tmp_path, tokenizer):
    corpus = prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "corpus", held_out=0.2)
    train, held_out = both(corpus, tokenizer)
    assert sorted(train + held_out) == sorted(TEXTS)
    assert 30 <= len(held_out) <= 90
    for split, found, path in (
        (corpus.train, train, corpus.train_path),
        (corpus.held_out, held_out, corpus.held_out_path),
    ):
        assert split.documents == len(found)
        assert split.bytes == sum(len(text.encode()) for text in found)
        assert split.tokens == path.stat().st_size // 2
    assert corpus.tokenizer_path.read_bytes() == tokenizer.bytes
    assert corpus.sources == ("a.jsonl",)
    assert Corpus.load(tmp_path / "corpus", verify=True) == corpus
    assert sorted(path.name for path in corpus.folder.iterdir()) == [
        "corpus.json",
        "held_out.bin",
        "tokenizer.model",
        "train.bin",
    ]


def test_held_out_documents_do_not_depend_on_order_and_copies_stay_together(tmp_path, tokenizer):
    once = prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "once", held_out=0.1)
    twice = prepare([jsonl(tmp_path / "b.jsonl", TEXTS[::-1] * 2)], tokenizer, tmp_path / "twice", held_out=0.1)
    held_out = both(once, tokenizer)[1]
    assert sorted(both(twice, tokenizer)[1]) == sorted(held_out * 2)
    other = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "other", held_out=0.1, seed=1)
    assert set(both(other, tokenizer)[1]) != set(held_out)


@pytest.mark.parametrize(("share", "expected"), [(1e-30, (4, 1)), (1e-9, (4, 1)), (0.999_999_999, (1, 4))])
def test_few_documents_leave_no_split_empty(tmp_path, tokenizer, share, expected):
    corpus = prepare([jsonl(tmp_path / "a.jsonl", TEXTS[:5])], tokenizer, tmp_path / "c", held_out=share)
    assert (corpus.train.documents, corpus.held_out.documents) == expected
    assert sorted(text for split in both(corpus, tokenizer) for text in split) == sorted(TEXTS[:5])
    assert Corpus.load(corpus.folder, verify=True) == corpus


def test_a_lone_document_is_parted_at_a_sentence_end(tmp_path, tokenizer):
    text = " ".join(TEXTS[:50])
    (tmp_path / "a.txt").write_text(text)
    train, held_out = both(prepare([tmp_path / "a.txt"], tokenizer, tmp_path / "c", held_out=0.1), tokenizer)
    assert train[0] + held_out[0] == text
    assert train[0].rstrip().endswith(".")
    assert 0.05 < len(held_out[0]) / len(text) < 0.15


def test_nothing_is_held_out_when_not_asked(tmp_path, tokenizer):
    corpus = prepare([jsonl(tmp_path / "a.jsonl", TEXTS[:3])], tokenizer, tmp_path / "c", held_out=0)
    assert both(corpus, tokenizer) == (TEXTS[:3], [])


def test_held_out_sources_replace_the_share(tmp_path, tokenizer):
    train, valid = jsonl(tmp_path / "train.jsonl", TEXTS[:50]), jsonl(tmp_path / "valid.jsonl", TEXTS[50:55])
    corpus = prepare([train], tokenizer, tmp_path / "c", held_out=0.5, held_out_sources=[valid])
    assert both(corpus, tokenizer) == (TEXTS[:50], TEXTS[50:55])


def test_conversations_become_the_chat_template(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"prompt": "Ann?", "response": "Ben."}\n')
    corpus = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "c", held_out=0)
    ids = np.fromfile(corpus.train_path, dtype="<u2").tolist()
    assert ids == [1, 4, *tokenizer.encode("Ann?"), 6, 5, *tokenizer.encode("Ben."), 6, 2]
    assert corpus.train.bytes == 8


def test_a_failed_prepare_names_the_line_and_leaves_the_older_corpus_whole(tmp_path, tokenizer):
    older = prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "c")
    chat = '{"messages": [{"role": "assistant", "content": "x"}]}'
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n' + chat)
    with pytest.raises(ValueError, match=r"b\.jsonl:2: message 0 must be from 'user'"):
        prepare([tmp_path / "b.jsonl"], tokenizer, tmp_path / "c")
    assert Corpus.load(tmp_path / "c", verify=True) == older
    assert not list((tmp_path / "c").glob("*.partial"))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_must_be_one(tmp_path, tokenizer, share):
    with pytest.raises(ValueError, match="held_out must be at least 0 and below 1"):
        prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "c", held_out=share)


def test_a_vocabulary_past_16_bits_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocabulary", 65_568)
    with pytest.raises(ValueError, match="ids below 65,536, got a vocabulary of 65568"):
        prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "c")


def test_a_corpus_that_was_touched_is_refused(tmp_path, tokenizer):
    corpus = prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "c")
    content = bytearray(corpus.train_path.read_bytes())
    content[100] ^= 1
    corpus.train_path.write_bytes(content)
    assert Corpus.load(tmp_path / "c") == corpus
    with pytest.raises(ValueError, match=r"train\.bin must have the sha256"):
        Corpus.load(tmp_path / "c", verify=True)
    corpus.train_path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=rf"train\.bin must be {len(content)} bytes, got {len(content) - 2}"):
        Corpus.load(tmp_path / "c")
    corpus.train_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.bin is missing"):
        Corpus.load(tmp_path / "c")


@pytest.mark.parametrize("change", [{"version": 2}, {"surprise": 1}, {"train": {"tokens": 1, "words": 2}}])
def test_a_description_of_another_kind_is_refused(tmp_path, tokenizer, change):
    prepare([jsonl(tmp_path / "a.jsonl", TEXTS)], tokenizer, tmp_path / "c")
    path = tmp_path / "c" / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"corpus\.json must be a description of version 1"):
        Corpus.load(tmp_path / "c")
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"corpus\.json must be a description of version 1"):
        Corpus.load(tmp_path / "c")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no corpus\.json"):
        Corpus.load(tmp_path / "c")


def test_a_long_prepare_reports_as_it_goes(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("trm_mlx.corpus.REPORT_SECONDS", 0.0)
    seen: list[tuple[int, int]] = []
    corpus = prepare(
        [jsonl(tmp_path / "a.jsonl", TEXTS)],
        tokenizer,
        tmp_path / "c",
        report=lambda *counts: seen.append(counts),
    )
    assert seen[-1] == (300, corpus.train.tokens + corpus.held_out.tokens)
    assert [documents for documents, _ in seen] == list(range(1, 301))
