"""fit(): a generator of training steps.

Every random choice of a step is a function of (seed, step), so a run that stops anywhere and goes on from its
saved state gives the very losses of an unbroken one.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import mlx.core as mx
from mlx import nn, optimizers
from mlx.utils import tree_map, tree_unflatten

from trm_mlx import objectives
from trm_mlx.model import TinyRecursiveLM, named
from trm_mlx.ranks import ALONE, Ranks

Array = mx.array


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the model is trained."""

    steps: Annotated[int, "optimizer steps"] = 1_000
    batch: Annotated[int, "sequences in a batch"] = 16
    accumulate: Annotated[int, "batches whose gradients make one step"] = 1
    length: Annotated[int, "tokens in a training sequence"] = 256
    objective: Annotated[objectives.Objective, "predict the next token, or restore masked ones"] = "causal"
    isolate: Annotated[bool, "documents that share a sequence do not see each other"] = False
    optimizer: Annotated[
        Literal["muon", "adamw", "sgd"], "of the blocks' matrices; all else has AdamW (SGD with sgd)"
    ] = "muon"
    rate: Annotated[float, "peak learning rate of AdamW or SGD; with AdamW for the matrices too, try 0.003"] = 8e-3
    matrix_rate: Annotated[float, "peak learning rate of Muon"] = 2e-2
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "stable", "cyclical"],
        "learning rate after warm-up: kept, falling, half a cosine, kept then falling, or triangles",
    ] = "stable"
    warmup: Annotated[int, "steps over which the learning rate rises"] = 50
    decay: Annotated[float, "share of all steps over which the stable schedule falls"] = 0.4
    floor: Annotated[float, "share of the peak learning rate left at the end"] = 0.0
    cycle: Annotated[int, "steps of one rise and fall of the cyclical schedule"] = 200
    weight_decay: Annotated[float, "share of a matrix taken off at rate 1 (sgd: of the gradient)"] = 0.01
    clip_norm: Annotated[float, "largest norm of the gradient, over all tensors; 0: any"] = 1.0
    clip_value: Annotated[float, "largest absolute value in a gradient; 0: any"] = 0.0
    average: Annotated[float, "decay of the weights' moving average, which is then what is saved; 0: none"] = 0.0
    smoothing: Annotated[float, "label smoothing"] = 0.0
    depth_schedule: Annotated[
        Literal["fixed", "grow", "random", "grow-random"],
        "passes: all; one at first, all from 65 % of the steps on; any number each step; any up to what grow allows",
    ] = "fixed"
    exit_weight: Annotated[float, "weight of the losses after earlier passes, which makes them usable; 0: none"] = 0.3
    exit_from: Annotated[float, "share of the steps before those losses count"] = 0.6
    recompute: Annotated[bool, "gradient checkpointing: save memory, compute each pass twice"] = False
    seed: Annotated[int, "of weights, data order and every random choice"] = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "length", "cycle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "matrix_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "floor", "weight_decay", "clip_norm", "clip_value", "exit_weight", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("average", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.seed >= 1 << 40:
            raise ValueError(f"seed must be below {1 << 40}, got {self.seed}")
        if not 0 <= self.exit_from < 1:
            raise ValueError(f"exit_from must be at least 0 and below 1, got {self.exit_from}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {self.decay}")

    @property
    def elastic(self) -> bool:
        """Whether training makes fewer passes than all usable too."""
        return self.depth_schedule.endswith("random") or self.exit_weight > 0

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.accumulate * self.length


def rate_share(settings: FitConfig, step: int) -> float:
    """Share of the peak learning rate at a step, the first being 1.

    Sources: cosine, arXiv 1608.03983; stable, arXiv 2404.06395; triangles, arXiv 1506.01186.
    """
    if step <= settings.warmup:
        return step / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cyclical":
        place = (step - settings.warmup) % settings.cycle / settings.cycle
        share = abs(2 * place - 1)
    else:
        start = settings.warmup
        if settings.schedule == "stable":
            start = max(start, round(settings.steps * (1 - settings.decay)))
        done = min(1.0, max(0, step - start) / max(1, settings.steps - start))
        share = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.floor + (1 - settings.floor) * share


def most_passes(settings: FitConfig, step: int, depth: int) -> int:
    """Most passes that training uses at a step, the first being 1, for a model of `depth` passes.

    Growth adds passes one by one, the second at 35 % of the steps and the last at 65 % (arXiv 2609.19107); a lone
    second one at 50 %.
    """
    if not settings.depth_schedule.startswith("grow"):
        return depth
    done = (step - 1) / settings.steps
    if depth == 2:
        return 1 + (done >= 0.5)
    return 1 + sum(done >= 0.35 + 0.3 * jump / (depth - 2) for jump in range(depth - 1))


def passes(settings: FitConfig, step: int, depth: int) -> int:
    """Passes at a step: the most, or with a random schedule any number up to it, each as likely."""
    limit = most_passes(settings, step, depth)
    if settings.depth_schedule.endswith("random"):
        return random.Random(f"{settings.seed}:{step}:depth").randint(1, limit)
    return limit


def draws(settings: FitConfig, step: int, rank: int = 0) -> int:
    """The seed of a step's draws: masks, which are drawn for a whole batch, and dropout, of each rank's own."""
    seed = (settings.seed * 1_000_003 + step) % 2**63
    return random.Random(f"{seed}:{rank}:dropout").getrandbits(63) if rank else seed


def exits(settings: FitConfig, step: int, depth: int) -> range:
    """The passes before the last at which a step of `depth` passes is read too."""
    late = settings.exit_weight > 0 and step > settings.exit_from * settings.steps
    return range(1, depth if late else 1)


class Muon(optimizers.Muon):
    """MLX's Muon with decoupled weight decay, as in arXiv 2502.16982; MLX's own adds it to the gradient."""

    def __init__(self, weight_decay: float) -> None:
        super().__init__(learning_rate=0.0, weight_decay=0.0)
        self.shrink = weight_decay

    def apply_single(self, gradient: Array, parameter: Array, state: dict) -> Array:
        kept = parameter * (1 - self.learning_rate * self.shrink)
        return super().apply_single(gradient, kept, state)


def is_matrix(name: str, array: Array) -> bool:
    """Whether a tensor is one of the blocks' matrices: those that Muon and weight decay are for."""
    return array.ndim == 2 and name.endswith(".weight") and not name.startswith("embedding")


def optimizer_for(settings: FitConfig) -> optimizers.MultiOptimizer:
    """One optimizer for the blocks' matrices, AdamW without weight decay (or SGD) for all else."""
    betas, decay = [0.9, 0.95], settings.weight_decay
    matrices = {
        "muon": lambda: Muon(decay),
        "adamw": lambda: optimizers.AdamW(0.0, betas=betas, weight_decay=decay, bias_correction=True),
        "sgd": lambda: optimizers.SGD(0.0, momentum=0.9, weight_decay=decay),
    }[settings.optimizer]()
    if settings.optimizer == "sgd":
        rest = optimizers.SGD(0.0, momentum=0.9)
    else:
        rest = optimizers.AdamW(0.0, betas=betas, weight_decay=0.0, bias_correction=True)
    return optimizers.MultiOptimizer([matrices, rest], [is_matrix])


class Run:
    """What training changes: the model's weights, the optimizer's state, the averaged weights, the step reached."""

    def __init__(self, model: TinyRecursiveLM, settings: FitConfig) -> None:
        self.model, self.settings, self.step = model, settings, 0
        self.optimizer = optimizer_for(settings)
        self.optimizer.init(model.trainable_parameters())
        self.averages = named(model.trainable_parameters()) if settings.average else {}

    def weights(self) -> dict[str, Array]:
        """The weights to use and to save: the averaged ones where there are any."""
        return self.averages or named(self.model.parameters())

    def arrays(self) -> dict[str, Array]:
        """Everything by name, for saving: `weights.`, `optimizer.` and `averages.` before each."""
        parts = {
            "weights": named(self.model.parameters()),
            "optimizer": named(self.optimizer.state),
            "averages": self.averages,
        }
        return {f"{part}.{name}": array for part, named in parts.items() for name, array in named.items()}

    def restore(self, arrays: dict[str, Array], step: int) -> None:
        """Go back to saved arrays.

        Raises:
            ValueError: names or shapes other than those of `arrays()`.
        """
        own = self.arrays()
        for name in sorted(own.keys() | arrays.keys()):
            if name not in own or name not in arrays or own[name].shape != arrays[name].shape:
                raise ValueError(f"the saved training state does not fit this run at {name!r}")
        parts = {part: {} for part in ("weights", "optimizer", "averages")}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        self.model.update(tree_unflatten(list(parts["weights"].items())))
        self.optimizer.state = tree_unflatten(list(parts["optimizer"].items()))
        self.averages, self.step = parts["averages"], step


@dataclass(frozen=True)
class Step:
    """One step done: its number from 1, mean loss in nats, rate, passes, gradient length, tokens and seconds."""

    step: int
    loss: float
    rate: float
    depth: int
    gradient_norm: float
    tokens: int
    seconds: float


def fit(
    run: Run,
    batches: Callable[[int], Array],
    make_task: Callable[[Array], objectives.Task],
    ranks: Ranks = ALONE,
) -> Iterator[Step]:
    """Train from `run.step` to the last step, yielding each step when it is done.

    Args:
        run: changed in place; consistent whenever the generator is suspended.
        batches: the batch (B, T + 1) of a number from 0; step n uses accumulate (n - 1) and those after it.
        make_task: what to learn from a batch; may draw from MLX's random state.
        ranks: those who share each batch, row by row; all have the run's state and call this alike.

    Raises:
        RuntimeError: the loss is no longer a number; the run holds the state before that step.
    """
    model, optimizer, settings = run.model, run.optimizer, run.settings
    model.recompute = settings.recompute
    model.train()
    random_state = mx.random.state

    @cache
    def gradients(depth: int, exits: range) -> Callable:
        def summed(batch: Array) -> tuple[Array, ...]:
            return objectives.loss(
                model,
                make_task(batch).share(ranks.rank, ranks.size),
                depth=depth,
                exits=exits,
                exit_weight=settings.exit_weight,
                smoothing=settings.smoothing,
            )

        state = [model.state, random_state]
        return mx.compile(nn.value_and_grad(model, summed), inputs=state, outputs=state)

    def apply(gradient: dict, weight: Array, averages: dict, keep: Array) -> tuple[Array, dict]:
        gradient = tree_map(lambda g: g / weight, gradient)
        if settings.clip_value:
            gradient = tree_map(lambda g: mx.clip(g, -settings.clip_value, settings.clip_value), gradient)
        trunk = [g for name, g in named(gradient).items() if not name.startswith("halting.")]  # clipped as without
        norm = mx.sqrt(mx.stack([mx.square(g).sum() for g in trunk]).sum())
        if settings.clip_norm:
            shrink = mx.minimum(1.0, settings.clip_norm / (norm + 1e-6))
            gradient = tree_map(lambda g: g * shrink, gradient)
        optimizer.update(model, gradient)
        current = named(model.trainable_parameters())
        return norm, {name: keep * old + (1 - keep) * current[name] for name, old in averages.items()}

    state = [model.state, optimizer.state]
    update = mx.compile(apply, inputs=state, outputs=state)
    while run.step < settings.steps:
        began, step = time.perf_counter(), run.step + 1
        share, depth = rate_share(settings, step), passes(settings, step, model.config.depth)
        gradient_of = gradients(depth, exits(settings, step, depth))
        mx.random.seed(draws(settings, step, ranks.rank if model.config.dropout else 0))
        for part, peak in zip(optimizer.optimizers, peaks(settings), strict=True):
            part.learning_rate = share * peak
        first = run.step * settings.accumulate
        totals, gradient = gradient_of(batches(first))
        for number in range(first + 1, first + settings.accumulate):
            mx.eval(totals, gradient)
            one, more = gradient_of(batches(number))
            totals = [a + b for a, b in zip(totals, one, strict=True)]
            gradient = tree_map(mx.add, gradient, more)
        mx.eval(totals, gradient)
        totals, gradient = ranks.sum((totals, gradient))
        _, plain, weight = totals
        loss = plain[-1].item() / max(1.0, weight.item())
        if not math.isfinite(loss):
            line = f"the loss became {loss} at step {step}; try a lower rate, or more warmup"
            raise ranks.alike(RuntimeError(line))
        # A young average would remember the random start: Adam-like ramp, as in arXiv 2312.02696, equation 127.
        keep = mx.array(min(settings.average, step / (step + 10)))
        norm, run.averages = update(gradient, mx.maximum(weight, 1.0), run.averages, keep)
        mx.eval(state, norm, run.averages)
        run.step = step
        seconds = time.perf_counter() - began
        rate = share * peaks(settings)[0]
        yield Step(step, loss, rate, depth, float(norm), settings.tokens_per_step, seconds)


def peaks(settings: FitConfig) -> tuple[float, float]:
    """Peak learning rates of the matrices and of all else."""
    return (settings.matrix_rate if settings.optimizer == "muon" else settings.rate), settings.rate
