"""What the Linux CPU forms and the BLAS are worth: a training step, in each form, in turns, in one process.

python benchmarks/forms.py
TRM_MLX_BLAS=none python benchmarks/forms.py      # with the BLAS that MLX came with
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from trials import random_batch, stepper

import trm_mlx  # before mlx.core
from trm_mlx import backend, config, doctor, fused

# isort: split

from trm_mlx.loop import FitConfig, Run
from trm_mlx.model import ModelConfig, TinyRecursiveLM


@dataclass(frozen=True, kw_only=True)
class FormsConfig:
    """Time training steps in MLX's own operations and in the Linux CPU forms."""

    rounds: Annotated[int, "steps timed in each form"] = 10
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["nano"])
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=8, depth_schedule="fixed"))


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(FormsConfig, argv, program="benchmarks/forms.py")
    with config.door("benchmarks/forms.py"):
        forms: tuple[fused.Forms, ...] = ("plain", "lean", "fused")
        batch = random_batch(settings.model, settings.fit)
        steppers = {form: stepper(Run(TinyRecursiveLM(settings.model), settings.fit), batch) for form in forms}
        speeds: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(settings.rounds + 1):
            for form in forms:
                with fused.use(form):
                    step = steppers[form]()
                if turn:  # the first step compiles
                    speeds[form].append(step.tokens / step.seconds)
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
