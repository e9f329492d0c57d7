import gzip
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trm_mlx.sources import Document, documents, find


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(*sources: str | Path) -> list[str]:
    return [document.text for document in documents(sources)]


def test_files_folders_and_globs_are_found_once_and_sorted(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.jsonl", "{}")
    write(tmp_path / "deep/er/c.jsonl.xz", "")
    write(tmp_path / "deep/d.txt.gz", "")
    write(tmp_path / "deep/notes.md", "")
    everything = ["a.jsonl", "b.txt", "deep/d.txt.gz", "deep/er/c.jsonl.xz"]
    sources = [tmp_path / "deep" / ".." / "b.txt", tmp_path, tmp_path / "b.txt", f"{tmp_path}/**/*"]
    assert sorted(path.resolve().relative_to(tmp_path).as_posix() for path in find(sources)) == everything
    assert [path.name for path in find([f"{tmp_path}/*.txt"])] == ["b.txt"]
    assert [path.name for path in find([tmp_path])] == ["a.jsonl", "b.txt", "d.txt.gz", "c.jsonl.xz"]


@pytest.mark.parametrize("source", ["missing.txt", "empty", "*.jsonl"])
def test_a_source_without_a_file_is_missing(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.txt, .* file at "):
        find([tmp_path / source])


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.txt, .*, got .*story\.md"):
        find([write(tmp_path / "story.md", "x")])


def test_no_source_is_refused():
    with pytest.raises(ValueError, match="at least one source"):
        texts()


def test_a_text_file_is_one_document_with_unix_line_ends(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeff\nOne.\r\n\r\nTwo \u2028 <|endoftext|> three.\n\n")
    assert texts(path) == ["One.\n\nTwo \u2028 <|endoftext|> three."]


def test_separator_lines_divide_a_text_file_and_blank_parts_are_skipped(tmp_path):
    path = write(tmp_path / "a.txt", "One.\n<|endoftext|>\n\n  \n<|endoftext|>\r\n\nTwo.\nThree.\n<|endoftext|>\n")
    assert texts(path) == ["One.", "Two.\nThree."]
    assert [document.where for document in documents([path])] == [f"{path}:1", f"{path}:6"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_read_as_plain_ones_and_damaged_ones_are_named(tmp_path, suffix, pack):
    content = pack(b'{"text": "One\\n"}\n\n{"text": "Two", "source": 3}\n' * 500)
    assert texts(write(tmp_path / f"a.jsonl{suffix}", content)) == ["One\n", "Two"] * 500
    for damaged in (content[:-20], b"plain text"):
        with pytest.raises(ValueError, match=rf"b\.txt\{suffix} must be a whole \{suffix} file"):
            texts(write(tmp_path / f"b.txt{suffix}", damaged))


def test_every_form_of_json_line_is_read(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "name": "x"}]
    records = [
        {"text": "One"},
        {"prompt": "Hi", "response": "Ho"},
        {"messages": messages},
        {"text": "A", "prompt": "B"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    one, asked, chat, cosmopedia = documents([path])
    assert (one.text, one.messages, cosmopedia.text) == ("One", (), "A")
    assert asked.text == chat.text == "Hi\n\nHo"
    assert [(m["role"], m["content"]) for m in asked.messages] == [("user", "Hi"), ("assistant", "Ho")]
    assert [(m["role"], m["content"]) for m in chat.messages] == [("user", "Hi"), ("assistant", "Ho")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"story": "x", "id": 1}', r"must have either text, or .*; got fields \['id', 'story'\]"),
        ('{"text": "x", "messages": []}', r"got fields \['messages', 'text'\]"),
        ('{"text": null}', "text must be a str, got None"),
        ('{"prompt": "x", "response": 3}', "response must be a str, got 3"),
        ('{"messages": "x"}', "messages must be a list, got 'x'"),
        ('{"messages": [{"role": "user"}]}', "each message must have a role and a content as text"),
        ('["text"]', "must be a JSON object, got list"),
        ('{"text": "x"', "must be one JSON object, got .*delimiter"),
        ("[" * 100_000, "must be one JSON object"),
        ('{"text": "a\\ud800"}', r"lone surrogate U\+D800 at character 1"),
    ],
)
def test_a_wrong_json_line_is_refused_with_file_and_line(tmp_path, line, said):
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl:3.* {said}") as refusal:
        texts(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path, mark):
    path = write(tmp_path / "a.txt", mark + b"ab\ncd\xe9f\n")
    with pytest.raises(ValueError, match=rf"a\.txt must be UTF-8, got byte 0xE9 at offset {5 + len(mark)}$"):
        texts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_text_is_refused(tmp_path, name, content):
    with pytest.raises(ValueError, match=rf"{name} must hold text, got nothing but blanks"):
        texts(write(tmp_path / name, content))


def stand_in(monkeypatch, rows: list[dict], calls: list) -> None:
    def load_dataset(*names, **options):
        calls.append((names, options))
        if names[0] == "absent":
            raise FileNotFoundError("Dataset 'absent' doesn't exist\non the Hub")
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_a_data_set_of_the_hub_is_streamed_by_name_config_and_split(monkeypatch, tmp_path):
    calls: list = []
    stand_in(monkeypatch, [{"text": "One"}, {"text": " "}, {"prompt": "Hi", "response": "Ho"}], calls)
    first = write(tmp_path / "a.txt", "Zero")
    assert texts("hub:owner/tales?config=en&split=test[:10]", first) == ["Zero", "One", "Hi\n\nHo"]
    assert [document.where for document in documents(["hub:tales"])] == ["hub:tales row 0", "hub:tales row 2"]
    assert calls == [
        (("owner/tales", "en"), {"split": "test[:10]", "streaming": True}),
        (("tales", None), {"split": "train", "streaming": True}),
    ]


@pytest.mark.parametrize("source", ["hub:", "hub:tales?name=en"])
def test_a_hub_source_that_cannot_be_read_as_one_is_refused(monkeypatch, source):
    stand_in(monkeypatch, [], [])
    with pytest.raises(ValueError, match="a hub source must read hub:NAME"):
        texts(source)


def test_hub_failures_are_told_in_one_line(monkeypatch):
    stand_in(monkeypatch, [{"story": "x"}], [])
    with pytest.raises(ValueError, match=r"hub:absent must name .*, got: Dataset 'absent' doesn't exist$"):
        texts("hub:absent")
    with pytest.raises(ValueError, match=r"hub:tales row 0 must have either text"):
        texts("hub:tales")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'needs the package datasets: pip install -e "\.\[hub\]"'):
        texts("hub:tales")


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("One.\n\nTwo two two.\n\nThree.\n", "Three.\n"),
        ('"One one one one!" "Two." Three', "Three"),
        ("one two three four", "four"),
    ],
)
def test_a_document_is_parted_at_an_end(text, tail):
    head, rest = Document(text, "a.txt:1").cut(0.2)
    assert rest.text == tail
    assert head.text + rest.text == text


@pytest.mark.parametrize("document", [Document("word ", "a:1"), Document("Hi. Ho.", "a:1", ({"role": "user"},))])
def test_one_word_and_a_conversation_cannot_be_parted(document):
    with pytest.raises(ValueError, match="a:1 is the only document and cannot be parted"):
        document.cut(0.1)
