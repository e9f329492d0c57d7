"""The head that learns when to leave, and that nothing else notices it."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn, optimizers
from mlx.utils import tree_unflatten
from tiny_folder import save_tiny

from trm_mlx import checkpoint, objectives
from trm_mlx.generate import generate
from trm_mlx.loop import FitConfig, Run, fit
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.runs import TrainConfig

pytest_plugins = ["tiny_folder"]

SHAPE = ModelConfig(vocabulary=32, width=32, heads=2, kv_heads=1, prelude=1, core=1, coda=1, depth=3, context=64)
HEAD = replace(SHAPE, halting=True)
FIT = FitConfig(steps=12, batch=4, length=16, warmup=2, exit_from=0.25, rate=4e-3)


def batches(number: int) -> mx.array:
    return mx.random.randint(0, 32, (4, 17), key=mx.random.key(number))


def causal(batch: mx.array) -> objectives.Task:
    return objectives.causal(batch, 3)


def trained(shape: ModelConfig, settings: FitConfig) -> tuple[Run, list[tuple[float, float]]]:
    run = Run(TinyRecursiveLM(shape, settings.seed), settings)
    return run, [(step.loss, step.gradient_norm) for step in fit(run, batches, causal)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_value": 1e-3, "average": 0.5}, {"depth_schedule": "random", "seed": 1}, {"recompute": True}],
    ids=str,
)
def test_the_rest_of_the_model_trains_to_the_very_bits_of_one_without_a_head(options):
    settings = replace(FIT, **options)
    (plain, losses), (headed, same) = trained(SHAPE, settings), trained(HEAD, settings)
    assert losses == same
    arrays, weights = plain.weights(), headed.weights()
    assert weights.keys() - arrays.keys() == {"halting.weight", "halting.bias"}
    assert all(np.array_equal(array, weights[name]) for name, array in arrays.items())
    assert mx.abs(weights["halting.weight"]).max() > 0


def test_the_head_is_left_alone_until_exits_are_read():
    run, _ = trained(HEAD, replace(FIT, steps=3, exit_from=0.99))
    assert not run.weights()["halting.weight"].any()


def test_a_run_to_fewer_passes_tells_the_head_nothing():
    model, task = TinyRecursiveLM(HEAD), causal(batches(0))
    total, sums, _ = objectives.loss(model, task, depth=2, exits=[1], exit_weight=0.3)
    assert mx.allclose(total, sums[-1] + 0.3 * sums[0])


def test_loss_of_the_head_is_the_cross_entropy_of_agreement(tiny):
    model = tiny(halting=True, depth=3)
    task = causal(mx.random.randint(0, 64, (2, 9), key=mx.random.key(1)))
    total, sums, _ = objectives.loss(model, task, exits=[1, 2], exit_weight=0.3)
    halts: list[mx.array] = []
    best = model(task.inputs, exits=[1, 2, 3], halts=halts).argmax(-1)
    expected = 0.0
    for exit_, odds in enumerate(halts[:2]):
        chance = 1 / (1 + np.exp(-np.array(odds, dtype=np.float64)))
        agree = np.array(best[exit_] == best[2])
        expected -= (np.where(agree, np.log(chance), np.log(1 - chance)) * np.array(task.weights)).sum()
    assert 0 < np.mean(np.array(best[0] == best[2])) < 1
    assert (total - sums[-1] - 0.15 * sums[:-1].sum()).item() == pytest.approx(expected / 2, rel=1e-3)


@pytest.mark.slow
def test_a_head_learns_which_tokens_need_more_passes(tiny):
    model = tiny(halting=True, noise=0.1)
    model.update({"halting": {"weight": mx.zeros(32), "bias": mx.zeros(1)}})
    model.freeze()
    model.halting.unfreeze()

    def lost(batch: mx.array) -> mx.array:
        return objectives.loss(model, causal(batch), exits=[1, 2], exit_weight=0.3)[0]

    def texts(seed: int, rows: int = 16) -> mx.array:
        return mx.random.randint(0, 64, (rows, 17), key=mx.random.key(seed))

    adam, gradient = optimizers.Adam(0.02), nn.value_and_grad(model, lost)
    for step in range(150):
        adam.update(model, gradient(texts(step))[1])
        mx.eval(model.parameters(), adam.state)
    halts: list[mx.array] = []
    best = model(texts(999, 128)[:, :-1], exits=[1, 2, 3], halts=halts).argmax(-1)
    agree, odds = np.array(best[0] == best[2]), np.array(halts[0])
    assert (~agree).sum() > 40
    above = odds[agree][:, None] > odds[~agree]  # of each pair of a token that needs no more passes and one that does
    assert above.mean() > 0.7  # 0.5 is chance, and 0.05 its standard deviation


# Folders.


def test_a_folder_keeps_the_head_and_one_without_says_nothing_of_it(tmp_path, folder):
    headed = save_tiny(tmp_path / "headed", halting=True)
    model, _ = checkpoint.load(headed)
    stored = model.config.stored_parameters()
    assert stored == sum(array.size for array in named(model.parameters()).values())
    assert stored == replace(model.config, halting=False).stored_parameters() + 33
    assert model.halting.weight.shape == (32,) and model.halting.weight.any()
    assert json.loads((headed / "config.json").read_text())["model"]["halting"] is True
    assert "halting" not in json.loads((folder / "config.json").read_text())["model"]
    assert not checkpoint.load(folder)[0].config.halting


def test_scores_of_a_model_do_not_depend_on_its_head(tmp_path):
    headed, tokenizer = checkpoint.load(save_tiny(tmp_path / "headed", halting=True))
    bare = TinyRecursiveLM(replace(headed.config, halting=False))
    bare.update(
        tree_unflatten([each for each in named(headed.parameters()).items() if not each[0].startswith("halting.")])
    )
    ids = mx.array([[tokenizer.bos, *tokenizer.encode("hello moon river")]])
    assert mx.array_equal(headed(ids), bare.eval()(ids))


def test_a_head_decides_the_passes_of_a_text(tmp_path):
    model = checkpoint.load_model(save_tiny(tmp_path / "headed", halting=True))
    replies = {}
    for bias in (-99.0, 99.0):
        model.update({"halting": {"bias": mx.array([bias])}})
        replies[bias] = generate(model, "hello", max_tokens=11, exit="halt:0.5", top_k=1)
    length = len(replies[99.0].tokens)
    assert replies[-99.0].mean_depth == 2 and replies[99.0].mean_depth == (2 + length - 1) / length


def test_a_tensor_of_the_head_that_is_missing_is_refused(tmp_path):
    headed = save_tiny(tmp_path / "headed", halting=True)
    held = checkpoint.contents(headed)
    arrays = {("bias" if name == "halting.bias" else name): array for name, array in held.arrays.items()}
    checkpoint.save(headed, held.config, held.tokenizer, arrays, mx.float32)
    with pytest.raises(ValueError, match=r"'bias'|halting\.bias"):
        checkpoint.load(headed)


@pytest.mark.parametrize(("shape", "weight"), [(HEAD, 0.0), (replace(HEAD, depth=1), 0.3)])
def test_training_a_head_that_would_learn_nothing_is_refused(shape, weight):
    with pytest.raises(ValueError, match="depth must be at least 2 and exit_weight above 0"):
        TrainConfig(model=shape, fit=FitConfig(length=16, exit_weight=weight))


@pytest.mark.slow
def test_a_model_with_a_head_is_exported_as_one_without(tmp_path):
    pytest.importorskip("coremltools")
    export_folder = pytest.importorskip("export_folder")
    plain = export_folder.save_small(tmp_path / "plain")
    held = checkpoint.contents(plain)
    arrays = held.arrays | {"halting.weight": mx.ones((32,)), "halting.bias": mx.ones((1,))}
    checkpoint.save(tmp_path / "headed", replace(held.config, halting=True), held.tokenizer, arrays, mx.float32)
    packages = []
    for model in (plain, tmp_path / "headed"):
        export = export_folder.save_export(tmp_path / f"export-{model.name}", model, depths=(1,))
        packages.append((export / "Tiny.mlpackage" / export_folder.WEIGHTS).read_bytes())
    assert packages[0] == packages[1]
