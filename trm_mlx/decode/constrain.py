"""Texts of a given form: one of some choices, of a regular expression, or JSON of a schema.

The form is an automaton over bytes, and a token is the bytes it stands for, whether a piece or one byte of a
character that has no piece. A token may be written if a whole text can still be reached with the tokens that are left
after it, so a text is whole however soon it has to end. What is banned is taken out of the automaton beforehand, so
that no text comes to where only a banned one goes on.

Shapes: S states of the automaton, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from trm_mlx.decode import schema
from trm_mlx.decode.automaton import Automaton, automaton, distances, without
from trm_mlx.decode.expression import literal, whole
from trm_mlx.decode.words import LAST_CONTROL, NO_WORDS, Words, WordsConfig
from trm_mlx.tokenizer import Tokenizer

LARGEST_SCHEMA = 1 << 20  # bytes
BLOCK = 64  # states whose steps by each token are found at a time


@dataclass(frozen=True, kw_only=True)
class ConstrainConfig:
    """What the text that is written must be, as a whole; the prompt is no part of it."""

    choices: Annotated[tuple[str, ...] | None, "texts, of which it is one"] = None
    regex: Annotated[str | None, "regular expression that matches all of it"] = None
    json_schema: Annotated[str | None, "JSON of this schema, a file or the schema itself; json: any object"] = None

    def __post_init__(self) -> None:
        given = [name for name in ("choices", "regex", "json_schema") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give {given[0]} or {given[1]}, not both")
        for name in ("regex", "json_schema"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} must be a text, got {type(getattr(self, name)).__name__}")
        if isinstance(self.choices, str):
            raise ValueError(f"choices must be a tuple of texts, got the text {self.choices!r}")
        if self.choices is not None and not self.choices:
            raise ValueError("choices must name at least one text")

    @property
    def free(self) -> bool:
        """Whether any text will do."""
        return self.choices is self.regex is self.json_schema is None

    def check(self, stops: Sequence[str]) -> None:
        """Refuse stop texts: they cut a text, and what is left would not be whole."""
        if stops and not self.free:
            raise ValueError(
                "stop cuts texts, and those of choices, regex or json_schema must be whole; leave it out"
            )

    def automaton(self) -> Automaton:
        """The texts that will do; not for a config that is free.

        Raises:
            FileNotFoundError: there is no such schema.
            ImportError: outlines-core is not installed.
            ValueError: there is no such text, or the form is malformed, too large or not to be kept.
        """
        if self.json_schema is not None:
            named, pattern = "json_schema", schema.expression(read_schema(self.json_schema))
        else:
            named = "choices" if self.regex is None else f"regex {self.regex!r}"
            try:
                pattern = "|".join(map(literal, self.choices or ())) if self.regex is None else whole(self.regex)
            except ValueError as error:
                raise ValueError(f"{named} {error}") from None
        try:
            return automaton(pattern)
        except ValueError as error:
            raise ValueError(f"{named} {error}") from None


FREE = ConstrainConfig()


def read_schema(given: str) -> Any:
    """A schema from its text, the file of that name, or the word json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, or no JSON.
    """
    named, text = "json_schema", given.strip()
    if text == "json":
        return {"type": "object"}
    if not text.startswith("{") and text not in ("true", "false"):
        named = given
        with Path(given).open("rb") as file:
            content = file.read(LARGEST_SCHEMA + 1)
        if len(content) > LARGEST_SCHEMA:
            raise ValueError(f"json_schema must be at most {LARGEST_SCHEMA} bytes, and {named} is larger")
        text = content.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{named} must be JSON: {error}") from None


class Constraint:
    """What a `ConstrainConfig` means for one tokenizer, prompt and set of bans.

    A text is in one state, `start` at first; the same object serves any number of texts.

    Raises:
        As `ConstrainConfig.automaton`; also ValueError if every text holds what is banned.
    """

    start = 0

    def __init__(
        self,
        settings: ConstrainConfig,
        tokenizer: Tokenizer,
        words: WordsConfig = NO_WORDS,
        prompt: Sequence[int] = (),
    ) -> None:
        self.automaton = settings.automaton()
        if words.ban:
            bans = [text.encode() for text in words.ban]
            self.automaton = without(self.automaton, bans, Words(words, tokenizer).tail(prompt))
            if self.automaton.empty:
                raise ValueError("ban must leave some text of choices, regex or json_schema, and leaves none")
        self.ends = [tokenizer.eos, tokenizer.end]
        spelled = [piece if isinstance(piece, bytes) else piece.encode() for piece in tokenizer.pieces]
        spelled[: LAST_CONTROL + 1] = [b""] * (LAST_CONTROL + 1)
        # The tokens as a tree of their beginnings, by length: row n goes on from `parents[n]` with `bytes[n]`.
        begun = sorted({piece[:size] for piece in spelled for size in range(len(piece) + 1)}, key=len)
        place = {each: number for number, each in enumerate(begun)}
        self.parents = np.array([place[each[:-1]] for each in begun])
        self.bytes = np.array([each[-1] if each else 0 for each in begun])
        self.levels = np.flatnonzero(np.diff([len(each) for each in begun], prepend=-1, append=1 << 30))
        self.tokens = np.array([place[piece] for piece in spelled])  # (V,) the row of each token
        self.rows: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def check(self, room: int) -> None:
        """Refuse if no text fits into this many tokens."""
        if room < self.automaton.nearest[0] and room < self.nearest[0]:
            raise ValueError(
                f"the shortest text of that form takes {self.nearest[0]} tokens, and {room} may be written; raise"
                " max_tokens, or shorten the prompt if it fills the context"
            )

    def allowed(self, state: int, room: int) -> np.ndarray:
        """(V,) bool: the tokens after which a whole text can be reached; an end token only where it is whole.

        Args:
            room: tokens that may still be written, this one among them; at least 1.
        """
        after, needed, most = self._row(state)
        allowed = needed < room if most < room else self.nearest[after] < room
        allowed[self.ends] = self.automaton.final[state]
        return allowed

    def grown(self, state: int, token: int) -> int:
        """The state once a token is written; an end token leaves it as it is."""
        return state if token in self.ends else int(self._row(state)[0][token])

    def over(self, state: int) -> bool:
        """Whether the text is whole and nothing can follow."""
        return bool(self.automaton.final[state] and (self.automaton.table[state] == self.automaton.dead).all())

    @cached_property
    def nearest(self) -> np.ndarray:
        """(S,) int32: the fewest tokens to a whole text; worked out only where bytes leave it open."""
        dead, pairs = self.automaton.dead, []
        for first in range(0, dead, BLOCK):
            states = np.arange(first, min(first + BLOCK, dead))
            reached = np.zeros((len(states), dead + 1), dtype=bool)
            reached[np.arange(len(states)), self._walked(states)[self.tokens]] = True
            pairs.append(np.argwhere(reached[:, :dead]) + np.array([first, 0]))
        steps = np.concatenate(pairs)
        return distances(steps[:, 0], steps[:, 1], self.automaton.final)

    def _row(self, state: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(V,) the state after each token, dead for control tokens; its bytes to a whole text; the most but for FAR.

        Each byte is a token too, so a text that needs at most so many bytes fits into so many tokens.
        """
        if state not in self.rows:
            after = self._walked(np.array([state]))[self.tokens, 0]
            after[: LAST_CONTROL + 1] = self.automaton.dead
            needed = self.automaton.nearest[after]
            self.rows[state] = after, needed, int(needed[after != self.automaton.dead].max(initial=0))
        return self.rows[state]

    def _walked(self, states: np.ndarray) -> np.ndarray:
        """(rows of the tree, N) int32: where each of N states is after each beginning of a token."""
        walked = np.empty((len(self.parents), len(states)), dtype=np.int32)
        walked[0] = states
        for low, high in zip(self.levels[1:-1], self.levels[2:], strict=True):
            walked[low:high] = self.automaton.table[walked[self.parents[low:high]], self.bytes[low:high, None]]
        return walked


def constraint(
    settings: ConstrainConfig, tokenizer: Tokenizer, words: WordsConfig, prompt: Sequence[int]
) -> Constraint | None:
    """The constraint of what is written after a prompt, None if any text will do."""
    return None if settings.free else Constraint(settings, tokenizer, words, prompt)
