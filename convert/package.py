"""From a program to an .mlpackage whose bytes depend on the model and the plan alone.

coremltools writes the package; then every function, input and output gets its description, and what differs from run
to run (random identifiers, the order of maps, dates, file modes) is written anew.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil.mil import Program
from coremltools.proto import Model_pb2

from convert.compress import quiet
from convert.manifest import Compression
from convert.program import OPSET, Plan, build
from trm_mlx import __version__
from trm_mlx.checkpoint import Contents

# No more than these: the default pipeline merges reads of a state, rewrites tables and guards every gather.
PASSES = [
    "common::dead_code_elimination",
    "common::canonicalize_inplace_pattern",
    "common::prefer_state_in_downstream",
    "common::dedup_op_and_var_names",
]
SPEC, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
NAMESPACE = uuid.UUID("6f1c1d8e-0f0a-5b7b-9d56-7c5f4b1a2e30")  # any constant one
FEATURES = {
    "input_ids": "Token ids, {T} in a call.",
    "position": "Position of the first token: how many tokens the cache holds.",
    "last_index": "Which of the {T} tokens the scores are for, 0 to {last}.",
    "kv_cache": "Keys and values of earlier tokens: (2 x slots, key-value heads, context, head width).",
    "kv_rows": "New keys and values, to be written into the cache from position on.",
    "logits": "Scores of the next token, one for each of the vocabulary.",
}


def make(
    held: Contents,
    plan: Plan,
    folder: Path,
    name: str,
    how: Compression,
    told: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write NAME.mlpackage into an existing folder.

    Args:
        how: rounding by coremltools, of a model that is not quantized.
        told: is given what is done next.

    Returns:
        The package's folder.

    Raises:
        OSError: it could not be written.
    """
    path = folder / f"{name}.mlpackage"
    program = build(held, plan, how, told)
    told("saving")
    with writing():
        convert(program).save(str(path))
    finish(path, held, plan, name)
    return path


def convert(program: Program) -> "ct.models.MLModel":
    """The program as a model of coremltools, which is not loaded."""
    with quiet():
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=OPSET,
            pass_pipeline=ct.PassPipeline(PASSES, "trm_mlx"),
            compute_units=ct.ComputeUnit.CPU_AND_NE,
            skip_model_load=True,
        )


def finish(path: Path, held: Contents, plan: Plan, name: str) -> None:
    """Describe everything in a saved package, and make its bytes repeatable."""
    file = path / SPEC
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    sizes = {
        name: T for pair in plan.pairs(held.config) for name, T in ((pair.decode, 1), (pair.prefill, plan.chunk))
    }
    for function in spec.description.functions:
        tokens = sizes[function.name]
        for feature in (*function.input, *function.output, *function.state):
            feature.shortDescription = FEATURES[feature.name].format(T=tokens, last=tokens - 1)
    spec.description.functions.sort(key=lambda function: list(sizes).index(function.name))
    facts = {
        "context": plan.context,
        "chunk": plan.chunk,
        "depths": ",".join(map(str, plan.depths)),
        "vocabulary": held.config.vocabulary,
        "revision": held.revision,
        "trm_mlx": __version__,
        "coremltools": version("coremltools"),
    }
    told = spec.description.metadata
    told.Clear()
    told.shortDescription = f"{name}, a tiny recursive language model; functions {', '.join(sizes)}"
    told.author, told.license, told.versionString = "trm_mlx", "as the model's card says", held.revision[:12]
    told.userDefined.update({f"trm.{key}": str(value) for key, value in facts.items()})
    file.write_bytes(spec.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(_items(name))
    for place, folders, files in os.walk(path):
        for each in folders:
            (Path(place) / each).chmod(0o755)
        for each in files:
            (Path(place) / each).chmod(0o644)


def _items(name: str) -> str:
    """The package's own list of its two items."""
    model, weights = (str(uuid.uuid5(NAMESPACE, f"{name} {each}")) for each in ("model", "weights"))
    told = {"author": "com.apple.CoreML"}
    items = {
        model: {**told, "description": "CoreML Model Specification", "name": "model.mlmodel"},
        weights: {**told, "description": "CoreML Model Weights", "name": "weights"},
    }
    for item in items.values():
        item["path"] = f"com.apple.CoreML/{item['name']}"
    whole = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": model}
    return json.dumps(whole, indent=4, sort_keys=True) + "\n"


@contextlib.contextmanager
def writing() -> Generator[None]:
    """Tell a full disk from what coremltools makes of it.

    Raises:
        OSError: it could not write; names what, or where.
    """
    try:
        yield
    except shutil.Error as error:  # one line of several copies
        number = errno.ENOSPC if f"[Errno {errno.ENOSPC}]" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(error.args[0][0][1])) from error
    except RuntimeError as error:
        if "FileWriter" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir()) from error  # as a rule
