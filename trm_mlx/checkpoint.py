"""The model folder: written whole or not at all, checked before a number of it is used.

    config.json            {"format": "trm_mlx.model", "version": 1, "model": ModelConfig}
    tokenizer.model        SentencePiece
    model.safetensors      the weights; its metadata holds the sha256 of both files above and of its own data
    training.safetensors   while training: weights, optimizer and averages, all that going on needs

Each safetensors file is replaced in one rename and says for itself what it belongs to, so a kill between two
renames leaves a folder that loads and resumes. File names are fixed: nothing in a folder names another file.
"""

import fcntl
import json
import math
import os
import shutil
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_unflatten

from trm_mlx import config, files
from trm_mlx.model import ModelConfig, TinyRecursiveLM, named
from trm_mlx.tokenizer import Tokenizer

FORMAT = {"format": "trm_mlx.model", "version": 1}
HEADER_BYTES = 1 << 22  # the header of a safetensors file of 30,000 tensors
TYPES = {
    "F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U64": mx.uint64, "U32": mx.uint32,
}  # fmt: skip
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
) -> None:
    """Write a model folder, or replace the weights of one of the same config and tokenizer.

    Args:
        folder: made if missing, under its name only when it is whole.
        weights: by name, as `model.parameters()` flattened; stored as `dtype`.

    Raises:
        ValueError: the folder holds something else.
        OSError: it could not be written; what was there is as it was.
    """
    document = json.dumps(FORMAT | {"model": config.to_json(model_config)}, indent=2) + "\n"
    owners = {"config": digest(document.encode()), "tokenizer": digest(tokenizer.bytes)}
    arrays = {name: array.astype(dtype) for name, array in weights.items()}
    if (folder / CONFIG).exists():
        if owners != _owners(folder):
            raise ValueError(f"{folder} holds another model; choose a folder that does not exist yet")
        write_arrays(folder / MODEL, arrays, owners)
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
        write_arrays(aside / MODEL, arrays, owners)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: str | Path, dtype: mx.Dtype | None = None) -> tuple[TinyRecursiveLM, Tokenizer]:
    """The model and tokenizer of a folder, ready to generate.

    Args:
        folder: a model folder.
        dtype: to compute in. None: float32 on a CPU, where halves are slow, else as stored.

    Raises:
        FileNotFoundError: the folder or one of its three files is missing.
        ValueError: a file is damaged, foreign, of a future version, or belongs to another model.
    """
    folder = Path(folder)
    model_config = load_config(folder)
    _present(folder, TOKENIZER)
    arrays, metadata = read_arrays(_present(folder, MODEL), model_config.stored_parameters())
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
    model = TinyRecursiveLM(model_config)
    expected = {name: array.shape for name, array in named(model.parameters()).items()}
    check_shapes(folder / MODEL, expected, arrays)
    for name, array in arrays.items():
        if not mx.issubdtype(array.dtype, mx.floating):
            raise ValueError(f"{folder / MODEL}: {name!r} must be of floating point numbers, got {array.dtype}")
    if dtype is None and mx.default_device() == mx.Device(mx.cpu):
        dtype = mx.float32
    model.update(tree_unflatten([(name, array.astype(dtype or array.dtype)) for name, array in arrays.items()]))
    model.eval()
    mx.eval(model.parameters())
    return model, tokenizer


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder."""
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
    for key in record.keys() - FORMAT.keys() - {"model"}:
        raise ValueError(f"{path}: unknown key {key!r}; known are format, version, model")
    return config.from_json(ModelConfig, record.get("model", {}), str(path))


def save_training(folder: Path, arrays: Mapping[str, mx.array], facts: Mapping[str, str]) -> None:
    """Replace training.safetensors: the arrays of `loop.Run` and what they belong to, as metadata."""
    facts = {**_owners(folder), **facts}
    write_arrays(folder / TRAINING, arrays, {**facts, "facts": _facts_digest(facts)})


def load_training(folder: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays and facts of `save_training`.

    Raises:
        FileNotFoundError, ValueError: as `load` does.
    """
    arrays, facts = read_arrays(_present(folder, TRAINING))
    if facts.pop("facts", None) != _facts_digest(facts):
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


def _facts_digest(facts: Mapping[str, str]) -> str:
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


def check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, mx.array]) -> None:
    """Refuse tensors that are missing, unknown or of another shape than the config asks for."""
    for name in sorted(expected.keys() | arrays.keys()):
        if name not in arrays:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        if name not in expected:
            raise ValueError(f"{path}: tensor {name!r} is unknown to a model of this {CONFIG}")
        if arrays[name].shape != expected[name]:
            raise ValueError(f"{path}: {name!r} must be {expected[name]}, got {arrays[name].shape}")


def write_arrays(path: Path, arrays: Mapping[str, mx.array], facts: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata holds the facts and the sha256 of the data.

    The same arrays give the same bytes. Format: huggingface.co/docs/safetensors.
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    mx.eval(list(arrays.values()))
    header, data, hashed, start = {}, [], sha256(), 0
    for name, array in sorted(arrays.items()):
        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        # Arrays are buffers, though MLX's type stubs do not say so.
        whole = memoryview(mx.contiguous(plain))  # ty: ignore[invalid-argument-type]
        data.append(whole.cast("B") if array.size else memoryview(b""))
        hashed.update(data[-1])
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    content = json.dumps({"__metadata__": {**facts, "sha256": hashed.hexdigest()}, **header}).encode()
    content += b" " * (-len(content) % 8)
    files.replace(path, struct.pack("<Q", len(content)), content, *data)


def read_arrays(path: Path, numbers: int | None = None) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, once everything that it says of itself holds.

    Args:
        numbers: how many numbers the tensors must hold together; checked before any is read.

    Raises:
        ValueError: the file is cut short, garbled, of other types, or not one that `write_arrays` made.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        if length > min(HEADER_BYTES, size - 8):
            raise ValueError(f"{path} must be a safetensors file, got {size} bytes that are not; it may be cut short")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
            facts = {str(key): str(value) for key, value in header.pop("__metadata__").items()}
            spans = sorted(_span(name, entry) for name, entry in header.items())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{path} must be a safetensors file saved by trm_mlx, got another header") from None
        end = 0
        for start, stop, _ in spans:
            if start != end:
                raise ValueError(f"{path}: its tensors must follow each other without gaps; it is damaged")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"{path} must hold {end} bytes of tensors, got {size - 8 - length}; it may be cut short")
        held = sum(math.prod(entry["shape"]) for entry in header.values())
        if numbers is not None and held != numbers:
            raise ValueError(f"{path} must hold the {numbers} numbers of its {CONFIG}, got {held}")
        hashed = sha256()
        while block := file.read(1 << 20):
            hashed.update(block)
    if facts.pop("sha256", None) != hashed.hexdigest():
        raise ValueError(f"{path} is damaged: its data are not those it was saved with; restore it from a copy")
    try:
        arrays = mx.load(str(path))
        assert isinstance(arrays, dict)
        return arrays, facts
    except (RuntimeError, ValueError):  # JSON that Python reads and MLX does not, such as NaN
        raise ValueError(f"{path} must be a safetensors file saved by trm_mlx, got another header") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, none of whose keys comes twice: parsers differ in which one they believe."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _span(name: str, entry: dict) -> tuple[int, int, str]:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    whole = all(type(each) is int and each >= 0 for each in (start, stop, *shape))
    if not whole or stop - start != math.prod(shape) * TYPES[entry["dtype"]].size or len(shape) > 8:
        raise ValueError(name)
    return start, stop, name
