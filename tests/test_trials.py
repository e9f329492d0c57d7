import json
from dataclasses import replace
from pathlib import Path

import ablate
import pytest
import recursion
import trials

from trm_mlx import fused
from trm_mlx.loop import FitConfig
from trm_mlx.model import ModelConfig, TinyRecursiveLM

FABLES = Path(__file__).parent.parent / "docs" / "fables.txt"
SHAPE = ModelConfig(vocabulary=320, width=32, heads=1, kv_heads=1, prelude=1, coda=1, depth=3, context=64)
FIT = FitConfig(steps=20, batch=2, length=32, warmup=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    names = (str(FABLES),)
    work = tmp_path_factory.mktemp("work")
    return trials.TextConfig(data=names, held_out_data=names, work=work, score_tokens=200)


def test_arms_are_equal_in_what_their_names_say():
    arms = recursion.arms(SHAPE, FIT)
    flat, elastic = arms["flat"][0], arms["elastic"][0]
    scales = 2 * SHAPE.width * SHAPE.core * (SHAPE.depth - 1)  # of each pass: all that recursion adds
    assert elastic.stored_parameters() - flat.stored_parameters() == scales
    assert arms["untied"][0].blocks() == elastic.blocks()
    more = trials.work(*arms["flat, more"]) / trials.work(*arms["elastic"])
    assert more == pytest.approx(1, abs=0.03)
    assert [arms[f"trained at {depth}"][0].depth for depth in (2, 3)] == [2, 3]


def test_work_counts_the_passes_of_every_step():
    fixed = trials.work(SHAPE, replace(FIT, exit_weight=0.0))
    assert fixed == 3 * FIT.steps * FIT.tokens_per_step * SHAPE.flops_per_token(3, FIT.length // 2)
    grown = trials.work(SHAPE, replace(FIT, exit_weight=0.0, depth_schedule="grow"))
    assert trials.work(replace(SHAPE, depth=1), FIT) < grown < fixed < trials.work(SHAPE, FIT)


def test_rounding_takes_the_bytes_of_its_bits_and_moves_weights_little():
    model = TinyRecursiveLM(SHAPE)
    before = model.core[0].feed_forward.up.weight
    sizes = [recursion.rounded(model, bits) for bits in (16, 8, 4)]
    assert sizes[0] == pytest.approx(2 * SHAPE.stored_parameters() / 1e6)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[0] / 4
    after = model.core[0].feed_forward.up.weight
    assert 0 < abs(after - before).max().item() < 0.1 * abs(before).max().item()


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped_and_pairs_its_differences(text, tmp_path):
    results, fitting = tmp_path / "results.jsonl", replace(FIT, steps=2)
    one = recursion.RecursionConfig(
        seeds=(0,), arms=("flat", "elastic"), results=results, text=text, model=SHAPE, fit=fitting
    )
    with fused.use("lean"):
        recursion.study(replace(one, arms=("flat",)))
        first = results.read_text()
        recursion.study(one)
        recursion.study(one)
    assert results.read_text().startswith(first)
    flat, elastic = (json.loads(line) for line in results.read_text().splitlines())
    assert elastic["arm"] == "elastic" and list(elastic["depths"]) == ["1", "2", "3"]
    difference = elastic["depths"]["3"] - flat["depths"]["1"]
    assert f"{difference:+.4f}" in recursion.report(results)
    with fused.use("lean"):
        recursion.study(replace(one, arms=("elastic",), model=replace(SHAPE, depth=2)))
    assert list(json.loads(results.read_text().splitlines()[-1])["depths"]) == ["1", "2"]
    recursion.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_ablation_trains_each_value_and_compares_with_the_first(text, tmp_path):
    results = tmp_path / "results.jsonl"
    trial = ablate.Trial(model=SHAPE, fit=replace(FIT, steps=2))
    settings = ablate.AblateConfig(
        setting=("fit.depth_schedule",),
        values=("fixed", "random"),
        seeds=(0, 1),
        results=results,
        text=text,
        trial=trial,
    )
    with fused.use("lean"):
        ablate.ablate(settings)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    runs = [(line["value"], line["seed"]) for line in lines]
    assert runs == [("fixed", 0), ("random", 0), ("fixed", 1), ("random", 1)]
    table = ablate.report(results)
    assert "| fixed | 2 |" in table and "+0.0000 +- 0.0000" in table


@pytest.mark.slow
def test_a_run_that_another_setting_made_is_not_made_again(text, tmp_path):
    trial = ablate.Trial(model=SHAPE, fit=replace(FIT, steps=2))
    one = {"values": ("2",), "seeds": (0,), "results": tmp_path / "results.jsonl", "text": text, "trial": trial}
    with fused.use("lean"):
        ablate.ablate(ablate.AblateConfig(setting=("fit.steps",), **one))
        ablate.ablate(ablate.AblateConfig(setting=("fit.batch",), **one))
    first, second = (json.loads(line) for line in one["results"].read_text().splitlines())
    assert second["setting"] == "fit.batch" and second["seconds"] == first["seconds"]
    assert second["depths"] == first["depths"] and second["tokens_per_s"] is None


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        (("fit.rote",), "1", "model.NAME or fit.NAME"),
        (("steps.rate",), "1", "model.NAME or fit.NAME"),
        (("fit.rate", "fit.warmup"), "1", "must give 2"),
        (("fit.rate",), "fast", "rate"),
        (("fit.optimizer",), "lion", "optimizer"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting, value, told):
    with pytest.raises(ValueError, match=told):
        ablate.changed(ablate.Trial(), setting, value)


def test_settings_can_change_together():
    trial = ablate.changed(ablate.Trial(), ("fit.optimizer", "fit.rate"), "adamw,0.003")
    assert (trial.fit.optimizer, trial.fit.rate) == ("adamw", 0.003)


def test_other_text_is_not_taken_for_what_is_kept(text, tmp_path):
    (tmp_path / "other.txt").write_text(FABLES.read_text()[:3000])
    kept = trials.Text(text, 320)
    other = trials.Text(replace(text, held_out_data=(str(tmp_path / "other.txt"),)), 320)
    assert other.facts["held_out"] != kept.facts["held_out"]


def test_a_line_that_a_kill_tore_is_dropped_and_the_others_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    trials.Records(path).add({"kind": "x", "arm": "flat"})
    path.write_text(path.read_text() + '{"kind": "x", "ar')
    trials.Records(path).add({"kind": "x", "arm": "elastic"})
    assert [line["arm"] for line in trials.Records(path).lines] == ["flat", "elastic"]


def test_text_of_another_vocabulary_is_refused(text):
    with pytest.raises(ValueError, match="must name the text"):
        trials.Text(trials.TextConfig(), 320)
    tokenizer = trials.Text(text, 320).corpus.tokenizer_path
    with pytest.raises(ValueError, match="must have 352 tokens"):
        trials.Text(replace(text, tokenizer=tokenizer), 352)
