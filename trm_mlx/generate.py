"""`python -m trm_mlx.generate`: write on from a prompt, or from a file of them."""

import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from trm_mlx import PRETRAINED, config
from trm_mlx.cache import CacheConfig
from trm_mlx.decode import batch as many
from trm_mlx.decode import jobs as work
from trm_mlx.decode.manner import Manner, written
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.stream import Event, Reply
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

LARGEST_PROMPT = 1 << 22  # bytes; far beyond any context


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Manner):
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
    jobs: work.JobsConfig = field(default_factory=work.JobsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give --prompt or --prompt-file, not both")
        caches = self.prompt_cache or self.save_prompt_cache
        if caches:
            self.check_prompt_cache()
        if self.save_prompt_cache and self.json:
            raise ValueError("--save-prompt-cache writes no text, so leave out --json")
        if self.jobs.input and (self.prompt is not None or self.prompt_file is not None or self.json):
            raise ValueError(
                "--input has prompts of its own and writes JSON; leave --prompt, --prompt-file and --json"
            )
        if self.jobs.input:
            self.check_batch()
        if self.jobs.input and caches:
            raise ValueError("a prompt cache serves one text at a time; leave out --input, or the cache")


def generate(
    model: TinyRecursiveLM, prompt: str, *, chat: bool = False, cache: PromptCache | None = None, **options: Any
) -> Reply:
    """A whole text that goes on from a prompt.

    Args:
        model: as `trm_mlx.load` gives it; any number of threads may generate with it at the same time.
        prompt: how the text begins; may be empty.
        chat: the prompt is a user's message, to be replied to; for models trained on such.
        cache: what was read before and need not be again; then holds this text. One text at a time uses it.
        options: fields of the configurations that `Manner` has: max_tokens, depth, stop, temperature, top_k, seed,
            ban, choices, beams, cache_window, exit, draft_depth, ...; `cache` has depth and kind of its own.

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
    tokenizer = _tokenizer(model)
    if cache is not None:
        if cache.model is not model:
            raise ValueError("the cache must be of this model, got one of another")
        own = {key.name: getattr(cache.kind, key.name) for key in fields(CacheConfig)} | {"depth": cache.depth}
        options = own | options
    yield from written(model, tokenizer, _ids(tokenizer, prompt, chat), Manner.of(options), cache)


def generate_batch(
    model: TinyRecursiveLM,
    prompts: Sequence[str],
    *,
    batch: int = 16,
    chat: bool = False,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> list[Reply]:
    """The texts that `generate` would give for each of these prompts, made many at a time.

    Args:
        prompts: of any lengths; the texts come in their order.
        batch: texts at work at once; a text that ends makes place for the next prompt.
        seeds: one for each prompt; None: all have the option `seed`.
        model, chat, options: as of `generate`, but for beams, best_of, exits, drafts and forms.

    Raises:
        ValueError: as `generate`, before there is a text; also for those options, or seeds of another number.
    """
    tokenizer, how = _tokenizer(model), Manner.of(options)
    how.check_batch()
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"seeds must be one for each prompt, got {len(seeds)} for {len(prompts)} prompts")
    each = [None] * len(prompts) if seeds is None else seeds
    requests = [
        many.Request(tuple(_ids(tokenizer, prompt, chat)), None, seed)
        for prompt, seed in zip(prompts, each, strict=True)
    ]
    one = how.stream, how.sampling, how.words, how.cache
    found = dict(many.replies(model, tokenizer, requests, batch, *one))
    return [found[index] for index in range(len(prompts))]


def _tokenizer(model: TinyRecursiveLM) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError("the model must have a tokenizer; load it with trm_mlx.load, or set model.tokenizer")
    return model.tokenizer


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
    kept = _kept(settings, model, ids)
    if settings.save_prompt_cache:
        return None
    before = "" if settings.chat else prompt  # written with the first token, so that nothing is when there is none
    reply = None
    try:
        for event in written(model, tokenizer, ids, settings, kept):
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
        parts = [each.name for each in fields(Manner) if each.name != "stream"]
        made = {name: config.to_json(getattr(settings, name)) for name in parts}
        print(json.dumps(known | asdict(reply) | rate | made))
    else:
        print(flush=True)
    print(told(reply, cached=kept is not None), file=sys.stderr)
    return reply


def told(reply: Reply, *, cached: bool = False) -> str:
    """The line that ends a text: how much, how fast, and why it ended."""
    line = f"{len(reply.tokens)} tokens  {reply.tokens_per_second:.0f} tokens_per_s  first token after "
    line += f"{reply.seconds_to_first * 1000:.0f} ms  "
    line += f"{reply.cached_tokens} of {reply.prompt_tokens} prompt tokens cached  " if cached else ""
    line += f"stopped by {reply.reason}"
    if reply.mean_depth is not None:
        line += f"  mean_depth {reply.mean_depth:.2f}"
    if (drafts := reply.drafts) and not drafts.verifications:
        line += "  no drafts, the text being short"
    elif drafts:
        line += f"  acceptance {drafts.acceptance:.2f}  tokens_per_verification {drafts.tokens_per_verification:.2f}"
        line += f"  speed_up {drafts.speed_up:.2f}x" if drafts.speed_up else ""
        line += "  drafting is off, being slower" if drafts.off else ""
    return line


def run_jobs(settings: GenerateConfig, path: Path) -> list[Reply]:
    """Generate for a file of prompts; gives the replies that were not there already."""
    from trm_mlx import checkpoint

    work.check(settings.jobs)
    content, name = work.content(path), "standard input" if str(path) == "-" else str(path)
    model, tokenizer = checkpoint.load(settings.model)
    found = work.jobs(content, name, tokenizer, model.config.context, chat=settings.chat)
    how = (settings.stream, settings.sampling, settings.words, settings.cache)
    made = {}
    if settings.jobs.resumable:
        assert model.revision is not None
        made = work.dependencies(content, model.revision, settings.chat, *how)
    return work.fill(
        settings.jobs, found, made, lambda left: many.replies(model, tokenizer, left, settings.jobs.batch, *how)
    )


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(GenerateConfig, argv, program="trm_mlx.generate")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of few characters shows ? for the others
    with config.door("trm_mlx.generate"):
        if settings.jobs.input:
            run_jobs(settings, settings.jobs.input)
        else:
            run(settings)


class _Callable(ModuleType):
    """Lets `trm_mlx.generate(...)` be the function also where the module of that name was imported first."""

    def __call__(self, *arguments: Any, **options: Any) -> Reply:
        return generate(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
