"""A conversation with a model: its messages, as much of them as fits the context, and a file of them.

The messages are told to the model as `tokenizer.chat` writes them, and what of them it has read is not read again.
"""

import json
from bisect import bisect_left
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

from trm_mlx import files, sources
from trm_mlx.cache import EVERYTHING, CacheConfig
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import Event, StreamConfig, Timed, check_prompt, events
from trm_mlx.decode.words import NO_WORDS, WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.splitmix import WORD
from trm_mlx.tokenizer import Tokenizer

Message = Mapping[str, str]


class Conversation:
    """Messages of a user and replies of a model, in turn.

    Args:
        model, tokenizer: who replies.
        settings: when a reply stops, and the depth.
        sampling: how tokens are chosen. Each reply is drawn with its seed, which is then the next number.
        words: what is favoured and what is never said.
        kind: what is kept of what was read.
    """

    def __init__(
        self,
        model: TinyRecursiveLM,
        tokenizer: Tokenizer,
        settings: StreamConfig,
        sampling: SamplingConfig,
        words: WordsConfig = NO_WORDS,
        kind: CacheConfig = EVERYTHING,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.words = model, tokenizer, settings, words
        self.sampling = sampling
        self.system = ""  # stands before the first message that the model is told
        self.messages: list[Message] = []  # user and assistant in turn, all that was said
        self.dropped = 0  # of the oldest turns, those that the last reply was not told
        self.kept = PromptCache(model, settings.depth, kind)

    def reply(self, content: str) -> Generator[Event]:
        """What the model replies to a message of the user, as it comes; the last event has the whole reply.

        Closed early, what was said so far is the reply. A message to which nothing was said is forgotten.

        Raises:
            ValueError: message and system text fill the context, or are no UTF-8, or the scores are not numbers.
        """
        messages = [*self.messages, {"role": "user", "content": content}]
        ids = self._fitting(messages)
        with self.kept.begun(ids, self.kept.depth, self.kept.kind) as text:
            how = (self.settings, self.sampling, self.words, self.kept.kind)
            source = events(self.model, self.tokenizer, ids, *how, source=text)
            timed = Timed(source, len(ids), text, text.position)
            try:
                for event in timed:
                    yield replace(event, reply=timed.reply()) if event.reason else event
            finally:
                if timed.tokens:
                    self.messages = [*messages, {"role": "assistant", "content": timed.text}]
                    self.sampling = replace(self.sampling, seed=(self.sampling.seed + 1) & WORD)

    def _fitting(self, messages: list[Message]) -> list[int]:
        """The ids of the newest turns that leave the reply room: its most tokens, or a quarter of the context.

        Where turns have to go, they leave twice that, so that the next turns find the beginning as it was read.
        """
        context, turns = self.model.config.context, len(messages) // 2
        room = min(self.settings.max_tokens, context // 4)
        if len(self._ids(messages[2 * self.dropped :])) + room > context:

            def fits(turn: int) -> bool:
                return len(self._ids(messages[2 * turn :])) + 2 * room <= context

            self.dropped = bisect_left(range(turns), True, lo=self.dropped, key=fits)
        ids = self._ids(messages[2 * self.dropped :])
        check_prompt(ids, self.model.config.context)
        return ids

    def _ids(self, messages: list[Message]) -> list[int]:
        return [self.tokenizer.bos, *self.tokenizer.chat([*self._told(), *messages], reply=True)]

    def _told(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    @property
    def opening(self) -> list[int]:
        """The ids with which every conversation of this system text begins."""
        return [self.tokenizer.bos, self.tokenizer.user, *self.tokenizer.encode(self.system + "\n\n")]

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.messages, self.dropped = [], 0

    def deepen(self, depth: int | None) -> None:
        """Make so many passes from now on; what was said is read anew.

        Raises:
            ValueError: the model was not made for that depth.
        """
        self.kept = PromptCache(self.model, depth, self.kept.kind)
        self.settings = replace(self.settings, depth=depth)

    def save(self, path: Path) -> None:
        """Write the conversation as one line of `messages`, which `trm_mlx.train` reads.

        Raises:
            ValueError: nothing was said, or the file's name is not that of such text.
            OSError: it could not be written; what was there is as it was.
        """
        if path.suffix != ".jsonl":
            raise ValueError(f"a conversation must be in a .jsonl file, got {path}")
        if not self.messages:
            raise ValueError("a conversation must have a reply before it is saved")
        line = json.dumps({"messages": [*self._told(), *self.messages]}, ensure_ascii=False)
        files.replace(path, line.encode() + b"\n")

    def load(self, path: Path) -> None:
        """Go on with the conversation in a file, in place of this one; its system text is taken too.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not hold one conversation that ends with a reply.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no conversation at {path}")
        found = [document.messages for _, document in zip(range(2), sources.documents([path]), strict=False)]
        if len(found) != 1 or not found[0]:
            raise ValueError(
                f"{path} must hold one conversation, a line of messages, got {'more' if found[0] else 'text'}"
            )
        messages = list(found[0])
        try:
            self.tokenizer.chat(messages, reply=False)
            if messages[-1]["role"] != "assistant":
                raise ValueError("a conversation to go on with must end with a reply, got a message of the user last")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        self.reset()
        self.system = system
        self.messages = [{"role": each["role"], "content": each["content"]} for each in messages]
