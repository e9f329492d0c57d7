"""manifest.json is read as strictly as it is written."""

import importlib.util
import json
from pathlib import Path

import pytest
from stand_in import describe, export

from convert import manifest

GOLDEN = Path(__file__).with_name("golden")
SHARED = json.loads((GOLDEN / "manifest.json").read_text())
REFUSALS = {
    "json": "is not valid JSON",
    "format": "it is no export",
    "version": "this program reads 1",
    "unknown": "unknown key",
    "missing": "missing key",
    "type": "must be (a|one of|text|true)",
    "value": "must",
}


@pytest.fixture
def made(tmp_path):
    (tmp_path / "export").mkdir()
    return export(tmp_path / "export")


def change(folder, **changes):
    record = json.loads((folder / manifest.FILE).read_text()) | changes
    (folder / manifest.FILE).write_text(json.dumps(record))


def test_what_is_read_is_what_was_written(made):
    assert manifest.read(made) == describe(files=tuple(manifest.records(made)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "it is no export"),
        ({"version": 2}, "has version 2, this program reads 1"),
        ({"more": 1}, "unknown key 'more'"),
        ({"context": "16"}, "context must be a whole number"),
        ({"chunk": 16}, "chunk must be above 1 and below the context of 16"),
        ({"functions": []}, "functions must have ascending depths"),
        ({"package": "../Tiny.mlpackage"}, "package must be the name of an .mlpackage"),
        ({"package": "Tiny"}, "package must be the name of an .mlpackage"),
        ({"files": [{"path": "../a", "bytes": 1, "sha256": ""}]}, "files must have paths inside the folder"),
        ({"files": [{"path": "/a", "bytes": 1, "sha256": ""}]}, "files must have paths inside the folder"),
        ({"state": "app"}, "state must be one of"),
    ],
)
def test_what_this_version_does_not_write_is_refused(changes, words, made):
    change(made, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        manifest.read(made)
    assert "\n" not in str(caught.value)


def test_golden_manifests_are_what_their_program_writes():
    found = importlib.util.spec_from_file_location("make_manifest", GOLDEN / "make_manifest.py")
    assert found and found.loader
    maker = importlib.util.module_from_spec(found)
    found.loader.exec_module(maker)
    assert (GOLDEN / "manifest.json").read_bytes() == maker.document().encode()


@pytest.mark.parametrize("text", SHARED["valid"])
def test_a_golden_manifest_is_read(text, tmp_path):
    (tmp_path / manifest.FILE).write_bytes(text.encode())
    manifest.read(tmp_path)


@pytest.mark.parametrize("case", SHARED["damaged"], ids=lambda case: f"{case['old']} {case['new']}"[:60])
def test_a_damaged_golden_manifest_is_refused_for_its_reason(case, tmp_path):
    text = SHARED["valid"][case["base"]].replace(case["old"], case["new"])
    (tmp_path / manifest.FILE).write_bytes(text.encode())
    with pytest.raises(ValueError, match=REFUSALS[case["kind"]]):
        manifest.read(tmp_path)


def test_a_folder_without_a_manifest_is_refused_with_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="an export folder is what python -m convert writes"):
        manifest.read(tmp_path)


def test_files_that_are_changed_added_or_missing_are_named(made):
    told = manifest.read(made)
    (made / "more").write_bytes(b"more")
    (made / manifest.GOLDEN).unlink()
    (made / manifest.TOKENIZER).write_bytes(b"other")
    assert manifest.changed(made, told) == [manifest.GOLDEN, "more", manifest.TOKENIZER]


def test_what_the_finder_leaves_is_no_change(made):
    (made / ".DS_Store").write_bytes(b"window")
    assert manifest.changed(made, manifest.read(made)) == []


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_link_is_refused_whatever_it_leads_to(name, made, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (made / "link").symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match="link must be a plain file"):
        list(manifest.records(made))


def test_an_export_of_any_version_is_known_as_one(made):
    change(made, version=99)
    assert manifest.is_export(made)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"format": "trm_mlx.model"}'])
def test_another_manifest_makes_no_export(content, tmp_path):
    (tmp_path / manifest.FILE).write_text(content)
    assert not manifest.is_export(tmp_path)
