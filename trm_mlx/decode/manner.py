"""How a text is written: every setting that generating has, and what goes together with what."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

from trm_mlx.cache import CacheConfig
from trm_mlx.decode.constrain import ConstrainConfig, constraint
from trm_mlx.decode.exits import ExitConfig, ExitModel
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.search import SearchConfig, find
from trm_mlx.decode.speculative import SpeculationConfig, speculative
from trm_mlx.decode.stream import Event, Source, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Manner:
    """The settings of one text."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    constrain: ConstrainConfig = field(default_factory=ConstrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    exits: ExitConfig = field(default_factory=ExitConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        self.search.check(self.sampling)
        self.constrain.check(self.stream.stop)
        asked = [name for name, given in (("exit", self.exits.exit), ("draft", self.speculation.drafts)) if given]
        if len(asked) > 1:
            raise ValueError("give exit or drafts, not both: drafts are verified with all passes")
        if self.speculation.drafts and not self.constrain.free:
            raise ValueError("drafts know no forms; leave out the drafts, or choices, regex and json_schema")
        if asked and not self.search.streams:
            raise ValueError(f"{asked[0]} is for one text that streams; leave out beams and best_of")

    @staticmethod
    def of(options: Mapping[str, Any]) -> "Manner":
        """The settings that fields by name make: max_tokens, temperature, ban, ...

        Raises:
            ValueError: there is no such field, or its value is out of range or at odds with another.
        """
        kinds: dict[str, Any] = {each.name: each.default_factory for each in fields(Manner)}
        known = {key.name: part for part, kind in kinds.items() for key in fields(kind)}
        if unknown := options.keys() - known.keys():
            raise ValueError(f"unknown option {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
        made = {
            part: kind(**{name: value for name, value in options.items() if known[name] == part})
            for part, kind in kinds.items()
        }
        return Manner(**made)

    def check_batch(self) -> None:
        """Refuse what only one text at a time can have."""
        if not self.search.streams:
            raise ValueError("a batch draws one text for each prompt; beams and best_of search one prompt at a time")
        if self.exits.exit or self.speculation.drafts or not self.constrain.free:
            raise ValueError(
                "a batch runs all passes, drafts nothing and knows no forms; leave out exit, draft_depth, "
                "draft_model, choices, regex and json_schema"
            )

    def check_prompt_cache(self) -> None:
        """Refuse what a prompt cache does not serve."""
        if not self.search.streams:
            raise ValueError("a prompt cache serves one text at a time; leave out beams and best_of")
        if self.exits.exit or self.speculation.drafts:
            raise ValueError("a prompt cache is read with all passes, token by token; leave out exit and drafts")


def written(
    model: TinyRecursiveLM, tokenizer: Tokenizer, ids: Sequence[int], how: Manner, kept: PromptCache | None = None
) -> Generator[Event]:
    """The events that go on from a prompt's ids, the last of them with the reply; with beams or best_of one alone.

    Args:
        kept: what has read the beginning of the prompt, or of another one.

    Raises:
        ValueError: as `stream.events`; a form that no text has; what a prompt cache does not serve.
        RuntimeError: another text is using the prompt cache.
    """
    if kept is not None:
        how.check_prompt_cache()
    one = how.stream, how.sampling, how.words
    form = constraint(how.constrain, tokenizer, how.words, ids)
    if not how.search.streams:
        reply = find(model, tokenizer, ids, *one, how.search, how.cache, form)
        yield Event(reply.tokens[-1], reply.text, reply.reason, reply)
        return
    with nullcontext() if kept is None else kept.begun(ids, how.stream.depth, how.cache) as text:
        read = _reader(model, tokenizer, how) if text is None else text
        cached = text.position if text else 0
        timed = Timed(events(model, tokenizer, ids, *one, how.cache, form, read), len(ids), read, cached)
        for event in timed:
            yield replace(event, reply=timed.reply()) if event.reason else event


def _reader(model: TinyRecursiveLM, tokenizer: Tokenizer, how: Manner) -> Source | None:
    """What is to read a text, if not every token runs through all passes one by one."""
    if how.exits.exit:
        return ExitModel(model, how.stream.depth, how.cache, how.exits)
    if how.speculation.drafts:
        return speculative(model, tokenizer, how.speculation, how.stream.depth, how.cache)
    return None
