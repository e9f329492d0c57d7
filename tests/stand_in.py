"""What stands in for an export folder and for Core ML: scores are a hash of all that a call can see.

A wrong position, last_index, mask, row of the cache or depth therefore changes every answer after it.
"""

import sys
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from convert import manifest
from convert.manifest import FunctionPair, Manifest, Sampling, SelfTest, Tokens

SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
PAIRS = (
    FunctionPair(depth=1, decode="decode_r1", prefill="prefill_r1", slots=2),
    FunctionPair(depth=2, decode="decode", prefill="prefill", slots=3),
)


def describe(**options) -> Manifest:
    """A manifest of two depths; chunk 4, context 16."""
    sizes = {"vocabulary": 50, "context": 16, "window": 0, "chunk": 4, "slots": 3, "kv_heads": 2, "head_width": 4}
    words = {"name": "Tiny", "package": "Tiny.mlpackage", "revision": "ab" * 32, "weights": "float16"}
    usual = {"precision": "float16", "state": "model", "stored_parameters": 10, "effective_parameters": 20}
    usual["compress"] = "none"
    parts = {"functions": PAIRS, "tokens": Tokens(), "sampling": SAMPLING, "files": ()}
    return Manifest(**{**sizes, **words, **usual, **parts, "self_test": SelfTest(depth=2, steps=()), **options})


def export(folder: Path, **options) -> Path:
    """Write an export folder whose package Core ML's stand-in can load."""
    package = folder / "Tiny.mlpackage/Data/com.apple.CoreML"
    (package / "weights").mkdir(parents=True)
    (package / "model.mlmodel").write_bytes(b"program")
    (package / "weights/weight.bin").write_bytes(b"weights")
    for name in (manifest.TOKENIZER, manifest.GOLDEN):
        (folder / name).write_bytes(name.encode())
    made = describe(**options, files=tuple(manifest.records(folder)))
    (folder / manifest.FILE).write_bytes(manifest.text(made))
    return folder


def row(token: int, position: int) -> float:
    """What a token leaves in the cache; float16 holds it exactly."""
    return float((31 * token + 17 * position) % 2039 + 1)


def answer(rows: list[float], depth: int, vocabulary: int) -> np.ndarray:
    """(V,) scores of the token after those whose rows are given."""
    digest = sha256(f"{depth} {rows}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(vocabulary).astype(np.float32)


def expected(ids: list[int], depth: int = 2, vocabulary: int = 50) -> np.ndarray:
    return answer([row(token, position) for position, token in enumerate(ids)], depth, vocabulary)


class HashRunner:
    """A runner that keeps the contract of docs/export.md, and insists that its caller does."""

    def __init__(self, made: Manifest) -> None:
        self.made, self.calls, self.resets = made, [], 0
        self.state = np.zeros(made.cache_shape, np.float16)

    def reset(self) -> None:
        self.resets += 1
        self.state = np.zeros(self.made.cache_shape, np.float16)

    def call(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = self.made
        (pair,) = (pair for pair in made.functions if function in (pair.decode, pair.prefill))
        chunked, host = function == pair.prefill, made.state == "host"
        names = {"input_ids", "position", *(["last_index"] if chunked else []), *(["kv_cache"] if host else [])}
        assert inputs.keys() == names
        assert all(inputs[name].dtype == np.int32 for name in names - {"kv_cache"})
        width = made.chunk if chunked else 1
        assert inputs["input_ids"].shape == (1, width)
        assert all(inputs[name].shape == (1,) for name in names - {"input_ids", "kv_cache"})
        start, last = int(inputs["position"][0]), int(inputs["last_index"][0]) if chunked else 0
        assert 0 <= start <= made.context - width and 0 <= last < width
        self.calls.append((function, start, last))

        cache = inputs["kv_cache"] if host else self.state
        assert cache.shape == made.cache_shape
        assert cache.dtype in (made.precision, "float32")  # coremltools widens halves
        used = 2 * pair.slots
        seen = [{*cache[:used, :, place].flat} for place in range(start)]
        new = [row(int(token), start + place) for place, token in enumerate(inputs["input_ids"][0])]
        rows = np.broadcast_to(np.array(new, cache.dtype)[None, None, :, None], (used, made.kv_heads, width, 4))
        visible = [float(*values) if len(values) == 1 else -1.0 for values in seen] + new[: last + 1]
        logits = answer(visible, pair.depth, made.vocabulary).astype(made.precision).reshape(1, 1, -1)
        if host:
            return {"logits": logits, "kv_rows": rows}
        cache[:used, :, start : start + width] = rows
        return {"logits": logits}


class ComputeUnit(Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


class MLModel:
    """As much of coremltools' class as we use, with its habits; `made` holds every one that was made."""

    made: list["MLModel"] = []  # noqa: RUF012
    load_duration_in_nano_seconds = 1000

    def __init__(self, model, *, compute_units, function_name):
        assert isinstance(model, str) and isinstance(compute_units, ComputeUnit)
        self.runner = HashRunner(manifest.read(Path(model).parent))
        self.function, self.units, self.states = function_name, compute_units, []
        self.made.append(self)

    def get_compiled_model_path(self):
        return "/nowhere.mlmodelc"

    def make_state(self):
        self.runner.reset()
        return SimpleNamespace(cache=self.runner.state)

    def predict(self, data, state=None):
        for name, value in data.items():  # in the caller's own dictionary, as coremltools does it
            data[name] = value.astype(np.float32) if value.dtype == np.float16 else value
        assert (state is None) == (self.runner.made.state == "host")
        self.states.append(state)
        if state is not None:
            self.runner.state = state.cache
        return self.runner.call(self.function, data)


class NeuralEngine:
    pass


class Graphics:
    pass


class Processor:
    pass


class Plan:
    """A compute plan of four operations, the first one a constant."""

    model_structure = SimpleNamespace(
        program=SimpleNamespace(functions={"decode": SimpleNamespace(block=SimpleNamespace(operations=range(4)))})
    )
    devices = (None, NeuralEngine(), NeuralEngine(), Processor())
    weights = (0.0, 0.25, 0.125, 0.125)

    @classmethod
    def load_from_path(cls, path, compute_units):
        assert path.endswith(".mlmodelc") and isinstance(compute_units, ComputeUnit)
        return cls()

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        device = self.devices[operation]
        return device and SimpleNamespace(preferred_compute_device=device)

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return self.weights and SimpleNamespace(weight=self.weights[operation])


def plant(monkeypatch, platform: str = "darwin") -> None:
    """Make this a Mac with coremltools, as far as `convert.device` can tell."""
    modules = {
        "coremltools": {"ComputeUnit": ComputeUnit},
        "coremltools.libcoremlpython": {},
        "coremltools.models": {"MLModel": MLModel},
        "coremltools.models.utils": {"compile_model": lambda model, destination_path: destination_path},
        "coremltools.models.compute_plan": {"MLComputePlan": Plan},
        "coremltools.models.compute_device": {
            "MLNeuralEngineComputeDevice": NeuralEngine,
            "MLGPUComputeDevice": Graphics,
            "MLCPUComputeDevice": Processor,
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents, __path__=[])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(MLModel, "made", [])
    monkeypatch.setattr(sys, "platform", platform)
