import math

import mlx.core as mx
import numpy as np
import pytest

from trm_mlx import objectives

BATCH = mx.array([[1, 10, 11, 2, 1, 12, 13, 3], [1, 20, 21, 22, 23, 24, 2, 3]])
PAD, BOS = 3, 1


def test_causal_targets_are_the_next_tokens_and_pad_weighs_nothing():
    task = objectives.causal(BATCH, PAD)
    assert task.inputs.tolist() == BATCH[:, :-1].tolist()
    assert task.targets.tolist() == BATCH[:, 1:].tolist()
    assert task.weights.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0]]


def test_isolated_documents_are_numbered_from_their_bos():
    assert objectives.causal(BATCH, PAD, BOS).segments.tolist() == [[1, 1, 1, 1, 2, 2, 2], [1] * 7]


def test_masked_task_hides_a_share_of_tokens_and_asks_for_those_alone():
    mx.random.seed(0)
    batch = mx.random.randint(10, 1000, (64, 513))
    task = objectives.masked(batch, PAD, blank=0, vocabulary=1000)
    chosen = np.array(task.weights).astype(bool)
    inputs, targets = np.array(task.inputs), np.array(task.targets)
    assert (targets == np.array(batch[:, 1:])).all()
    assert (inputs == targets)[~chosen].all()
    n = chosen.size  # 32,768: standard error of the share 0.002
    assert abs(chosen.mean() - 0.15) < 0.01
    assert abs((inputs[chosen] == 0).mean() - 0.8) < 0.03  # standard error 0.006
    assert abs((inputs[chosen] == targets[chosen]).mean() - 0.1) < 0.02
    assert n == 64 * 512
    assert task.mask == "bidirectional"


def test_masked_task_never_asks_for_pad():
    mx.random.seed(1)
    task = objectives.masked(mx.full((4, 100), PAD), PAD, blank=0, vocabulary=50)
    assert task.weights.sum().item() == 0


def test_loss_is_the_weighted_sum_of_cross_entropies(tiny):
    model, task = tiny(), objectives.causal(BATCH, PAD)
    total, plain, weight = objectives.loss(model, task, depth=2)
    logits = np.array(model(task.inputs, depth=2)).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    told = np.take_along_axis(logs, np.array(task.targets)[..., None], -1)[..., 0]
    expected = -(told * np.array(task.weights)).sum()
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert plain.tolist() == pytest.approx([expected], rel=1e-5)
    assert weight.item() == 12


def test_parts_of_a_batch_add_up_to_the_whole(tiny):
    model = tiny()
    whole = objectives.loss(model, objectives.causal(BATCH, PAD))[0].item()
    parts = [objectives.loss(model, objectives.causal(BATCH[i : i + 1], PAD))[0].item() for i in (0, 1)]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_exit_losses_are_added_with_their_weight(tiny):
    model, task = tiny(), objectives.causal(BATCH, PAD)
    alone = [objectives.loss(model, task, depth=depth)[0].item() for depth in (1, 2, 3)]
    total, plain, _ = objectives.loss(model, task, exits=(1, 2), exit_weight=0.5)
    assert total.item() == pytest.approx(alone[2] + 0.5 * (alone[0] + alone[1]) / 2, rel=1e-5)
    assert plain.tolist() == pytest.approx(alone, rel=1e-5)


def test_smoothing_changes_what_is_minimised_and_not_what_is_reported(tiny):
    model, task = tiny(), objectives.causal(BATCH, PAD)
    plain = objectives.loss(model, task)
    smooth = objectives.loss(model, task, smoothing=0.2)
    assert smooth[0].item() != pytest.approx(plain[0].item(), rel=1e-3)
    assert smooth[1].tolist() == pytest.approx(plain[1].tolist(), rel=1e-6)


def test_score_is_a_ratio_of_sums_with_its_standard_error():
    parts = [(10.0, 20, 5), (30.0, 40, 11), (8.0, 10, 4)]
    score = objectives.score(parts)
    ratio = 48 / 70
    assert score.bits_per_byte == pytest.approx(ratio / math.log(2))
    assert score.perplexity == pytest.approx(math.exp(48 / 20))
    residuals = [10 - ratio * 20, 30 - ratio * 40, 8 - ratio * 10]
    expected = math.sqrt(sum(r * r for r in residuals) / 2 * 3) / 70 / math.log(2)
    assert score.standard_error == pytest.approx(expected)
    assert (score.tokens, score.bytes) == (20, 70)


def test_standard_error_is_the_spread_of_repeated_samples():
    draw = np.random.default_rng(0)

    def sample():
        sizes = draw.integers(50, 150, 40)
        return [(float(n * 0.7 + draw.normal(0, 5)), int(n), int(n)) for n in sizes]

    scores = [objectives.score(sample()) for _ in range(400)]
    spread = np.std([score.bits_per_byte for score in scores])
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.12)


def test_score_of_one_part_has_no_standard_error():
    assert math.isnan(objectives.score([(1.0, 2, 3)]).standard_error)


def test_score_of_nothing_is_refused():
    with pytest.raises(ValueError, match="measured on text, got none"):
        objectives.score([])


def test_windows_of_any_grouping_give_the_same_parts(tiny):
    model = tiny()
    draw = np.random.default_rng(0)
    sizes = (9, 9, 17, 9, 9, 9)
    windows = [(draw.integers(4, 64, n).astype(np.int32), np.ones(n - 1, np.float32)) for n in sizes]
    windows[1][1][:4] = 0
    lengths = [3] * 64

    def task(batch):
        return objectives.causal(batch, PAD)

    one = objectives.score_windows(model, windows, lengths, task, batch=1)
    many = objectives.score_windows(model, windows, lengths, task, batch=8)
    assert np.allclose(one, many, rtol=1e-5)
    assert [part[2] for part in one] == [8, 4, 16, 8, 8, 8]
    assert [part[1] for part in one] == [24, 12, 48, 24, 24, 24]


def test_shares_of_a_task_are_its_rows():
    task = objectives.causal(mx.arange(6 * 5).reshape(6, 5), pad=0, bos=1)
    shares = [task.share(rank, 3) for rank in range(3)]
    for name in ("inputs", "targets", "weights", "segments"):
        rows = mx.stack([getattr(share, name) for share in shares], axis=1).reshape(6, 4)
        assert mx.array_equal(rows, getattr(task, name))
    assert {share.mask for share in shares} == {"causal"}
