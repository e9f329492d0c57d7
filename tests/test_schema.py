"""JSON schemas as regular expressions: what is written is JSON that another validator accepts."""

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_automaton import random_pattern

from trm_mlx.decode import schema as schemas
from trm_mlx.decode.automaton import Automaton, automaton
from trm_mlx.decode.schema import expression


def drawn(found: Automaton, draw: random.Random, most: int = 60) -> str:
    """A text that the automaton accepts, its bytes drawn; past `most` of them it takes the shortest way out."""
    text, state = b"", 0
    while True:
        following = found.table[state]
        near = found.nearest[following]
        live = np.flatnonzero(following != found.dead)
        if found.final[state] and (not live.size or len(text) >= most or draw.random() < 0.2):
            return text.decode()
        byte = int(near.argmin()) if len(text) >= most else draw.choice(live.tolist())
        text, state = text + bytes([byte]), int(following[byte])


def accepts(schema: Any, value: Any) -> bool:
    found, state = automaton(expression(schema)), 0
    for byte in json.dumps(value, ensure_ascii=False).encode():
        state = int(found.table[state, byte])
    return bool(found.final[state])


def random_schema(draw: random.Random, depth: int = 2) -> Any:
    low = draw.randrange(-30, 30)
    high = low + draw.randrange(0, 200)
    simple: list[Any] = [
        {"type": "string", "minLength": draw.randrange(3), "maxLength": 3 + draw.randrange(9)},
        {
            "type": "string",
            "pattern": draw.choice(["^[a-c]+$", "x|^y", r"\d\"", ".", r"^\S{2}\\$", "^[^a]$", r"a\nb", r"\w\W"]),
        },
        {"type": "string", "format": draw.choice([*schemas.FORMATS])},
        {"type": "integer", "minimum": low, "maximum": high},
        {"type": "integer", "exclusiveMinimum": low + 0.5},
        {"type": "number", "exclusiveMinimum": low, "maximum": high + 1},
        {"type": "number", "maximum": low},
        {"type": ["null", "boolean"]},
        {"enum": [1, 'a"\\\u00e9.*', None, 1.5, {"a": [1, "b"]}, []]},
        {"const": draw.choice(["(x|y)", -3, {"\u4e2d": 1e30}])},
        {"minLength": 2},
        {"$ref": "#/$defs/node"},
    ]
    if not depth or draw.random() < 0.3:
        return draw.choice(simple)
    least, count = draw.randrange(3), draw.randrange(4)

    def inner() -> Any:
        return random_schema(draw, depth - 1)

    if draw.random() < 0.2:
        return {"anyOf": [inner(), inner()]}
    if draw.random() < 0.5:
        first = {"prefixItems": [inner() for _ in range(count)]} if count else {}
        items = draw.choice([False, inner(), inner()])
        most = {"maxItems": max(least, draw.randrange(4))} if draw.random() < 0.7 else {}
        return {
            "type": "array",
            "items": items,
            "minItems": min(least, count) if items is False else least,
            **first,
            **most,
        }
    names = ["a", 'b"\\', "\u00e9 c", "(d)"][:count]
    more = {"additionalProperties": draw.choice([False, inner()])}
    return {
        "type": "object",
        "properties": {name: inner() for name in names},
        "required": draw.sample(names, count // 2),
        **more,
    }


NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
    "required": ["v"],
}


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_written_is_what_a_validator_accepts(seed):
    draw = random.Random(seed)
    schema = random_schema(draw)
    whole = {**schema, "$defs": {"node": NODE}}
    found = automaton(expression(whole))
    validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for _ in range(40):
        text = drawn(found, draw)
        validator.validate(json.loads(text))


@pytest.mark.parametrize("seed", range(60))
def test_a_pattern_is_found_in_the_text_that_json_stands_for(seed):
    draw = random.Random(seed)
    extra = draw.choice(['"+', r"\\{2}", "\n*\t", "\n", r"\v?", '(?i:\\n"k)', r'[^a]"', "/"])
    pattern = (
        "^" * draw.randrange(2)
        + f"(?:{random_pattern(draw)})"
        + extra
        + random_pattern(draw, 1)
        + "$" * draw.randrange(2)
    )
    found = automaton(expression({"type": "string", "pattern": pattern}))
    for _ in range(40):
        assert re.search(pattern, json.loads(drawn(found, draw))), pattern


@pytest.mark.parametrize("seed", range(10))
def test_any_object_is_an_object(seed):
    found = automaton(expression({"type": "object"}))
    for number in range(30):
        assert isinstance(json.loads(drawn(found, random.Random(100 * seed + number), 150)), dict)


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_numbers_are_exactly_those_between_the_limits(kind):
    draw = random.Random(0)
    for _ in range(25):
        low = draw.randrange(-120, 120)
        high = low + draw.choice([0, 1, 5, 90, 1000])
        lower, upper = draw.choice(["minimum", "exclusiveMinimum"]), draw.choice(["maximum", "exclusiveMaximum"])
        schema = {"type": kind, lower: low, upper: high}
        values: list[Any] = [*range(low - 3, high + 4)]
        if kind == "number":
            values += [value + part for value in values for part in (0.25, 0.5)]
        expected = [value for value in values if jsonschema.Draft202012Validator(schema).is_valid(value)]
        if not expected:
            with pytest.raises(ValueError, match="accepts none"):
                expression(schema)
            continue
        found = automaton(expression(schema))
        for value in values:
            state = 0
            for byte in str(value).encode():
                state = int(found.table[state, byte])
            assert found.final[state] == (value in expected), (schema, value)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer"}, [0, -1, 10**20], [1.5, "1", True]),
        ({"type": "integer", "minimum": 5}, [5, 9, 10, 5000], [4, 0, -5]),
        ({"type": "integer", "maximum": -5}, [-5, -10, -999], [-4, 0, 5]),
        ({"type": "number"}, [0, -1, 2.5, -0.25, 12345.678], ["1", None]),
        ({"type": "string"}, ["", "caf\u00e9 \U0001f600", 'a"b\\c', "a\nb"], [1, None]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", '"\\', "\U0001f600\U0001f600"], ["a", "abcd"]),
        ({"type": "string", "pattern": "b"}, ["b", "abc"], ["", "ac"]),
        ({"type": "string", "pattern": "^a|c$"}, ["ab", "bc"], ["ba", "cb"]),
        ({"type": "string", "pattern": '^".\\\\$'}, ['"x\\'], ['"\\', "x\\"]),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", 2]),
        ({"type": "string", "enum": ["a", 1]}, ["a"], [1]),
        ({"items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3], ["a"]]),
        (
            {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}},
            [[], [1], [1, 2], [1, 2, 3, 3]],
            [[2], [1, 3]],
        ),
        (
            {"prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 1},
            [[1], [1, 2]],
            [[], [1, 2, 3]],
        ),
        ({"prefixItems": [{"const": 1}, False]}, [[], [1]], [[1, 2]]),
        ({"items": False}, [[]], [[1]]),
        ({"type": "object", "additionalProperties": {"const": 1}}, [{}, {"a": 1}, {"a": 1, "b": 1}], [{"a": 2}]),
        ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]},
            [{"b": 2}, {"a": 1, "b": 2}, {"b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}],
            [{}, {"a": 1}, {"a": 1, "c": 3}],
        ),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": False}},
            [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}],
            [{"c": 3}, {"a": 1, "c": 1}],
        ),
        ({"required": ["a"], "additionalProperties": {"const": 1}}, [{"a": 1}], [{}, {"a": 2}]),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, [1, None], ["a"]),
        ({"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"const": "x"}}}, ["x", None], ["y"]),
        ({"anyOf": [False, {"const": 1}]}, [1], [2]),
        (
            {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
            [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
            [{}],
        ),
        (True, [1, "a", [1, "a"], {"a": "b"}, None], [[1, ["a"]]]),
    ],
    ids=lambda part: None if isinstance(part, list) else str(part)[:40].encode("ascii", "replace").decode(),
)
def test_a_schema_takes_what_it_should(schema, yes, no):
    assert [accepts(schema, value) for value in [*yes, *no]] == [True] * len(yes) + [False] * len(no)
    assert all(jsonschema.Draft202012Validator(schema).is_valid(value) for value in yes)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "must accept some JSON value, and this accepts none"),
        ({"enum": []}, "accepts none"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "accepts none"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "accepts none"),
        ({"minItems": 2, "maxItems": 1}, "accepts none"),
        ({"required": ["a"], "additionalProperties": False}, "accepts none"),
        ({"required": ["a"], "properties": {"a": {"$ref": "#"}}}, "accepts none"),
        ({"$ref": "#"}, "accepts none"),
        ("string", 'at # must be an object, true or false, got "string"'),
        ({"not": {}}, "at # must be without not, which cannot be kept; known are $ref, additionalProperties"),
        ({"properties": {"a": {"multipleOf": 2}}}, "at #/properties/a must be without multipleOf"),
        ({"uniqueItems": True}, "must be without uniqueItems"),
        ({"allOf": [{}]}, "must be without allOf"),
        ({"type": "text"}, "must have a type of string, integer, number, array, object, boolean, null, got 'text'"),
        ({"type": [["string"]]}, "must have texts in required and type"),
        ({"type": 3}, "has a type of the wrong kind, 3"),
        ({"minLength": True}, "has a minLength of the wrong kind, true"),
        ({"minimum": float("nan")}, "must have a finite minimum, got nan"),
        ({"type": "number", "minimum": 0.5}, "must have a whole minimum, got 0.5"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "must have one of pattern, format and lengths, got two"),
        ({"type": "string", "format": "hostname"}, "must have a format of date, time, date-time, uuid, email, got"),
        ({"type": "string", "pattern": "(?=a)"}, "at #: the pattern '(?=a)' must be without look-around"),
        ({"type": "string", "pattern": "a("}, "the pattern 'a(' is malformed"),
        ({"type": "string", "pattern": "a(^b|c)"}, "may have ^ and $ only at the beginning and end"),
        ({"anyOf": [{}], "type": "string"}, "must have anyOf without type beside it"),
        ({"$ref": "#/$defs/a", "minLength": 3}, "must have $ref without minLength beside it"),
        ({"enum": [1], "const": 1}, "must have enum without const beside it"),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "must have branches of different types in oneOf; use anyOf",
        ),
        ({"oneOf": [{"minLength": 3}, {"type": "integer"}]}, "must have branches of different types in oneOf"),
        ({"$ref": "http://a/b"}, "must refer to a part of itself, such as #/$defs/name, got 'http://a/b'"),
        ({"$ref": "#/$defs/a"}, "must refer to a part of itself"),
    ],
    ids=lambda part: str(part)[:50],
)
def test_a_schema_that_cannot_be_kept_is_refused(schema, message):
    with pytest.raises(ValueError) as refused:
        expression(schema)
    assert str(refused.value).startswith("json_schema") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_schema_that_multiplies_itself_is_refused():
    names = [f"n{number}" for number in range(12)]
    parts = {name: {"properties": {other: {"$ref": f"#/$defs/{other}"} for other in names}} for name in names}
    with pytest.raises(ValueError, match="json_schema must be smaller"):
        expression({"$ref": "#/$defs/n0", "$defs": parts})
    deep: Any = True
    for _ in range(3000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="must not be nested so deeply"):
        expression(deep)


def test_remarks_change_nothing():
    remarks = {"$schema": "x", "title": "t", "description": "d", "default": 1, "examples": [2], "uniqueItems": False}
    assert expression({"type": "integer", **remarks}) == expression({"type": "integer"})
