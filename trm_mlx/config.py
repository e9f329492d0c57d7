"""Settings: one frozen dataclass gives the JSON, the TOML and the command line of a noun or a verb.

A field is written once, `steps: Annotated[int, "optimizer steps"] = 1_000`, and is then the key `steps`
in a file and the flag `--steps` with that help. A field may hold int, float, bool, str, Path,
Literal[...], tuple[T, ...], another such dataclass, or any of these `| None`.

A nested dataclass is a table in a file, and on the command line a titled group of plain flags. A class
with `PRESETS: ClassVar[Mapping[str, Self]]` also gets `--preset NAME`. From weakest to strongest:
defaults, `--config FILE`, `--preset`, single flags. A command is `parse`, then its work inside `door`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shown  # cuts what is long
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from trm_mlx import files

Settings = TypeVar("Settings")

FILE_BYTES = 1 << 20  # a larger settings file is a mistake or an attack
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}
WORDS = {"None": "none", "True": "on", "False": "off", "": "empty"}  # a default in --help
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting, as files and flags need to know it."""

    name: str
    kind: Any
    help: str = ""
    default: Any = MISSING

    @property
    def flag(self) -> str:
        return "--" + self.name.rpartition(".")[2].replace("_", "-")


def keys(cls: Any, base: Any = MISSING, prefix: str = "") -> Iterator[Key]:
    """The fields of a dataclass in order, their defaults taken from `base`, an instance, if there is one."""
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        kind, text = hints[field.name], ""
        if get_origin(kind) is Annotated:
            kind, text, *_ = get_args(kind)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = default if base is MISSING else getattr(base, field.name)
        yield Key(name=prefix + field.name, kind=kind, help=text, default=default)


def leaves(cls: type, base: Any = MISSING, prefix: str = "") -> Iterator[Key]:
    """Every key of a dataclass and of those nested in it, by dotted name: `steps`, `model.width`."""
    for key in keys(cls, base, prefix):
        if is_dataclass(key.kind):
            yield from leaves(key.kind, key.default, key.name + ".")
        else:
            yield key


def defaults(cls: type, base: Any = MISSING, prefix: str = "") -> dict[str, Any]:
    """The values of all leaves by dotted name, MISSING where none is known."""
    return {key.name: key.default for key in leaves(cls, base, prefix)}


def without_none(kind: Any) -> tuple[Any, bool]:
    """What `X | None` holds besides None, and whether None was allowed."""
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    (inner,) = (each for each in get_args(kind) if each is not NoneType)
    return inner, True


def describe(kind: Any) -> str:
    """The values that `kind` takes, for people."""
    inner, optional = without_none(kind)
    if get_origin(inner) is Literal:
        text = "one of " + ", ".join(repr(choice) for choice in get_args(inner))
    elif get_origin(inner) is tuple:
        text = f"a list, each {describe(get_args(inner)[0])}"
    else:
        text = "a table of settings" if is_dataclass(inner) else NAMES[inner]
    return text + " or none" if optional else text


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of an error line about an unknown name."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def convert(kind: Any, value: Any, where: str) -> Any:
    """A JSON or TOML value as `kind`; a ValueError that begins with `where` if it is not one."""
    inner, optional = without_none(kind)
    origin = get_origin(inner)
    if value is None and optional:
        return None
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(inner)):  # True == 1
            return value
    elif origin is tuple and isinstance(value, list):
        item = get_args(inner)[0]
        return tuple(convert(item, each, f"{where}[{index}]") for index, each in enumerate(value))
    elif is_dataclass(inner) and isinstance(value, dict):
        return from_json(inner, value, where)
    elif inner is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif inner is Path and isinstance(value, str) and value:
        return Path(value)
    elif inner in (int, bool, str) and type(value) is inner:
        return value
    raise ValueError(f"{where} must be {describe(kind)}, got {shown(value)}")


def flatten(cls: type, data: Any, name: str, prefix: str = "") -> dict[str, Any]:
    """The values in `data` by dotted name, each checked to be of its field's type."""
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be a table of settings, got {shown(data)}")
    known = {key.name: key for key in keys(cls)}
    values = {}
    for word, value in data.items():
        if word not in known:
            tables = [f"it is {key.name}" for key in leaves(cls) if key.name.endswith(f".{word}")]
            hint = (tables or [nearest(word, known, f"known are {', '.join(known)}")])[0]
            raise ValueError(f"{name}: unknown key {shown(prefix + word)}; {hint}")
        if is_dataclass(known[word].kind) and isinstance(value, dict):
            values |= flatten(known[word].kind, value, name, f"{prefix}{word}.")
        else:
            values[prefix + word] = convert(known[word].kind, value, f"{name}: {prefix}{word}")
    return values


def build(cls: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Settings:
    """The dataclass from the values of all its leaves."""
    given = {}
    for key in keys(cls, MISSING, prefix):
        value = build(key.kind, values, key.name + ".") if is_dataclass(key.kind) else values[key.name]
        given[key.name[len(prefix) :]] = value
    return cls(**given)


def to_json(settings: Any) -> Any:
    """Settings as plain JSON values: paths as text, tuples as lists, nested settings as dicts."""
    if is_dataclass(settings):
        return {key.name: to_json(key.default) for key in keys(type(settings), settings)}
    if isinstance(settings, tuple):
        return [to_json(each) for each in settings]
    return str(settings) if isinstance(settings, Path) else settings


def from_json(cls: type[Settings], data: dict[str, Any], name: str) -> Settings:
    """Settings from plain JSON values that came from `name`; a nested table may be partial.

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its field's type or is refused.
    """
    values = flatten(cls, data, name)
    absent = [key for key in keys(cls) if key.name not in data]
    absent += [key for key in leaves(cls) if key.name not in values]
    for key in absent:
        if key.default is MISSING:
            raise ValueError(f"{name}: missing key {key.name!r}, {describe(key.kind)}")
    try:
        return build(cls, defaults(cls) | values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def load(path: Path) -> Any:
    """What a .json or .toml file holds, checked for form and size alone."""
    if path.suffix not in (".json", ".toml"):
        raise ValueError(f"settings must be in a .json or .toml file, got {path}")
    with path.open("rb") as file:
        content = file.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise ValueError(f"{path} must be at most {FILE_BYTES} bytes to be read as settings")
    toml = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module("json" if path.suffix == ".json" else toml).loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error


def read(cls: type[Settings], path: Path) -> Settings:
    """Settings from a .json or .toml file; a ValueError as from `from_json`, or if it is malformed."""
    return from_json(cls, load(path), str(path))


def write(settings: Any, path: Path) -> None:
    """Write settings as JSON; after a crash `path` holds the old content or the new, never half."""
    text = json.dumps(to_json(settings), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files.replace(path, text.encode())


class Parser(argparse.ArgumentParser):
    """argparse for one dataclass: no abbreviations, and one line for an error."""

    def __init__(self, cls: type, program: str, epilog: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=program, epilog=epilog, formatter_class=form, allow_abbrev=False)
        self.keys: dict[str, Key] = {}  # by dotted name
        self.presets: dict[str, dict[str, dict[str, Any]]] = {}  # dotted name, preset, the values it sets
        self.add(self, Key(name="config", kind=Path | None, help="settings, .json or .toml", default=None))
        self.description = self.add_all(self, cls, MISSING, "")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())}\n")

    def add_all(self, group: Any, cls: type, base: Any, prefix: str) -> str:
        """Add the flags of a dataclass and of those nested in it; gives its title."""
        if presets := getattr(cls, "PRESETS", None):
            values = {name: defaults(cls, preset, prefix) for name, preset in presets.items()}
            usual = next((name for name in values if values[name] == defaults(cls, base, prefix)), None)
            kind = Literal.__getitem__(tuple(presets))
            self.add(group, Key(name=prefix + "preset", kind=kind, help="where to start from", default=usual))
            self.presets[prefix + "preset"] = values
        for key in keys(cls, base, prefix):
            if is_dataclass(key.kind):
                inner = self.add_argument_group()
                inner.title = self.add_all(inner, key.kind, key.default, key.name + ".").rstrip(".")
            else:
                self.add(group, key)
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]

    def add(self, group: Any, key: Key) -> None:
        inner, _ = without_none(key.kind)
        form: dict[str, Any] = {"dest": key.name, "default": argparse.SUPPRESS}
        if get_origin(inner) is tuple:
            inner, form["nargs"], form["action"] = get_args(inner)[0], "*", "extend"
        if is_dataclass(inner):
            return  # a table that may be absent, or a list of tables, is for --config
        if inner is bool:
            form["action"] = argparse.BooleanOptionalAction
        elif get_origin(inner) is Literal:
            form["metavar"] = "{" + ",".join(str(choice) for choice in get_args(inner)) + "}"
        else:
            form["metavar"] = METAVARS[inner]
        usual = " ".join(map(str, key.default)) if isinstance(key.default, tuple) else str(key.default)
        ending = "required" if key.default is MISSING else f"default: {WORDS.get(usual, usual)}"
        form["help"] = f"{key.help} ({ending})".strip().replace("%", "%%")
        try:
            group.add_argument(key.flag, **form)
        except argparse.ArgumentError:
            raise ValueError(f"two settings must not share the flag {key.flag}; rename {key.name}") from None
        self.keys[key.name] = key


def from_text(key: Key, raw: Any) -> Any:
    """What a flag was given (text, texts or a bool) as the key's kind; `none` is None if allowed, but for texts."""
    inner, optional = without_none(key.kind)
    if optional and raw in ("none", ["none"]) and str not in (inner, *get_args(inner)):
        return None
    if isinstance(raw, list):
        item = replace(key, kind=get_args(inner)[0])
        texts = ",".join(raw).split(",") if raw and item.kind in (int, float) else raw
        return tuple(from_text(item, text) for text in texts)
    value = raw
    if get_origin(inner) is Literal:
        value = next((choice for choice in get_args(inner) if str(choice) == raw), raw)
    elif inner in (int, float):
        with suppress(ValueError):
            value = inner(raw)
    return convert(key.kind, value, key.flag)


def parse_given(
    cls: type[Settings], argv: Sequence[str] | None, *, program: str, epilog: str = ""
) -> tuple[Settings, frozenset[str]]:
    """Settings from the command line, and the dotted names of the flags that were on it.

    Names are as in a file: `steps`, `model.width`; also `config`, and `model.preset` if `model` has presets.
    What a `--config` file set is not among them. Asked wrongly, exits with 2 after one line on stderr.
    """
    parser = Parser(cls, program, epilog)
    found, rest = parser.parse_known_args(argv)
    try:
        if rest:
            word, known = rest[0].split("=")[0], [key.flag for key in parser.keys.values()]
            raise ValueError(f"unknown flag {word}; {nearest(word, known, 'see --help')}")
        flags = {name: from_text(parser.keys[name], raw) for name, raw in vars(found).items()}
        values = defaults(cls)
        if file := flags.get("config"):
            values |= flatten(cls, load(file), str(file))
        for name, presets in parser.presets.items():
            values |= presets.get(flags.get(name), {})
        values |= {name: value for name, value in flags.items() if name in values}
        for key in leaves(cls):
            if values[key.name] is MISSING:
                raise ValueError(f"{key.flag} is required: {key.help or describe(key.kind)}")
        return build(cls, values), frozenset(flags)
    except (ValueError, OSError) as error:
        parser.error(explain(error))


def parse(cls: type[Settings], argv: Sequence[str] | None, *, program: str, epilog: str = "") -> Settings:
    """Settings from the command line; `argv` None means this process's. See `parse_given`."""
    return parse_given(cls, argv, program=program, epilog=epilog)[0]


def explain(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full while writing {error.filename or 'a file'}; free some space and run again"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).splitlines()) or type(error).__name__


@contextmanager
def door(program: str) -> Generator[None]:
    """Turn an expected error into one line on stderr and an exit status; a bug keeps its traceback.

    Exits with 2 if asked wrongly (ValueError, FileNotFoundError), 1 if the work failed (other errors below), 130
    after Ctrl-C, 0 if the reader of a pipe has read enough. TRM_MLX_TRACEBACK=1 lets every traceback through.
    """
    try:
        yield
        print(end="", flush=True)  # which knows that stdout may be closed
    except (ValueError, OSError, RuntimeError, ImportError, KeyboardInterrupt) as error:
        if os.environ.get("TRM_MLX_TRACEBACK") == "1":
            raise
        if isinstance(error, BrokenPipeError):
            with suppress(OSError):  # or Python complains when it flushes stdout at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        status = 2 if isinstance(error, ValueError | FileNotFoundError) else 1
        status = 130 if isinstance(error, KeyboardInterrupt) else status
        print(f"{program}: {'interrupted' if status == 130 else 'error: ' + explain(error)}", file=sys.stderr)
        raise SystemExit(status) from error
