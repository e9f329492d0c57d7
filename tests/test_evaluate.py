"""Shapes: T tokens, V vocabulary."""

import json
import math
import random
import re
import statistics
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny_folder import save_tiny, text

from trm_mlx import checkpoint, evaluate, objectives
from trm_mlx.evaluate import EvaluateConfig, windows
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["tiny_folder"]


def jsonl(path: Path, *documents: str) -> str:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(path)


def scored(folder: Path, path: str, **settings) -> dict[int, objectives.Score]:
    return evaluate.evaluate(EvaluateConfig(model=folder, data=(path,), **settings))


def nats_one_by_one(model, ids: list[int], length: int, stride: int, depth: int | None = None) -> list[float]:
    """The nats of each token after the first: a forward pass each, over what its window shows before it."""
    nats = []
    for target in range(1, len(ids)):
        start = 0
        while start + length < target:
            start += stride
        logits = np.array(model(mx.array([ids[start:target]]), depth=depth)[0, -1], dtype=np.float64)
        nats.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[target]])
    return nats


def parts_of(ids: list[int], nats: list[float], length: int, stride: int) -> list[tuple[float, list[int]]]:
    """Nats and targets of each window, of which the first has `length` targets and the others `stride`."""
    cuts = [0, *range(length, len(nats), stride), len(nats)]
    return [(sum(nats[a:b]), ids[a + 1 : b + 1]) for a, b in pairwise(cuts)]


def error_of(parts: list[tuple[float, int]]) -> float:
    """The standard error of sum(x) / sum(y) in bits: that of the mean of x - ratio y, over the mean of y."""
    x, y = zip(*parts, strict=True)
    rest = [a - sum(x) / sum(y) * b for a, b in parts]
    return statistics.stdev(rest) / math.sqrt(len(parts)) / statistics.mean(y) / math.log(2)


# The arithmetic of windows.


def drawn(count: int):
    draw = random.Random(0)
    for _ in range(count):
        length = draw.randrange(1, 80)
        yield draw.randrange(1, 200), length, draw.randrange(1, length + 1)


def test_each_target_counts_in_exactly_one_window():
    for targets, length, stride in drawn(800):
        ids = list(range(100, 101 + targets))
        counted = [
            int(row[1 + place]) for row, weights in windows(ids, length, stride) for place in np.flatnonzero(weights)
        ]
        assert counted == ids[1:], (targets, length, stride)


def test_each_window_is_a_run_of_the_text_and_then_padding():
    for targets, length, stride in drawn(800):
        ids = list(range(100, 101 + targets))
        for row, weights in windows(ids, length, stride):
            assert row.dtype == np.int32 and weights.dtype == np.float32
            assert len(row) == len(weights) + 1 <= length + 1
            real = np.flatnonzero(row != Tokenizer.pad)
            assert np.array_equal(row[real], np.arange(row[0], row[0] + len(real)))
            assert real[-1] == len(real) - 1 and row[0] >= 100
            assert not weights[len(real) - 1 :].any() and set(weights) <= {0, 1}


def test_each_target_sees_length_less_stride_tokens_or_all_there_are():
    for targets, length, stride in drawn(800):
        for row, weights in windows(list(range(100, 101 + targets)), length, stride):
            for place in np.flatnonzero(weights):
                before, seen = int(row[place + 1]) - 100, place + 1  # tokens before the target
                assert seen >= min(before, length - stride + 1)


def test_windows_of_a_long_text_move_by_stride_and_those_of_a_short_one_are_short():
    rows = [row for row, _ in windows(range(100, 150), 16, 5)]
    assert [int(row[0]) for row in rows] == [100, 105, 110, 115, 120, 125, 130, 135]
    assert {len(row) for row in rows} == {17}
    (short,) = windows(range(100, 141), 512, 256)
    assert len(short[0]) == 65 and short[1].sum() == 40


def test_the_shortest_text_has_one_window():
    ((row, weights),) = windows([1, 2], 1, 1)
    assert (row.tolist(), weights.tolist()) == ([1, 2], [1.0])


def test_no_text_has_no_window():
    assert list(windows([1], 8, 4)) == []


# Scores, against one forward pass for each token.


@pytest.mark.slow
@pytest.mark.parametrize(("length", "stride"), [(16, 8), (16, 16), (16, 1), (16, 5), (None, None), (64, None)])
def test_a_lone_document_is_scored_as_token_by_token(folder, loaded, tmp_path, length, stride):
    model, tokenizer = loaded
    document = text(20, seed=1)
    found = scored(folder, jsonl(tmp_path / "a.jsonl", document), length=length, stride=stride, depth=(1, 2))
    ids = [tokenizer.bos, *tokenizer.encode(document), tokenizer.eos]
    length = length or 512
    stride = stride or length // 2
    assert list(found) == [1, 2]
    for depth, score in found.items():
        nats = nats_one_by_one(model, ids, length, stride, depth)
        size = len(document.encode())
        assert (score.tokens, score.bytes) == (len(ids) - 1, size)
        assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5)
        assert score.perplexity == pytest.approx(math.exp(statistics.mean(nats)), rel=1e-4)
        parts = [
            (part, sum(tokenizer.byte_lengths[i] for i in targets))
            for part, targets in parts_of(ids, nats, length, stride)
        ]
        if len(parts) > 1:
            assert score.standard_error == pytest.approx(error_of(parts), rel=1e-4)
        else:
            assert math.isnan(score.standard_error)


def test_several_documents_are_the_parts_of_the_error_and_do_not_see_each_other(folder, loaded, tmp_path):
    model, tokenizer = loaded
    documents = [text(words, seed=words) for words in (3, 9, 1, 25, 6)]
    score = scored(folder, jsonl(tmp_path / "a.jsonl", *documents), length=24, stride=12)[2]
    parts, tokens = [], 0
    for document in documents:
        ids = [tokenizer.bos, *tokenizer.encode(document), tokenizer.eos]
        parts.append((sum(nats_one_by_one(model, ids, 24, 12)), len(document.encode())))
        tokens += len(ids) - 1
    size = sum(size for _, size in parts)
    assert (score.tokens, score.bytes) == (tokens, size)
    assert score.bits_per_byte == pytest.approx(sum(nats for nats, _ in parts) / math.log(2) / size, rel=1e-5)
    assert score.standard_error == pytest.approx(error_of(parts), rel=1e-4)


def test_the_standard_error_is_near_that_of_leaving_each_part_out():
    draw = random.Random(2)
    sizes = [draw.randrange(50, 400) for _ in range(60)]
    parts = [(size * draw.gauss(1.0, 0.2), size, size // 4) for size in sizes]
    ratios = []
    for number in range(60):
        rest = parts[:number] + parts[number + 1 :]
        ratios.append(sum(nats for nats, _, _ in rest) / sum(size for _, size, _ in rest) / math.log(2))
    jackknife = math.sqrt(59 / 60 * sum((ratio - statistics.mean(ratios)) ** 2 for ratio in ratios))
    assert objectives.score(parts).standard_error == pytest.approx(jackknife, rel=0.05)


def test_the_order_of_documents_does_not_matter(folder, tmp_path):
    documents = [text(words, seed=words) for words in (3, 40, 9, 1)]
    one, other = (
        scored(folder, jsonl(tmp_path / f"{name}.jsonl", *order), length=32)[2]
        for name, order in (("a", documents), ("b", documents[::-1]))
    )
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes)
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-5)


def test_scores_do_not_depend_on_how_windows_share_a_batch(loaded):
    model, tokenizer = loaded
    every = []
    for words in (2, 30, 1, 8, 60, 3):
        every += windows([1, *tokenizer.encode(text(words, seed=words)), 2], 48, 16)

    def task(batch):
        return objectives.causal(batch, Tokenizer.pad)

    one, *others = (
        objectives.score_windows(model, every, tokenizer.byte_lengths, task, None, batch) for batch in (1, 3, 8)
    )
    for other in others:
        assert [part[1:] for part in other] == [part[1:] for part in one]
        assert np.allclose([part[0] for part in other], [part[0] for part in one], rtol=1e-5)


def test_text_outside_the_vocabulary_counts_its_bytes(folder, tmp_path):
    document = "caf\u00e9 \u2581 \U0001f600\u4f60"
    assert scored(folder, jsonl(tmp_path / "a.jsonl", document))[2].bytes == len(document.encode())


def test_learned_positions_are_not_run_past(tmp_path):
    folder = save_tiny(tmp_path / "learned", position="learned", context=32)
    score = scored(folder, jsonl(tmp_path / "a.jsonl", text(80)))[2]
    model, tokenizer = checkpoint.load(folder)
    ids = [tokenizer.bos, *tokenizer.encode(text(80)), tokenizer.eos]
    expected = statistics.mean(nats_one_by_one(model, ids, 32, 16))
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-4)


def test_max_tokens_stops_after_the_document_that_reaches_it(folder, loaded, tmp_path):
    documents = [text(5, seed=seed) for seed in range(4)]
    sizes = [len(loaded[1].encode(document)) + 2 for document in documents]
    path = jsonl(tmp_path / "a.jsonl", *documents)
    for limit, count in ((1, 1), (sizes[0], 1), (sizes[0] + 1, 2), (sum(sizes), 4), (0, 4)):
        score = scored(folder, path, max_tokens=limit)[2]
        assert score.tokens == sum(sizes[:count]) - count


# The command.


def test_the_command_prints_a_line_for_each_depth(folder, tmp_path, capsys):
    path = jsonl(tmp_path / "a.jsonl", text(9), text(5))
    evaluate.main(["--model", str(folder), "--data", path, "--depth", "1", "2"])
    out, err = capsys.readouterr()
    scores = scored(folder, path, depth=(1, 2))
    for depth, line in zip((1, 2), out.splitlines(), strict=True):
        words = line.split()
        named = dict(zip(words[0::2], words[1::2], strict=False))
        assert named["depth"] == str(depth)
        assert named["bits_per_byte"] == f"{scores[depth].bits_per_byte:.4f}"
        assert words[words.index("perplexity") :][:6] == [
            "perplexity", f"{scores[depth].perplexity:.2f}",
            "tokens", str(scores[depth].tokens), "bytes", str(scores[depth].bytes),
        ]  # fmt: skip
    assert f"difference_from_depth_1 {scores[2].difference:+.4f} +- " in out.splitlines()[1]
    assert "difference" not in out.splitlines()[0]
    assert err == ""


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_prints_strict_json(folder, tmp_path, capsys, count):
    def refuse(constant: str):
        raise ValueError(constant)

    path = jsonl(tmp_path / "a.jsonl", *[text(5, seed=seed) for seed in range(count)])
    evaluate.main(["--model", str(folder), "--data", path, "--depth", "1,2", "--json"])
    record = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert record["model"] == str(folder)
    scores = scored(folder, path, depth=(1, 2))
    for depth in (1, 2):
        found = record["depths"][str(depth)]
        assert found["bits_per_byte"] == scores[depth].bits_per_byte
        assert (found["standard_error"] is None) == (count == 1)  # one part has no spread


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data is required"),
        (["--data"], "at least one source"),
        (["--data", "{tmp}/none.txt"], "none.txt"),
        (["--data", "{tmp}/bad.txt"], "bad.txt must be UTF-8, got byte 0xFF at offset 3"),
        (["--data", "{tmp}/blank.txt"], "blank.txt must hold text"),
        (["--data", "{tmp}/a.txt", "--depth", "1", "3"], "depth must be 1 to 2, .* got 3"),
        (["--data", "{tmp}/a.txt", "--depth", "0"], "depth must be 1 to 2, .* got 0"),
        (["--data", "{tmp}/a.txt", "--length", "513"], "the context of 512, got 256 and 513"),
        (["--data", "{tmp}/a.txt", "--length", "1"], "length must be at least 2, got 1"),
        (["--data", "{tmp}/a.txt", "--length", "8", "--stride", "9"], "stride must be at most length"),
        (["--data", "{tmp}/a.txt", "--stride", "0"], "stride must be at least 1, got 0"),
        (["--data", "{tmp}/a.txt", "--max-tokens", "-1"], "max_tokens must not be negative"),
        (["--data", "{tmp}/a.txt", "--model", "{tmp}/none"], "no model folder at"),
        (["--data", "{tmp}/a.txt", "--dept", "1"], "unknown flag --dept; did you mean --depth"),
    ],
)
def test_asked_wrongly_it_says_so_in_one_line(folder, tmp_path, capsys, flags, message):
    (tmp_path / "a.txt").write_text("the moon")
    (tmp_path / "bad.txt").write_bytes(b"caf\xff")
    (tmp_path / "blank.txt").write_text(" \n")
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", str(folder), *flags])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


def test_a_model_of_no_numbers_is_refused(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(objectives, "score_windows", lambda *_: [(math.nan, 5, 2)])
    monkeypatch.setattr(checkpoint, "load", lambda _: (model, tokenizer))
    with pytest.raises(ValueError, match="the loss at depth 2 must be finite"):
        scored(tmp_path, jsonl(tmp_path / "a.jsonl", "the moon"))


def test_every_depth_is_checked_before_the_first_is_scored(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "score_windows", lambda *_: pytest.fail("scored"))
    with pytest.raises(ValueError, match="got 9"):
        scored(folder, jsonl(tmp_path / "a.jsonl", "the moon"), depth=(1, 9))


def test_difference_of_depths_is_paired_by_document(folder, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *(text(n) for n in (9, 5, 30, 14)))
    scores = scored(folder, path, depth=(1, 2))
    assert scores[1].difference is None
    assert scores[2].difference == pytest.approx(scores[2].bits_per_byte - scores[1].bits_per_byte)
    parts = [scored(folder, jsonl(tmp_path / f"{n}.jsonl", text(n)), depth=(1, 2)) for n in (9, 5, 30, 14)]
    gaps = [(part[2].bits_per_byte - part[1].bits_per_byte) * part[1].bytes for part in parts]
    sizes = [part[1].bytes for part in parts]
    residuals = [gap - scores[2].difference * size for gap, size in zip(gaps, sizes, strict=True)]
    expected = math.sqrt(sum(r * r for r in residuals) / 3 * 4) / sum(sizes)
    assert scores[2].difference_error == pytest.approx(expected, rel=1e-3)
