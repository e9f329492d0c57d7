"""A JSON schema as a regular expression, so that whatever it matches is JSON that the schema accepts.

What cannot be kept is refused, never ignored. The expression may match less than the schema accepts: it is spaced as
by Python's `json.dumps`, its keys come in the order of `properties`, no others are added to them, a number has no
exponent, and of what nests in itself or is of any kind a few levels are written. None is what matches nothing.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from trm_mlx.decode.automaton import FAR, automaton
from trm_mlx.decode.expression import CHARACTER, inside_string, literal

NESTED, NESTED_ANY = 3, 2  # the automaton of one more level of any values takes seconds
LARGEST = 1 << 20  # characters of an expression
MOST_PARTS = 10_000  # of a schema, each counted where it is used; nesting multiplies them

KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
    "boolean": (),
    "null": (),
}
ALONE = ("$ref", "anyOf", "oneOf", "enum", "const")
REMARKS = ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples")
KINDS = {  # of the keywords' values
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (int,)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (int, float)),
    **dict.fromkeys(("pattern", "format", "$ref"), (str,)),
    **dict.fromkeys(("items", "additionalProperties"), (dict, bool)),
    **dict.fromkeys(("prefixItems", "required", "enum", "anyOf", "oneOf"), (list,)),
    "type": (str, list),
    "properties": (dict,),
}
DATE = "(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"  # days that every month has
TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "email": r"[a-z0-9]+(?:\.[a-z0-9]+)*@[a-z0-9]+(?:\.[a-z0-9]+)*\.[a-z]{2,}",
}
FRACTION = r"\.[0-9]*[1-9]"


def expression(schema: Any) -> str:
    """The expression of a schema as `json.loads` gives it.

    Raises:
        ValueError: it is malformed, asks for what cannot be kept, is too large, or accepts nothing.
    """
    try:
        found = _Translator(schema).any_of(schema, "#", ())
    except RecursionError:
        raise ValueError("json_schema must not be nested so deeply") from None
    if found is None:
        raise ValueError("json_schema must accept some JSON value, and this accepts none")
    return found


class _Translator:
    def __init__(self, root: Any) -> None:
        self.root, self.parts = root, 0

    def any_of(self, schema: Any, place: str, opened: tuple[str, ...]) -> str | None:
        """The expression of one schema.

        Args:
            place: where it is, for errors.
            opened: the references it stands in, "{}" for a value of any kind.
        """
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise ValueError("json_schema must be smaller: nested in itself it has too many parts")
        if isinstance(schema, bool):
            return self.anything(place, opened) if schema else None
        self.check(schema, place)
        if "$ref" in schema:
            return self.referred(schema["$ref"], place, opened)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                branches = [(each, f"{place}/{key}/{number}") for number, each in enumerate(schema[key])]
                if key == "oneOf":
                    self.apart([self.accepted(*branch) for branch in branches], place)
                return _either([self.any_of(*branch, opened) for branch in branches])
        types = self.accepted(schema, place)
        if "enum" in schema or "const" in schema:
            fit = [each for each in _values(schema) if _type(each) & types]
            return _either([literal(json.dumps(each, ensure_ascii=False)) for each in fit])
        asked = {kind for kind, keys in KEYWORDS.items() if any(key in schema for key in keys)}
        if "type" not in schema:
            types = asked or types  # a length alone means a text, though the rest would pass too
        if not asked and types >= KEYWORDS.keys():
            return self.anything(place, opened)
        return _either([self.typed(each, schema, place, opened) for each in KEYWORDS if each in types])

    def check(self, schema: Any, place: str) -> None:
        """Refuse what is not understood."""
        if not isinstance(schema, dict):
            raise ValueError(
                f"json_schema at {place} must be an object, true or false, got {json.dumps(schema)[:40]}"
            )
        known = {"type", *ALONE, *(key for keys in KEYWORDS.values() for key in keys)}
        unknown = schema.keys() - known - {*REMARKS}
        if schema.get("uniqueItems") is False:
            unknown.discard("uniqueItems")
        if unknown:
            raise ValueError(
                f"json_schema at {place} must be without {min(unknown)}, which cannot be kept; "
                f"known are {', '.join(sorted(known))}"
            )
        for key, value in schema.items():
            kinds = KINDS.get(key)
            if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                raise ValueError(f"json_schema at {place} has a {key} of the wrong kind, {json.dumps(value)[:40]}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"json_schema at {place} must have a finite {key}, got {value}")
        if any(not isinstance(each, str) for key in ("required", "type") for each in schema.get(key, ())):
            raise ValueError(f"json_schema at {place} must have texts in required and type")
        for key in ALONE:
            others = [each for each in schema if each in known and each != key]
            if key in schema and (
                others := [each for each in others if each != "type" or key not in ("enum", "const")]
            ):
                raise ValueError(f"json_schema at {place} must have {key} without {others[0]} beside it")

    def accepted(self, schema: Any, place: str) -> set[str]:
        """The types of the values that a schema might accept."""
        if isinstance(schema, bool):
            return {*KEYWORDS} if schema else set()
        self.check(schema, place)
        if "$ref" in schema:
            return self.accepted(self.target(schema["$ref"], place), schema["$ref"])
        if "type" in schema:
            named = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
            if wrong := [each for each in named if each not in KEYWORDS]:
                raise ValueError(
                    f"json_schema at {place} must have a type of {', '.join(KEYWORDS)}, got {wrong[0]!r}"
                )
            return {*named} | ({"integer"} if "number" in named else set())
        if "enum" in schema or "const" in schema:
            return set().union(*map(_type, _values(schema)))
        return {*KEYWORDS}

    def apart(self, branches: Sequence[set[str]], place: str) -> None:
        """Refuse a oneOf of which two branches might both accept a value."""
        if sum(map(len, branches)) > len(set().union(*branches)):
            raise ValueError(f"json_schema at {place} must have branches of different types in oneOf; use anyOf")

    def referred(self, pointer: str, place: str, opened: tuple[str, ...]) -> str | None:
        if opened.count(pointer) == NESTED:
            return None
        return self.any_of(self.target(pointer, place), pointer, (*opened, pointer))

    def target(self, pointer: str, place: str) -> Any:
        """The part of the schema that a reference names."""
        first, *steps = pointer.split("/")
        found = self.root
        for step in steps if first == "#" else [""]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif first == "#" and isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise ValueError(
                    f"json_schema at {place} must refer to a part of itself, such as #/$defs/name, got {pointer!r}"
                )
        return found

    def anything(self, place: str, opened: tuple[str, ...]) -> str | None:
        """Any JSON value."""
        inner = (*opened, "{}")
        nests = inner.count("{}") < NESTED_ANY
        return _either(
            [self.typed(each, {}, place, inner) for each in KEYWORDS if nests or each not in ("array", "object")]
        )

    def typed(self, kind: str, schema: dict[str, Any], place: str, opened: tuple[str, ...]) -> str | None:
        if kind == "array":
            return self.array(schema, place, opened)
        if kind == "object":
            return self.object(schema, place, opened)
        simple: dict[str, Callable[[], str | None]] = {
            "null": lambda: "null",
            "boolean": lambda: "(?:true|false)",
            "string": lambda: _string(schema, place),
            "integer": lambda: _integer(*_limits(schema)),
            "number": lambda: _fraction(schema, place),
        }
        return simple[kind]()

    def array(self, schema: dict[str, Any], place: str, opened: tuple[str, ...]) -> str | None:
        least, most = schema.get("minItems", 0), schema.get("maxItems", FAR)
        first = [self.any_of(each, f"{place}/prefixItems", opened) for each in schema.get("prefixItems", ())]
        if None in first:
            most, first = min(most, first.index(None)), first[: first.index(None)]
        item = self.any_of(schema.get("items", True), f"{place}/items", opened) if most > len(first) else None
        most = most if item else min(most, len(first))
        if least > most:
            return None
        first = first or ([item] if item else [])
        tail = ""
        if most > len(first):
            more = "" if most == FAR else most - len(first)
            tail = f"(?:, {item}){{{max(0, least - len(first))},{more}}}"
        for number in reversed(range(min(len(first), most))):
            tail = f"{', ' if number else ''}{first[number]}{tail}"
            if number >= least:
                tail = f"(?:{tail})?"
        return rf"\[{tail}\]"

    def object(self, schema: dict[str, Any], place: str, opened: tuple[str, ...]) -> str | None:
        properties, required = dict(schema.get("properties", {})), schema.get("required", [])
        other = schema.get("additionalProperties", True)
        for name in required:
            properties.setdefault(name, other)
        if not properties:
            value = self.any_of(other, f"{place}/additionalProperties", opened)
            pair = f'"{CHARACTER}*": {value}'
            return rf"\{{(?:{pair}(?:, {pair})*)?\}}" if value else r"\{\}"
        pairs: list[tuple[str, bool]] = []
        for name, inner in properties.items():
            value = self.any_of(inner, f"{place}/properties/{name}", opened)
            if value is None and name in required:
                return None
            if value is not None:
                pairs.append((f"{literal(json.dumps(name, ensure_ascii=False))}: {value}", name in required))
        later = [f", {pair}" if must else f"(?:, {pair})?" for pair, must in pairs]
        musts = [number for number, (_, must) in enumerate(pairs) if must]
        if musts:  # the commas before the first that must come belong to those left of it
            before = "".join(f"(?:{pair}, )?" for pair, _ in pairs[: musts[0]])
            return rf"\{{{before}{pairs[musts[0]][0]}{''.join(later[musts[0] + 1 :])}\}}"
        starts = _either([pair + "".join(later[number + 1 :]) for number, (pair, _) in enumerate(pairs)])
        return rf"\{{{starts}?\}}" if starts else r"\{\}"


def _either(parts: Sequence[str | None]) -> str | None:
    found = [part for part in parts if part is not None]
    return _bounded(f"(?:{'|'.join(found)})") if found else None


def _bounded(found: str | None) -> str | None:
    if found is not None and len(found) > LARGEST:
        raise ValueError("json_schema must be smaller: its regular expression is too long")
    return found


def _values(schema: dict[str, Any]) -> list[Any]:
    return schema["enum"] if "enum" in schema else [schema["const"]]


def _type(value: Any) -> set[str]:
    """The type of a JSON value, as a schema counts it."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, float) and value.is_integer():
        return {"integer"}
    kinds = {str: "string", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return {kinds[type(value)]}


def _string(schema: dict[str, Any], place: str) -> str | None:
    bounded = "minLength" in schema or "maxLength" in schema
    if len({"pattern", "format"} & schema.keys()) + bounded > 1:
        raise ValueError(f"json_schema at {place} must have one of pattern, format and lengths, got two")
    if "format" in schema:
        if schema["format"] not in FORMATS:
            raise ValueError(
                f"json_schema at {place} must have a format of {', '.join(FORMATS)}, got {schema['format']!r}"
            )
        return f'"{FORMATS[schema["format"]]}"'
    if "pattern" in schema:
        try:
            inner = inside_string(schema["pattern"])
            automaton(inner)
        except ValueError as error:
            raise ValueError(f"json_schema at {place}: the pattern {schema['pattern']!r} {error}") from None
        return f'"(?:{inner})"'
    least, most = max(0, schema.get("minLength", 0)), schema.get("maxLength", "")
    return None if most != "" and most < least else f'"{CHARACTER}{{{least},{most}}}"'


def _limits(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest whole number that a schema lets pass, None for any."""
    low = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    low += [math.floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    high = [math.floor(schema["maximum"])] if "maximum" in schema else []
    high += [math.ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    return max(low, default=None), min(high, default=None)


def _integer(low: int | None, high: int | None) -> str | None:
    parts = [] if high is not None and high < 0 else _span(max(0, low or 0), high)
    if low is None or low < 0:
        parts += [f"-{part}" for part in _span(1 if high is None else max(1, -high), None if low is None else -low)]
    return _either(parts)


def _span(low: int, high: int | None) -> list[str]:
    """Expressions of the whole numbers from low, at least 0, to high, None for no end; as few as digits need."""
    if high is None:
        size = len(str(low))
        return [*_span(low, 10**size - 1), f"[1-9][0-9]{{{size},}}"]
    parts = []
    if low == 0 <= high:
        parts, low = ["0"], 1
    while low <= high:
        zeros = 0
        while low % 10 ** (zeros + 1) == 0 and low + 10 ** (zeros + 1) - 1 <= high:
            zeros += 1
        lead, digit = divmod(low // 10**zeros, 10)
        last = min(9, digit + (high - low + 1) // 10**zeros - 1)
        parts.append(f"{lead or ''}[{digit}-{last}]" + (f"[0-9]{{{zeros}}}" if zeros else ""))
        low += (last - digit + 1) * 10**zeros
    return parts


def _fraction(schema: dict[str, Any], place: str) -> str | None:
    """Numbers that are not whole, between whole limits."""
    for key in KEYWORDS["number"]:
        if schema.get(key, 0) != math.floor(schema.get(key, 0)):
            raise ValueError(f"json_schema at {place} must have a whole {key}, got {schema[key]}")
    low = max((schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema), default=None)
    high = min((schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema), default=None)
    parts = (
        [] if high is not None and high < 1 else _span(max(0, int(low or 0)), None if high is None else int(high) - 1)
    )
    if low is None or low < 0:
        most = None if low is None else -int(low) - 1
        parts += [f"-{part}" for part in _span(0 if high is None else max(0, -int(high)), most)]
    found = _either(parts)
    return found and found + FRACTION
