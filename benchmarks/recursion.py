"""What recursion buys: recursive models against flat ones of equal stored size, equal work and equal depth.

    python benchmarks/recursion.py --data stories.jsonl --held-out-data held-out.jsonl --width 64 --vocabulary 1024
    python benchmarks/recursion.py --report

Arms, all with the same blocks, tokens and data order unless their name says otherwise:
    flat            one pass: equal stored parameters
    flat, more      one pass, trained on more tokens: equal training work
    untied          a core of its own for every pass: equal depth, more parameters
    trained at r    always r passes
    elastic         the default recipe, which learns to be read after every pass; scored at each depth

Each run is one line of the results file; runs that are there already are not made again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from trials import Records, Text, TextConfig, mean_and_error, place, run, work

from trm_mlx import config
from trm_mlx.loop import FitConfig
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named

# isort: split
import mlx.core as mx
from mlx.utils import tree_unflatten

GROUP = 32  # weights that share a scale and an offset when rounded


@dataclass(frozen=True, kw_only=True)
class RecursionConfig:
    """Train the arms of the comparison at one size, and report over all sizes recorded."""

    seeds: Annotated[tuple[int, ...], "seeds of weights and data order"] = (0, 1, 2)
    arms: Annotated[tuple[str, ...], "arms to run; none: all"] = ()
    results: Annotated[Path, "file that keeps a line for each run"] = Path("docs/recursion.jsonl")
    plot: Annotated[Path, "picture to draw"] = Path("docs/recursion.png")
    report: Annotated[bool, "train nothing: print the tables of the results and draw the picture"] = False
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["nano"])
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, batch=8))


def arms(shape: ModelConfig, fitting: FitConfig) -> dict[str, tuple[ModelConfig, FitConfig]]:
    """The models and trainings to compare, by name."""
    flat, fixed = replace(shape, depth=1), replace(fitting, depth_schedule="fixed", exit_weight=0.0)
    more = replace(fixed, steps=round(fitting.steps * work(shape, fitting) / work(flat, fixed)))
    trained_at = {f"trained at {depth}": (replace(shape, depth=depth), fixed) for depth in range(2, shape.depth + 1)}
    return {
        "flat": (flat, fixed),
        "elastic": (shape, fitting),
        "flat, more": (flat, more),
        "untied": (replace(flat, core=shape.core * shape.depth), fixed),
        **trained_at,
    }


def rounded(model: TinyRecursiveLM, bits: int) -> float:
    """Round the matrices in place to this many bits, in groups along the inputs; megabytes that they then take."""
    size = 0
    for name, array in named(model.parameters()).items():
        array = array.astype(mx.float16)
        if name.endswith(".weight") and array.ndim == 2 and bits < 16:
            packed = mx.quantize(array, group_size=GROUP, bits=bits)
            size += sum(part.nbytes for part in packed)
            array = mx.dequantize(*packed, group_size=GROUP, bits=bits)
        else:
            size += array.nbytes
        model.update(tree_unflatten([(name, array.astype(mx.float32))]))
    return size / 1e6


def trial(text: Text, shape: ModelConfig, fitting: FitConfig, label: str) -> dict[str, Any]:
    """One run: bits per byte at each depth it serves, and rounded, with the megabytes stored."""
    model, cost = run(text, shape, fitting, label)
    weights = model.parameters()
    least = 1 if fitting.elastic else shape.depth
    depths = {str(depth): text.score(model, fitting.length, depth) for depth in range(least, shape.depth + 1)}
    sizes, bits_per_byte = {}, {}
    for bits in (16, 8, 4):
        model.update(weights)
        sizes[str(bits)] = rounded(model, bits)
        bits_per_byte[str(bits)] = text.score(model, fitting.length, shape.depth)
    return {"depths": depths, "megabytes": sizes, "rounded": bits_per_byte, **cost}


def study(settings: RecursionConfig) -> None:
    """Run what is not recorded yet, seed by seed."""
    records = Records(settings.results)
    chosen = arms(settings.model, settings.fit)
    if unknown := set(settings.arms) - chosen.keys():
        raise ValueError(f"--arms must be of {', '.join(map(repr, chosen))}, got {', '.join(map(repr, unknown))}")
    text = Text(settings.text, settings.model.vocabulary)
    shape = settings.model
    blocks = f"{shape.prelude}/{shape.core} x {shape.depth}/{shape.coda}"
    size = f"width {shape.width}, vocabulary {shape.vocabulary}, blocks {blocks}, {settings.fit.steps} steps"
    for seed in settings.seeds:
        for arm, (model, fitting) in chosen.items():
            fitting = replace(fitting, seed=seed)
            facts = {"size": size, "arm": arm, "model": config.to_json(model), "fit": config.to_json(fitting)}
            facts |= {"text": text.facts}
            if (settings.arms and arm not in settings.arms) or records.find(**facts):
                continue
            result = trial(text, model, fitting, f"{arm}, seed {seed}")
            records.add({"kind": "recursion", **facts, **result, **place()})
            print(f"{size}  {arm}  seed {seed}  {result['depths']}", file=sys.stderr, flush=True)


def rows(lines: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Runs by size, then arm, then seed."""
    table: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for line in lines:
        table.setdefault(line["size"], {}).setdefault(line["arm"], {})[line["fit"]["seed"]] = line
    return table


def report(path: Path) -> str:
    """Tables in Markdown: each arm's bits per byte, and its difference from flat, paired by seed."""
    out = []
    for size, group in rows(Records(path).lines).items():
        out += [f"### {size}", ""]
        head = ["arm", "seeds", "stored", "tokens", "work", "bits per byte", "less flat"]
        out += [" | ".join(["", *head, ""]).strip(), "|" + " --- |" * len(head)]
        flat = group.get("flat", {})
        for arm, runs in group.items():
            one = next(iter(runs.values()))
            ends = [run["depths"] for run in runs.values()]
            for depth in ends[0]:
                pairs = [
                    run["depths"][depth] - flat[seed]["depths"]["1"] for seed, run in runs.items() if seed in flat
                ]
                difference, error = mean_and_error(pairs) if pairs else (float("nan"),) * 2
                name = f"{arm}, {depth} pass{'es' if depth != '1' else ''}" if len(ends[0]) > 1 else arm
                share = one["training_flops"] / next(iter(flat.values()))["training_flops"] if flat else float("nan")
                cells = [name, str(len(runs)), f"{one['stored_parameters'] / 1e6:.3f}M"]
                cells += [f"{one['tokens'] / 1e6:.2f}M", f"{share:.2f}x", f"{fmean(e[depth] for e in ends):.4f}"]
                out.append("| " + " | ".join([*cells, f"{difference:+.4f} +- {error:.4f}"]) + " |")
        head = ["arm", "fp16 MB", "bits per byte", "8-bit MB", "bits per byte", "4-bit MB", "bits per byte"]
        out += ["", " | ".join(["", *head, ""]).strip(), "|" + " --- |" * len(head)]
        for arm, runs in group.items():
            cells = [arm]
            for bits in ("16", "8", "4"):
                cells.append(f"{next(iter(runs.values()))['megabytes'][bits]:.3f}")
                cells.append(f"{fmean(run['rounded'][bits] for run in runs.values()):.4f}")
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def draw(path: Path, out: Path) -> None:
    """Bits per byte over stored megabytes: a line for each arm from fp16 to 8 and 4 bits, a picture for each size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = rows(Records(path).lines)
    figure = Figure(figsize=(5.5 * len(groups), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (size, group) in enumerate(groups.items(), 1):
        title = size.replace(", blocks", "\nblocks")
        axes = figure.add_subplot(1, len(groups), number, title=title, xlabel="stored MB (16, 8, 4 bits)")
        axes.set_ylabel("held-out bits per byte")
        for arm, runs in group.items():
            sizes, bits_per_byte, errors = [], [], []
            for bits in ("16", "8", "4"):
                mean, error = mean_and_error(one["rounded"][bits] for one in runs.values())
                sizes.append(fmean(one["megabytes"][bits] for one in runs.values()))
                bits_per_byte.append(mean)
                errors.append(error)
            axes.errorbar(sizes, bits_per_byte, errors, marker="o", capsize=3, label=arm)
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(RecursionConfig, argv, program="benchmarks/recursion.py")
    with config.door("benchmarks/recursion.py"):
        if not settings.report:
            study(settings)
        print(report(settings.results))
        draw(settings.results, settings.plot)


if __name__ == "__main__":
    main()
