import random
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy_forward
import pytest
from mlx.utils import tree_flatten

import trm_mlx
from trm_mlx import attention, checkpoint, fused
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.model import Mask, ModelConfig, TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

PageMask = Literal["causal", "bidirectional"] | int

BASE: dict[str, Any] = {
    "vocabulary": 320, "width": 32, "heads": 4, "kv_heads": 2, "context": 96,
    "prelude": 2, "core": 2, "coda": 3, "depth": 3,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rope base": {"rope_base": 100.0},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "no position": {"position": "none"},
    "window": {"window": 7},
    "alibi and window": {"position": "alibi", "window": 7},
    "swiglu": {"feed_forward": "swiglu"},
    "pass_lora": {"pass_lora": 3},
    "swiglu and pass_lora": {"feed_forward": "swiglu", "pass_lora": 3},
    "no qk_norm": {"qk_norm": False},
    "no injection": {"injection": False},
    "no pass_scale": {"pass_scale": False},
    "kv_heads = heads": {"kv_heads": 4},
    "one kv_head": {"kv_heads": 1},
    "no prelude": {"prelude": 0},
    "no coda": {"coda": 0},
}
IDS = [1, *(random.Random(0).randrange(320) for _ in range(69))]
TEXT = "Once upon a time a tiny dog saw the big red ball and ran to it. The ball went away, but he was happy."
assert len(IDS) > attention.QUERY_BLOCK


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 320)


@pytest.fixture(scope="module", params=OPTIONS)
def folder(request, tmp_path_factory, tokenizer) -> Path:
    return save(tmp_path_factory.mktemp("model") / "folder", tokenizer, mx.float32, OPTIONS[request.param])


def save(folder: Path, tokenizer: Tokenizer, dtype: mx.Dtype, options: dict[str, Any]) -> Path:
    """A folder with a model in which no tensor is zero or one."""
    config = ModelConfig(**{**BASE, **options})
    weights = dict(tree_flatten(TinyRecursiveLM(config).parameters()))
    for seed, (name, value) in enumerate(weights.items()):
        weights[name] = value + 0.3 * mx.random.normal(value.shape, key=mx.random.key(seed))
    checkpoint.save(folder, config, tokenizer, weights, dtype)
    return folder


@lru_cache(maxsize=1)
def opened(folder: Path) -> tuple[TinyRecursiveLM, numpy_forward.Forward]:
    return checkpoint.load(folder, mx.float32)[0], numpy_forward.Forward(folder)


def difference(folder: Path, ids: list[int], mask: PageMask = "causal") -> float:
    """The most MLX differs from NumPy, at any depth and in either form, over the largest logit."""
    model, forward = opened(folder)
    seen: Mask = mx.array([mask]) if isinstance(mask, int) else mask
    worst = []
    for depth in range(1, model.config.depth + 1):
        expected = forward(ids, depth, mask)
        for forms in {"plain", "lean", fused.active()}:
            with fused.use(forms):
                logits = np.array(model(mx.array([ids]), depth=depth, mask=seen)[0])
            worst.append(np.abs(logits - expected).max() / np.abs(expected).max())
    return float(np.max(worst))


def test_model_computes_what_its_page_says_with_every_option(folder):
    assert difference(folder, IDS) < 1e-4


@pytest.mark.parametrize("mask", ["bidirectional", 9])
def test_model_sees_through_a_mask_what_its_page_says(folder, mask):
    assert difference(folder, IDS[:20], mask) < 1e-4


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_model_stored_in_half_precision_computes_what_its_page_says(tmp_path, tokenizer, dtype):
    folder = save(tmp_path / "folder", tokenizer, dtype, OPTIONS["swiglu and pass_lora"])
    assert difference(folder, IDS) < 1e-4


@pytest.mark.skipif(not trm_mlx.PRETRAINED.exists(), reason="no model ships yet")
def test_model_that_ships_computes_what_its_page_says():
    tokenizer = Tokenizer.load(trm_mlx.PRETRAINED / "tokenizer.model")
    ids = [tokenizer.bos, *tokenizer.encode(TEXT * 3)][:40]
    assert len(ids) == 40
    assert difference(trm_mlx.PRETRAINED, ids) < 1e-4


@pytest.mark.parametrize("method", ["affine", "lut"])
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("group", [0, 32])
def test_a_quantized_folder_computes_what_its_page_says(tmp_path, tokenizer, method, bits, group):
    folder = save(tmp_path / "plain", tokenizer, mx.float32, {})
    held = checkpoint.contents(folder)
    grids = {name: Grid(method=method, bits=bits, group=group) for name in held.config.matrices()}
    arrays = dict(held.arrays)
    for name, each in grids.items():
        arrays |= grid.fit(name, np.array(arrays.pop(name)), each)
    checkpoint.save(tmp_path / "small", held.config, tokenizer, arrays, mx.float32, grids)
    assert difference(tmp_path / "small", IDS) < 1e-4
    assert not np.allclose(numpy_forward.logits(folder, IDS, 1), numpy_forward.logits(tmp_path / "small", IDS, 1))


def test_every_tensor_of_a_folder_is_on_the_page(tmp_path, tokenizer):
    folder = save(tmp_path / "folder", tokenizer, mx.float32, {"position": "learned", "pass_lora": 3})
    forward = numpy_forward.Forward(folder)
    for name, tensor in forward.weights.items():
        forward.weights[name] = tensor * np.nan
        assert np.isnan(forward(IDS[:3], 1)).all(), name
        forward.weights[name] = tensor


def test_weights_name_the_files_they_belong_to_by_sha256(tmp_path, tokenizer):
    folder = save(tmp_path / "folder", tokenizer, mx.float32, {})
    _, metadata, data = numpy_forward.read_tensors(folder / "model.safetensors")
    files = {"config": folder / "config.json", "tokenizer": folder / "tokenizer.model"}
    contents = {name: path.read_bytes() for name, path in files.items()} | {"sha256": data}
    assert metadata == {name: sha256(content).hexdigest() for name, content in contents.items()}


def test_logits_of_a_folder_are_float64_of_every_token(tmp_path, tokenizer):
    folder = save(tmp_path / "folder", tokenizer, mx.float32, {})
    logits = numpy_forward.logits(folder, IDS, 2, 5)
    assert logits.dtype == np.float64
    assert np.array_equal(logits, numpy_forward.Forward(folder)(IDS, 2, 5))
