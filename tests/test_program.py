"""The program of every kind of model computes what docs/model.md says."""

import numpy as np
import pytest

pytest.importorskip("coremltools")

from export_folder import read, save_export, save_small
from numpy_forward import logits

pytest_plugins = ["export_folder"]

CONTEXT = 24
CUTS = [1, 8, 3, 1, 9, 1, 1]  # chunks, one in part, one and a token, and single tokens to the end of the context
IDS = [7 + 29 * place % 500 for place in range(CONTEXT)]
SHAPES = {
    "rope": {"core": 2, "pass_lora": 2, "window": 5},
    "alibi": {"width": 64, "heads": 2, "kv_heads": 1, "position": "alibi", "prelude": 0, "window": 9},
    "learned": {"position": "learned", "feed_forward": "swiglu", "qk_norm": False, "coda": 2},
    "sinusoidal": {"width": 64, "heads": 2, "kv_heads": 2, "position": "sinusoidal", "injection": False},
    "none": {"position": "none", "pass_scale": False, "depth": 4, "prelude": 0, "rope_base": 99.0},
}


def farthest(export, model, depth):
    """The largest difference of a score, as a share of the largest score."""
    wanted = logits(model, IDS, depth)
    rows = read(export, IDS, depth, CUTS)
    return max(np.abs(row - wanted[count - 1]).max() for count, row in rows.items()) / np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_package_in_float32_gives_the_scores_of_the_equations_at_every_depth(name, tmp_path):
    model = save_small(tmp_path / "model", **SHAPES[name])
    export = save_export(tmp_path / "export", model, precision="float32", state="host")
    depth = SHAPES[name].get("depth", 2)
    assert max(farthest(export, model, each) for each in range(1, depth + 1)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_a_package_with_a_state_in_float16_is_as_near_as_float16_can_be(depth, small, exported):
    assert farthest(exported, small, depth) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("depths", [(2,), (1, 3)])
def test_some_depths_alone_give_the_scores_of_these_depths(depths, tmp_path):
    model = save_small(tmp_path / "model", depth=3)
    export = save_export(tmp_path / "export", model, depths=depths, precision="float32", state="host")
    assert max(farthest(export, model, depth) for depth in depths) < 1e-5


@pytest.mark.slow
def test_a_shorter_context_ends_where_it_says(tmp_path, small):
    export = save_export(tmp_path / "export", small, context=9, precision="float32", state="host")
    rows = read(export, IDS[:9], 2, [8, 1])
    wanted = logits(small, IDS[:9], 2)
    assert np.abs(rows[9] - wanted[-1]).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_alibi_hides_what_no_token_sees_however_far_it_is(monkeypatch, tmp_path):
    from convert import positions

    monkeypatch.setattr(
        positions, "MASKED", -30.0
    )  # less than the farthest bias here, as -1e4 is at 20,000 positions
    shape = {"width": 256, "heads": 8, "kv_heads": 1, "position": "alibi", "prelude": 0, "depth": 1, "context": 96}
    model = save_small(tmp_path / "model", **shape)
    export = save_export(tmp_path / "export", model, precision="float32", state="host")
    wanted = logits(model, IDS[:2], 1)
    assert np.abs(read(export, IDS[:2], 1, [1, 1])[2] - wanted[-1]).max() < 1e-3 * np.abs(wanted).max()
