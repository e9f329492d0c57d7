"""Several tokens drafted cheaply, then verified at once: the text is distributed as if each had been chosen alone.

A draft x with chance q(x) is kept with chance min(1, p(x) / q(x)), p its chance without drafts; the first one that is
not kept is replaced by a draw from max(p - q, 0), made to sum to 1, and after the last one a token is drawn from p.
Source: arXiv 2211.17192, algorithm 1. Both p and q are what the sampler draws from, filters, penalties and bans
applied. At temperature 0 a draft is kept if it is the likeliest token; where two are too near to tell, as several
tokens at once are computed in another order than one, that token is computed alone.

What drafts: fewer passes of the same model, whose work the verification goes on with, or another model of the same
tokenizer. Draws are outputs of SplitMix64 as the sampler's, by the index of the token, each kind from a seed of its
own. So the tokens are others than without drafts, and where a clock decides when to draft (`pace`), they may differ
from run to run, unless `draft_always` is set.

Shapes: V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from trm_mlx import checkpoint
from trm_mlx.cache import EVERYTHING, SPARE, CacheConfig
from trm_mlx.decode.chooser import Chooser, plainly
from trm_mlx.decode.drafters import Drafter, Other, Shallow
from trm_mlx.decode.pace import Pace
from trm_mlx.decode.sampling import uniform
from trm_mlx.decode.step import StepModel
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.splitmix import splitmix64
from trm_mlx.tokenizer import Tokenizer

STRETCH = 32  # plain tokens between two looks at the clock
DRAFTED, KEPT, REPLACED = (1 << 62, (1 << 62) + 1, (1 << 62) + 2)  # which outputs of the seed are seeds of the draws
TIE = {0: 1e-4, 8: 2e-2}  # by bits of the cache: leads that another order of computing could turn round


@dataclass(frozen=True, kw_only=True)
class SpeculationConfig:
    """Tokens drafted cheaply and verified several at once, which is faster where drafts are good and cheap."""

    draft_depth: Annotated[int, "passes that draft; 0: no drafts, or all passes of --draft-model"] = 0
    draft_model: Annotated[Path | None, "folder of a smaller model with the same tokenizer, to draft instead"] = None
    draft_tokens: Annotated[int, "tokens drafted before each verification"] = 4
    draft_always: Annotated[
        bool, "draft even where it is slower than without; else a clock decides, and drawn texts vary with it"
    ] = False

    def __post_init__(self) -> None:
        if self.draft_depth < 0:
            raise ValueError(f"draft_depth must be at least 0, got {self.draft_depth}; 0 is no drafts")
        if not 1 <= self.draft_tokens < SPARE:
            raise ValueError(f"draft_tokens must be 1 to {SPARE - 1}, got {self.draft_tokens}")
        for name in ("draft_tokens", "draft_always"):
            if not self.drafts and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is of drafts; give draft_depth or draft_model too")

    @property
    def drafts(self) -> bool:
        return self.draft_depth > 0 or self.draft_model is not None


NO_DRAFTS = SpeculationConfig()


@dataclass(frozen=True)
class Drafts:
    """What drafting came to. A verification gives the drafts it keeps and one token more."""

    drafted: int
    accepted: int
    verifications: int
    tokens: int  # that verifications gave
    off: bool  # whether it was off at the end, being slower
    speed_up: float | None  # over writing all tokens as those outside of verifications were; None if there were none

    @property
    def acceptance(self) -> float:
        return self.accepted / max(1, self.drafted)

    @property
    def tokens_per_verification(self) -> float:
        return self.tokens / max(1, self.verifications)


class Speculative:
    """Writes a text with drafts, as long as that is faster than without.

    Args:
        text: at its beginning.
        clock: seconds.
    """

    def __init__(
        self,
        text: StepModel,
        drafter: Drafter,
        settings: SpeculationConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.text, self.model, self.drafter, self.clock = text, text.model, drafter, clock
        self.count, self.pace = settings.draft_tokens, Pace(always=settings.draft_always)
        self.drafted = self.accepted = self.verifications = self.given = 0

    def report(self) -> Drafts:
        """What drafting came to so far."""
        pace = self.pace
        return Drafts(self.drafted, self.accepted, self.verifications, self.given, pace.off, pace.speed_up)

    def tokens(self, prompt: Sequence[int], most: int, chooser: Chooser) -> Iterator[int]:
        """At most so many tokens that go on from a prompt, each counted as written; the prompt is yet to be read."""
        self.known = list(prompt)
        token = chooser.token(self.text.scores(prompt))
        chooser.add(token)
        self.known.append(token)
        start = self.clock()
        self.drafter.begin(prompt)
        self.rate = (self.clock() - start) / len(prompt)  # seconds of a token that the drafter has to catch up with
        yield token
        left = most - 1
        while left:
            count = min(self.count, left - 1)
            if count and self._may():
                start = self.clock()
                new = self._round(count, chooser)
                self.pace.drafted(self.clock() - start, len(new))
                self.verifications += 1
                self.given += len(new)
                for token in new:
                    self.known.append(token)
                    yield token
                left -= len(new)
            else:
                stretch = min(left, self.pace.pause if 0 < self.pace.pause < STRETCH else STRETCH)
                yield from self._plain(stretch, chooser)
                left -= stretch

    def _may(self) -> bool:
        owed = self.drafter.owed(len(self.known))
        return owed >= 0 and self.pace.allows(owed * self.rate)

    def _plain(self, count: int, chooser: Chooser) -> Iterator[int]:
        times, writing = [], plainly(self.text, self.known[-1:], count, chooser)
        for _ in range(count):
            start = self.clock()
            token = next(writing)
            times.append(self.clock() - start)  # and not what the reader does with the token
            self.known.append(token)
            yield token
        self.pace.plain(times)

    def _draft(self, count: int, chooser: Chooser) -> list[tuple[int, np.ndarray]]:
        """Drafts, and the chances (V,) each was drawn by."""
        found, seed = [], splitmix64(chooser.sampling.seed, DRAFTED)
        for number in range(count):
            logits = self.drafter.read([*self.known, *(token for token, _ in found)])
            chances = chooser.chances(logits)
            token = drawn(chances, uniform(seed, len(chooser.tokens)))
            found.append((token, chances))
            if number + 1 < count:
                chooser.add(token)
        chooser.take_back(count - 1)
        return found

    def _round(self, count: int, chooser: Chooser) -> list[int]:
        """Draft, verify, and give what is kept and one token more."""
        position, found = self.text.position, self._draft(count, chooser)
        rows = self.drafter.verify(self.known, [token for token, _ in found])
        kept, replaced = (splitmix64(chooser.sampling.seed, kind) for kind in (KEPT, REPLACED))
        tokens: list[int] = []
        for number, row in enumerate(rows):
            if chooser.sampling.temperature == 0 and chooser.lead(row) < TIE[self.text.kind.cache_bits]:
                self._trim(position + number)
                before = tokens[-1] if tokens else self.known[-1]
                token, whole = chooser.token(self.text.scores([before])), False
            elif number == count:
                token, whole = chooser.token(row), False
            else:
                draft, unlike = found[number]
                chances, step = chooser.chances(row), len(chooser.tokens)
                whole = keeps(uniform(kept, step), chances[draft], unlike[draft])
                token = draft if whole else drawn(surplus(chances, unlike), uniform(replaced, step))
            chooser.add(token)
            tokens.append(token)
            if not whole:
                break
        self.drafted += count
        self.accepted += len(tokens) - 1
        self._trim(position + len(tokens))
        return tokens

    def _trim(self, position: int) -> None:
        if position < self.text.position:
            self.text.trim(position)
        self.drafter.trim(position)


def keeps(chance: float, p: float, q: float) -> bool:
    """Whether a draft is kept, of a draw from 0 to below 1 and the draft's chances without drafts and as drafted."""
    return chance * q < p


def surplus(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(V,) what p has above q, in proportion to which a token replaces a draft not kept."""
    return np.maximum(p - q, 0)


def drawn(weights: np.ndarray, chance: float) -> int:
    """The id at which the running sum of (V,) weights, which need not sum to 1, first passes this share of it."""
    running = np.cumsum(weights)
    found = int(running.searchsorted(chance * running[-1], side="right"))
    return min(found, int(np.flatnonzero(weights)[-1]))


def speculative(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    settings: SpeculationConfig,
    depth: int | None = None,
    kind: CacheConfig = EVERYTHING,
) -> Speculative:
    """What writes a text with drafts.

    Raises:
        ValueError: the drafting model has another tokenizer, or drafting takes as many passes as the text.
        FileNotFoundError: there is no such model.
    """
    text = StepModel(model, depth, kind)
    if settings.draft_model is None:
        if settings.draft_depth >= text.depth:
            raise ValueError(
                f"draft_depth must be below the {text.depth} passes that verify, got {settings.draft_depth}"
            )
        return Speculative(text, Shallow(text, settings.draft_depth), settings)
    draft, own = checkpoint.load(settings.draft_model)
    if own.bytes != tokenizer.bytes:
        raise ValueError(
            f"draft_model must have the tokenizer of the model itself; {settings.draft_model} has another"
        )
    return Speculative(text, Other(text, StepModel(draft, settings.draft_depth or None, kind)), settings)
