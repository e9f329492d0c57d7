import sys
import warnings

import numpy as np
import pytest
from stand_in import ComputeUnit, HashRunner, MLModel, Plan, describe, expected, export, plant

from convert import device, manifest
from convert.session import Session


def runner(tmp_path, units="cpuAndNeuralEngine", **options):
    folder = export(tmp_path, **options)
    stateful = options.get("state", "model") == "model"
    return device.CoreMLRunner(folder / "Tiny.mlpackage", units, ("decode", "prefill"), stateful)


def test_off_a_mac_nothing_is_measured_and_one_line_says_what_can_be_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(RuntimeError, match=r"nothing was measured.*python -m convert\.verify DIR") as caught:
        device.require()
    assert "\n" not in str(caught.value)


def test_a_mac_without_coremltools_is_told_how_to_get_it(monkeypatch):
    plant(monkeypatch)
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(RuntimeError, match=r'pip install -e "\.\[convert\]"'):
        device.require()


def test_a_coremltools_without_its_link_to_core_ml_is_told_from_none(monkeypatch):
    plant(monkeypatch)
    monkeypatch.setitem(sys.modules, "coremltools.libcoremlpython", None)
    with pytest.raises(RuntimeError, match="no link to Core ML"):
        device.require()


@pytest.mark.parametrize("options", [{}, {"state": "host"}, {"state": "host", "precision": "float32"}], ids=str)
def test_a_session_over_core_ml_gives_the_scores_of_its_text(tmp_path, monkeypatch, options):
    plant(monkeypatch)
    made = manifest.read(export(tmp_path / "other", **options))
    text = Session(made, runner(tmp_path, **options))
    ids = [9, 8, 7, 30, 31, 32, 33]
    assert np.array_equal(text.append(ids), expected(ids))
    text.reset()
    assert np.array_equal(text.append(ids[::-1]), expected(ids[::-1]))


def test_each_function_is_loaded_once_on_the_units_asked_for(tmp_path, monkeypatch):
    plant(monkeypatch)
    text = Session(describe(), runner(tmp_path))
    assert [model.function for model in MLModel.made] == ["decode"]
    text.append([7, 8, 9])
    text.append([7])
    assert [model.function for model in MLModel.made] == ["decode", "prefill"]
    assert {model.units for model in MLModel.made} == {ComputeUnit.CPU_AND_NE}


def test_all_functions_share_one_state_until_reset_makes_another(tmp_path, monkeypatch):
    plant(monkeypatch)
    text = Session(describe(), runner(tmp_path))
    text.append([7, 8, 9, 10, 11])
    first = {id(state) for model in MLModel.made for state in model.states}
    text.reset()
    text.append([7])
    assert len(first) == 1
    assert id(MLModel.made[0].states[-1]) not in first


def test_a_prediction_leaves_the_inputs_as_the_caller_gave_them(tmp_path, monkeypatch):
    plant(monkeypatch)
    made, inputs = describe(state="host"), {}
    plain = HashRunner(made)
    ours = runner(tmp_path, state="host")
    inputs |= {"input_ids": np.array([[7]], np.int32), "position": np.array([0], np.int32)}
    inputs["kv_cache"] = np.zeros(made.cache_shape, np.float16)
    assert np.array_equal(ours.call("decode", inputs)["logits"], plain.call("decode", inputs)["logits"])
    assert inputs["kv_cache"].dtype == np.float16


def test_times_of_loading_and_of_first_predictions_are_kept(tmp_path, monkeypatch):
    plant(monkeypatch)
    ours = runner(tmp_path)
    Session(describe(), ours).append([7, 8, 9, 10, 11])
    first = dict(ours.first_seconds)
    ours.call("decode", {"input_ids": np.array([[7]], np.int32), "position": np.array([5], np.int32)})
    assert ours.first_seconds == first and first.keys() == {"decode", "prefill"}
    assert ours.timings()["load_ms"] == pytest.approx(2e-3)
    assert ours.timings()["compile_ms"] > 0


def test_compiling_is_not_known_when_core_ml_does_not_say_how_long_it_loaded(tmp_path, monkeypatch):
    plant(monkeypatch)
    ours = runner(tmp_path)
    monkeypatch.setattr(MLModel, "load_duration_in_nano_seconds", None)
    ours.load("decode")
    assert ours.timings()["compile_ms"] is None
    assert ours.timings()["load_ms"] > 0


def test_a_function_that_is_not_of_the_runner_is_refused(tmp_path, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(ValueError, match="got 'decode_r7'"):
        runner(tmp_path).call("decode_r7", {})


def test_a_package_that_core_ml_does_not_load_is_told_in_its_words(tmp_path, monkeypatch):
    plant(monkeypatch)

    def made(*_, **__):
        warnings.warn("You cannot predict: the moon is full", RuntimeWarning, stacklevel=1)
        return type("Broken", (), {"get_compiled_model_path": lambda self: 1 / 0})()

    monkeypatch.setattr(sys.modules["coremltools.models"], "MLModel", made)
    with pytest.raises(RuntimeError, match=r"does not load decode of .*the moon is full"):
        runner(tmp_path).load("decode")


def test_placement_counts_operations_and_shares_their_cost(tmp_path, monkeypatch):
    plant(monkeypatch)
    found = device.placement(export(tmp_path) / "Tiny.mlpackage", "decode", "all")
    assert found == {
        **{"ane_ops": 2, "gpu_ops": 0, "cpu_ops": 1},
        **{"ane_cost": 0.75, "gpu_cost": 0.0, "cpu_cost": 0.25},
    }


def test_placement_without_costs_gives_counts_alone(tmp_path, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setattr(Plan, "weights", None)
    assert device.placement(tmp_path, "decode", "all") == {"ane_ops": 2, "gpu_ops": 0, "cpu_ops": 1}


def test_placement_that_core_ml_does_not_plan_is_none(tmp_path, monkeypatch):
    plant(monkeypatch)
    assert device.placement(tmp_path, "prefill", "all") is None
    monkeypatch.setattr(Plan, "devices", (None,) * 4)
    assert device.placement(tmp_path, "decode", "all") is None
