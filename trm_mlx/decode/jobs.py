"""Prompts from a file, one a line, to texts in a file, in the same order, several at work at a time.

A line is a JSON object with `prompt`, a text, or `messages`, a chat whose last message is the user's; and, if it
likes, `id` (its line's number otherwise), `max_tokens` and `seed`. A `response` is not read: held-out data will do.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from trm_mlx import config, trials
from trm_mlx.decode.batch import Request, told
from trm_mlx.decode.results import Results, encoded
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import Reply, StreamConfig, check_prompt
from trm_mlx.tokenizer import Tokenizer
from trm_mlx.vocabulary import utf8

LARGEST = 1 << 30  # bytes of a file of prompts, which is held in memory
FIELDS = ("id", "prompt", "messages", "response", "max_tokens", "seed")
REPORT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Many prompts from a file."""

    input: Annotated[Path | None, "prompts, a JSON object a line; - for standard input"] = None
    output: Annotated[Path | None, "results, a line each; the same command goes on with it; none or -: stdout"] = None
    batch: Annotated[int, "prompts of --input at work at a time"] = 16

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.input is None and (self.output or self.batch != type(self).batch):
            raise ValueError("--output and --batch are of a file of prompts; give --input FILE.jsonl too")

    @property
    def resumable(self) -> Path | None:
        """The file of results, if it is one."""
        return None if self.output is None or str(self.output) == "-" else self.output


@dataclass(frozen=True)
class Job:
    """One prompt; `record` begins its result."""

    record: Mapping[str, Any]
    request: Request


def content(path: Path) -> bytes:
    """The bytes of a file of prompts, or of standard input.

    Raises:
        ValueError: there are too many.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise ValueError("--input - reads standard input, which is closed")
        found = sys.stdin.buffer.read(LARGEST + 1)
    else:
        with path.open("rb") as file:
            found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise ValueError(f"{path} must be at most {LARGEST} bytes; split it")
    return found


def jobs(found: bytes, name: str, tokenizer: Tokenizer, context: int, *, chat: bool) -> list[Job]:
    """The prompts of a file's content; blank lines are none.

    Args:
        name: of the file, for errors.
        context: most tokens of a text.
        chat: a `prompt` is a user's message, to be replied to.

    Raises:
        ValueError: a line is not as it must be, or there is no prompt.
    """
    made = []
    for number, line in enumerate(found.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                made.append(_job(line, number, tokenizer, context, chat))
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {config.explain(error)}") from None
    if not made:
        raise ValueError(f'{name} must hold a prompt a line, such as {{"prompt": "Once"}}; got none')
    return made


def _job(line: bytes, number: int, tokenizer: Tokenizer, context: int, chat: bool) -> Job:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8, got byte 0x{line[error.start]:02X} at {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be one JSON object, got {line.strip().decode()[:40]!r}: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"must be one JSON object, got {line.strip().decode()[:40]!r}")
    for key in record:
        if key not in FIELDS:
            known = f"known are {', '.join(FIELDS)}"
            raise ValueError(f"unknown field {key[:40]!r}; {config.nearest(key, FIELDS, known)}")
    if ("prompt" in record) == ("messages" in record):
        raise ValueError(f"must have prompt or messages, and not both; got fields {sorted(record)}")
    known = record.get("id", number)
    if type(known) not in (str, int):
        raise ValueError(f"id must be a text or a whole number, got {json.dumps(known)[:40]}")
    utf8(str(known))
    for key in ("max_tokens", "seed"):
        if key in record and type(record[key]) is not int:
            raise ValueError(f"{key} must be a whole number, got {json.dumps(record[key])[:40]}")
    if "messages" in record:
        given = {"messages": _messages(record["messages"])}
        ids = tokenizer.chat(given["messages"], reply=True)
    else:
        given = {"prompt": record["prompt"]}
        if not isinstance(given["prompt"], str):
            raise ValueError(f"prompt must be a text, got {json.dumps(given['prompt'])[:40]}")
        message = {"role": "user", "content": given["prompt"]}
        ids = tokenizer.chat([message], reply=True) if chat else tokenizer.encode(given["prompt"])
    request = Request((tokenizer.bos, *ids), record.get("max_tokens"), record.get("seed"))
    check_prompt(request.prompt, context)
    told(request, StreamConfig(), SamplingConfig())
    return Job({"id": known, **given}, request)


def _messages(given: object) -> list[dict[str, str]]:
    """Messages as `Tokenizer.chat` takes them."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"messages must be a list of messages, got {json.dumps(given)[:40]}")
    for message in given:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"each message must have a role and a content as text, got {json.dumps(message)[:60]}")
    return [{key: message[key] for key in ("role", "content")} for message in given]


def fill(
    settings: JobsConfig,
    found: Sequence[Job],
    made: Mapping[str, Any],
    write: Callable[[Sequence[Request]], Iterator[tuple[int, Reply]]],
) -> list[Reply]:
    """Write the results of all jobs, in order, each as soon as it is next; gives those made now.

    Args:
        made: what the results depend on, beside the input.
        write: as `batch.replies`, for the requests that are left.

    Raises:
        ValueError, OSError: as `Results`.
    """
    ids = [job.record["id"] for job in found]
    if settings.resumable is None:
        return _written(found, write, _print, 0)
    with Results(settings.resumable, made, ids) as results:
        if results.count:
            print(f"{results.path} has {results.count} of {len(ids)} results; going on", file=sys.stderr)
        return _written(found, write, results.add, results.count)


def _print(record: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(encoded(record))
    sys.stdout.buffer.flush()


def _written(
    found: Sequence[Job],
    write: Callable[[Sequence[Request]], Iterator[tuple[int, Reply]]],
    add: Callable[[Mapping[str, Any]], None],
    done: int,
) -> list[Reply]:
    start, due, waiting, made = time.perf_counter(), REPORT_SECONDS, {}, []
    tokens = 0
    left = found[done:]
    for index, reply in write([job.request for job in left]):
        waiting[index], tokens = reply, tokens + len(reply.tokens)
        while (following := waiting.pop(len(made), None)) is not None:
            add({**left[len(made)].record, **result(following)})
            made.append(following)
        if (seconds := time.perf_counter() - start) > due:
            line = f"results {done + len(made)}/{len(found)}  tokens_per_s {tokens / seconds:.0f}"
            print(line, file=sys.stderr, flush=True)
            due = seconds + REPORT_SECONDS
    rate = tokens / max(time.perf_counter() - start, 1e-9)
    print(f"{len(made)} results  {tokens} tokens  {rate:.0f} tokens_per_s", file=sys.stderr, flush=True)
    return made


def result(reply: Reply) -> dict[str, Any]:
    """What a result says of a reply: nothing of its times, so that the same work gives the same bytes."""
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "reason": reply.reason,
        "prompt_tokens": reply.prompt_tokens,
    }


def dependencies(found: bytes, revision: str, chat: bool, *settings: Any) -> dict[str, Any]:
    """What results depend on, by name: the input's bytes, the model's, and every setting but the batch.

    Args:
        revision: of the model, as of `checkpoint.contents`.
        settings: dataclasses of settings.
    """
    plain = {name: value for each in settings for name, value in config.to_json(each).items()}
    return {"input": sha256(found).hexdigest(), "model": revision, "chat": chat, **plain}


def check(settings: JobsConfig) -> None:
    """Refuse a file of results that could not be written, before the work."""
    trials.check_file("--output", settings.resumable)
