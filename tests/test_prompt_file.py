"""The file of a prompt that was read: what it gives back, what it refuses, and the command's flags for it."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from test_prompt_cache import KINDS, SYSTEM, ids_of
from tiny_folder import save_tiny

import trm_mlx
from trm_mlx import tensors
from trm_mlx.decode import prompt_cache
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.step import StepModel
from trm_mlx.generate import main

pytest_plugins = ["tiny_folder"]


@pytest.fixture(scope="module")
def model(folder):
    return trm_mlx.load(folder)


# The file.


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [3, 39, 60, 200])
def test_what_is_loaded_goes_on_as_what_was_saved(model, tmp_path, kind, length, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("trm_mlx.decode.step.folded", lambda model: None)
    cache, path = PromptCache(model, 2, KINDS[kind]), tmp_path / "read.safetensors"
    prompt = [1, *(7 + number * 31 % 500 for number in range(length - 1))]
    cache.read(prompt)
    if length > 3:
        cache.trim(length - 2)  # a ring is then written farther than it is read
    cache.save(path)
    again = PromptCache.load(path, model)
    assert (again.ids, again.depth, again.kind) == (cache.ids, 2, KINDS[kind])
    for token in (9, 300, 12):
        assert mx.array_equal(cache.append([token]), again.append([token]))
    for one in (cache, again):
        one.trim(one.position - 2)
    assert mx.array_equal(cache.append([5, 6]), again.append([5, 6]))


def test_a_model_of_halves_has_a_file_too(model, folder, tmp_path):
    half = trm_mlx.load(folder)
    half.update(tree_map(lambda array: array.astype(mx.float16), half.parameters()))
    cache, path = PromptCache(half), tmp_path / "half.safetensors"
    cache.read(ids_of(model, SYSTEM))
    cache.save(path)
    again = PromptCache.load(path, half)
    assert mx.array_equal(cache.append([9]), again.append([9]))
    with pytest.raises(ValueError, match="must be of numbers float32, got float16"):
        PromptCache.load(path, model)


def test_equal_prompts_give_equal_bytes(model, tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file in files:
        cache = PromptCache(model)
        cache.read(ids_of(model, SYSTEM))
        cache.save(file)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def saved(model, tmp_path):
    """A file of a prompt cache of the model."""
    cache = PromptCache(model)
    cache.read(ids_of(model, SYSTEM))
    cache.save(tmp_path / "read.safetensors")
    return tmp_path / "read.safetensors"


def test_a_file_of_another_model_is_refused(saved, tmp_path):
    other = trm_mlx.load(save_tiny(tmp_path / "other", noise=0.2))
    with pytest.raises(
        ValueError, match=r"read.safetensors must be of model [0-9a-f]{12}, got [0-9a-f]{12}; remove it"
    ):
        PromptCache.load(saved, other)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_file_that_is_cut_short_is_refused(saved, model, cut):
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"read\.safetensors"):
        PromptCache.load(saved, model)


def test_no_byte_of_a_file_may_differ(saved, model):
    whole = saved.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    places = [*range(0, header, 41), *range(header, len(whole), 997), len(whole) - 1]
    for place in places:
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"read\.safetensors"):
            PromptCache.load(saved, model)


def stamped(path, change=None, **facts: str | None) -> None:
    """Write a file anew with other arrays or facts, as if they were its own."""
    arrays, old = tensors.read(path)
    mx.eval(arrays)
    old = {
        name: value for name, value in (old | facts).items() if name not in ("sha256", "facts") and value is not None
    }
    tensors.write(path, (change or dict)(arrays), old | {"facts": prompt_cache.facts_digest(old)})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": "trm_mlx.model"}, "must be a prompt cache of trm_mlx, got a file of something else"),
        ({"version": "2"}, "has version '2', this program reads 1"),
        ({"depth": "3"}, "depth must be 1 to 2"),
        ({"depth": None}, "is damaged: its facts are not those it was saved with"),
        ({"kind": '{"cache_bits": 4}'}, "cache_bits must be 8, or 0"),
        ({"kind": '{"cache_bits": 8}'}, "tensor '0.1' is missing"),
        ({"depth": "1"}, "is unknown to a model of this config.json|is missing"),
        ({"reach": "0"}, "reach must fit its"),
        ({"reach": "999"}, "reach must fit its"),
    ],
)
def test_facts_that_do_not_fit_are_refused(saved, model, facts, message):
    stamped(saved, **facts)
    with pytest.raises(ValueError, match=message):
        PromptCache.load(saved, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays | {"ids": arrays["ids"] + 512}, "ids must be 1 to 512 tokens below 512"),
        (lambda arrays: arrays | {"ids": arrays["ids"][:0]}, "ids must be 1 to 512"),
        (lambda arrays: arrays | {"ids": arrays["ids"].astype(mx.float32)}, "ids must be 1 to 512"),
        (lambda arrays: {name: each for name, each in arrays.items() if name != "ids"}, "ids must be 1 to 512"),
        (lambda arrays: arrays | {"0.0": arrays["0.0"].astype(mx.float16)}, "'0.0' must be of mlx.core.float32"),
        (lambda arrays: arrays | {"0.0": arrays["0.0"][:, :, 1:]}, "'0.0' must be"),
        (lambda arrays: arrays | {"9.0": arrays["0.0"]}, "tensor '9.0' is unknown"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(saved, model, change, message):
    stamped(saved, change)
    with pytest.raises(ValueError, match=message):
        PromptCache.load(saved, model)


def test_a_file_that_cannot_be_made_is_refused(model, tiny, tmp_path):
    cache = PromptCache(model)
    with pytest.raises(ValueError, match="must have read something before it is saved"):
        cache.save(tmp_path / "a.safetensors")
    cache.read([1, 2])
    with pytest.raises(ValueError, match=r"must be in a \.safetensors file, got"):
        cache.save(tmp_path / "a.cache")
    with pytest.raises(ValueError, match=r"of a model that trm_mlx.load gave, got one of no folder"):
        PromptCache(tiny()).save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompt cache at .*a.safetensors"):
        PromptCache.load(tmp_path / "a.safetensors", model)


# The command.


def printed(capsys, *flags: object) -> tuple[str, str]:
    main([str(flag) for flag in flags])
    return capsys.readouterr()


def test_the_command_makes_a_file_of_the_first_prompt_and_reads_others_from_it(folder, tmp_path, capsys, monkeypatch):
    counts, append = [], StepModel.append
    monkeypatch.setattr(StepModel, "append", lambda self, ids, **how: counts.append(ids) or append(self, ids, **how))
    path = tmp_path / "system.safetensors"
    flags = ("--model", folder, "--max-tokens", 5, "--prompt")
    plain = [printed(capsys, *flags, SYSTEM + each)[0] for each in ("", " moon", " river")]
    out, err = printed(capsys, *flags, SYSTEM, "--prompt-cache", path)
    whole = path.read_bytes()
    length = len(ids_of(trm_mlx.load(folder), SYSTEM))
    assert out == plain[0]
    assert err.startswith(f"{length} prompt tokens  0 cached  saved to {path}\n")
    assert f"  {length - 1} of {length} prompt tokens cached  stopped by" in err
    for each, wanted in ((" moon", plain[1]), (" river", plain[2]), ("", plain[0])):
        counts.clear()
        out, err = printed(capsys, *flags, SYSTEM + each, "--prompt-cache", path)
        assert (out, len(counts[0]) < 5, "saved" in err) == (wanted, True, False)
    assert path.read_bytes() == whole


def test_the_command_reads_a_prompt_and_writes_nothing(folder, tmp_path, capsys, model):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    flags = ("--model", folder, "--prompt")
    out, err = printed(capsys, *flags, SYSTEM, "--save-prompt-cache", first)
    assert (out, err) == ("", f"{len(ids_of(model, SYSTEM))} prompt tokens  0 cached  saved to {first}\n")
    longer = SYSTEM + " moon river"
    out, err = printed(capsys, *flags, longer, "--prompt-cache", first, "--save-prompt-cache", second)
    assert PromptCache.load(second, model).ids == ids_of(model, longer)
    assert int(err.split()[3]) > 50


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt-cache", "{tmp}/a.cache"], "must be in a .safetensors file"),
        (["--prompt-cache", "{tmp}/read.safetensors", "--depth", "1"], "was read at depth 2, got depth 1"),
        (["--prompt-cache", "{tmp}/read.safetensors", "--cache-window", "9"], "was read with cache_window 0, got"),
        (["--prompt-cache", "{tmp}/read.safetensors", "--beams", "2"], "leave out beams and best_of"),
        (
            ["--prompt-cache", "{tmp}/no.safetensors", "--save-prompt-cache", "{tmp}/b.safetensors"],
            "no prompt cache at",
        ),
        (["--save-prompt-cache", "{tmp}/b.safetensors", "--json"], "writes no text, so leave out --json"),
        (["--save-prompt-cache", "{tmp}/none/b.safetensors"], "No such file or directory"),
        (["--prompt-cache", "{tmp}"], "no prompt cache at"),
    ],
)
def test_asked_wrongly_it_says_so_in_one_line(folder, saved, tmp_path, capsys, flags, message):
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(folder), "--prompt", SYSTEM, *flags])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
