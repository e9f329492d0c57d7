"""Weights between those of two models of one shape, of which one was trained on from the other.

    python benchmarks/blend.py --base runs/stories --tuned runs/words --share 0.7 --out runs/blend

Often better at both tasks than either end is at the other's (arXiv 2109.01903).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from trm_mlx import checkpoint, config

# isort: split
import mlx.core as mx

from trm_mlx.model import named


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Make a model between two."""

    base: Annotated[Path, "model folder"]
    tuned: Annotated[Path, "model folder of the same shape and tokenizer"]
    out: Annotated[Path, "model folder to make"]
    share: Annotated[float, "of the tuned model's weights; 0 is the base"] = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if self.out.exists():
            raise FileExistsError(f"--out must be a new folder, and {self.out} is there")


def blend(settings: BlendConfig) -> None:
    """Write the model, as float16.

    Raises:
        FileNotFoundError, ValueError: a folder is none, or the two are of different shapes or tokenizers.
    """
    (base, own), (tuned, tokenizer) = checkpoint.load(settings.base), checkpoint.load(settings.tuned)
    if base.config != tuned.config or own.bytes != tokenizer.bytes:
        raise ValueError(f"{settings.base} and {settings.tuned} must have one shape and one tokenizer")
    other, share = named(base.parameters()), settings.share
    weights = {name: (1 - share) * other[name] + share * array for name, array in named(tuned.parameters()).items()}
    checkpoint.save(settings.out, tuned.config, tokenizer, weights, mx.float16)


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(BlendConfig, argv, program="benchmarks/blend.py")
    with config.door("benchmarks/blend.py"):
        blend(settings)
        print(f"wrote {settings.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
