"""`python -m trm_mlx.generate`: write on from a prompt."""

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, TypeVar

from trm_mlx import PRETRAINED, config
from trm_mlx.cache import CacheConfig
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.search import SearchConfig, find
from trm_mlx.decode.stream import Event, Reply, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

Settings = TypeVar("Settings")

LARGEST_PROMPT = 1 << 22  # bytes; far beyond any context


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Write text with a tiny recursive language model."""

    prompt: Annotated[str | None, "how the text begins; none: from --prompt-file or standard input"] = None
    prompt_file: Annotated[Path | None, "file to read the prompt from, - for standard input"] = None
    model: Annotated[Path, "model folder"] = PRETRAINED
    chat: Annotated[bool, "give the prompt as a user's message, and print only the reply"] = False
    json: Annotated[bool, "print one JSON object when done, instead of streaming text"] = False
    prompt_cache: Annotated[
        Path | None,
        "file of a prompt that was read: what this one has in common with it is not read again; made of this prompt "
        "if it is not there, and else left as it is",
    ] = None
    save_prompt_cache: Annotated[
        Path | None, "read the prompt, keep that in this file for --prompt-cache, and write no text"
    ] = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        self.search.check(self.sampling)
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give --prompt or --prompt-file, not both")
        if not self.search.streams and (self.prompt_cache or self.save_prompt_cache):
            raise ValueError("a prompt cache serves one text at a time; leave out beams and best_of")
        if self.save_prompt_cache and self.json:
            raise ValueError("--save-prompt-cache writes no text, so leave out --json")


def generate(
    model: TinyRecursiveLM, prompt: str, *, chat: bool = False, cache: PromptCache | None = None, **options: Any
) -> Reply:
    """A whole text that goes on from a prompt.

    Args:
        model: as `trm_mlx.load` gives it; any number of threads may generate with it at the same time.
        prompt: how the text begins; may be empty.
        chat: the prompt is a user's message, to be replied to; for models trained on such.
        cache: what was read before and need not be again; then holds this text. One text at a time uses it.
        options: fields of `StreamConfig`, `SamplingConfig`, `WordsConfig`, `SearchConfig` and `CacheConfig`:
            max_tokens, depth, stop, temperature, top_k, seed, ban, beams, cache_window, ...; `cache` has depth and
            kind of its own.

    Returns:
        text, tokens, reason ("end", "stop", "length" or "context"), prompt_tokens, times in seconds.

    Raises:
        ValueError: the prompt fills the context, an option is unknown, out of its range or at odds with another, or
            the model's scores are not numbers.
        RuntimeError: another text is using the cache.
    """
    *_, last = stream(model, prompt, chat=chat, cache=cache, **options)
    assert last.reply is not None
    return last.reply


def stream(
    model: TinyRecursiveLM, prompt: str, *, chat: bool = False, cache: PromptCache | None = None, **options: Any
) -> Generator[Event]:
    """What `generate` gives, token by token: events with `text` and `token`.

    The last event has also `reason` and `reply`, what `generate` returns. With beams or best_of it is the only one,
    and has the whole text. Closed early (leaving a loop over it does that), it leaves model and cache ready for the
    next text. A stream runs in one thread from its beginning to its end.

    Args:
        model, prompt, chat, cache, options: as of `generate`.

    Raises:
        ValueError, RuntimeError: as of `generate`; with the first event, not with the call.
    """
    if model.tokenizer is None:
        raise ValueError("the model must have a tokenizer; load it with trm_mlx.load, or set model.tokenizer")
    if cache is not None:
        if cache.model is not model:
            raise ValueError("the cache must be of this model, got one of another")
        own = {key.name: getattr(cache.kind, key.name) for key in fields(CacheConfig)} | {"depth": cache.depth}
        options = own | options
    kinds = (StreamConfig, SamplingConfig, WordsConfig, SearchConfig, CacheConfig)
    known = {key.name: kind for kind in kinds for key in fields(kind)}
    if unknown := options.keys() - known.keys():
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")

    def chosen(kind: type[Settings]) -> Settings:
        return kind(**{name: value for name, value in options.items() if known[name] is kind})

    how = Manner(*(chosen(kind) for kind in kinds))  # ty: ignore[invalid-argument-type]
    yield from written(model, model.tokenizer, _ids(model.tokenizer, prompt, chat), how, cache)


class Manner(NamedTuple):
    """How a text is written."""

    stream: StreamConfig
    sampling: SamplingConfig
    words: WordsConfig
    search: SearchConfig
    cache: CacheConfig


def written(
    model: TinyRecursiveLM, tokenizer: Tokenizer, ids: Sequence[int], how: Manner, kept: PromptCache | None
) -> Generator[Event]:
    """The events that go on from a prompt's ids, the last of them with the reply."""
    one = how.stream, how.sampling, how.words
    if not how.search.streams:
        if kept is not None:
            raise ValueError("a prompt cache serves one text at a time; leave out beams and best_of")
        reply = find(model, tokenizer, ids, *one, how.search, how.cache)
        yield Event(reply.tokens[-1], reply.text, reply.reason, reply)
        return
    with nullcontext() if kept is None else kept.begun(ids, how.stream.depth, how.cache) as text:
        timed = Timed(events(model, tokenizer, ids, *one, how.cache, text), len(ids), text.position if text else 0)
        for event in timed:
            yield replace(event, reply=timed.reply()) if event.reason else event


def _ids(tokenizer: Tokenizer, prompt: str, chat: bool) -> list[int]:
    message = {"role": "user", "content": prompt}
    return [tokenizer.bos, *(tokenizer.chat([message], reply=True) if chat else tokenizer.encode(prompt))]


def read_prompt(settings: GenerateConfig) -> str:
    """The prompt from wherever it is to come from.

    Raises:
        ValueError: it is not UTF-8, or too large.
    """
    if settings.prompt is not None:
        return settings.prompt
    from_file = settings.prompt_file is not None and str(settings.prompt_file) != "-"
    if from_file:
        with settings.prompt_file.open("rb") as file:
            content = file.read(LARGEST_PROMPT + 1)
    elif sys.stdin is None or (settings.prompt_file is None and sys.stdin.isatty()):
        raise ValueError('give --prompt "...", --prompt-file FILE, or pipe text in')
    else:
        content = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    name = settings.prompt_file if from_file else "standard input"
    if len(content) > LARGEST_PROMPT:
        raise ValueError(f"{name} must be at most {LARGEST_PROMPT} bytes")
    try:
        return content.decode().removesuffix("\n")  # which echo and editors add
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8, got byte 0x{content[error.start]:02X} at {error.start}") from None


def _kept(settings: GenerateConfig, model: TinyRecursiveLM, ids: Sequence[int]) -> PromptCache | None:
    """The prompt cache asked for, read from its file or, with the prompt, written to it."""
    source, target = settings.prompt_cache, settings.save_prompt_cache
    if source and (target or source.exists()):
        kept = PromptCache.load(source, model)
        kept.check(settings.stream.depth, settings.cache)
    else:
        kept, target = PromptCache(model, settings.stream.depth, settings.cache), target or source
    if target:
        kept.read(ids)
        kept.save(target)
        print(f"{len(ids)} prompt tokens  {kept.reused} cached  saved to {target}", file=sys.stderr)
    return kept if target or source else None


def run(settings: GenerateConfig) -> Reply | None:
    """Generate as the command line asks, text to stdout as it comes, times to stderr; None where it only reads."""
    from trm_mlx import checkpoint

    prompt = read_prompt(settings)
    model, tokenizer = checkpoint.load(settings.model)
    ids = _ids(tokenizer, prompt, settings.chat)
    how = Manner(settings.stream, settings.sampling, settings.words, settings.search, settings.cache)
    kept = _kept(settings, model, ids)
    if settings.save_prompt_cache:
        return None
    before = "" if settings.chat else prompt  # written with the first token, so that nothing is when there is none
    reply = None
    try:
        for event in written(model, tokenizer, ids, how, kept):
            reply = event.reply
            if not settings.json:
                print(before + event.text, end="", flush=True)
                before = ""
    except KeyboardInterrupt:
        print(flush=True)  # what comes now begins on a line of its own
        raise
    assert reply is not None
    if settings.json:
        known = {
            "prompt": prompt,
            "model": settings.model.name,
            "depth": model.config.at_depth(settings.stream.depth),
        }
        rate = {"tokens_per_second": reply.tokens_per_second}
        made = {name: config.to_json(getattr(settings, name)) for name in ("sampling", "words", "search", "cache")}
        print(json.dumps(known | asdict(reply) | rate | made))
    else:
        print(flush=True)
    reused = f"{reply.cached_tokens} of {reply.prompt_tokens} prompt tokens cached  " if kept else ""
    print(
        f"{len(reply.tokens)} tokens  {reply.tokens_per_second:.0f} tokens_per_s  first token after "
        f"{reply.seconds_to_first * 1000:.0f} ms  {reused}stopped by {reply.reason}",
        file=sys.stderr,
    )
    return reply


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(GenerateConfig, argv, program="trm_mlx.generate")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of few characters shows ? for the others
    with config.door("trm_mlx.generate"):
        run(settings)


class _Callable(ModuleType):
    """Lets `trm_mlx.generate(...)` be the function also where the module of that name was imported first."""

    def __call__(self, *arguments: Any, **options: Any) -> Reply:
        return generate(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
