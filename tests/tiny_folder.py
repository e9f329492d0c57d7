"""Fixtures: the folder of a tiny model with random weights, and a way to run a command as a user does.

PYTEST_DONT_REWRITE: tests import from here before pytest does.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trm_mlx  # noqa: F401  (before mlx.core)

ROOT = Path(__file__).parent.parent
WORDS = ["the", "quick", "queen", "jumps", "over", "12", "lazy", "dogs", "and", "her", "friend", "in", "a", "garden"]
WORDS += ["hello,", "caf\u00e9!", "moon", "river"]


def text(words: int, seed: int = 0) -> str:
    """Words drawn at random: text that the tiny tokenizer knows."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def save_tiny(folder: Path, noise: float = 0.3, **options: Any) -> Path:
    """A model folder, width 32, vocabulary 512, depth 2, with random numbers in every tensor."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from trm_mlx import checkpoint, config
    from trm_mlx.model import ModelConfig, TinyRecursiveLM
    from trm_mlx.tokenizer import Tokenizer

    shape = {"vocabulary": 512, "width": 32, "heads": 2, "kv_heads": 1, "prelude": 1, "core": 1, "coda": 1}
    shape |= {"depth": 2, "context": 512, **options}
    model_config = config.from_json(ModelConfig, shape, "tiny")
    draw = random.Random(1)
    letters = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randrange(2, 9))) for _ in range(400)]
    tokenizer = Tokenizer.train([text(400), " ".join(letters)], model_config.vocabulary)
    named: list[Any] = sorted(tree_flatten(TinyRecursiveLM(model_config).parameters()))
    keys = mx.random.split(mx.random.key(7), len(named))
    weights = {
        name: array + noise * mx.random.normal(array.shape, key=key)
        for (name, array), key in zip(named, keys, strict=True)
    }
    checkpoint.save(folder, model_config, tokenizer, weights, mx.float32)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(folder: Path):
    """The model and tokenizer of `folder`; nobody changes them."""
    from trm_mlx import checkpoint

    return checkpoint.load(folder)


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `python -m MODULE ...` to its end; bytes in, bytes out."""

    def run(*words: object, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            input=given,
            capture_output=True,
            cwd=ROOT,
            env=os.environ | environment,
            timeout=60,
        )

    return run
