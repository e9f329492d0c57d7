"""The model folder: written whole or not at all, checked before a number of it is used.

    config.json            {"format": "trm_mlx.model", "version": 1, "model": ModelConfig}, and, of a quantized model,
                           "grids": {name of a matrix: Grid}
    tokenizer.model        SentencePiece
    model.safetensors      the weights; its metadata holds the sha256 of both files above and of its own data
    training.safetensors   while training: weights, optimizer and averages, all that going on needs

Each safetensors file is replaced in one rename and says for itself what it belongs to, so a kill between two
renames leaves a folder that loads and resumes. File names are fixed: nothing in a folder names another file.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from trm_mlx import config, files, tensors
from trm_mlx.adapt import grid
from trm_mlx.adapt.grid import Grid
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.tokenizer import Tokenizer

FORMAT = {"format": "trm_mlx.model", "version": 1}
CONFIG, TOKENIZER, MODEL, TRAINING = (
    "config.json",
    "tokenizer.model",
    "model.safetensors",
    "training.safetensors",
)


def save(
    folder: Path,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, mx.array],
    dtype: mx.Dtype,
    grids: Mapping[str, Grid] | None = None,
) -> None:
    """Write a model folder, or replace the weights of one of the same config and tokenizer.

    Args:
        folder: made if missing, under its name only when it is whole.
        weights: by name, as `model.parameters()` flattened; stored as `dtype`.
        grids: of the matrices that `weights` holds as `grid.fit` gives them; those tensors are stored as they are.

    Raises:
        ValueError: the folder holds something else.
        OSError: it could not be written; what was there is as it was.
    """
    shape = config.to_json(model_config)
    if not model_config.halting:
        del shape["halting"]  # so that folders of before there was one keep their digest, and resume
    record: dict[str, Any] = FORMAT | {"model": shape}
    if grids:
        record["grids"] = {name: config.to_json(each) for name, each in sorted(grids.items())}
    document = json.dumps(record, indent=2) + "\n"
    owners = {"config": digest(document.encode()), "tokenizer": digest(tokenizer.bytes)}
    kept = {part for name, each in (grids or {}).items() for part in each.names(name)}
    arrays = {name: array if name in kept else array.astype(dtype) for name, array in weights.items()}
    if (folder / CONFIG).exists():
        if owners != _owners(folder):
            raise ValueError(f"{folder} holds another model; choose a folder that does not exist yet")
        tensors.write(folder / MODEL, arrays, owners)
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} must be a new or empty folder, or a model folder, got one with other files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had this one's number
    try:
        aside.mkdir()
        files.replace(aside / CONFIG, document.encode())
        files.replace(aside / TOKENIZER, tokenizer.bytes)
        tensors.write(aside / MODEL, arrays, owners)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True)
class Contents:
    """What a model folder holds, checked: tensors by name, those of `grids` as whole numbers and scales or tables."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    arrays: dict[str, mx.array]
    grids: dict[str, Grid]
    revision: str  # one for each content: a hash of the hashes of config, tokenizer and tensors

    def dense(self) -> dict[str, mx.array]:
        """The weights by name, every matrix of a grid as the float16 numbers that it stands for."""
        held = {part for name, each in self.grids.items() for part in each.names(name)}
        plain = {name: array for name, array in self.arrays.items() if name not in held}
        return plain | {name: mx.array(grid.values(name, self.arrays, each)) for name, each in self.grids.items()}


def contents(folder: str | Path) -> Contents:
    """What a folder holds.

    Raises:
        FileNotFoundError: the folder or one of its three files is missing.
        ValueError: a file is damaged, foreign, of a future version, or belongs to another model.
    """
    folder = Path(folder)
    model_config, grids = load_config(folder), load_grids(folder)
    _present(folder, TOKENIZER)
    shapes = {name: _matrix(model_config, name) for name in grids}
    parts = {name: each.parts(name, shapes[name]) for name, each in grids.items()}
    numbers = model_config.stored_parameters()
    for name, part in parts.items():
        numbers += sum(prod(shape) for shape, _ in part.values()) - prod(shapes[name])
    arrays, metadata = tensors.read(_present(folder, MODEL), numbers)
    for name, owner in _owners(folder).items():
        if metadata.get(name) != owner:
            file = folder / {"config": CONFIG, "tokenizer": TOKENIZER}[name]
            raise ValueError(f"{file} is not the one that {MODEL} was saved with; restore both from one model")
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocabulary != model_config.vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer must have {model_config.vocabulary} tokens, got {tokenizer.vocabulary}"
        )
    if model_config.blocks(1) > len(arrays):  # or many empty blocks would be made before shapes are compared
        raise ValueError(f"{folder / MODEL} must hold {model_config.blocks(1)} blocks, got {len(arrays)} tensors")
    expected = {name: array.shape for name, array in named(TinyRecursiveLM(model_config).parameters()).items()}
    expected = {name: shape for name, shape in expected.items() if name not in grids}
    packed = {name: kind for part in parts.values() for name, kind in part.items()}
    tensors.check_shapes(folder / MODEL, expected | {name: shape for name, (shape, _) in packed.items()}, arrays)
    for name, array in arrays.items():
        if name in packed and array.dtype != packed[name][1]:
            raise ValueError(f"{folder / MODEL}: {name!r} must be of {packed[name][1]}, got {array.dtype}")
        if name not in packed and not mx.issubdtype(array.dtype, mx.floating):
            raise ValueError(f"{folder / MODEL}: {name!r} must be of floating point numbers, got {array.dtype}")
    for name, each in grids.items():
        try:
            grid.check(name, arrays, each)
        except ValueError as error:
            raise ValueError(f"{folder / MODEL}: {error}") from None
    revision = digest("".join(metadata[each] for each in ("config", "tokenizer", "sha256")).encode())
    return Contents(folder, model_config, tokenizer, arrays, grids, revision)


def load(
    folder: str | Path, dtype: mx.Dtype | None = None, packed: bool | None = None
) -> tuple[TinyRecursiveLM, Tokenizer]:
    """The model and tokenizer of a folder, ready to generate.

    Args:
        folder: a model folder.
        dtype: to compute in. None: float32 on a CPU, where halves are slow, else as stored.
        packed: multiply with the whole numbers of quantized matrices, where MLX can, instead of with the numbers that
            they stand for. None: not on a CPU, where it is many times slower.

    Raises:
        FileNotFoundError, ValueError: as `contents` does.
    """
    held = contents(folder)
    cpu = mx.default_device() == mx.Device(mx.cpu)
    dtype = mx.float32 if dtype is None and cpu else dtype
    model = TinyRecursiveLM(held.config)
    dense = {name: array.astype(dtype or array.dtype) for name, array in held.dense().items()}
    model.update(tree_unflatten(list(dense.items())))
    if not cpu if packed is None else packed:
        _pack(model, held, dtype or mx.float16)
    model.tokenizer, model.revision = held.tokenizer, held.revision
    model.eval()
    mx.eval(model.parameters())
    return model, held.tokenizer


def load_model(folder: str | Path) -> TinyRecursiveLM:
    """The model of a folder, with its tokenizer as `model.tokenizer`, ready for `trm_mlx.generate`.

    Any number of threads may generate with one model at the same time, each its own text: a text is the same as
    alone. Changing the model's weights meanwhile is not supported.

    Raises:
        FileNotFoundError: the folder or one of its three files is missing.
        ValueError: a file is damaged, foreign, of a future version, or belongs to another model.
    """
    return load(folder)[0]


def _pack(model: TinyRecursiveLM, held: Contents, dtype: mx.Dtype) -> None:
    """Put the whole numbers in the place of matrices for which MLX has a product."""
    for name, each in held.grids.items():
        operands = grid.product_operands(name, held.arrays, each, dtype)
        if operands is None:
            continue
        *owners, _ = name.split(".")
        if owners == ["embedding"]:
            layer: Any = nn.QuantizedEmbedding(32, 32, 32, each.bits)
            model.embedding = layer
        else:
            layer = model
            for owner in owners:
                layer = layer[int(owner)] if owner.isdigit() else layer[owner]
        layer.weight, layer.scales, layer.biases, group = operands
        layer.group_size, layer.bits = group, each.bits


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder."""
    return config.from_json(ModelConfig, _record(folder).get("model", {}), str(folder / CONFIG))


def load_grids(folder: Path) -> dict[str, Grid]:
    """The grids of a folder's matrices, by name; none in most folders."""
    path, record = folder / CONFIG, _record(folder).get("grids", {})
    if not isinstance(record, dict):
        raise ValueError(f"{path}: grids must be a table of matrices and their grids")
    model_config, grids = load_config(folder), {}
    for name, each in record.items():
        try:
            shape = _matrix(model_config, name)
        except KeyError:
            raise ValueError(f"{path}: grids names {name[:60]!r}, which is no matrix of this model") from None
        grids[name] = config.from_json(Grid, each, f"{path}: grids.{name}")
        try:
            grids[name].groups(shape)
        except ValueError as error:
            raise ValueError(f"{path}: grids.{name}: {error}") from None
    return grids


def _matrix(model_config: ModelConfig, name: str) -> tuple[int, int]:
    """One of `model_config.matrices()`, which a hostile config has millions of; a KeyError if it has none such."""
    if name == "embedding.weight":
        return model_config.vocabulary, model_config.width
    found = re.fullmatch(r"(prelude|core|coda)\.(0|[1-9][0-9]{0,6})\.(.+)\.weight", name)
    if not found or int(found[2]) >= getattr(model_config, found[1]):
        raise KeyError(name)
    return model_config.linears()[found[3]]


def _record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    path = _present(folder, CONFIG)
    record = config.load(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT["format"]:
        raise ValueError(f'{path} must have "format": "{FORMAT["format"]}"; it is not a model of trm_mlx')
    if record.get("version") != FORMAT["version"]:
        raise ValueError(
            f"{path} has version {record.get('version')!r}, this program reads {FORMAT['version']}; upgrade trm_mlx"
        )
    for key in record.keys() - FORMAT.keys() - {"model", "grids"}:
        raise ValueError(f"{path}: unknown key {key!r}; known are format, version, model, grids")
    return record


def save_training(folder: Path, arrays: Mapping[str, mx.array], facts: Mapping[str, str]) -> None:
    """Replace training.safetensors: the arrays of `loop.Run` and what they belong to, as metadata."""
    facts = {**_owners(folder), **facts}
    tensors.write(folder / TRAINING, arrays, {**facts, "facts": facts_digest(facts)})


def load_training(folder: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and facts of `save_training`.

    Raises:
        FileNotFoundError, ValueError: as `load` does.
    """
    arrays, facts = tensors.read(_present(folder, TRAINING))
    facts.pop("sha256")
    if facts.pop("facts", None) != facts_digest(facts):
        raise ValueError(f"{folder / TRAINING} is damaged: its facts are not those it was saved with")
    if {name: facts.get(name) for name in ("config", "tokenizer")} != _owners(folder):
        raise ValueError(f"{folder / TRAINING} belongs to another model than {CONFIG} and {TOKENIZER}")
    return arrays, facts


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Keep a second process from training in a folder while this one does.

    Raises:
        RuntimeError: another one is there.
    """
    with (folder / CONFIG).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is training in {folder}; wait for it, or stop it") from None
        yield


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def facts_digest(facts: Mapping[str, str]) -> str:
    """The hash of what a safetensors file says beside its tensors."""
    return digest(json.dumps(facts, sort_keys=True).encode())


def _owners(folder: Path) -> dict[str, str]:
    return {
        "config": digest((folder / CONFIG).read_bytes()),
        "tokenizer": digest((folder / TOKENIZER).read_bytes()),
    }


def _present(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"no {name} in {folder}; a model folder holds {CONFIG}, {TOKENIZER} and {MODEL}")
    return folder / name
