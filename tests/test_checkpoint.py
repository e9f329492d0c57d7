import shutil
import struct
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from saved_folder import (
    FILES,
    GRIDS,
    TEXTS,
    TINY,
    Disk,
    Killed,
    bits,
    flips,
    loaded,
    parts,
    refusal,
    rounded_weights,
    stamped,
    weights,
)

from trm_mlx import checkpoint, config
from trm_mlx.adapt import grid
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["saved_folder"]


# Saved and loaded


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_saved_weights_are_loaded_bit_for_bit(tmp_path, tokenizer, dtype):
    numbers = weights(1)
    checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, dtype)
    stored = {name: array.astype(dtype) for name, array in numbers.items()}
    assert bits(loaded(tmp_path / "model", dtype)) == bits(stored)
    in_float32 = {name: array.astype(mx.float32) for name, array in stored.items()}
    assert bits(loaded(tmp_path / "model", mx.float32)) == bits(in_float32)
    assert checkpoint.load_config(tmp_path / "model") == TINY
    assert checkpoint.load(tmp_path / "model")[1].bytes == tokenizer.bytes


def test_numbers_that_are_no_common_ones_survive(tmp_path, tokenizer):
    numbers = weights(1)
    numbers["final_norm.weight"] = mx.array([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3e38] * 5 + [1e-40, 7.0])
    checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, mx.float32)
    assert bits(loaded(tmp_path / "model", mx.float32)) == bits(numbers)


def test_a_model_saved_twice_gives_the_same_bytes_and_no_other_files(tmp_path, tokenizer):
    numbers = weights(1)
    checkpoint.save(tmp_path / "a", TINY, tokenizer, numbers, mx.float16)
    checkpoint.save(tmp_path / "b", TINY, tokenizer, dict(reversed(numbers.items())), mx.float16)
    checkpoint.save(tmp_path / "b", TINY, tokenizer, numbers, mx.float16)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["a", "b", *FILES, *FILES])


def test_other_programs_read_the_weights(saved):
    foreign = mx.load(str(saved / "model.safetensors"))
    assert isinstance(foreign, dict)
    assert bits(foreign) == bits(weights(1))


def test_saving_again_replaces_the_weights_alone(saved, tokenizer):
    before = {name: (saved / name).stat().st_mtime_ns for name in (*FILES, "training.safetensors")}
    checkpoint.save(saved, TINY, tokenizer, weights(2), mx.float32)
    assert bits(loaded(saved)) == bits(weights(2))
    for name in ("config.json", "tokenizer.model", "training.safetensors"):
        assert (saved / name).stat().st_mtime_ns == before[name]


def test_training_state_comes_back_with_its_facts(saved):
    arrays, facts = checkpoint.load_training(saved)
    assert arrays["weights.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["optimizer.step"].dtype == mx.uint64
    assert arrays["optimizer.step"].item() == 3
    assert (facts["step"], facts["best"]) == ("3", "inf")


def test_a_folder_of_another_model_is_not_overwritten(saved, tokenizer):
    other = replace(TINY, depth=3)
    before = {name: (saved / name).read_bytes() for name in FILES}
    refusal(lambda: checkpoint.save(saved, other, tokenizer, weights(1, other), mx.float32), "another model")
    assert {name: (saved / name).read_bytes() for name in FILES} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path, tokenizer):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    refusal(lambda: checkpoint.save(tmp_path / "model", TINY, tokenizer, weights(1), mx.float32), "other files")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_an_empty_folder_becomes_the_model_folder(tmp_path, tokenizer):
    (tmp_path / "model").mkdir()
    checkpoint.save(tmp_path / "model", TINY, tokenizer, weights(1), mx.float32)
    assert bits(loaded(tmp_path / "model")) == bits(weights(1))


# Quantized


def test_quantized_tensors_are_read_back_bit_for_bit(rounded):
    held = checkpoint.contents(rounded)
    assert held.grids == GRIDS
    assert bits(held.arrays) == bits(rounded_weights(1))


def test_a_quantized_model_is_loaded_as_the_numbers_it_was_rounded_to(rounded):
    tensors, found = rounded_weights(1), loaded(rounded, mx.float32)
    for name, each in GRIDS.items():
        assert np.array_equal(np.array(found[name]), grid.values(name, tensors, each)), name
    plain = weights(1).keys() - GRIDS.keys()
    assert bits({name: found[name] for name in plain}) == bits({name: weights(1)[name] for name in plain})


@pytest.mark.parametrize("depth", [1, 2])
def test_packed_and_dense_models_give_the_same_scores(rounded, depth):
    dense, packed = (checkpoint.load(rounded, packed=packed)[0] for packed in (False, True))
    ids = mx.array([[2, 9, 300, 17, 44, 5, 6, 7]])
    assert isinstance(packed.embedding, nn.QuantizedEmbedding)
    assert "scales" in packed.prelude[0].attention.qkv
    assert "scales" not in packed.core[0].feed_forward.up
    assert mx.allclose(dense(ids, depth=depth), packed(ids, depth=depth), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, mx.float16, mx.float32], ids=str)
def test_on_a_gpu_a_quantized_model_is_packed_unless_asked_otherwise(rounded, monkeypatch, dtype):
    monkeypatch.setattr(checkpoint.mx, "default_device", lambda: "gpu")
    ids = mx.array([[2, 9, 300, 17, 44, 5, 6, 7]])
    packed, dense = checkpoint.load(rounded, dtype)[0], checkpoint.load(rounded, dtype, packed=False)[0]
    assert isinstance(packed.embedding, nn.QuantizedEmbedding)
    assert not isinstance(dense.embedding, nn.QuantizedEmbedding)
    assert mx.allclose(packed(ids), dense(ids), rtol=0.05, atol=0.05)


def test_new_weights_replace_those_of_a_quantized_model(rounded, tokenizer):
    checkpoint.save(rounded, TINY, tokenizer, rounded_weights(2), mx.float32, GRIDS)
    assert bits(checkpoint.contents(rounded).arrays) == bits(rounded_weights(2))


def test_a_plain_model_does_not_replace_a_quantized_one(rounded, tokenizer):
    refusal(lambda: checkpoint.save(rounded, TINY, tokenizer, weights(1), mx.float32), "another model")
    assert bits(checkpoint.contents(rounded).arrays) == bits(rounded_weights(1))


def test_the_tensors_of_a_plain_model_do_not_pass_for_quantized_ones(rounded, saved):
    stamped(rounded, *parts(saved))
    refusal(lambda: checkpoint.load(rounded), "model.safetensors", "numbers of its config.json")


# Kills and full disks


def test_a_save_killed_at_any_moment_leaves_a_whole_folder_or_none(tmp_path, tokenizer):
    folder, numbers = tmp_path / "model", weights(1)
    seen = set()
    for kill in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, kill=kill)
            try:
                checkpoint.save(folder, TINY, tokenizer, numbers, mx.float32)
                break
            except Killed:
                pass
        seen.add(folder.exists())
        if folder.exists():
            assert bits(loaded(folder)) == bits(numbers)
            shutil.rmtree(folder)
    assert kill > 20
    assert seen == {False}  # the folder's rename is the last change
    assert bits(loaded(folder)) == bits(numbers)  # although all those kills left files beside it


def test_new_weights_killed_at_any_moment_leave_the_old_ones_or_themselves(saved, tokenizer):
    old, new = bits(weights(1)), bits(weights(2))
    seen = []
    for kill in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, kill=kill)
            try:
                checkpoint.save(saved, TINY, tokenizer, weights(2), mx.float32)
                break
            except Killed:
                pass
        found = bits(loaded(saved))
        assert found in (old, new)
        seen.append(found == new)
    assert seen == sorted(seen)
    assert {False, True} == set(seen)
    assert bits(loaded(saved)) == new


def test_a_full_disk_leaves_the_old_files_and_nothing_else(saved, tokenizer):
    old, new = bits(weights(1)), bits(weights(2))
    names = sorted(path.name for path in saved.iterdir())
    for full in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, full=full)
            try:
                checkpoint.save(saved, TINY, tokenizer, weights(2), mx.float32)
            except OSError as error:
                assert config.explain(error) == (
                    f"disk full while writing {saved / 'model.safetensors'}; free some space and run again"
                )
        if disk.full:
            break
        assert bits(loaded(saved)) in (old, new)
        assert sorted(path.name for path in saved.iterdir()) == names
    assert full > 10
    assert bits(loaded(saved)) == new


def test_a_full_disk_leaves_no_part_of_a_new_folder(tmp_path, tokenizer):
    numbers = weights(1)
    for full in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, full=full)
            try:
                checkpoint.save(tmp_path / "model", TINY, tokenizer, numbers, mx.float32)
            except OSError as error:
                assert "disk full while writing" in config.explain(error)
        if disk.full:
            break
        assert list(tmp_path.iterdir()) == []
    assert full > 20
    assert bits(loaded(tmp_path / "model")) == bits(numbers)


# Damaged folders


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    refusal(lambda: checkpoint.load(saved), f"no {name} in {saved}")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(saved, name):
    (saved / name).unlink()
    (saved / name).mkdir()
    refusal(lambda: checkpoint.load(saved), f"no {name} in {saved}")


def test_a_folder_that_is_none_is_named(tmp_path, saved):
    refusal(lambda: checkpoint.load(tmp_path / "nowhere"), "no model folder at", "nowhere")
    refusal(lambda: checkpoint.load(saved / "config.json"), "no model folder at", "config.json")


def test_a_missing_training_state_is_named(saved):
    (saved / "training.safetensors").unlink()
    refusal(lambda: checkpoint.load_training(saved), "no training.safetensors in")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_too_long_is_refused(saved, name):
    content = (saved / name).read_bytes()
    around = {0, 1, 7, 8, 9, len(content) - 1, *range(0, len(content), max(1, len(content) // 97))}
    if name.endswith("safetensors"):
        around |= {8 + struct.unpack("<Q", content[:8])[0] + more for more in (-1, 0, 1)}
    for length in sorted(around):
        (saved / name).write_bytes(content[:length])
        refusal(lambda: checkpoint.load(saved), name)
    for more in (b"\0", b" ", content):
        (saved / name).write_bytes(content + more)
        refusal(lambda: checkpoint.load(saved), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_changed_byte_is_refused(saved, name):
    content = (saved / name).read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0] if name.endswith("safetensors") else 0
    step = 1 if name == "config.json" else 17
    heads = (changed + content[start:] for changed in flips(content[:start], 3))
    tails = (content[:start] + changed for changed in flips(content[start:], max(step, len(content) // 101)))
    for changed in (*heads, *tails):
        (saved / name).write_bytes(changed)
        refusal(lambda: checkpoint.load(saved), name)


def test_a_changed_byte_of_a_training_state_is_refused_or_seen_in_its_names(saved):
    content, name = (saved / "training.safetensors").read_bytes(), "training.safetensors"
    arrays, facts = checkpoint.load_training(saved)
    for changed in flips(content, 1):
        (saved / name).write_bytes(changed)
        try:
            found, said = checkpoint.load_training(saved)
        except (ValueError, FileNotFoundError) as error:
            assert type(error) is ValueError
            assert name in str(error)
            assert "\n" not in str(error)
            continue
        assert said == facts
        kinds = {key: (array.shape, array.dtype) for key, array in arrays.items()}
        assert {key: (array.shape, array.dtype) for key, array in found.items()} != kinds


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_models_are_not_mixed(saved, tmp_path, name):
    other = replace(TINY, rope_base=500.0)
    checkpoint.save(tmp_path / "other", other, Tokenizer.train(TEXTS[::2], 320), weights(2), mx.float32)
    shutil.copy(tmp_path / "other" / name, saved / name)
    refusal(lambda: checkpoint.load(saved), "model.safetensors", "restore both from one model")


def test_weights_of_another_shape_are_counted_before_they_are_read(saved, tmp_path, tokenizer):
    other = replace(TINY, width=64)
    checkpoint.save(tmp_path / "other", other, tokenizer, weights(2, other), mx.float32)
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    wanted, got = TINY.stored_parameters(), other.stored_parameters()
    refusal(lambda: checkpoint.load(saved), "model.safetensors", f"{wanted} numbers", f"got {got}")


def test_the_training_state_of_another_model_is_refused(saved, tmp_path, tokenizer):
    other = replace(TINY, rope_base=500.0)
    checkpoint.save(tmp_path / "other", other, tokenizer, weights(2), mx.float32)
    shutil.copy(saved / "training.safetensors", tmp_path / "other")
    refusal(lambda: checkpoint.load_training(tmp_path / "other"), "training.safetensors", "another model")


def test_a_tokenizer_of_another_size_is_refused(saved):
    (saved / "tokenizer.model").write_bytes(
        Tokenizer.train([*TEXTS, "A far longer tale of cats, dogs, kings and queens."], 352).bytes
    )
    stamped(saved, *parts(saved))
    refusal(lambda: checkpoint.load(saved), "must have 320 tokens, got 352")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"text", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 64])
def test_a_tokenizer_that_is_none_is_refused_even_if_the_weights_vouch_for_it(saved, content):
    (saved / "tokenizer.model").write_bytes(content)
    stamped(saved, *parts(saved))
    refusal(lambda: checkpoint.load(saved), "tokenizer.model")
