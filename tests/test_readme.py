"""What the README tells people to type is there, and means something."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from convert import manifest
from trm_mlx import __main__ as door
from trm_mlx import config
from trm_mlx.model import ModelConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("trm_mlx/pretrained/*/README.md"))]
SETTINGS = {
    "convert": "ExportConfig",
    "convert.verify": "VerifyConfig",
    "convert.benchmark": "BenchmarkConfig",
    "quantize": "QuantizeConfig",
    "train": "TrainConfig",
    "generate": "GenerateConfig",
    "chat": "ChatConfig",
    "evaluate": "EvaluateConfig",
    "benchmark": "BenchmarkConfig",
    "doctor": "DoctorConfig",
}


def commands() -> list[str]:
    """The command lines in the pages' code blocks, joined where a backslash breaks them."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in found if re.search(r"\b(python|make)\b", line) and not line.startswith("import")]


@pytest.mark.parametrize("line", commands())
def test_command_of_a_page_is_understood(line):
    words = shlex.split(line.split("|")[-1], comments=True)
    if words[0] == "mlx.launch":
        words = words[next(place for place, word in enumerate(words) if word.endswith("python")) :]
    if "make" in words[:1] or "make" in line:
        target = re.search(r"make (\w[\w-]*)", line).group(1)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if words[1] == "-m":
        verb = words[2].removeprefix("trm_mlx").lstrip(".")
        verb, flags = (verb, words[3:]) if verb else (words[3], words[4:])
        assert verb in door.VERBS or verb.startswith("convert")
        name = f"trm_mlx.{verb}" if verb in door.VERBS else verb
        module = importlib.import_module("convert.__main__" if name == "convert" else name)
        settings = getattr(module, SETTINGS[verb])
        flags = manifest.folder_first(flags) if verb.startswith("convert.") else flags
        config.parse(settings, [flag for flag in flags if flag != "--help"], program=verb)
    else:
        assert (ROOT / words[1]).is_file()


def test_pages_hold_commands_of_every_verb():
    lines = "\n".join(commands())
    assert all(verb in lines for verb in [*door.VERBS, "convert", "convert.verify", "convert.benchmark"])


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / name).exists(), f"{page} points to {name}"
        for name in re.findall(r"`((?:trm_mlx|tests|docs|benchmarks|convert)/[\w./-]*)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page} names {name}"


def test_preset_table_is_that_of_the_code():
    rows = re.findall(
        r"^\| (\w+) \| ([\d.]+)M \| ([\d.]+)M \| (\d+) \| (.+?) \| ([\d,]+) \|$", PAGES[0].read_text(), re.M
    )
    assert [row[0] for row in rows] == list(ModelConfig.PRESETS)
    for name, stored, effective, width, blocks, vocabulary in rows:
        p = ModelConfig.PRESETS[name]
        assert (stored, effective) == (
            f"{p.stored_parameters() / 1e6:.1f}",
            f"{p.effective_parameters() / 1e6:.1f}",
        )
        assert blocks == f"{p.prelude} / {p.core} x {p.depth} / {p.coda}"
        assert (int(width), int(vocabulary.replace(",", ""))) == (p.width, p.vocabulary)


def test_names_in_the_python_example_are_public():
    import trm_mlx

    for name in set(re.findall(r"trm_mlx\.([A-Za-z]+)\(", PAGES[0].read_text())):
        assert callable(getattr(trm_mlx, name))
