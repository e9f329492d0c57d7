"""`python -m trm_mlx.generate`: write on from a prompt."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

from trm_mlx import PRETRAINED, config
from trm_mlx.cache import CacheConfig
from trm_mlx.decode import batch as many
from trm_mlx.decode import jobs as work
from trm_mlx.decode.constrain import ConstrainConfig, constraint
from trm_mlx.decode.exits import ExitConfig, ExitModel
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.search import SearchConfig, find
from trm_mlx.decode.speculative import SpeculationConfig, speculative
from trm_mlx.decode.stream import Reply, Source, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.model import TinyRecursiveLM
from trm_mlx.tokenizer import Tokenizer

Settings = TypeVar("Settings")
How = tuple[StreamConfig, SamplingConfig, WordsConfig]

MADE = ("sampling", "words", "constrain", "search", "cache", "exits", "speculation")  # what a reply tells
SEARCHES = "beams and best_of search one prompt at a time"
LARGEST_PROMPT = 1 << 22  # bytes; far beyond any context


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Write text with a tiny recursive language model."""

    prompt: Annotated[str | None, "how the text begins; none: from --prompt-file or standard input"] = None
    prompt_file: Annotated[Path | None, "file to read the prompt from, - for standard input"] = None
    model: Annotated[Path, "model folder"] = PRETRAINED
    chat: Annotated[bool, "give the prompt as a user's message, and print only the reply"] = False
    json: Annotated[bool, "print one JSON object when done, instead of streaming text"] = False
    stream: StreamConfig = field(default_factory=StreamConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    constrain: ConstrainConfig = field(default_factory=ConstrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    exits: ExitConfig = field(default_factory=ExitConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    jobs: work.JobsConfig = field(default_factory=work.JobsConfig)

    def __post_init__(self) -> None:
        self.search.check(self.sampling)
        self.constrain.check(self.stream.stop)
        one_text(self.search, self.exits, self.speculation, self.constrain)
        if self.jobs.input and (self.prompt is not None or self.prompt_file is not None or self.json):
            raise ValueError(
                "--input has prompts of its own and writes JSON; leave --prompt, --prompt-file and --json"
            )
        if self.jobs.input:
            simple(self.search, self.exits, self.speculation, self.constrain)
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give --prompt or --prompt-file, not both")


def generate(
    model: TinyRecursiveLM, tokenizer: Tokenizer, prompt: str, *, chat: bool = False, **options: Any
) -> Reply:
    """A whole text that goes on from a prompt.

    Args:
        prompt: how it begins; may be empty.
        chat: the prompt is a user's message, to be replied to; for models trained on such.
        options: fields of `StreamConfig`, `SamplingConfig`, `WordsConfig`, `ConstrainConfig`, `SearchConfig`,
            `CacheConfig`, `ExitConfig` and `SpeculationConfig`: max_tokens, depth, stop, temperature, top_k, ban,
            choices, beams, cache_window, exit, draft_depth, ...

    Raises:
        ValueError: the prompt fills the context, or an option is unknown, out of its range or at odds with another.
    """
    how, search, kind, exits, speculation, form = _chosen(options)
    ids = _ids(tokenizer, prompt, chat)
    kept = constraint(form, tokenizer, how[2], ids)
    if not search.streams:
        return find(model, tokenizer, ids, *how, search, kind, kept)
    source = reader(model, tokenizer, how[0], kind, exits, speculation)
    return Timed(events(model, tokenizer, ids, *how, kind, kept, source), len(ids), source).whole()


def generate_batch(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
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
        chat, options: as of `generate`, but for beams, best_of, exits, drafts and forms.

    Raises:
        ValueError: as `generate`, before there is a text; also for those options, or seeds of another number.
    """
    how, search, kind, exits, speculation, form = _chosen(options)
    simple(search, exits, speculation, form)
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"seeds must be one for each prompt, got {len(seeds)} for {len(prompts)} prompts")
    each = [None] * len(prompts) if seeds is None else seeds
    requests = [
        many.Request(tuple(_ids(tokenizer, prompt, chat)), None, seed)
        for prompt, seed in zip(prompts, each, strict=True)
    ]
    found = dict(many.replies(model, tokenizer, requests, batch, *how, kind))
    return [found[index] for index in range(len(prompts))]


def _chosen(
    options: Mapping[str, Any],
) -> tuple[How, SearchConfig, CacheConfig, ExitConfig, SpeculationConfig, ConstrainConfig]:
    """The settings that options by name make."""
    kinds = (StreamConfig, SamplingConfig, WordsConfig, ConstrainConfig, SearchConfig, CacheConfig)
    kinds = (*kinds, ExitConfig, SpeculationConfig)
    known = {key.name: kind for kind in kinds for key in fields(kind)}
    if unknown := options.keys() - known.keys():
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")

    def made(kind: type[Settings]) -> Settings:
        return kind(**{name: value for name, value in options.items() if known[name] is kind})

    how, search = (made(StreamConfig), made(SamplingConfig), made(WordsConfig)), made(SearchConfig)
    exits, speculation, form = made(ExitConfig), made(SpeculationConfig), made(ConstrainConfig)
    form.check(how[0].stop)
    one_text(search, exits, speculation, form)
    return how, search, made(CacheConfig), exits, speculation, form


def one_text(search: SearchConfig, exits: ExitConfig, speculation: SpeculationConfig, form: ConstrainConfig) -> None:
    """Refuse exits and drafts together, for several texts at work, and drafts of a text that has a form."""
    asked = [name for name, given in (("exit", exits.exit), ("draft", speculation.drafts)) if given]
    if len(asked) > 1:
        raise ValueError("give exit or drafts, not both: drafts are verified with all passes")
    if speculation.drafts and not form.free:
        raise ValueError("drafts know no forms; leave out the drafts, or choices, regex and json_schema")
    if asked and not search.streams:
        raise ValueError(f"{asked[0]} is for one text that streams; leave out beams and best_of")


def simple(search: SearchConfig, exits: ExitConfig, speculation: SpeculationConfig, form: ConstrainConfig) -> None:
    """Refuse what only one text at a time can have."""
    if not search.streams:
        raise ValueError(f"a batch draws one text for each prompt; {SEARCHES}")
    if exits.exit or speculation.drafts or not form.free:
        raise ValueError(
            "a batch runs all passes, drafts nothing and knows no forms; leave out exit, draft_depth, draft_model, "
            "choices, regex and json_schema"
        )


def reader(
    model: TinyRecursiveLM,
    tokenizer: Tokenizer,
    settings: StreamConfig,
    kind: CacheConfig,
    exits: ExitConfig,
    speculation: SpeculationConfig,
) -> Source | None:
    """What is to read a text, if not every token runs through all passes one by one."""
    if exits.exit:
        return ExitModel(model, settings.depth, kind, exits)
    return speculative(model, tokenizer, speculation, settings.depth, kind) if speculation.drafts else None


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


def run(settings: GenerateConfig) -> Reply:
    """Generate as the command line asks: text to stdout as it comes, times to stderr."""
    from trm_mlx import checkpoint

    prompt = read_prompt(settings)
    model, tokenizer = checkpoint.load(settings.model)
    how = (settings.stream, settings.sampling, settings.words)
    ids = _ids(tokenizer, prompt, settings.chat)
    kept = constraint(settings.constrain, tokenizer, settings.words, ids)
    before = "" if settings.chat else prompt  # written with the first token, so that nothing is when there is none
    if settings.search.streams:
        extras = (settings.cache, settings.exits, settings.speculation)
        source = reader(model, tokenizer, settings.stream, *extras)
        timed = Timed(events(model, tokenizer, ids, *how, settings.cache, kept, source), len(ids), source)
        try:
            for event in timed:
                if not settings.json:
                    print(before + event.text, end="", flush=True)
                    before = ""
        except KeyboardInterrupt:
            print(flush=True)  # what comes now begins on a line of its own
            raise
        reply = timed.reply()
    else:
        reply = find(model, tokenizer, ids, *how, settings.search, settings.cache, kept)
        if not settings.json:
            print(before + reply.text, end="")
    if settings.json:
        known = {
            "prompt": prompt,
            "model": settings.model.name,
            "depth": model.config.at_depth(settings.stream.depth),
        }
        rate = {"tokens_per_second": reply.tokens_per_second}
        if drafts := reply.drafts:
            rate |= {
                "acceptance": drafts.acceptance,
                "tokens_per_verification": drafts.tokens_per_verification,
            }
        made = {name: config.to_json(getattr(settings, name)) for name in MADE}
        print(json.dumps(known | asdict(reply) | rate | made))
    else:
        print(flush=True)
    line = f"{len(reply.tokens)} tokens  {reply.tokens_per_second:.0f} tokens_per_s  first token after "
    line += f"{reply.seconds_to_first * 1000:.0f} ms  stopped by {reply.reason}"
    if reply.mean_depth is not None:
        line += f"  mean_depth {reply.mean_depth:.2f}"
    if (drafts := reply.drafts) and not drafts.verifications:
        line += "  no drafts, the text being short"
    elif drafts:
        line += f"  acceptance {drafts.acceptance:.2f}  tokens_per_verification {drafts.tokens_per_verification:.2f}"
        line += f"  speed_up {drafts.speed_up:.2f}x" if drafts.speed_up else ""
        line += "  drafting is off, being slower" if drafts.off else ""
    print(line, file=sys.stderr)
    return reply


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
        made = work.dependencies(content, checkpoint.contents(settings.model).revision, settings.chat, *how)
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
