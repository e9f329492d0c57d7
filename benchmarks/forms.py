"""What the Linux CPU forms and the BLAS are worth: a training step, in each form, in turns, in one process.

python benchmarks/forms.py
TRM_MLX_BLAS=none python benchmarks/forms.py      # with the BLAS that MLX came with
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import trm_mlx  # before mlx.core
from trm_mlx import backend, config, doctor, fused, objectives

# isort: split
import mlx.core as mx

from trm_mlx.loop import FitConfig, Run, fit
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FormsConfig:
    """Time training steps in MLX's own operations and in the Linux CPU forms."""

    rounds: Annotated[int, "steps timed in each form"] = 10
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["nano"])
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=8, depth_schedule="fixed"))


def stepper(settings: FormsConfig):
    """A training run that takes one step a call, and says its tokens a second."""
    run = Run(TinyRecursiveLM(settings.model), settings.fit)
    shape = (settings.fit.batch, settings.fit.length + 1)
    batch = mx.random.randint(7, settings.model.vocabulary, shape)
    steps = fit(run, lambda number: batch, lambda batch: objectives.causal(batch, Tokenizer.pad))

    def step() -> float:
        start = time.perf_counter()
        tokens = next(steps).tokens
        return tokens / (time.perf_counter() - start)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(FormsConfig, argv, program="benchmarks/forms.py")
    with config.door("benchmarks/forms.py"):
        forms: tuple[fused.Forms, ...] = ("plain", "lean", "fused")
        steppers = {form: stepper(settings) for form in forms}
        speeds: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(settings.rounds + 1):
            for form in forms:
                with fused.use(form):
                    speed = steppers[form]()
                if turn:  # the first step compiles
                    speeds[form].append(speed)
        print(
            f"trm_mlx {trm_mlx.__version__}  blas {backend.blas}  gemm {doctor.gflops():.1f} GFLOP/s", file=sys.stderr
        )
        for form in forms:
            ratios = [a / b for a, b in zip(speeds[form], speeds["plain"], strict=True)]
            print(
                f"{form:6} {statistics.median(speeds[form]):8.0f} tokens_per_s  "
                f"{statistics.median(ratios):.2f}x plain ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
