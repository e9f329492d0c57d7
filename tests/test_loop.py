import json
import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trm_mlx import fused, loop, objectives
from trm_mlx.loop import FitConfig, Run, exits, fit, most_passes, passes, rate_share
from trm_mlx.model import ModelConfig, TinyRecursiveLM

SHAPE = ModelConfig(vocabulary=64, width=32, heads=2, kv_heads=1, prelude=1, core=1, coda=1, depth=2, context=64)
TEXT = np.random.default_rng(0).integers(4, 64, 4000).astype(np.int32)
PLAIN = FitConfig(steps=8, batch=4, length=16, exit_weight=0.0, schedule="constant", warmup=0, rate=3e-3)
GOLDEN = Path(__file__).parent / "golden" / "run.json"


def batches(size, length=16):
    """Batch number n holds rows n * size and on, so that two batches of 2 are one batch of 4."""

    def batch(number):
        rows = [TEXT[17 * row : 17 * row + length + 1] for row in range(number * size, (number + 1) * size)]
        return mx.array(np.stack(rows))

    return batch


def task(batch):
    return objectives.causal(batch, 3)


def run_of(settings, shape=SHAPE):
    return Run(TinyRecursiveLM(shape, settings.seed), settings)


def losses(run, stop=None):
    found = []
    for event in fit(run, batches(run.settings.batch), task):
        found.append(event.loss)
        if stop and event.step == stop:
            break
    return found


def weights(run):
    return {name: np.array(array) for name, array in tree_flatten(run.model.parameters())}


@pytest.fixture(autouse=True)
def not_compiled():
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_learns_one_batch_by_heart(optimizer):
    steps, rate = (200, 0.1) if optimizer == "sgd" else (120, 1e-2)
    settings = replace(PLAIN, steps=steps, optimizer=optimizer, rate=rate)
    run, one = run_of(settings), batches(4)(0)
    found = [event.loss for event in fit(run, lambda number: one, task)]
    assert found[0] > 4 > 0.1 > found[-1]


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_accumulated_batches_equal_a_large_one(optimizer):
    large = run_of(replace(PLAIN, steps=3, optimizer=optimizer))
    parts = run_of(replace(PLAIN, steps=3, optimizer=optimizer, batch=2, accumulate=2))
    assert losses(large) == pytest.approx(losses(parts), rel=1e-5)
    for name, array in weights(large).items():
        assert np.allclose(array, weights(parts)[name], atol=2e-5), name


def test_one_step_of_sgd_moves_against_the_gradient():
    settings = replace(PLAIN, steps=1, optimizer="sgd", rate=0.1, clip_norm=0.0, weight_decay=0.0)
    run = run_of(settings)
    before, batch = weights(run), task(batches(4)(0))

    def mean(model):
        total, _, weight = objectives.loss(model, batch)
        return total / weight

    _, gradient = loop.nn.value_and_grad(run.model, lambda: mean(run.model))()
    losses(run)
    for name, slope in tree_flatten(gradient):
        assert np.allclose(weights(run)[name], before[name] - 0.1 * np.array(slope), atol=1e-5), name


def step_length(**changes):
    """How far one step of plain gradient descent at rate 1 goes, and the length it reports of its gradient."""
    run = run_of(replace(PLAIN, steps=1, optimizer="sgd", rate=1.0, weight_decay=0.0, **changes))
    before = weights(run)
    (event,) = fit(run, batches(4), task)
    moved = np.concatenate([(weights(run)[name] - before[name]).ravel() for name in before])
    return moved, event.gradient_norm


def test_gradient_is_clipped_to_its_norm():
    free, norm = step_length(clip_norm=0.0)
    assert np.linalg.norm(free) == pytest.approx(norm, rel=1e-4)
    clipped, reported = step_length(clip_norm=norm / 4)
    assert np.linalg.norm(clipped) == pytest.approx(norm / 4, rel=1e-3)
    assert reported == pytest.approx(norm, rel=1e-5)
    assert np.allclose(clipped * 4, free, atol=1e-5)
    assert np.allclose(step_length(clip_norm=norm * 2)[0], free)


def test_gradient_is_clipped_by_value():
    free, _ = step_length(clip_norm=0.0)
    limit = float(np.abs(free).max()) / 3
    clipped, _ = step_length(clip_norm=0.0, clip_value=limit)
    assert np.allclose(clipped, np.clip(free, -limit, limit), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weight_decay_shrinks_matrices_alone(optimizer):
    def after(decay):
        run = run_of(replace(PLAIN, steps=1, optimizer=optimizer, rate=0.01, matrix_rate=0.01, weight_decay=decay))
        before = weights(run)
        losses(run)
        return before, weights(run)

    before, plain = after(0.0)
    _, decayed = after(0.5)
    for name, array in plain.items():
        expected = array - 0.01 * 0.5 * before[name] if loop.is_matrix(name, array) else array
        assert np.allclose(decayed[name], expected, atol=1e-6), name


def test_matrices_are_those_of_the_blocks():
    named = tree_flatten(TinyRecursiveLM(SHAPE).parameters())
    matrices = {name for name, array in named if loop.is_matrix(name, array)}
    kinds = {"attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"}
    assert matrices == {f"{part}.0.{kind}.weight" for part in ("prelude", "core", "coda") for kind in kinds}


def test_muon_moves_a_matrix_by_an_orthogonal_step():
    run = run_of(replace(PLAIN, steps=1, matrix_rate=1.0, weight_decay=0.0, clip_norm=0.0))
    before = weights(run)["coda.0.feed_forward.down.weight"]
    losses(run)
    moved = weights(run)["coda.0.feed_forward.down.weight"] - before  # (32, 96)
    sizes = np.linalg.svd(moved, compute_uv=False)
    assert sizes.min() > 0.4 and sizes.max() < 1.4  # five Newton-Schulz steps leave singular values near 1


SCHEDULES = {
    "constant": {0: None, 5: 0.5, 10: 1.0, 55: 1.0, 110: 1.0},
    "linear": {5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1},
    "cosine": {5: 0.5, 10: 1.0, 35: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 60: 0.55, 110: 0.1},
    "stable": {5: 0.5, 10: 1.0, 55: 1.0, 82: 0.1 + 0.9 * (28 / 55), 110: 0.1},
    "cyclical": {5: 0.5, 10: 1.0, 20: 0.55, 30: 0.1, 40: 0.55, 50: 1.0, 70: 0.1},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_values(schedule):
    settings = FitConfig(steps=110, warmup=10, schedule=schedule, decay=0.5, floor=0.1, cycle=40)
    for step, share in SCHEDULES[schedule].items():
        if share is not None:
            assert rate_share(settings, step) == pytest.approx(share), step


def test_rate_of_each_part_is_its_peak_times_the_share():
    settings = replace(PLAIN, steps=2, warmup=4, rate=0.01, matrix_rate=0.04)
    run = run_of(settings)
    rates = [event.rate for event in fit(run, batches(4), task)]
    assert rates == pytest.approx([0.01, 0.02])
    assert [part.learning_rate.item() for part in run.optimizer.optimizers] == pytest.approx([0.02, 0.005])


def test_depth_grows_between_35_and_65_percent():
    settings = FitConfig(steps=1000, depth_schedule="grow")
    assert [passes(settings, step, 3) for step in (1, 350, 351, 650, 651, 1000)] == [1, 1, 2, 2, 3, 3]
    assert [passes(settings, step, 4) for step in (1, 351, 501, 651)] == [1, 2, 3, 4]
    assert [passes(settings, step, 2) for step in (500, 501)] == [1, 2]
    assert passes(settings, 1000, 1) == 1


def test_random_depth_takes_every_depth_as_often():
    settings = FitConfig(steps=3000, depth_schedule="random")
    drawn = [passes(settings, step, 3) for step in range(1, 3001)]
    assert [drawn.count(depth) for depth in (1, 2, 3)] == pytest.approx([1000] * 3, abs=110)  # 4 deviations


def test_growing_random_depth_stays_below_its_limit():
    settings = FitConfig(steps=1000, depth_schedule="grow-random")
    for low, high, most in ((1, 351, 1), (351, 651, 2), (651, 1001, 3)):
        assert {passes(settings, step, 3) for step in range(low, high)} == set(range(1, most + 1))
        assert most_passes(settings, low, 3) == most


def test_earlier_passes_are_read_late_in_training():
    settings = FitConfig(steps=10, exit_weight=0.3, exit_from=0.6)
    assert [list(exits(settings, step, 3)) for step in (1, 6, 7, 10)] == [[], [], [1, 2], [1, 2]]
    assert list(exits(settings, 10, 1)) == []
    assert list(exits(replace(settings, exit_weight=0.0), 10, 3)) == []


def test_losses_of_earlier_passes_change_training_once_they_count():
    plain, late = replace(PLAIN, steps=4), replace(PLAIN, steps=4, exit_weight=0.5, exit_from=0.5)
    one, two = losses(run_of(plain)), losses(run_of(late))
    assert one[:3] == two[:3]  # the first step that counts them is the third, and its own loss is of all passes
    assert one[3] != two[3]


def test_averaged_weights_follow_the_weights():
    run = run_of(replace(PLAIN, steps=3, average=0.9))
    expected = weights(run)
    for event in fit(run, batches(4), task):
        keep = min(0.9, event.step / (event.step + 10))
        expected = {name: keep * expected[name] + (1 - keep) * now for name, now in weights(run).items()}
    for name, array in run.weights().items():
        assert np.allclose(np.array(array), expected[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, {}),
        ({"average": 0.9, "optimizer": "adamw", "accumulate": 2}, {}),
        ({"depth_schedule": "random", "exit_weight": 0.3, "exit_from": 0.0}, {"dropout": 0.2, "pass_lora": 2}),
        ({"optimizer": "sgd", "schedule": "cyclical", "smoothing": 0.1}, {"feed_forward": "swiglu"}),
    ],
    ids=str,
)
def test_stopped_and_restored_run_gives_the_very_losses(changes, shape):
    settings, shape = replace(PLAIN, **changes), replace(SHAPE, **shape)
    whole = run_of(settings, shape)
    unbroken = losses(whole)
    first = run_of(settings, shape)
    begun = losses(first, stop=3)
    second = run_of(replace(settings, seed=99), shape)  # other weights, all to be restored
    second.settings = settings
    second.restore({name: mx.array(np.array(array)) for name, array in first.arrays().items()}, 3)
    assert begun + losses(second) == unbroken
    for name, array in weights(whole).items():
        assert np.array_equal(array, weights(second)[name]), name


def test_restoring_another_model_is_refused():
    run = run_of(PLAIN)
    other = run_of(PLAIN, replace(SHAPE, width=64)).arrays()
    with pytest.raises(ValueError, match="does not fit this run at"):
        run.restore(other, 1)


def test_a_loss_that_is_no_number_ends_the_run():
    run = run_of(replace(PLAIN, rate=1e30, clip_norm=0.0, optimizer="sgd"))
    with pytest.raises(RuntimeError, match=r"the loss became (nan|inf) at step"):
        losses(run)


def test_recomputed_passes_give_the_same_losses():
    assert losses(run_of(replace(PLAIN, steps=3, recompute=True))) == pytest.approx(
        losses(run_of(replace(PLAIN, steps=3))), rel=1e-5
    )


def test_masked_model_learns():
    settings = replace(PLAIN, steps=100, objective="masked", rate=1e-2)
    run, rows = run_of(settings), mx.array(np.tile(np.arange(10, 27, dtype=np.int32), (4, 1)))
    found = [e.loss for e in fit(run, lambda number: rows, lambda b: objectives.masked(b, 3, 0, 64))]
    assert np.mean(found[-5:]) < 0.5 < 3 < found[0]


@pytest.mark.slow
def test_golden_run_is_unchanged():
    mx.enable_compile()
    settings = FitConfig(steps=12, batch=4, length=16, warmup=2, average=0.9, seed=5, rate=3e-3)
    settings = replace(settings, depth_schedule="grow-random", exit_weight=0.0)
    with fused.use("plain"):
        found = losses(run_of(settings))
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps({"losses": found}, indent=1) + "\n")
    assert found == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm must not be negative"),
        ({"average": 1.0}, "average must be at least 0 and below 1"),
        ({"decay": 0.0}, "decay must be above 0"),
    ],
)
def test_impossible_settings_are_refused(change, line):
    with pytest.raises(ValueError, match=line):
        FitConfig(**change)
