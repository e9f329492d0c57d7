"""Tiny recursive language models with MLX: train, generate, measure.

    import trm_mlx

    model = trm_mlx.load(trm_mlx.PRETRAINED)
    for event in trm_mlx.stream(model, "Once upon a time"):
        print(event.text, end="", flush=True)

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
    "load": ("trm_mlx.checkpoint", "load_model"),
    "generate": ("trm_mlx.generate", "generate"),
    "generate_batch": ("trm_mlx.generate", "generate_batch"),
    "stream": ("trm_mlx.generate", "stream"),
    "PromptCache": ("trm_mlx.decode.prompt_cache", "PromptCache"),
    "CacheConfig": ("trm_mlx.cache", "CacheConfig"),
    "ModelConfig": ("trm_mlx.model", "ModelConfig"),
    "TinyRecursiveLM": ("trm_mlx.model", "TinyRecursiveLM"),
}

backend.prepare()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"trm_mlx has no {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(module), attribute)
    return globals().setdefault(name, value)  # `generate` stays the module, which can be called


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
