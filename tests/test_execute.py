"""The interpreter of saved packages computes what Core ML's operations are defined to, and refuses the rest."""

import numpy as np
import pytest

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from packages import like, narrow, save  # noqa: E402

from convert.execute import Options, Package  # noqa: E402
from convert.operations import OPERATIONS  # noqa: E402

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 3, 4)).astype(np.float32), RANDOM.normal(size=(3, 4)).astype(np.float32)
IMAGE = RANDOM.normal(size=(1, 6, 1, 5)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(4, 6, 1, 1)).astype(np.float32)
BIAS = RANDOM.normal(size=4).astype(np.float32)
IDS = np.array([[2, 0, 1]], np.int32)
FLAGS = np.array([True, False, False, True])


def silu(x):
    return x / (1 + np.exp(-x))


def scale(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


# What is built, of which arrays, and what NumPy makes of them where coremltools cannot tell.
CASES = {
    "abs": (lambda x, n: mb.abs(x=x, name=n), [A]),
    "add": (lambda x, y, n: mb.add(x=x, y=y, name=n), [A, B]),
    "add_int32": (lambda x, n: mb.add(x=x, y=5, name=n), [IDS]),
    "cast": (lambda x, n: mb.cast(x=x, dtype="int32", name=n), [A * 3]),
    "cast_up": (lambda x, n: mb.cast(x=x, dtype="fp32", name=n), [IDS]),
    "cast_down": (lambda x, n: mb.cast(x=x, dtype="fp16", name=n), [A]),
    "concat": (lambda x, y, n: mb.concat(values=[x, y, x], axis=1, name=n), [A, A + 1]),
    "conv": (
        lambda x, n: mb.conv(x=x, weight=like(x, WEIGHT), name=n),
        [IMAGE],
        lambda x: np.einsum("oi,bihp->bohp", WEIGHT[:, :, 0, 0], x),
    ),
    "conv_bias": (
        lambda x, n: mb.conv(x=x, weight=like(x, WEIGHT), bias=like(x, BIAS), name=n),
        [IMAGE],
        lambda x: np.einsum("oi,bihp->bohp", WEIGHT[:, :, 0, 0], x) + BIAS[:, None, None],
    ),
    "expand_dims": (lambda x, n: mb.expand_dims(x=x, axes=[0, -1], name=n), [A]),
    "floor_div": (lambda x, y, n: mb.floor_div(x=x, y=y, name=n), [A, np.abs(B) + 0.5]),
    "floor_div_int32": (lambda x, n: mb.floor_div(x=x, y=2, name=n), [IDS]),
    "gather": (lambda x, i, n: mb.gather(x=x, indices=i, axis=1, validate_indices=True, name=n), [A, IDS]),
    "greater": (lambda x, y, n: mb.greater(x=x, y=y, name=n), [A, B]),
    "greater_equal": (lambda x, y, n: mb.greater_equal(x=x, y=y, name=n), [A, A]),
    "identity": (lambda x, n: mb.identity(x=x, name=n), [A]),
    "layer_norm": (
        lambda x, n: mb.layer_norm(x=x, axes=[-1], epsilon=like(x, 1e-3), name=n),
        [A],
        scale,
    ),
    "layer_norm_gamma": (
        lambda x, n: mb.layer_norm(
            x=x,
            axes=[2],
            gamma=like(x, B[0]),
            beta=like(x, B[1]),
            epsilon=like(x, 1e-3),
            name=n,
        ),
        [A],
        lambda x: scale(x) * B[0] + B[1],
    ),
    "less": (lambda x, y, n: mb.less(x=x, y=y, name=n), [A, B]),
    "less_equal": (lambda x, y, n: mb.less_equal(x=x, y=y, name=n), [IDS, IDS]),
    "logical_and": (
        lambda x, y, n: mb.logical_and(x=mb.less(x=x, y=y), y=mb.greater(x=x, y=mb.mul(x=y, y=y)), name=n),
        [A, B],
    ),
    "matmul": (lambda x, y, n: mb.matmul(x=x, y=y, transpose_y=True, name=n), [A, B]),
    "matmul_x": (lambda x, y, n: mb.matmul(x=x, y=y, transpose_x=True, name=n), [A, A]),
    "maximum": (lambda x, y, n: mb.maximum(x=x, y=y, name=n), [A, B]),
    "mul": (lambda x, y, n: mb.mul(x=x, y=y, name=n), [A, B]),
    "real_div": (lambda x, y, n: mb.real_div(x=x, y=y, name=n), [A, B]),
    "reduce_max": (lambda x, n: mb.reduce_max(x=x, axes=[1], name=n), [A]),
    "reduce_mean": (lambda x, n: mb.reduce_mean(x=x, axes=[0, -1], keep_dims=True, name=n), [A]),
    "reduce_sum": (lambda x, n: mb.reduce_sum(x=x, axes=[1], keep_dims=False, name=n), [IDS]),
    "relu": (lambda x, n: mb.relu(x=x, name=n), [A]),
    "reshape": (lambda x, n: mb.reshape(x=x, shape=[0, -1, 2], name=n), [A]),
    "rsqrt": (lambda x, n: mb.rsqrt(x=x, epsilon=like(x, 1e-3), name=n), [abs(A)]),
    "select": (lambda x, y, n: mb.select(cond=FLAGS, a=x, b=y, name=n), [A, B]),
    "sigmoid": (lambda x, n: mb.sigmoid(x=x, name=n), [A]),
    "silu": (lambda x, n: mb.silu(x=x, name=n), [A], silu),
    "slice_by_index": (
        lambda x, n: mb.slice_by_index(
            x=x,
            begin=[1, 0, 9],
            end=[0, -1, 3],
            stride=[1, 2, 1],
            begin_mask=[False, False, True],
            end_mask=[False] * 3,
            squeeze_mask=[True, False, False],
            name=n,
        ),
        [A],
    ),
    "slice_by_size": (lambda x, n: mb.slice_by_size(x=x, begin=[0, 1, -2], size=[-1, 2, 1], name=n), [A]),
    "slice_update": (
        lambda x, u, n: mb.slice_update(x=x, update=u, begin=[0, 1], end=[3, 3], name=n),
        [B, A[0, :, :2]],
    ),
    "softmax": (lambda x, n: mb.softmax(x=x, axis=1, name=n), [A]),
    "split": (lambda x, n: mb.split(x=x, split_sizes=[1, 3], axis=2, name=n), [A]),
    "split_even": (lambda x, n: mb.split(x=x, num_splits=3, axis=-2, name=n), [A]),
    "sqrt": (lambda x, n: mb.sqrt(x=x, name=n), [abs(A)]),
    "square": (lambda x, n: mb.square(x=x, name=n), [A]),
    "squeeze": (lambda x, n: mb.squeeze(x=x, axes=[-2], name=n), [IMAGE]),
    "sub": (lambda x, y, n: mb.sub(x=x, y=y, name=n), [A, B]),
    "tile": (lambda x, n: mb.tile(x=x, reps=[1, 2, 1], name=n), [A]),
    "transpose": (lambda x, n: mb.transpose(x=x, perm=[2, 0, -2], name=n), [A]),
}


def arrays_of(case, kind):
    return [each.astype(kind) if each.dtype == np.float32 else each for each in CASES[case][1]]


def as_list(made):
    return list(made) if isinstance(made, (list, tuple)) else [made]


@pytest.fixture(scope="module", params=["float32", "float16"])
def everything(request, tmp_path_factory):
    """All cases in one package of one float type: the type, outputs by case, and coremltools' own values by case."""
    kind, theirs, names = request.param, {}, {}
    inputs = {f"{case}_in{i}": a for case in CASES for i, a in enumerate(arrays_of(case, kind))}

    def build(*variables):
        given, outputs = iter(variables), []
        for case, (make, *_) in CASES.items():
            made = as_list(make(*[next(given) for _ in arrays_of(case, kind)], case))
            names[case] = len(outputs), len(outputs) + len(made)
            outputs += made
            known = as_list(make(*[mb.const(val=a) for a in arrays_of(case, kind)], f"{case}_const"))
            theirs[case] = None if any(each.val is None for each in known) else [each.val for each in known]
        return tuple(outputs)

    package = Package(save(tmp_path_factory.mktemp(kind) / "All.mlpackage", build, inputs))
    results = package.run("main", inputs)
    order = [each.name for each in package.spec.description.output]
    return kind, {case: [results[n] for n in order[slice(*span)]] for case, span in names.items()}, theirs


@pytest.mark.parametrize("case", CASES)
def test_operation_computes_what_coremltools_or_numpy_does(case, everything):
    kind, ours, theirs = everything
    if len(CASES[case]) > 2:
        expected = [CASES[case][2](*[a.astype(np.float64) for a in arrays_of(case, kind)])]
    else:
        assert theirs[case] is not None, "coremltools cannot tell: give NumPy's answer"
        expected = theirs[case]
    close = 2e-6 if kind == "float32" else 4e-3
    for one, other in zip(ours[case], expected, strict=True):
        np.testing.assert_allclose(one.astype(np.float64), np.asarray(other, np.float64), rtol=close, atol=close)


def test_every_operation_has_a_case():
    assert {name for name in OPERATIONS if not any(case == name for case in CASES)} == set()


Q = RANDOM.integers(-128, 128, (32, 64, 1, 1))
SCALES = np.abs(RANDOM.normal(size=(32, 64, 1, 1))).astype(np.float16)
TABLES = RANDOM.normal(size=(2, 1, 1, 1, 256, 1)).astype(np.float16)
CHANNELS = RANDOM.normal(size=(1, 64, 1, 3)).astype(np.float16)


def scaled(bits, signed, groups, offset=None):
    data = Q >> 8 - bits if signed else Q + 128 >> 8 - bits
    given = {"data": narrow(data, bits, signed), "scale": SCALES[:, :groups]}
    if offset is not None:
        given["offset"] = narrow(np.broadcast_to(offset, (32, groups, 1, 1)), bits, signed)
    return given, lambda **given: mb.constexpr_blockwise_shift_scale(**given, name="w")


def looked_up(bits, groups):
    given = {"indices": narrow(Q + 128 >> 8 - bits, bits, False), "lut": TABLES[:groups, :, :, :, : 1 << bits]}
    return given, lambda **given: mb.constexpr_lut_to_dense(**given, name="w")


FORMS = {
    "int8 per channel": scaled(8, True, 1),
    "int4 in blocks of 32": scaled(4, True, 2),
    "uint4 in blocks of 32 with an offset": scaled(4, False, 2, offset=7),
    **{f"lut{bits} per tensor": looked_up(bits, 1) for bits in (4, 6, 8)},
    **{f"lut{bits} per 16 channels": looked_up(bits, 2) for bits in (4, 6, 8)},
}


@pytest.mark.parametrize("form", FORMS)
def test_stored_weight_is_decoded_as_coremltools_does(form, tmp_path):
    given, make = FORMS[form]
    theirs = []

    def build(x):
        weight = make(**given)
        theirs.append(weight.op.materialized_val_inference())
        return mb.conv(x=x, weight=weight, name="y")

    package = Package(save(tmp_path / "Form.mlpackage", build, {"x": CHANNELS}))
    (weight,) = package.weights("main").values()
    np.testing.assert_array_equal(weight, theirs[0])
    assert weight.dtype == np.float16
    stored = package.constants("main")
    for name, values in given.items():
        np.testing.assert_array_equal(stored[f"w.{name}"], np.asarray(values).astype(stored[f"w.{name}"].dtype))
    y = package.run("main", {"x": CHANNELS})["y"]
    exact = weight[:, :, 0, 0].astype(np.float32) @ CHANNELS[0, :, 0].astype(np.float32)
    np.testing.assert_array_equal(y[0, :, 0], exact.astype(np.float16))


def count(step, counter):
    """A program that adds a step to its state, and gives the state of before, between and after."""
    before = mb.read_state(input=counter, name="before")
    between = mb.coreml_update_state(state=counter, value=mb.add(x=before, y=step), name="between")
    after = mb.coreml_update_state(state=counter, value=mb.mul(x=between, y=np.float16(2)), name="after")
    return (
        mb.identity(x=before, name="first"),
        mb.identity(x=between, name="second"),
        mb.identity(x=after, name="third"),
    )


@pytest.fixture
def counter(tmp_path):
    return Package(save(tmp_path / "Count.mlpackage", count, {"step": np.ones(2, np.float16)}, [(2,)]))


def test_state_is_read_as_it_is_at_that_moment_and_kept_between_calls(counter):
    state, step = counter.zero_state("main"), {"step": np.array([1, 2], np.float16)}
    array = state["state_0"]
    first = counter.run("main", step, state)
    assert [first[name].tolist() for name in ("first", "second", "third")] == [[0, 0], [1, 2], [2, 4]]
    second = counter.run("main", step, state)
    assert second["first"].tolist() == [2, 4]
    assert state["state_0"] is array and array.tolist() == [6, 12]


def test_state_is_carried_in_float32_when_widened(counter):
    state = {"state_0": np.zeros(2, np.float32)}
    step = np.full(2, 1 + 2**-20, np.float32)
    counter.run("main", {"step": step}, state, options=Options(widen=True))
    assert state["state_0"].tolist() == (2 * step).tolist()
    with pytest.raises(ValueError, match="state state_0 must be float16"):
        counter.run("main", {"step": step.astype(np.float16)}, state)


def test_state_is_untouched_by_a_run_that_fails(tmp_path):
    def build(ids, kept):
        mb.coreml_update_state(state=kept, value=np.ones(2, np.float16))
        return mb.gather(x=np.arange(3, dtype=np.float16), indices=ids, name="y")

    package = Package(save(tmp_path / "Fails.mlpackage", build, {"ids": np.zeros(1, np.int32)}, [(2,)]))
    state = package.zero_state("main")
    with pytest.raises(ValueError, match=r"main: operation \d+ \(gather y\): indices must be from 0 to 2, got -1"):
        package.run("main", {"ids": np.array([-1], np.int32)}, state)
    assert not state["state_0"].any()


def test_slice_that_starts_at_an_input_is_updated_or_refused(tmp_path):
    def build(position, past):
        begin = mb.concat(values=[np.array([0], np.int32), position], axis=0)
        end = mb.concat(values=[np.array([1], np.int32), mb.add(x=position, y=2)], axis=0)
        x = mb.slice_update(x=past, update=np.ones((1, 2), np.float16), begin=begin, end=end, name="y")
        return x

    inputs = {"position": np.array([1], np.int32), "past": np.zeros((1, 4), np.float16)}
    package = Package(save(tmp_path / "Slice.mlpackage", build, inputs))
    assert package.run("main", inputs)["y"].tolist() == [[0, 1, 1, 0]]
    for outside in (3, -1):
        with pytest.raises(ValueError, match=r"slice_update y\): slice"):
            package.run("main", {**inputs, "position": np.array([outside], np.int32)})


@pytest.fixture
def summed(tmp_path):
    def build(x):
        return mb.reduce_sum(x=mb.conv(x=x, weight=WIDE, name="y"), axes=[1], name="z")

    return Package(save(tmp_path / "Sum.mlpackage", build, {"x": TALL}))


WIDE = RANDOM.normal(size=(8, 256, 1, 1)).astype(np.float16)
TALL = RANDOM.normal(size=(1, 256, 1, 2)).astype(np.float16)


def results(package, inputs, **options):
    found = {}
    watch = lambda operation, result: found.setdefault(operation.name, result)  # noqa: E731
    outputs = package.run("main", inputs, options=Options(watch=watch, **options))
    return found, outputs


def test_widened_run_rounds_nothing(summed):
    found, outputs = results(summed, {"x": TALL}, widen=True)
    exact = np.einsum("oi,bihp->bohp", WIDE[:, :, 0, 0].astype(np.float64), TALL.astype(np.float64))
    np.testing.assert_allclose(found["y"], exact, rtol=1e-4, atol=1e-5)
    assert np.any(found["y"] != found["y"].astype(np.float16))
    assert outputs["z"].dtype == np.float32
    rounded, narrow_outputs = results(summed, {"x": TALL})
    np.testing.assert_array_equal(rounded["y"], found["y"].astype(np.float16))
    assert narrow_outputs["z"].dtype == np.float16


def test_narrow_sums_err_more_the_more_often_they_are_rounded(summed):
    exact = results(summed, {"x": TALL}, widen=True)[0]["y"]
    errors = [np.abs(results(summed, {"x": TALL}, block=block)[0]["y"] - exact).mean() for block in (0, 64, 1)]
    assert errors[0] < errors[1] < errors[2]
    total = np.zeros((8, 2), np.float16)
    for i in range(256):
        part = WIDE[:, i, :, 0].astype(np.float32) @ TALL[0, i].astype(np.float32)
        total = (total.astype(np.float32) + part).astype(np.float16)
    np.testing.assert_array_equal(results(summed, {"x": TALL}, block=1)[0]["y"][0, :, 0], total)


def test_overflow_is_infinite_in_half_precision_and_seen_when_widened(summed):
    big = np.full_like(TALL, 60000)
    assert np.isinf(results(summed, {"x": big})[0]["y"]).any()
    found, _ = results(summed, {"x": big}, widen=True)
    assert np.abs(found["y"]).max() > 65504


def test_functions_share_decoded_weights(tmp_path):
    given, make = FORMS["int4 in blocks of 32"]
    save(tmp_path / "One.mlpackage", lambda x: mb.conv(x=x, weight=make(**given), name="y"), {"x": CHANNELS})
    both = ct.utils.MultiFunctionDescriptor()
    both.add_function(str(tmp_path / "One.mlpackage"), "main", "decode")
    both.add_function(str(tmp_path / "One.mlpackage"), "main", "prefill")
    both.default_function_name = "decode"
    ct.utils.save_multifunction(both, str(tmp_path / "Two.mlpackage"))
    package = Package(tmp_path / "Two.mlpackage")
    assert package.functions == ("decode", "prefill")
    one, two = (package._constants(package._function(name))["w"] for name in package.functions)
    assert one is two
    assert package.inputs("decode") == {"x": (np.dtype("float16"), (1, 64, 1, 3))}
    assert package.outputs("prefill") == {"y": (np.dtype("float16"), (1, 32, 1, 3))}
    made = next(each for each in package.operations("decode") if each.type != "const")
    assert (made.type, made.outputs) == ("constexpr_blockwise_shift_scale", ("w",))
