import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy_forward
import pytest

GOLDEN = Path(__file__).parent / "golden"


def program(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


reference = program("make_reference")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What the program writes here and now."""
    out = tmp_path_factory.mktemp("golden")
    reference.make(out)
    return out


def records(path: Path) -> dict:
    return json.loads(path.read_text())


def row(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def agree(kept: dict, again: dict, rows: str) -> None:
    """All the same but for the last bits of logits, which are the machine's own."""
    for one, other in zip(kept.pop(rows), again.pop(rows), strict=True):
        logits, now = row(one.pop("logits")), row(other.pop("logits"))
        assert np.abs(logits - now).max() <= 1e-5 * np.abs(logits).max()
        assert one == other
    assert kept == again


@pytest.mark.parametrize("name", reference.FOLDERS)
def test_a_golden_folder_is_what_its_program_writes(made, name):
    for file in ("config.json", "tokenizer.model", "model.safetensors"):
        assert (GOLDEN / "reference" / name / file).read_bytes() == (made / name / file).read_bytes()
    kept, again = (records(place / name / "logits.json") for place in (GOLDEN / "reference", made))
    agree(kept, again, "rows")


def test_golden_logits_of_the_model_that_ships_are_up_to_date(made):
    kept, again = (records(place / "shipped.json") for place in (GOLDEN / "reference", made))
    assert kept["revision"] == again["revision"], "run python tests/golden/make_reference.py"
    agree(kept, again, "depths")


@pytest.mark.parametrize("name", reference.FOLDERS)
def test_golden_logits_are_those_of_the_page(name):
    folder = GOLDEN / "reference" / name
    record = records(folder / "logits.json")
    for each in record["rows"]:
        found = numpy_forward.logits(folder, record["ids"][: each["tokens"]], each["depth"])[-1]
        assert np.abs(found - row(each["logits"])).max() <= 1e-5 * np.abs(found).max()


def test_each_pass_and_each_token_tells_in_the_golden_logits():
    for name in reference.FOLDERS:
        rows = [row(each["logits"]) for each in records(GOLDEN / "reference" / name / "logits.json")["rows"]]
        for place, one in enumerate(rows):
            assert all(np.abs(one - other).max() > 1e-2 * np.abs(one).max() for other in rows[:place]), name


def test_golden_folders_stay_small():
    assert sum(file.stat().st_size for file in (GOLDEN / "reference").rglob("*") if file.is_file()) < 400_000


def test_golden_numbers_of_benchmarks_are_what_their_program_writes():
    assert (GOLDEN / "bench.json").read_text() == program("make_bench").document()
