"""One setting, several values, several seeds: what each does to quality and to training speed.

    python benchmarks/ablate.py --setting model.feed_forward --values relu2 swiglu --data stories.jsonl \
        --held-out-data held-out.jsonl
    python benchmarks/ablate.py --report

Seeds run one after another with all values side by side in time, so that a machine that speeds up or slows down does
it to all of them. Differences are paired by seed: same data order, same held-out text. Each run is one line of the
results file; runs that are there already are not made again.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

from trials import Records, Text, TextConfig, mean_and_error, place, run

from trm_mlx import config
from trm_mlx.loop import FitConfig
from trm_mlx.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run trains: the tables `model` and `fit` of a settings file."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig.PRESETS["nano"])
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=300, batch=8))


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Train with each value of a setting, and compare quality and speed."""

    setting: Annotated[
        tuple[str, ...], "what to change, as in a settings file: model.feed_forward, fit.rate, ..."
    ] = ()
    values: Annotated[
        tuple[str, ...], "its values, the one to compare with first; JSON, or a word; of several settings 'A,B'"
    ] = ()
    seeds: Annotated[tuple[int, ...], "seeds of weights and data order"] = (0, 1, 2)
    results: Annotated[Path, "file that keeps a line for each run"] = Path("docs/ablations.jsonl")
    report: Annotated[bool, "train nothing: print the tables of the results"] = False
    text: TextConfig = field(default_factory=TextConfig)
    trial: Trial = field(default_factory=Trial)


def changed(trial: Trial, settings: Sequence[str], value: str) -> Trial:
    """The trial with settings replaced, checked as in a settings file.

    Raises:
        ValueError: no such setting, not a value for it, or not as many values as settings.
    """
    record, parts = config.to_json(trial), value.split(",")
    if len(parts) != len(settings):
        raise ValueError(f"--values must give {len(settings)} with commas between, got {value!r}")
    for setting, part in zip(settings, parts, strict=True):
        table, _, key = setting.partition(".")
        if key not in record.get(table, {}):
            raise ValueError(f"--setting must be model.NAME or fit.NAME, got {setting!r}")
        try:
            record[table][key] = json.loads(part)
        except ValueError:
            record[table][key] = part
    return config.from_json(Trial, record, f"--setting {' '.join(settings)}")


def ablate(settings: AblateConfig) -> None:
    """Run what is not recorded yet."""
    if not settings.setting or not settings.values:
        raise ValueError("--setting and --values must say what to compare; --report prints what is recorded")
    records, base = Records(settings.results), config.to_json(settings.trial)
    texts: dict[int, Text] = {}
    for seed in settings.seeds:
        for value in settings.values:
            trial = changed(settings.trial, settings.setting, value)
            vocabulary = trial.model.vocabulary
            if vocabulary not in texts:
                texts[vocabulary] = Text(settings.text, vocabulary)
            whole = {"trial": config.to_json(trial), "seed": seed, "text": texts[vocabulary].facts}
            facts = {"setting": ",".join(settings.setting), "value": value, "base": base}
            if records.find(**facts, **whole):
                continue
            made = records.find(**whole)  # under another setting: the same run, whose speed has nothing beside it
            if not made:
                made = measure(texts[vocabulary], trial, seed, value) | place()
            else:
                made = made | {"tokens_per_s": None}
            records.add({**made, "kind": "ablation", **facts, **whole})
            print(f"{value}  seed {seed}  {made['depths']}", file=sys.stderr, flush=True)


def measure(text: Text, trial: Trial, seed: int, label: str) -> dict[str, Any]:
    """Train once: bits per byte at each depth that training served, and what it cost."""
    fitting = replace(trial.fit, seed=seed)
    model, cost = run(text, trial.model, fitting, f"{label}, seed {seed}")
    served = range(1 if fitting.elastic else trial.model.depth, trial.model.depth + 1)
    return {"depths": {str(depth): text.score(model, fitting.length, depth) for depth in served}, **cost}


def report(path: Path) -> str:
    """A table in Markdown for each setting: bits per byte at each depth, difference from the first value, speed."""
    studies: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for line in Records(path).lines:
        study = studies.setdefault(json.dumps([line["setting"], line["base"]]), {})
        study.setdefault(line["value"], {})[line["seed"]] = line
    out = []
    for key, values in studies.items():
        setting, base = json.loads(key)
        shape, fitting = base["model"], base["fit"]
        size = f"width {shape['width']}, vocabulary {shape['vocabulary']}, {fitting['steps']} steps"
        out += [f"### {setting} ({size})", "", f"| {setting} | seeds | bits per byte | difference | speed |"]
        out.append("| --- | --- | --- | --- | --- |")
        first = next(iter(values.values()))
        for value, runs in values.items():
            both = [seed for seed in runs if seed in first]
            last = {seed: list(line["depths"].values())[-1] for seed, line in runs.items()}
            compared = [last[seed] - list(first[seed]["depths"].values())[-1] for seed in both]
            difference, error = mean_and_error(compared) if both else (float("nan"),) * 2
            timed = [seed for seed in both if runs[seed]["tokens_per_s"] and first[seed]["tokens_per_s"]]
            ratios = [runs[seed]["tokens_per_s"] / first[seed]["tokens_per_s"] for seed in timed]
            speed = f"{median(ratios):.2f}x" if ratios else ""
            columns = zip(*(line["depths"].values() for line in runs.values()), strict=True)
            bits = " / ".join(f"{fmean(column):.4f}" for column in columns)
            out.append(f"| {value} | {len(runs)} | {bits} | {difference:+.4f} +- {error:.4f} | {speed} |")
        out.append("")
    return "\n".join(out)


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(AblateConfig, argv, program="benchmarks/ablate.py")
    with config.door("benchmarks/ablate.py"):
        if not settings.report:
            ablate(settings)
        print(report(settings.results))


if __name__ == "__main__":
    main()
