"""One training step here and in PyTorch (eager, float32), in turns, and where the time of ours goes.

    python benchmarks/train.py                                          # preset nano, batch 8 x 256, AdamW
    python benchmarks/train.py --preset nano --depth 1 --optimizer muon

Both sides start from the same weights and learn the same batch, and their losses have to agree at every step. Seconds
are of a whole step: forward, backward, clipping, optimizer. Two ratios, each the median over rounds of one step of
ours and one of theirs: by the clock, and by CPU time, which other work on the machine disturbs less.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from trials import place, random_batch, stepper

from trm_mlx import config, fused

# isort: split
import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from trm_mlx.attention import attention
from trm_mlx.loop import FitConfig, Run, optimizer_for
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named

AGREE = 2e-3  # nats between two losses: rounding differs, and every step makes the difference grow


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time training steps against PyTorch's, and the parts of a step."""

    rounds: Annotated[int, "steps timed on each side, after two that warm up"] = 12
    parts: Annotated[bool, "also time the parts of a step"] = True
    json: Annotated[bool, "print one JSON object"] = False
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["nano"])
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            batch=8, depth_schedule="fixed", optimizer="adamw", rate=1e-3, schedule="constant", warmup=0
        )
    )


@dataclass(frozen=True)
class Cost:
    """What a step took, and the loss before it."""

    loss: float
    seconds: float
    cpu_seconds: float


def weights(model: TinyRecursiveLM) -> dict[str, mx.array]:
    """The model's tensors plus noise: at the start most are zero or one, which would hide a difference."""
    tensors = named(model.parameters())
    keys = mx.random.split(mx.random.key(1), len(tensors))
    return {
        name: array + 0.05 * mx.random.normal(array.shape, key=key)
        for (name, array), key in zip(tensors.items(), keys, strict=True)
    }


def ours(run: Run, batch: mx.array) -> Callable[[], Cost]:
    """Takes one step of ours."""
    step = stepper(run, batch)

    def timed() -> Cost:
        used = time.process_time()
        done = step()
        return Cost(done.loss, done.seconds, time.process_time() - used)

    return timed


@contextmanager
def theirs(settings: BenchConfig, start: dict[str, mx.array], batch: mx.array) -> Generator[Callable[[], Cost]]:
    """Takes one step of PyTorch's, in a process of its own that waits between steps."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        told = {"model": asdict(settings.model), "fit": asdict(settings.fit), "threads": 1}
        (folder / "model.json").write_text(json.dumps(told))
        mx.savez(str(folder / "weights.npz"), **start)
        np.save(folder / "batch.npy", np.array(batch))
        command = [sys.executable, str(Path(__file__).with_name("torch_model.py")), work]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin and stdout

            def answer() -> dict:
                line = stdout.readline()
                if not line:
                    raise RuntimeError("the PyTorch side ended early; its error is above")
                return json.loads(line)

            def step() -> Cost:
                print(file=stdin, flush=True)
                return Cost(**answer())

            answer()  # it is ready
            yield step
            stdin.close()


def refused(model: ModelConfig, fitting: FitConfig) -> str:
    """Why PyTorch's side cannot do this; empty if it can."""
    if find_spec("torch") is None:
        return "PyTorch is not installed (pip install torch)"
    plain = ModelConfig()
    for name in ("position", "feed_forward", "qk_norm", "injection", "pass_scale", "pass_lora", "dropout", "window"):
        if getattr(model, name) != getattr(plain, name):
            return f"the PyTorch model has no {name} {getattr(model, name)}"
    return "" if fitting.optimizer != "sgd" else "the PyTorch side has no sgd"


def parts(settings: BenchConfig, run: Run) -> dict[str, float]:
    """CPU seconds of the parts of one step, each compiled and timed alone, times how often a step does it."""
    model, fitting = settings.model, settings.fit
    B, T, D, H, N, K = fitting.batch, fitting.length, model.width, model.heads, model.kv_heads, model.head_width
    V, blocks = model.vocabulary, model.blocks()
    draw = mx.random.normal
    x, gain, table, hidden = draw((B, T, D)), draw((D,)), draw((V, D)), model.linears()["feed_forward.up"][0]
    heads = [draw((B, n, T, K)) for n in (H, N, N)]
    targets = mx.random.randint(0, V, (B, T))

    def turned(q: mx.array, gain: mx.array) -> mx.array:
        return fused.rope(fused.rms(q, gain, 1e-5).transpose(0, 2, 1, 3), model.rope_base, 0)

    def feed(h: mx.array) -> mx.array:
        return fused.relu_squared(h) if model.feed_forward == "relu2" else fused.swiglu(*mx.split(h, 2, axis=-1))

    found = {
        "products of the blocks": sum(
            blocks * spent(lambda x, w: x @ w.T, draw((B, T, inputs)), draw((outputs, inputs)))
            for outputs, inputs in model.linears().values()
        ),
        "attention": blocks * spent(lambda q, k, v: attention(q, k, v, K**-0.5, None, model.window), *heads),
        "query and key norms, RoPE": blocks * sum(spent(turned, draw((B, T, n, K)), draw((K,))) for n in (H, N)),
        "activation": blocks * spent(feed, draw((B, T, hidden))),
        "norms and residuals": (2 * blocks + 1) * spent(lambda x, w: fused.rms(x, w, 1e-5), x, gain)
        + (3 + model.depth) * spent(lambda x: fused.rms(x, None, 1e-5), x)
        + 2 * blocks * spent(lambda x, y, w: x + y * w, x, x, gain),
        "product of the head": spent(lambda x, w: x @ w.T, x, table),
        "cross-entropy": spent(lambda x: fused.cross_entropy(x, targets), draw((B, T, V))),
    }
    optimizer = optimizer_for(fitting)
    optimizer.init(run.model.trainable_parameters())
    state = [run.model.state, optimizer.state]
    update = mx.compile(lambda gradient: optimizer.update(run.model, gradient), inputs=state, outputs=state)
    gradient = run.model.parameters()
    found["optimizer"] = median_cpu(lambda: (update(gradient), mx.eval(state)))
    return found


def spent(compute: Callable[..., mx.array], *inputs: mx.array) -> float:
    """CPU seconds of a function and its gradients by all inputs, compiled."""
    cotangent = mx.random.normal(compute(*inputs).shape)
    both = mx.compile(lambda inputs, cotangent: mx.vjp(compute, inputs, [cotangent]))
    mx.eval(inputs, cotangent)
    return median_cpu(lambda: mx.eval(both(list(inputs), cotangent)))


def median_cpu(work: Callable[[], object], rounds: int = 9) -> float:
    """CPU seconds of a call, after one that compiles."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def spread(values: Sequence[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def bench(settings: BenchConfig) -> dict[str, object]:
    """All figures, by name."""
    model, fitting = TinyRecursiveLM(settings.model), settings.fit
    batch = random_batch(settings.model, fitting)
    start = weights(model)
    model.update(tree_unflatten(list(start.items())))
    mx.eval(model.parameters())
    found: dict[str, object] = {**place()}
    reason = refused(settings.model, fitting)
    with theirs(settings, start, batch) if not reason else nullcontext() as their_step:
        steppers = {"ours": ours(run := Run(model, fitting), batch)}
        if their_step:
            steppers["torch"] = their_step
        costs: dict[str, list[Cost]] = {side: [] for side in steppers}
        for turn in range(settings.rounds + 2):
            for side, step in steppers.items():
                costs[side].append(step())
            losses = [costs[side][turn].loss for side in costs]
            if fitting.optimizer == "adamw" and max(losses) - min(losses) > AGREE:
                raise RuntimeError(f"the two models must have one loss, got {losses} at step {turn + 1}")
    found["losses"] = {side: [each.loss for each in costs[side]] for side in costs}
    for side in costs:
        timed = costs[side][2:]
        found[f"{side}_tokens_per_s"] = fitting.tokens_per_step / statistics.median(each.seconds for each in timed)
        found[f"{side}_cpu_ms"] = 1000 * statistics.median(each.cpu_seconds for each in timed)
    if reason:
        found["skipped"] = reason
    else:
        pairs = list(zip(costs["torch"][2:], costs["ours"][2:], strict=True))
        found["ratio"] = spread([torch.seconds / our.seconds for torch, our in pairs])
        found["cpu_ratio"] = spread([torch.cpu_seconds / our.cpu_seconds for torch, our in pairs])
        found["torch"] = version("torch")
    if settings.parts:
        found["parts_ms"] = {name: 1000 * seconds for name, seconds in parts(settings, run).items()}
    return found


def report(settings: BenchConfig, found: dict) -> None:
    """The figures as text."""
    print("  ".join(f"{name} {found[name]}" for name in place()), file=sys.stderr)
    shape = settings.model
    print(
        f"width {shape.width}  heads {shape.heads}  depth {shape.depth}  vocabulary {shape.vocabulary}  "
        f"batch {settings.fit.batch} x {settings.fit.length}  optimizer {settings.fit.optimizer}"
    )
    print(f"trm_mlx  {found['ours_tokens_per_s']:8.0f} tokens_per_s  {found['ours_cpu_ms']:7.1f} cpu_ms a step")
    if "skipped" in found:
        print(f"torch    skipped: {found['skipped']}")
    else:
        print(f"torch    {found['torch_tokens_per_s']:8.0f} tokens_per_s  {found['torch_cpu_ms']:7.1f} cpu_ms a step")
        print(
            f"trm_mlx is {found['ratio']} torch {found['torch']} eager by the clock, {found['cpu_ratio']} by CPU time"
        )
    if "parts_ms" in found:
        whole, named_parts = found["ours_cpu_ms"], found["parts_ms"]
        rest = whole - sum(named_parts.values())
        for name, spent_ms in {**named_parts, "the rest, by difference": rest}.items():
            print(f"  {name:28} {spent_ms:7.1f} cpu_ms  {100 * spent_ms / whole:5.1f} %")


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(BenchConfig, argv, program="benchmarks/train.py")
    with config.door("benchmarks/train.py"):
        found = bench(settings)
        if settings.json:
            print(json.dumps(found))
        else:
            report(settings, found)


if __name__ == "__main__":
    main()
