"""Regular expressions as automata: what they accept is what Python's `re` matches as a whole."""

import itertools
import random
import re
import sys

import pytest

from trm_mlx.decode import automaton as automata
from trm_mlx.decode.automaton import Automaton, automaton, without
from trm_mlx.decode.expression import whole


def reached(found: Automaton, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = found.table[state, byte]
    return bool(found.final[state])


def accepts(pattern: str, text: str) -> bool:
    return reached(automaton(whole(pattern)), text)


def random_pattern(draw: random.Random, depth: int = 3) -> str:
    kind = draw.randrange(6) if depth else 0
    if kind == 0:
        return draw.choice(
            [
                "a",
                "b",
                "c",
                r"\.",
                ".",
                "[ab]",
                "[^a]",
                r"\d",
                r"\w",
                r"\S",
                r"[^\W\d_]",
                "\u00e9",
                "[\u00e9-\u00ff1]",
            ]
        )
    if kind == 1:
        inner = random_pattern(draw, depth - 1)
        return f"(?:{inner})" + draw.choice(["*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}"])
    if kind == 2:
        return f"(?:{random_pattern(draw, depth - 1)}|{random_pattern(draw, depth - 1)})"
    return random_pattern(draw, depth - 1) + random_pattern(draw, depth - 1)


@pytest.mark.parametrize("seed", range(40))
def test_the_automaton_accepts_what_python_matches(seed):
    draw = random.Random(seed)
    pattern = random_pattern(draw)
    texts = ["".join(draw.choice("abc.1_\u00e9 \n") for _ in range(draw.randrange(7))) for _ in range(200)]
    for text in texts:
        assert accepts(pattern, text) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)
        assert re.fullmatch(pattern, text) or not accepts(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a|ab", ["a", "ab"], ["b", "", "aba"]),  # the library alone would drop ab
        ("(a|ab)(c|bcd)", ["ac", "abc", "abcd", "abbcd"], ["a"]),
        ("^abc$", ["abc"], ["ab", "abcd"]),
        (r"a\Z", ["a"], ["aa"]),
        ("^a|b$", ["a", "b"], ["ab"]),
        ("", [""], ["a"]),
        ("x*?", ["", "xx"], ["y"]),
        ("(?i)na\u00efve", ["NA\u00cfVE"], ["naive"]),
        ("(?s).", ["\n", "\U0001f600"], ["", "ab"]),
        (r"[^\s]", ["x"], [" ", "\x1c", "\u00a0"]),
        (r"\S", ["x"], ["\x1c"]),
        (r"[]a[]", ["]", "a", "["], ["b"]),
        (r"[\d.]+", ["1.5"], ["x"]),
        (r"\u4e2d\x41", ["\u4e2dA"], ["A"]),
        (r"\w+", ["caf", "a_1"], ["caf\u0301"]),
    ],
)
def test_the_automaton_is_of_whole_texts(pattern, yes, no):
    assert [accepts(pattern, text) for text in [*yes, *no]] == [True] * len(yes) + [False] * len(no)
    assert not any(re.fullmatch(pattern, text) for text in no)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_banned_is_taken_out_and_nothing_else(seed):
    draw = random.Random(seed)
    found = automaton(whole("[abc]{0,4}"))
    bans = ["".join(draw.choice("abc") for _ in range(draw.randrange(1, 4))) for _ in range(3)]
    tail = "".join(draw.choice("abc") for _ in range(3))
    held = without(found, [ban.encode() for ban in bans], tail.encode())
    for text in map("".join, (letters for size in range(5) for letters in itertools.product("abc", repeat=size))):
        whole_text = tail + text
        new = any(whole_text.find(ban, max(0, len(tail) - len(ban) + 1)) >= 0 for ban in bans)
        assert reached(held, text) == (not new), (bans, tail, text)


def test_every_state_but_the_last_leads_to_a_whole_text():
    held = without(automaton(whole("(ab|ac)*d")), [b"ba"], b"")
    assert not held.empty and (held.nearest[:-1] < automata.FAR).all()
    assert without(held, [b"d"], b"").empty
    assert (held.table[held.dead] == held.dead).all()


def test_work_without_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(automata, "PATIENCE", 0.001)
    with pytest.raises(ValueError, match="must make an automaton of at most"):
        automaton("[ab]*a[ab]{16}")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(ImportError, match=r'need outlines-core: pip install -e "\.\[constrain\]"'):
        automaton("never seen before")
