"""`python -m trm_mlx.chat`: talk with a model."""

import json
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from threading import Event as Flag
from typing import Annotated

from trm_mlx import PRETRAINED, config
from trm_mlx.cache import CacheConfig
from trm_mlx.decode.conversation import Conversation
from trm_mlx.decode.prompt_cache import PromptCache
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig
from trm_mlx.decode.words import WordsConfig

LARGEST_LINE = 1 << 22  # bytes; far beyond any context
HELP = """\
/reset        begin anew; the system text stays
/system TEXT  put this before the first message, and begin anew; without TEXT, nothing
/save FILE    write the conversation to a .jsonl file, as training reads it
/load FILE    go on with the conversation in such a file
/depth N      make N passes from now on
/seed N       draw the next reply with this seed, and each after it with the next number
/quit         leave; so does Ctrl-D. Ctrl-C stops a reply, and what was said of it stays"""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk with a tiny recursive language model, best one trained on conversations."""

    model: Annotated[Path, "model folder"] = PRETRAINED
    system: Annotated[str, "text that stands before the first message, and always stays"] = ""
    load: Annotated[Path | None, "conversation to go on with, a .jsonl file as /save writes it"] = None
    json: Annotated[bool, "print each reply as one JSON object, instead of streaming text"] = False
    prompt_cache: Annotated[
        Path | None, "file of the system text that was read; made if it is not there, and else left as it is"
    ] = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if self.load and self.system:
            raise ValueError("give --load or --system, not both: the file has a system text, or none, of its own")
        if self.prompt_cache and not self.system:
            raise ValueError("--prompt-cache keeps the system text; give --system, too")


class Chat:
    """A conversation at a terminal, or with the lines of a pipe, each a message.

    Replies go to stdout, all else to stderr. What cannot be done is said; with a pipe that ends the chat, and so does
    Ctrl-C.
    """

    def __init__(self, conversation: Conversation, *, typed: bool, as_json: bool = False) -> None:
        self.conversation, self.typed, self.as_json = conversation, typed, as_json
        self.own: Path | None = None  # the file that /save may replace

    def run(self, read: Callable[[], str]) -> None:
        """Answer the lines that `read` gives until it raises EOFError, or one of them is /quit."""
        while True:
            try:
                line = read().strip()
                if line == "/quit":
                    return
                if line.startswith("/"):
                    self.command(*line.partition(" ")[::2])
                elif line:
                    self.answer(line)
            except EOFError:
                return
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                if not self.typed:
                    raise
                tell(config.explain(error))
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                tell("\nCtrl-D or /quit leaves")

    def answer(self, message: str) -> None:
        """Print the reply to a message as it comes."""
        conversation, depth, seed = self.conversation, self.conversation.kept.depth, self.conversation.sampling.seed
        reply, told = None, self.conversation.dropped
        with self.stopping() as stopped:
            events = conversation.reply(message)
            for event in events:
                reply = event.reply
                if conversation.dropped > told:
                    full = f"the context of {conversation.model.config.context} tokens is full"
                    tell(f"{full}; oldest turns that the model is no longer told: {conversation.dropped}")
                told = conversation.dropped
                if not self.as_json:
                    print(event.text, end="", flush=True)
                if stopped.is_set():
                    break
            events.close()
        if self.as_json and reply:
            made = {"message": message, "depth": depth, "seed": seed, "dropped_turns": told}
            print(json.dumps(made | asdict(reply)), flush=True)
        elif not self.as_json:
            print(flush=True)
        if reply is None:
            tell("stopped")
        elif reply.reason in ("length", "context"):
            limit = {
                "length": "--max-tokens",
                "context": f"the context of {conversation.model.config.context} tokens",
            }
            tell(f"cut off after {len(reply.tokens)} tokens by {limit[reply.reason]}")

    @contextmanager
    def stopping(self) -> Generator[Flag]:
        """At a terminal, Ctrl-C inside sets the flag that is given, and interrupts nothing."""
        asked = Flag()
        before = signal.getsignal(signal.SIGINT)
        if self.typed:
            signal.signal(signal.SIGINT, lambda *_: asked.set())
        try:
            yield asked
        finally:
            if self.typed:
                signal.signal(signal.SIGINT, before)

    def command(self, name: str, rest: str) -> None:
        """Do what a line that begins with / asks for.

        Raises:
            ValueError, OSError: it cannot be done.
        """
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: tell(HELP),
            "/reset": lambda _: self.conversation.reset(),
            "/system": self.system,
            "/save": self.save,
            "/load": self.load,
            "/depth": lambda text: self.conversation.deepen(number(name, text)),
            "/seed": self.seed,
        }
        if name not in commands:
            raise ValueError(
                f"unknown command {name}; {config.nearest(name, [*commands, '/quit'], '/help lists them')}"
            )
        commands[name](rest.strip())

    def system(self, text: str) -> None:
        self.conversation.reset()
        self.conversation.system = text

    def save(self, name: str) -> None:
        path = named("/save", name)
        if path.exists() and path != self.own:
            raise ValueError(f"{path} is there already; give /save another name")
        self.conversation.save(path)
        self.own = path
        tell(f"saved {len(self.conversation.messages)} messages to {path}")

    def load(self, name: str) -> None:
        path = named("/load", name)
        self.conversation.load(path)
        self.own = path
        tell(f"loaded {len(self.conversation.messages)} messages from {path}")

    def seed(self, text: str) -> None:
        self.conversation.sampling = replace(self.conversation.sampling, seed=number("/seed", text))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def number(command: str, text: str) -> int:
    """The whole number that a command is given."""
    return config.convert(int, int(text) if text.isascii() and text.isdecimal() else text, command)


def named(command: str, name: str) -> Path:
    """The file that a command is given."""
    if not name:
        raise ValueError(f"{command} must have a file's name")
    return Path(name).expanduser()


def typed_line() -> str:
    """What is typed at a terminal.

    Raises:
        EOFError: there is no more.
    """
    try:
        return input("> " if sys.stdout.isatty() else "")
    except EOFError:
        tell("")  # what comes next on the terminal begins on a line of its own
        raise


def piped_line() -> str:
    """The next line of standard input.

    Raises:
        EOFError: there is no more.
        ValueError: standard input is closed, or the line is not UTF-8 or too long.
    """
    if sys.stdin is None:
        raise ValueError("chat must have messages on standard input, got a closed one")
    line = sys.stdin.buffer.readline(LARGEST_LINE + 1)
    if not line:
        raise EOFError
    if len(line) > LARGEST_LINE:
        raise ValueError(f"a line of standard input must be at most {LARGEST_LINE} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input must be UTF-8, got byte 0x{line[error.start]:02X} in {line[:40]!r}"
        ) from None


def run(settings: ChatConfig) -> Conversation:
    """Chat as the command line asks, until it ends."""
    from trm_mlx import checkpoint

    model, tokenizer = checkpoint.load(settings.model)
    conversation = Conversation(model, tokenizer, settings.stream, settings.sampling, settings.words, settings.cache)
    conversation.system = settings.system
    if path := settings.prompt_cache:
        if path.exists():
            conversation.kept = PromptCache.load(path, model)
            conversation.kept.check(settings.stream.depth, settings.cache)
        else:
            conversation.kept.read(conversation.opening)
            conversation.kept.save(path)
    typed = sys.stdin is not None and sys.stdin.isatty()
    chat = Chat(conversation, typed=typed, as_json=settings.json)
    if settings.load:
        chat.load(str(settings.load))
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401  (keys that edit lines, for `input`)
        tell(f"{settings.model.name}, {conversation.kept.depth} passes; /help lists commands, Ctrl-D leaves")
    chat.run(typed_line if typed else piped_line)
    return conversation


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(ChatConfig, argv, program="trm_mlx.chat")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of few characters shows ? for the others
    with config.door("trm_mlx.chat"):
        run(settings)


if __name__ == "__main__":
    main()
