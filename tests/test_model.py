import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from trm_mlx import fused
from trm_mlx.model import ModelConfig, TinyRecursiveLM
from trm_mlx.shape import LIMIT

IDS = mx.array(np.random.default_rng(0).integers(0, 64, (2, 30)))
OPTIONS = [
    {},
    {"position": "alibi"},
    {"position": "learned"},
    {"position": "sinusoidal"},
    {"position": "none"},
    {"window": 8},
    {"window": 8, "position": "alibi"},
    {"feed_forward": "swiglu"},
    {"pass_lora": 4},
    {"injection": False, "pass_scale": False, "qk_norm": False},
    {"kv_heads": 1},
    {"kv_heads": 4},
    {"prelude": 0, "coda": 0},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def close(a, b, tolerance=1e-4):
    return mx.abs(a - b).max().item() <= tolerance * mx.abs(b).max().item()


@each_option
def test_causal_model_ignores_later_tokens(tiny, options):
    model = tiny(**options)
    changed = mx.concatenate([IDS[:, :20], (IDS[:, 20:] + 1) % 64], axis=1)
    a, b = model(IDS), model(changed)
    assert close(a[:, :20], b[:, :20], 1e-5)
    assert not close(a[:, 20], b[:, 20], 1e-3)


@each_option
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cache_equals_no_cache_at_every_depth(tiny, options, depth):
    model = tiny(**options)
    cache = model.cache(depth)
    cuts = [(0, 17), (17, 18), (18, 25), (25, 30)]
    parts = [model(IDS[:, a:b], depth=depth, cache=cache) for a, b in cuts]
    assert close(mx.concatenate(parts, axis=1), model(IDS, depth=depth))


@each_option
def test_stored_parameters_are_those_of_the_arrays(tiny, options):
    model = tiny(**options)
    assert model.config.stored_parameters() == sum(a.size for _, a in tree_flatten(model.parameters()))


def test_effective_parameters_are_those_of_a_model_without_sharing(tiny):
    shared = tiny().config
    block = sum(a.size for _, a in tree_flatten(tiny(pass_scale=False).core[0].parameters()))
    assert shared.effective_parameters(3) - shared.stored_parameters() == 2 * 2 * block
    assert shared.effective_parameters(1) == shared.stored_parameters()


@each_option
@pytest.mark.parametrize("depth", [1, 3])
def test_cache_bytes_are_those_of_the_arrays(tiny, options, depth):
    model = tiny(**options)
    cache = model.cache(depth)
    mx.eval(model(IDS, depth=depth, cache=cache))
    capacity = cache.slots[0].parts[0].shape[2]
    assert cache.bytes == IDS.shape[0] * capacity * model.config.cache_bytes_per_token(depth)


def test_flops_are_those_of_the_matrix_products(tiny, monkeypatch):
    model = tiny(pass_lora=2)
    counted = []

    class Counting(type(model.core[0].attention.qkv)):
        def __call__(self, x, index=0):
            rows, columns = self.weight.shape
            rank = self.lora_a.shape[1] if "lora_a" in self else 0
            counted.append(rows * columns + rank * (rows + columns))
            return super().__call__(x, index)

    for _, module in model.named_modules():
        if type(module).__name__ == "Linear":
            module.__class__ = Counting
    length = 10
    model(IDS[:1, :length], depth=2)
    blocks = model.config.blocks(2)
    scores_and_values = 2 * length * 32 * blocks
    head = 64 * 32
    assert model.config.flops_per_token(2, length) == 2 * (sum(counted) + scores_and_values + head)


def test_window_bounds_the_flops_of_attention():
    config = ModelConfig(window=16)
    assert config.flops_per_token(length=1000) == config.flops_per_token(length=16)
    assert config.flops_per_token(length=16) > config.flops_per_token(length=8)


def test_presets_are_tiny_and_of_the_sizes_the_plan_gives():
    million = {name: round(p.stored_parameters() / 1e6, 1) for name, p in ModelConfig.PRESETS.items()}
    assert million == {"nano": 1.1, "tiny": 5.6, "small": 13.4, "base": 30.8, "large": 44.0}
    assert all(preset.stored_parameters() < LIMIT for preset in ModelConfig.PRESETS.values())


def test_a_model_that_is_not_tiny_says_so(capsys):
    TinyRecursiveLM(ModelConfig(vocabulary=65536, width=768, heads=12))
    told = capsys.readouterr().err
    assert told == "trm_mlx: this model stores 79.8M parameters; a tiny one stores at most 50M\n"


def test_window_hides_what_is_further_back(tiny):
    model = tiny(window=4, prelude=0, core=1, coda=0, depth=1)
    changed = mx.concatenate([(IDS[:, :1] + 1) % 64, IDS[:, 1:]], axis=1)
    a, b = model(IDS), model(changed)
    assert close(a[:, 4:], b[:, 4:], 1e-6)
    assert not close(a[:, 3], b[:, 3], 1e-4)


def test_bidirectional_model_sees_later_tokens(tiny):
    changed = mx.concatenate([IDS[:, :29], (IDS[:, 29:] + 1) % 64], axis=1)
    model = tiny()
    assert not close(model(IDS, mask="bidirectional")[:, 0], model(changed, mask="bidirectional")[:, 0], 1e-3)


def test_prefix_is_seen_from_everywhere_and_the_rest_is_causal(tiny):
    model, lengths = tiny(), mx.array([10, 4])
    later = mx.concatenate([IDS[:, :20], (IDS[:, 20:] + 1) % 64], axis=1)
    inside = mx.concatenate([IDS[:, :9], (IDS[:, 9:10] + 1) % 64, IDS[:, 10:]], axis=1)
    plain = model(IDS, mask=lengths)
    assert close(plain[:, :20], model(later, mask=lengths)[:, :20], 1e-5)
    changed = model(inside, mask=lengths)
    assert not close(plain[0, 0], changed[0, 0], 1e-3)  # position 9 lies in the first row's prefix of 10
    assert close(plain[1, :9], changed[1, :9], 1e-5)  # and after the second row's prefix of 4


def test_prefix_of_everything_is_bidirectional_and_of_nothing_causal(tiny):
    model = tiny()
    assert close(model(IDS, mask=mx.array([30, 30])), model(IDS, mask="bidirectional"), 1e-6)
    assert close(model(IDS, mask=mx.array([0, 0])), model(IDS), 1e-5)


def test_segments_do_not_see_each_other(tiny):
    model = tiny(position="none")
    segments = mx.array([[0] * 12 + [1] * 18] * 2)
    apart = mx.concatenate([model(IDS[:, :12]), model(IDS[:, 12:])], axis=1)
    assert close(model(IDS, segments=segments), apart)


def test_exits_equal_shallower_calls(tiny):
    model = tiny(pass_lora=2)
    exits = model(IDS, exits=(1, 2, 3))
    for place, depth in enumerate((1, 2, 3)):
        assert close(exits[place], model(IDS, depth=depth), 1e-5)
    assert close(model(IDS, exits=(2,))[0], model(IDS, depth=2), 1e-6)


def test_depths_differ(tiny):
    model = tiny()
    assert not close(model(IDS, depth=1), model(IDS, depth=2), 1e-2)
    assert not close(model(IDS, depth=2), model(IDS, depth=3), 1e-2)


@pytest.mark.parametrize("name", ["pass_scale", "pass_lora"])
def test_passes_have_their_own_corrections(tiny, name):
    model = tiny(**({"pass_lora": 2} if name == "pass_lora" else {}))
    before = model(IDS, exits=(1, 2))
    if name == "pass_scale":
        model.core[0].attention_scale[1] = model.core[0].attention_scale[1] + 1
    else:
        model.core[0].attention.qkv.lora_b[1] = model.core[0].attention.qkv.lora_b[1] + 1
    after = model(IDS, exits=(1, 2))
    assert close(before[0], after[0], 1e-6)
    assert not close(before[1], after[1], 1e-3)


def test_last_gives_the_scores_of_the_last_position(tiny):
    model = tiny()
    assert close(model(IDS, last=True)[:, 0], model(IDS)[:, -1], 1e-6)


def gradients(model, recompute):
    model.recompute = recompute
    model.train()
    mx.random.seed(3)
    loss, found = nn.value_and_grad(model, lambda: mx.square(model(IDS)).mean())()
    after = mx.random.uniform()
    mx.eval(loss, found, after)
    return loss.item(), dict(tree_flatten(found)), after.item()


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"pass_lora": 2, "injection": False}], ids=str)
def test_recomputing_passes_changes_no_gradient_and_no_draw(tiny, options, compiled):
    model = tiny(**options)
    kept = gradients(model, False)
    if compiled:
        model.recompute = True
        model.train()
        run = [model.state, mx.random.state]
        again = mx.compile(nn.value_and_grad(model, lambda: mx.square(model(IDS)).mean()), inputs=run, outputs=run)
        mx.random.seed(3)
        loss, found = again()
        found = dict(tree_flatten(found))
        fresh = (loss.item(), found, mx.random.uniform().item())
    else:
        fresh = gradients(model, True)
    assert fresh[0] == pytest.approx(kept[0], rel=1e-5)
    assert fresh[2] == kept[2]
    for name, gradient in kept[1].items():
        assert mx.allclose(gradient, fresh[1][name], rtol=1e-3, atol=1e-6), name


def test_recomputing_passes_holds_memory_of_one_pass():
    config = ModelConfig(
        vocabulary=64, width=64, heads=2, kv_heads=1, prelude=0, core=2, coda=0, depth=8, context=256
    )
    model, ids = TinyRecursiveLM(config), mx.zeros((4, 256), mx.int32)
    peaks = []
    for recompute in (False, True):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        gradients_of = nn.value_and_grad(model, lambda: model(ids).sum())
        model.recompute = recompute
        mx.eval(gradients_of())
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < peaks[0] / 3


def test_dropout_acts_in_training_only(tiny):
    model = tiny(dropout=0.5)
    assert mx.array_equal(model(IDS), model(IDS))
    model.train()
    assert not close(model(IDS), model(IDS), 1e-3)


def test_dropout_keeps_the_mean(tiny):
    block = tiny(dropout=0.25).prelude[0]
    kept = block._branch(mx.ones((200_000,)), "none", 0, mx.random.key(0))
    assert abs(kept.mean().item() - 1) < 0.01  # four standard errors are 0.005
    assert set(np.unique(np.array(kept)).round(4)) == {np.float32(0), np.float32(1.3333)}


def test_same_seed_gives_the_same_start_and_another_seed_another():
    config = ModelConfig(vocabulary=64, width=32, context=64)
    a, b, c = (TinyRecursiveLM(config, seed).embedding.weight for seed in (1, 1, 2))
    assert mx.array_equal(a, b)
    assert not mx.array_equal(a, c)


def test_every_block_starts_as_the_identity():
    model = TinyRecursiveLM(ModelConfig(vocabulary=64, width=32, context=64))
    x = mx.random.normal((1, 5, 32))
    assert mx.array_equal(model.core[0](x, 0, None, None), x)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"depth": 4}, "depth must be 1 to 3, the most this model was made for, got 4"),
        ({"depth": 0}, "depth must be 1 to 3"),
        ({"exits": (2, 1)}, "exits must be ascending"),
        ({"exits": ()}, "exits must be ascending"),
        ({"exits": (1, 4)}, "depth must be 1 to 3"),
        ({"exits": (0, 1)}, "exits must be ascending"),
        ({"exits": (1, 2), "depth": 2}, "stand for depth"),
        ({"mask": "sideways"}, "mask must be"),
    ],
)
def test_wrong_calls_are_refused(tiny, call, line):
    with pytest.raises(ValueError, match=line):
        tiny()(IDS, **call)


def test_cache_of_another_depth_is_refused(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="serves 2 passes"):
        model(IDS, depth=3, cache=model.cache(2))


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_table_positions_end_at_the_context(tiny, position):
    with pytest.raises(ValueError, match="end at 16, got 30"):
        tiny(position=position, context=16)(IDS)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"width": 30}, "multiple of heads"),
        ({"kv_heads": 3}, "multiple of heads, and heads of kv_heads"),
        ({"core": 0}, "core must be 1 to 1048576, got 0"),
        ({"depth": 0}, "depth must be 1 to 64, got 0"),
        ({"vocabulary": 65537}, "vocabulary must be 1 to 65536"),
        ({"window": -1}, "window must be 0 to 1048576, got -1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"rope_base": 1.0}, "rope_base must be above 1"),
        ({"width": 12, "heads": 4}, "must be even"),
    ],
)
def test_impossible_shapes_are_refused(change, line):
    with pytest.raises(ValueError, match=line):
        dataclasses.replace(ModelConfig(), **change)


@each_option
@pytest.mark.parametrize("forms", ["lean", "fused"])
def test_linux_cpu_forms_give_the_same_logits(tiny, options, forms):
    model = tiny(**options)
    with fused.use(forms):
        fast = model(IDS)
        mx.eval(fast)
    with fused.use("plain"):
        plain = model(IDS)
        mx.eval(plain)
    assert close(fast, plain)


@pytest.mark.parametrize("forms", ["plain", "lean", "fused"])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_halves_stay_halves_and_near_the_whole(tiny, forms, dtype):
    model = tiny()
    whole = model(IDS)
    model.set_dtype(dtype)
    with fused.use(forms):
        half = model(IDS)
    assert half.dtype == dtype
    assert close(half.astype(mx.float32), whole, 0.01 if dtype == mx.float16 else 0.06)


def test_model_does_not_look_further_than_it_was_trained_to():
    shape = ModelConfig(context=64)
    assert shape.trained_at(64) == shape
    assert shape.trained_at(16) == dataclasses.replace(shape, window=16)
    assert dataclasses.replace(shape, window=8).trained_at(16).window == 8
    assert dataclasses.replace(shape, window=32).trained_at(16).window == 16
    assert dataclasses.replace(shape, position="learned").trained_at(16).context == 16
    alibi = dataclasses.replace(shape, position="alibi")
    assert alibi.trained_at(16) == alibi


def test_window_of_the_trained_length_changes_nothing_at_that_length(tiny):
    assert close(tiny(window=30)(IDS), tiny()(IDS), 1e-6)
