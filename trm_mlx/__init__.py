"""Tiny recursive language models with MLX: train, generate, measure.

    import trm_mlx

    model, tokenizer = trm_mlx.load(trm_mlx.PRETRAINED)
    print(trm_mlx.generate(model, tokenizer, "Once upon a time").text)

Names are imported when they are first used, so that `--help` is quick. Import this package before `mlx.core`: on
Linux that is what makes MLX fast (see `trm_mlx.backend`).
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from trm_mlx import backend

__version__ = "0.1.0"
PRETRAINED = Path(__file__).parent / "pretrained" / "tiny-stories-4m"  # the model folder that ships

_PUBLIC = {
    "load": "trm_mlx.checkpoint",
    "ModelConfig": "trm_mlx.model",
    "TinyRecursiveLM": "trm_mlx.model",
    "generate": "trm_mlx.generate",
    "generate_batch": "trm_mlx.generate",
}

backend.prepare()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"trm_mlx has no {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    return globals().setdefault(name, value)  # `generate` stays the module, which can be called


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
