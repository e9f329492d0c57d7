"""The floor plan holds: what each file of the package may import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOORS = ["__init__", "__main__"]
GROUND = [
    "files",
    "splitmix",
    "config",
    "journal",
    "backend",
    "fused",
    "recompute",
    "ranks",
    "machine",
]  # files serves config and journal
NOUNS = [  # in order: each may import the ones before it
    "vocabulary",
    "tokenizer",
    "sources",
    "corpus",
    "data",
    "shape",
    "attention",
    "cache",
    "adapt.grid",
    "model",
    "tensors",
    "objectives",
    "checkpoint",
    "loop",
    "runs",
    "report",
    "trials",
    "comparison",
]
ROOMS = ["decode", "adapt", "microscope", "puzzles"]
VERBS = ["train", "quantize", "generate", "chat", "evaluate", "benchmark", "doctor"]
FILES = sorted([*ROOT.glob("trm_mlx/**/*.py"), *ROOT.glob("convert/**/*.py")])
LONGEST = 350  # lines


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, dotted below the package: `model`, `decode.stream`, `convert.program`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "trm_mlx" and len(parts) > 1:
                inside = 2 if parts[1] not in ROOMS else 3
                found.add(".".join(parts[1:inside]))
            elif parts[0] == "convert":
                found.add(".".join(parts[:2]))
    return {name for name in found if is_module(name)}


def is_module(name: str) -> bool:
    place = ROOT / "trm_mlx" / name.replace(".", "/")
    return name.startswith("convert") or place.with_suffix(".py").exists() or place.is_dir()


def broken(path: Path) -> set[str]:
    """The imports of a file that the plan forbids."""
    package, *inner = path.relative_to(ROOT).with_suffix("").parts
    used = imports(path)
    if package == "convert":
        return {n for n in used if n.split(".")[0] != "convert" and n not in [*GROUND, *NOUNS]}
    name = inner[0]
    if name in GROUND:
        allowed = [] if name == "files" else ["files"]
    elif name in NOUNS:
        allowed = GROUND + NOUNS[: NOUNS.index(name)]
    elif name in ROOMS:
        allowed = [*GROUND, *NOUNS, name]
    elif name in VERBS:
        allowed = [*GROUND, *NOUNS, *ROOMS]
    else:
        assert name in DOORS, f"{path} is no ground, noun, room, verb or door: give it a place in the plan"
        allowed = GROUND
    return {each for each in used if each not in allowed and each.split(".")[0] not in allowed}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_the_plan_allows(path):
    assert not broken(path)


def test_a_forbidden_import_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "trm_mlx").mkdir()
    for name in ("train", "generate", "model", "config", "cache"):
        (tmp_path / f"trm_mlx/{name}.py").write_text("")
    cases = {
        "generate": "from trm_mlx import train",
        "model": "from trm_mlx.train import fit",
        "config": "from trm_mlx.model import ModelConfig",
        "cache": "import trm_mlx.model",
    }
    for name, line in cases.items():
        file = tmp_path / f"trm_mlx/{name}.py"
        file.write_text(line)
        assert broken(file), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= LONGEST
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_nothing_in_the_package_imports_convert():
    for path in FILES:
        if "convert" not in path.parts:
            assert not any(name.startswith("convert") for name in imports(path))


def test_every_room_is_installed():
    packages = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in FILES}:
        assert f'"{".".join(folder.relative_to(ROOT).parts)}"' in packages
