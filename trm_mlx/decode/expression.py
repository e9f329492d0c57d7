"""Regular expressions that Python and the automaton's library read alike, for a whole text or inside a JSON string.

The two differ in what `\\w`, `\\d` and `\\s` take of Unicode. Here these are ASCII, which both take, and `\\W` or
`[^\\s]` are what both leave.
"""

import json
import re
import warnings

from trm_mlx.vocabulary import utf8

ATOM = re.compile(
    r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|\[\^?\]?(?:\\.|[^\\\]])*\]|.", re.DOTALL
)
IN_CLASS = re.compile(r"\\.|\[|[^\\\[]+", re.DOTALL)
TAKEN = {r"\d": "0-9", r"\w": "A-Za-z0-9_", r"\s": r" \t\n\r\f\v", r"\S": r"[\S&&[^\x1c-\x1f]]"}
LEFT_OUT = {r"\s": r"\s\x1c-\x1f", r"\W": r"\W\x{80}-\x{10FFFF}"}
SAFE = r'[^"\\\x00-\x1f]'  # characters that JSON strings hold as they are
CHARACTER = rf'(?:{SAFE}|\\["\\bfnrt])'
ESCAPES = {r"\a": "\a", r"\f": "\f", r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\v": "\v"}


def literal(text: str) -> str:
    """The expression of one text."""
    utf8(text)
    return re.sub(r"[\\.+*?()|\[\]{}^$#&~\-]", r"\\\g<0>", text)


def whole(pattern: str) -> str:
    """The expression in Rust's syntax of what Python's `re.fullmatch` finds; no wider, and hardly narrower.

    Raises:
        ValueError: it is malformed, or has what no automaton can do.
    """
    atoms = _atoms(pattern)
    if atoms and atoms[0] in ("^", r"\A"):
        del atoms[0]
    if atoms and atoms[-1] in ("$", r"\Z"):
        del atoms[-1]
    return "".join(map(_portable, atoms))


def inside_string(pattern: str) -> str:
    """The expression of JSON strings, their quotes apart, in whose text Python's `re.search` finds a pattern.

    Raises:
        ValueError: as of `whole`, or ^ and $ stand elsewhere than at the beginning and end of an alternative.
    """
    atoms, branches, depth = _atoms(pattern), [[]], 0
    for atom in atoms:
        depth += (atom == "(") - (atom == ")")
        if atom == "|" and not depth:
            branches.append([])
        else:
            branches[-1].append(atom)
    return "|".join(map(_searched, branches))


def _searched(atoms: list[str]) -> str:
    before = after = CHARACTER + "*"
    if atoms and atoms[0] == "^":
        before, atoms = "", atoms[1:]
    if atoms and atoms[-1] == "$":
        after, atoms = "", atoms[:-1]
    if {"^", "$"} & {*atoms}:
        raise ValueError("may have ^ and $ only at the beginning and end of the pattern or its alternatives")
    return f"{before}(?:{''.join(map(_quoted, atoms))}){after}"


def _atoms(pattern: str) -> list[str]:
    utf8(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", FutureWarning
            )  # of what may come to mean a set operation, and does in Rust
            re.compile(pattern)
    except FutureWarning as error:
        raise ValueError(f"must have [ and doubled -&~| in sets escaped, got a {error}") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is malformed: {error}") from None
    atoms = ATOM.findall(pattern)
    bare = "".join(atom if len(atom) == 1 else "." for atom in atoms)
    if re.search(r"\(\?[a-zA-Z]*x|[*+?}]\+", bare):
        raise ValueError("must be without (?x) and possessive repeats such as a*+")
    return atoms


def _portable(atom: str) -> str:
    if atom in TAKEN:
        return f"[{TAKEN[atom]}]"
    if atom[0] != "[":
        return atom
    opening = 2 if atom[1] == "^" else 1
    meaning = {**(LEFT_OUT if opening == 2 else TAKEN), "[": r"\["}
    inner = atom[opening:-1]
    return atom[:opening] + "".join(meaning.get(part, part) for part in IN_CLASS.findall(inner)) + "]"


def _quoted(atom: str) -> str:
    if atom == ".":
        return SAFE
    if atom[0] == "[" or (atom[0] == "\\" and atom[1] in "dDwWsSxuU"):
        return f"[{_portable(atom)}&&{SAFE}]"
    character = ESCAPES.get(atom, atom[-1])
    if character in '"\\' or character < " ":  # as JSON spells it, in small letters even after (?i)
        return f"(?-i:{literal(json.dumps(character)[1:-1])})"
    return atom
