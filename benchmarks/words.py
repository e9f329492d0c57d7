"""A story from a few given words: pairs to tune a model on, and how many of the words it then uses.

    python benchmarks/words.py pairs --data stories.jsonl --out pairs
    python benchmarks/words.py score --prompts-file pairs/held_out.jsonl --model runs/words --base runs/mine

`pairs` cuts stories into passages of whole paragraphs and asks for each by three words that it holds. `score` writes
from held-out prompts and counts the asked words, and for chance those that the other prompts asked.
"""

import json
import math
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from trials import mean_and_error

import trm_mlx
from trm_mlx import PRETRAINED, checkpoint, config, data
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.stream import StreamConfig
from trm_mlx.decode.words import WordsConfig
from trm_mlx.generate import generate
from trm_mlx.tokenizer import Tokenizer

WORD = re.compile(r"(?<![\w'’-])[a-z]{3,}(?![\w'’-])")  # names and first words of sentences have a capital
SENTENCE = re.compile(r"[.!?]+[\"'”’)]*\s+")
PROMPT_TOKENS = 40  # left free for the prompt


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Make prompts and responses from stories: OUT/train.jsonl and OUT/held_out.jsonl, of different stories."""

    data: Annotated[tuple[str, ...], "stories: files, folders, globs or hub:NAME"]
    out: Annotated[Path, "folder to make"] = Path("pairs")
    tokenizer: Annotated[Path, "tokenizer.model that counts the tokens"] = PRETRAINED / "tokenizer.model"
    held_out: Annotated[float, "share of the stories for held_out.jsonl"] = 0.02
    plain: Annotated[float, "share of the other stories that train.jsonl holds whole, as plain text"] = 0.2
    passages: Annotated[int, "most passages of a story, from its beginning on"] = 4
    words: Annotated[int, "words in a prompt"] = 3
    least: Annotated[int, "fewest tokens in a response"] = 100
    length: Annotated[int, "most tokens in a prompt and its response, role and end tokens included"] = 256
    sentence: Annotated[float, "most words to a sentence of a response, on average; 0: any number"] = 0.0
    names: Annotated[Path | None, "file of names, on each line those that may stand for each other"] = None
    tellings: Annotated[int, "times that train.jsonl tells a story; all but the first with other names"] = 1
    seed: Annotated[int, "of every choice"] = 0

    def __post_init__(self) -> None:
        for name in ("passages", "words", "least", "tellings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("held_out", "plain"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.sentence < math.inf:
            raise ValueError(f"sentence must be at least 0, got {self.sentence}")
        if self.tellings > 1 and self.names is None:
            raise ValueError(f"tellings of {self.tellings} need names, a file of them; got none")
        if self.length < self.least + PROMPT_TOKENS:
            raise ValueError(f"length must be at least {self.least + PROMPT_TOKENS}, got {self.length}")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Count the asked words in what a model writes."""

    prompts_file: Annotated[Path, "held_out.jsonl that pairs made"]
    model: Annotated[Path, "model folder, tuned on the pairs"]
    base: Annotated[Path | None, "model folder that gets the same prompts as plain text, to compare"] = None
    prompts: Annotated[int, "prompts to write from, spread evenly over the file"] = 100
    json: Annotated[bool, "print one JSON object"] = False
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(max_tokens=220))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ValueError(f"prompts must be at least 2, as each is the others' control, got {self.prompts}")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares of words found in a model's texts, means over the texts with their standard errors."""

    asked: tuple[float, float]
    chance: tuple[float, float]  # of the words that other prompts asked
    difference: tuple[float, float]
    all_asked: tuple[float, float]  # texts with every asked word


def ask(words: Sequence[str]) -> str:
    """The prompt."""
    return f"Write a story with these words: {', '.join(words)}."


def same(asked: str, word: str) -> bool:
    """Whether a word is the asked one or a simple inflection: fox, foxes; carry, carried; dance, dancing."""
    stem = asked[:-1] if len(asked) > 3 and asked[-1] in "ey" else asked
    return word.startswith(stem) and len(word) <= len(asked) + 3


def passages(text: str, tokenizer: Tokenizer, least: int, most: int) -> Iterator[str]:
    """Runs of whole paragraphs of `least` to `most` tokens that end as a sentence does, without overlap."""
    run, size = [], 0
    for paragraph in filter(None, map(str.strip, re.split(r"\n\s*\n", text))):
        tokens = len(tokenizer.encode(paragraph)) + 2  # and the blank line
        if run and size + tokens > most:
            if size >= least and run[-1][-1] in ".!?\"'”’":
                yield "\n\n".join(run)
            run, size = [], 0
        if tokens <= most:
            run, size = [*run, paragraph], size + tokens
    if size >= least and run[-1][-1] in ".!?\"'”’":
        yield "\n\n".join(run)


def words_to_a_sentence(passage: str) -> float:
    """On average."""
    sentences = [each for each in SENTENCE.split(passage) if each.strip()]
    return len(passage.split()) / max(1, len(sentences))


def content_words(found: Sequence[str]) -> set[str]:
    """The words that say what a passage is about: neither everywhere nor rare, and often twice where they are once.

    Words like `although` are spread evenly; words like `fox` come in heaps (Church and Gale, Poisson mixtures, 1995).
    """
    total, spread = Counter(), Counter()
    for passage in found:
        counts = Counter(WORD.findall(passage))
        total.update(counts)
        spread.update(counts.keys())
    few, many = max(2, len(found) / 2000), max(3, len(found) / 20)
    return {word for word, at in spread.items() if few <= at <= many and total[word] >= 1.2 * at}


def choose(passage: str, known: set[str], count: int, draw: random.Random) -> list[str]:
    """Words to ask a passage by, those that it holds twice first; fewer than `count` if it has no more."""
    counts = Counter(word for word in WORD.findall(passage) if word in known)
    order = sorted(sorted(counts), key=lambda word: (counts[word] < 2, draw.random()))
    chosen: list[str] = []
    for word in order:
        if len(chosen) < count and not any(same(a, word) or same(word, a) for a in chosen):
            chosen.append(word)
    draw.shuffle(chosen)
    return chosen


def read_names(path: Path) -> list[list[str]]:
    """The kinds of names in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is not one word with a capital, or there twice, or a kind has one name only.
    """
    if not path.is_file():
        raise FileNotFoundError(f"names must be a file, got {path}")
    kinds = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    every = [name for kind in kinds for name in kind]
    wrong = [name for name in every if not re.fullmatch(r"[A-Z][a-z]+", name) or every.count(name) > 1]
    if wrong or not kinds or min(map(len, kinds)) < 2:
        what = f"got {wrong[0]!r}" if wrong else "a line has fewer"
        raise ValueError(f"{path} must hold 2 names or more on each line, single words, each once; {what}")
    return kinds


def renamed(text: str, kinds: Sequence[Sequence[str]], draw: random.Random) -> str:
    """The same text with other names throughout: a model can know them only from the text before."""
    words = set(re.findall(r"[A-Za-z]+", text))
    other: dict[str, str] = {}
    for kind in kinds:
        found, free = [name for name in kind if name in words], [name for name in kind if name not in words]
        other |= zip(found, draw.sample(free, min(len(found), len(free))), strict=False)
    return re.sub(r"[A-Za-z]+", lambda match: other.get(match[0], match[0]), text)


def pairs(settings: PairsConfig) -> tuple[list[dict], list[dict]]:
    """The records for train.jsonl and held_out.jsonl. What becomes of a story depends on (seed, its text) alone.

    Raises:
        FileNotFoundError, ValueError: as `documents` does, or the stories give no pair.
    """
    tokenizer = Tokenizer.load(settings.tokenizer)
    texts = list(dict.fromkeys(each.text for each in data.documents(settings.data) if not each.messages))
    limits = settings.least, settings.length - PROMPT_TOKENS
    cut = [list(passages(text, tokenizer, *limits))[: settings.passages] for text in texts]
    known = content_words([passage for story in cut for passage in story])
    kinds = read_names(settings.names) if settings.names else []
    train: list[dict] = []
    held_out: list[dict] = []
    for text, story in zip(texts, cut, strict=True):
        draw = random.Random(f"{settings.seed}:{text}")
        aside = draw.random() < settings.held_out
        for telling in range(1 if aside else settings.tellings):
            if draw.random() < settings.plain and not aside:
                train.append({"text": renamed(text, kinds, draw) if telling else text})
                continue
            for passage in story:
                if settings.sentence and words_to_a_sentence(passage) > settings.sentence:
                    continue
                words = choose(passage, known, settings.words, draw)
                prompt, response = ask(words), renamed(passage, kinds, draw) if telling else passage
                size = len(tokenizer.encode(prompt)) + len(tokenizer.encode(response)) + 6  # roles, ends, bos and eos
                if len(words) == settings.words and size <= settings.length:
                    (held_out if aside else train).append({"prompt": prompt, "response": response, "words": words})
    if not any("prompt" in record for record in train) or (settings.held_out and not held_out):
        raise ValueError(f"the stories must give pairs on both sides, got {len(train)} and {len(held_out)} records")
    return train, held_out


def share(texts: Sequence[str], asked: Sequence[Sequence[str]]) -> Share:
    """How many asked words the texts hold, and how many of those asked of the other texts."""
    hits, chances = [], []
    for text, own in zip(texts, asked, strict=True):
        words = set(re.findall(r"[a-z]+", text.lower()))
        others = [word for group in asked for word in group if not any(same(a, word) or same(word, a) for a in own)]
        own_found, found = ([any(same(a, word) for word in words) for a in group] for group in (own, others))
        hits.append(statistics.fmean(own_found))
        chances.append(statistics.fmean(found) if found else math.nan)
    differences = [hit - chance for hit, chance in zip(hits, chances, strict=True)]
    complete = [float(hit == 1) for hit in hits]
    return Share(
        asked=mean_and_error(hits),
        chance=mean_and_error(chances),
        difference=mean_and_error(differences),
        all_asked=mean_and_error(complete),
    )


def score(settings: ScoreConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Share]:
    """The shares of the model, and of the base if there is one.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file holds too few prompts of pairs.
    """
    with settings.prompts_file.open(encoding="utf-8") as file:
        records = [record for line in file if "words" in (record := json.loads(line))]
    records = records[:: max(1, len(records) // settings.prompts)][: settings.prompts]  # of many stories
    if len(records) < 2:
        raise ValueError(f"{settings.prompts_file} must hold 2 prompts with their words, got {len(records)}")
    shares = {}
    for name, folder, chat in (("model", settings.model, True), ("base", settings.base, False)):
        if folder is None:
            continue
        model = checkpoint.load_model(folder)
        options, texts = asdict(settings.stream) | asdict(settings.sampling) | asdict(settings.words), []
        for number, record in enumerate(records):
            options["seed"] = settings.sampling.seed + number
            prompt = record["prompt"] + ("" if chat else "\n\n")
            texts.append(generate(model, prompt, chat=chat, **options).text)
            say(f"{name}  {number + 1}/{len(records)}  {record['prompt']}\n{texts[-1]}\n")
        shares[name] = share(texts, [record["words"] for record in records])
    return shares


def make(settings: PairsConfig) -> None:
    """Write the two files of pairs."""
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, records in zip(("train", "held_out"), pairs(settings), strict=True):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (settings.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        asked = sum("prompt" in record for record in records)
        print(f"{settings.out / name}.jsonl  pairs {asked}  plain documents {len(records) - asked}")


def tell(settings: ScoreConfig) -> None:
    """Print the table of shares."""
    shares = score(settings, lambda line: print(line, file=sys.stderr, flush=True))
    if settings.json:
        shown = {name: asdict(each) for name, each in shares.items()}
        print(json.dumps({"version": trm_mlx.__version__, "shares": shown}))
        return
    for name, each in shares.items():
        cells = [f"{kind} {value:.3f} +- {error:.3f}" for kind, (value, error) in asdict(each).items()]
        print(f"{name}  " + "  ".join(cells))


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    mode, program = given[0] if given else "", f"benchmarks/words.py {' '.join(given[:1])}"
    if mode == "pairs":
        settings = config.parse(PairsConfig, given[1:], program=program)
        with config.door(program):
            make(settings)
    elif mode == "score":
        settings = config.parse(ScoreConfig, given[1:], program=program)
        with config.door(program):
            tell(settings)
    else:
        print(__doc__, file=sys.stdout if mode in ("-h", "--help") else sys.stderr)
        raise SystemExit(0 if mode in ("-h", "--help") else 2)


if __name__ == "__main__":
    main()
