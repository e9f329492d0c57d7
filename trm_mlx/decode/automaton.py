"""A regular expression as an automaton over bytes: what may follow, and how many more make a whole text.

outlines-core builds it. It looks for a match from the left and drops `ab` from `a|ab`, so the expression is given an
end of its own, and a state is final where that end leads to a match. It knows no limit, so it works on a thread
that is not waited for longer than `PATIENCE`.

Shapes: S states, of which the last is dead: no whole text goes on from it. State 0 is the first.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

END = "\U0010ffff"  # no character, so no text that is meant holds it
LARGEST = 1 << 15  # states; each takes 1 KiB, and a pass over the vocabulary where the room for a text is scarce
PATIENCE = 20.0  # seconds
FAR = np.iinfo(np.int32).max // 2
TOO_LARGE = f"must make an automaton of at most {LARGEST} states, and this makes more; repeat fewer times, or less"


@dataclass(frozen=True)
class Automaton:
    """Deterministic. Every state but the last lies on the way to a whole text.

    table: (S, 256) int32, the state after each byte.
    final: (S,) bool, whether the text is whole.
    nearest: (S,) int32, the fewest bytes to a whole text, FAR if there is none.
    """

    table: np.ndarray
    final: np.ndarray
    nearest: np.ndarray

    @property
    def dead(self) -> int:
        return len(self.table) - 1

    @property
    def empty(self) -> bool:
        """Whether there is no whole text at all."""
        return bool(self.nearest[0] == FAR)


@lru_cache(maxsize=16)
def automaton(pattern: str) -> Automaton:
    """The automaton of the texts that a regular expression in Rust's syntax matches as a whole.

    Raises:
        ImportError: outlines-core is not installed.
        ValueError: the expression is malformed, has a part that matches nothing, or makes too large an automaton.
    """
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise ImportError(
            'choices, regex and json_schema need outlines-core: pip install -e ".[constrain]"'
        ) from None
    if any(int(times) > LARGEST for times in re.findall(r"[{,](\d{1,99})(?=[,}])", pattern)):
        raise ValueError(TOO_LARGE)
    made: list[Index | BaseException] = []

    def build() -> None:
        try:
            made.append(Index(f"(?:{pattern}){END}", Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})))
        except BaseException as error:
            made.append(error)

    builder = threading.Thread(target=build, daemon=True)
    builder.start()
    builder.join(PATIENCE)
    if not made:
        raise ValueError(TOO_LARGE)
    if isinstance(made[0], BaseException):
        if "no transitions" in str(made[0]):
            raise ValueError("must match some text, and so must each of its parts")
        raise ValueError("must be without look-around, back-references, word boundaries and anchors inside")
    following = made[0].get_transitions()
    first, matched = made[0].get_initial_state(), made[0].get_final_states()
    if len(following) > LARGEST:
        raise ValueError(TOO_LARGE)
    number = {
        state: place for place, state in enumerate(sorted(following.keys() | matched, key=lambda s: s != first))
    }
    dead = len(number)
    table = np.full((dead + 1, 256), dead, dtype=np.int32)
    for state, steps in following.items():
        inner = [(byte, number[after]) for byte, after in steps.items() if byte < 256]
        if inner:
            table[number[state], [byte for byte, _ in inner]] = [after for _, after in inner]
    ended = np.arange(dead + 1)
    for byte in END.encode():
        ended = table[ended, byte]
    found = np.zeros(dead + 1, dtype=bool)
    found[[number[state] for state in matched]] = True
    return trimmed(table, found[ended])


def trimmed(table: np.ndarray, final: np.ndarray) -> Automaton:
    """The automaton without the states that no whole text goes through; the last row of the table is dead."""
    dead = len(table) - 1
    origins = np.repeat(np.arange(dead + 1), 256)
    pairs = np.unique(origins * (dead + 1) + table.ravel())
    nearest = distances(pairs // (dead + 1), pairs % (dead + 1), final)
    kept = nearest < FAR
    kept[[0, dead]] = True
    number = np.cumsum(kept, dtype=np.int32) - 1
    number[nearest == FAR] = number[dead]
    kept = np.flatnonzero(kept)
    return Automaton(number[table[kept]], final[kept], nearest[kept])


def distances(origins: np.ndarray, targets: np.ndarray, final: np.ndarray) -> np.ndarray:
    """(S,) int32: the fewest steps from each state to a final one, FAR if none leads there.

    Args:
        origins, targets: of each step there is.
        final: (S,) bool.
    """
    nearest = np.where(final, 0, FAR).astype(np.int32)
    level = 0
    while True:
        before = origins[nearest[targets] == level]
        before = before[nearest[before] == FAR]
        if not before.size:
            return nearest
        level += 1
        nearest[before] = level


def without(whole: Automaton, texts: Sequence[bytes], tail: bytes) -> Automaton:
    """The automaton of those texts that, written after a tail, do not come to hold any of some others.

    Args:
        texts: what must not come, none of them empty.
        tail: what stands before; what it holds itself does no harm.

    Raises:
        ValueError: the automaton is too large.

    Source: Aho and Corasick, Communications of the ACM 18 (1975), for the automaton of several texts.
    """
    begun = sorted(
        {text[:size] for text in texts for size in range(len(text) + 1)}, key=lambda each: (len(each), each)
    )
    place = {each: number for number, each in enumerate(begun)}

    def longest(ending: bytes) -> int:
        """The longest end of it that begins a text."""
        return next(place[ending[cut:]] for cut in range(len(ending) + 1) if ending[cut:] in place)

    follow = np.zeros((len(begun), 256), dtype=np.int64)
    for each in begun:
        if each:
            follow[place[each]] = follow[longest(each[1:])]
        for byte in {longer[-1] for longer in begun if longer[:-1] == each and longer}:
            follow[place[each], byte] = place[each + bytes([byte])]
    forbidden = np.array([any(each.endswith(text) for text in texts) for each in begun])
    # A state of the product is one of `whole` and one of `follow`, as one number; -1 is dead.
    width = len(begun)
    known = np.array([longest(tail)])
    rows: list[np.ndarray] = []
    fresh = known
    while fresh.size:
        state, shown = whole.table[fresh // width], follow[fresh % width]  # (N, 256)
        rows.append(np.where((state == whole.dead) | forbidden[shown], -1, state.astype(np.int64) * width + shown))
        fresh = np.setdiff1d(rows[-1], [-1, *known])
        known = np.concatenate([known, fresh])
        if len(known) > LARGEST:
            raise ValueError(f"what is banned and the constraint together {TOO_LARGE}")
    order = np.argsort(known)
    table = np.full((len(known) + 1, 256), len(known), dtype=np.int32)
    following = np.concatenate(rows)
    live = following >= 0
    table[:-1][live] = order[np.searchsorted(known, following[live], sorter=order)]
    return trimmed(table, np.append(whole.final[known // width], False))
