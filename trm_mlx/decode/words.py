"""Words to favour, words that must never be written, and runs of tokens not to write again.

A bias is for words of one token. A ban is for any text, and is about the text and not about tokens: whatever
tokens spell it, pieces or single bytes, the last of them is forbidden. It is found in bytes, as these are what
every token stands for, and what makes no whole character is written as U+FFFD, which no banned text may hold.
A repeated run is about tokens, and is a bias: what would complete it is e^100 times less likely, and comes only
where nothing else may.

Shapes: V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from trm_mlx.decode.sampling import LARGEST
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import utf8

LAST_CONTROL = Tokenizer.end  # ids up to it give no text (unknown does, and is never read)


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """What is said more or less, and what is never said."""

    bias: Annotated[
        tuple[str, ...],
        '"fox=-2.5" adds -2.5 to the logits of fox and of fox after a space, each if it is one token; '
        '"#300=-2.5" to that of id 300',
    ] = ()
    ban: Annotated[tuple[str, ...], "texts that must not be written, not even inside a word; letter case counts"] = ()
    no_repeat_ngram: Annotated[int, "tokens in a run that is not written if the text so far has it; 0 is off"] = 0

    def __post_init__(self) -> None:
        for name, texts in (("bias", self.bias), ("ban", self.ban)):
            if isinstance(texts, str):
                raise ValueError(f"{name} must be a tuple of texts, got the text {texts!r}")
        for text in self.bias:
            parted(text)
        for text in self.ban:
            utf8(text)
            if not text or "\ufffd" in text:
                raise ValueError(f"a banned text must not be empty or hold U+FFFD, got {text!r}")
        if self.no_repeat_ngram < 0 or self.no_repeat_ngram == 1:
            raise ValueError(f"no_repeat_ngram must be 0, which is off, or at least 2, got {self.no_repeat_ngram}")


NO_WORDS = WordsConfig()


def parted(text: str) -> tuple[str, float]:
    """The word and the amount of "word=amount"; the last = parts them.

    Raises:
        ValueError: one of the two is missing, or the amount is not from -100 to 100.
    """
    word, _, digits = text.rpartition("=")
    try:
        amount = float(digits)
    except ValueError:
        amount = math.nan
    if not word or not -LARGEST <= amount <= LARGEST:
        limits = f"{-LARGEST:g} to {LARGEST:g}"
        raise ValueError(f'bias must be "word=X" or "#id=X", X from {limits}, got {text!r}; --ban forbids a word')
    utf8(word)
    return word, amount


class Words:
    """What a `WordsConfig` means for one tokenizer.

    Raises:
        ValueError: an id lies outside the vocabulary, or a word to favour is no single token.
    """

    def __init__(self, settings: WordsConfig, tokenizer: Tokenizer) -> None:
        self.run = settings.no_repeat_ngram
        self.bias: dict[int, float] = {}
        for word, amount in map(parted, settings.bias):
            for token in tokens_of(word, tokenizer):
                self.bias[token] = self.bias.get(token, 0.0) + amount
        bans = [text.encode() for text in dict.fromkeys(settings.ban)]
        self.reach = max(map(len, bans), default=0)  # bytes; 0 without bans
        self.spelled: list[bytes] = []  # (V,) the bytes of each token
        if bans:
            self.spelled = [piece if isinstance(piece, bytes) else piece.encode() for piece in tokenizer.pieces]
        self.always = self._where(lambda piece: any(ban in piece for ban in bans))
        self.after: list[tuple[bytes, np.ndarray]] = []  # how a text ends, and the ids that then complete a ban
        for ban in bans:
            for cut in range(1, len(ban)):
                ids = self._where(lambda piece, rest=ban[cut:]: piece.startswith(rest))
                if ids.size:
                    self.after.append((ban[:cut], ids))

    @property
    def steers(self) -> bool:
        """Whether there is anything to favour, to ban or not to repeat."""
        return bool(self.bias or self.reach or self.run)

    def biases(self, text: Sequence[int]) -> Mapping[int, float]:
        """What to add to the logits of ids after a text, its prompt included.

        For the same id amounts add up, in the order given and a run's last.
        """
        if not self.run:
            return self.bias
        return self.bias | {token: self.bias.get(token, 0.0) - LARGEST for token in repeating(text, self.run)}

    def _where(self, completes) -> np.ndarray:
        return np.array([token for token, piece in enumerate(self.spelled) if completes(piece)], dtype=np.int64)

    def tail(self, prompt: Sequence[int]) -> bytes:
        """The end of a text that has only been read: as much of it as a banned text may begin in.

        A text begins after a control token: what stands before is another turn.
        """
        tail = b""
        for token in reversed(prompt):
            if len(tail) >= self.reach or token <= LAST_CONTROL:
                break
            tail = self.spelled[token] + tail
        return tail

    def grown(self, tail: bytes, token: int) -> bytes:
        """The tail once a token is written. A control token adds nothing and ends nothing, as in decoding."""
        return (tail + self.spelled[token])[-self.reach :] if self.reach else tail

    def banned(self, tail: bytes) -> np.ndarray:
        """The ids that would complete a banned text, int64, after a text with this tail; never an end token."""
        if not self.reach:
            return self.always
        return np.concatenate([self.always, *(ids for begun, ids in self.after if tail.endswith(begun))])


def repeating(text: Sequence[int], run: int) -> set[int]:
    """The ids that would complete a run of so many tokens, at least 2, that the text has; no run has a control token.

    Source: no_repeat_ngram_size of fairseq and transformers, where such ids are forbidden.
    """
    text = list(text)
    begun, found, at = text[1 - run :], set(), run - 2
    if len(text) < run or min(begun) <= LAST_CONTROL:
        return found
    while True:
        try:
            at = text.index(begun[-1], at, -1) + 1
        except ValueError:
            return found
        if text[at - run + 1 : at] == begun and text[at] > LAST_CONTROL:
            found.add(text[at])


def tokens_of(word: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of "#id", or those that are the word alone: as it stands, and after a space if it begins with none.

    Raises:
        ValueError: the id lies outside the vocabulary, or neither form is one token.
    """
    if word[0] == "#" and word[1:].isdecimal() and word.isascii():
        token = int(word[1:])
        if token >= tokenizer.vocabulary:
            raise ValueError(f"bias must be for ids from 0 to {tokenizer.vocabulary - 1}, got {word}")
        return [token]
    forms = [word] if word[0] == " " else [word, " " + word]
    found = [ids[0] for form in forms if len(ids := tokenizer.encode(form)) == 1]
    if not found:
        ids = tokenizer.encode(forms[-1])
        shown = " ".join(f"#{token}" for token in ids[:8]) + (" ..." if len(ids) > 8 else "")
        raise ValueError(f"bias must be for one token, got {word!r}, which is {len(ids)}: {shown}")
    return found
