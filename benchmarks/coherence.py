"""Whether a story hangs together: it stays with its characters, and does not go in circles.

    python benchmarks/coherence.py --data held-out.jsonl --model runs/mine --temperature 0.6

A model goes on from the beginnings of stories. Counted are the characters of each second half that were in the first,
for chance those that were in the first half of the next text, and the runs of four words that came before. Beside the
model's texts stand the stories themselves, cut to the same number of words.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
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

NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")  # a capital within a sentence
SPEAKER = re.compile(
    r"(?<=[\"'] )(?:said|asked|cried|answered|replied|called|shouted|whispered|laughed)"
    r" (?:the|a|an|his|her|their|my|our) ((?:[a-z-]+ ){0,2}[a-z-]+)(?=[.,;:!?\"])"
)
RUN = 4
SENTENCE = re.compile(r"[.!?][\"']*\s")


@dataclass(frozen=True, kw_only=True)
class CoherenceConfig:
    """Count the characters that a model's stories stay with, and how often they repeat themselves."""

    data: Annotated[tuple[str, ...], "stories that the model was not trained on: files, folders, globs or hub:NAME"]
    model: Annotated[Path, "model folder"] = PRETRAINED
    stories: Annotated[int, "stories to go on with, spread evenly over the data"] = 100
    opening: Annotated[int, "least words of a story that the model is given; its sentence is ended"] = 15
    json: Annotated[bool, "print one JSON object"] = False
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(max_tokens=200))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    words: WordsConfig = field(default_factory=WordsConfig)

    def __post_init__(self) -> None:
        if self.stories < 2:
            raise ValueError(f"stories must be at least 2, as each is another's control, got {self.stories}")
        if self.opening < 1:
            raise ValueError(f"opening must be at least 1, got {self.opening}")


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Shares in some texts, means over them with their standard errors."""

    known: tuple[float, float]  # of the mentions of characters in second halves, those in the first half
    chance: tuple[float, float]  # those in the first half of the next text
    mentioning: int  # texts that mention anybody in their second half
    repeated: tuple[float, float]  # of all runs of RUN words, those that the text had before


def characters(text: str) -> list[str]:
    """Every mention, in order of kind: names, and who speaks by what they are (`said the old owl` is owl)."""
    return NAME.findall(text) + [speaker.split()[-1] for speaker in SPEAKER.findall(text)]


def halves(text: str) -> tuple[str, str]:
    """The first and the second half of its words."""
    places = [match.start() for match in re.finditer(r"\S+", text)]
    middle = places[len(places) // 2] if places else 0
    return text[:middle], text[middle:]


def known(first: str, second: str) -> float:
    """Share of the mentions in `second`, which has one or more, whose word is anywhere in `first`."""
    words, mentions = set(re.findall(r"[A-Za-z-]+", first)), characters(second)
    return sum(each in words for each in mentions) / len(mentions)


def repeated(text: str) -> float:
    """Share of the runs of RUN words, capitals and punctuation aside, that came before in the text."""
    words = re.findall(r"[a-z'-]+", text.lower())
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def coherence(texts: Sequence[str]) -> Coherence:
    """Of some texts.

    Raises:
        ValueError: fewer than two mention a character in their second half.
    """
    parts = [pair for pair in map(halves, texts) if characters(pair[1])]
    if len(parts) < 2:
        raise ValueError(f"2 texts or more must mention a character in their second half, got {len(parts)}")
    firsts = [first for first, _ in parts]
    own = [known(first, second) for first, second in parts]
    chance = [known(first, second) for first, (_, second) in zip(firsts[1:] + firsts[:1], parts, strict=True)]
    return Coherence(
        known=mean_and_error(own),
        chance=mean_and_error(chance),
        mentioning=len(parts),
        repeated=mean_and_error([repeated(text) for text in texts]),
    )


def opening(text: str, least: int) -> str:
    """The first whole sentences of at least `least` words."""
    for end in SENTENCE.finditer(text):
        if len(text[: end.end()].split()) >= least:
            return text[: end.end()].rstrip()
    return text


def measure(settings: CoherenceConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Coherence]:
    """Of the model's stories, and of the stories that it was given the openings of.

    Raises:
        FileNotFoundError, ValueError: as `documents` does, or there are too few stories.
    """
    texts = [each.text.strip() for each in data.documents(settings.data) if not each.messages]
    texts = [text for text in texts if len(opening(text, settings.opening)) < len(text)]
    texts = texts[:: max(1, len(texts) // settings.stories)][: settings.stories]
    if len(texts) < 2:
        raise ValueError(f"the data must hold 2 stories longer than {settings.opening} words, got {len(texts)}")
    model = checkpoint.load_model(settings.model)
    options = asdict(settings.stream) | asdict(settings.sampling) | asdict(settings.words)
    written, told = [], []
    for number, text in enumerate(texts):
        prompt = opening(text, settings.opening)
        options["seed"] = settings.sampling.seed + number
        written.append(prompt + generate(model, prompt, **options).text)
        words = list(re.finditer(r"\S+", text))[: len(written[-1].split())]
        told.append(text[: words[-1].end()])
        say(f"{number + 1}/{len(texts)}\n{written[-1]}\n")
    return {"model": coherence(written), "stories": coherence(told)}


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(CoherenceConfig, argv, program="benchmarks/coherence.py")
    with config.door("benchmarks/coherence.py"):
        found = measure(settings, lambda line: print(line, file=sys.stderr, flush=True))
        if settings.json:
            shown = {name: asdict(each) for name, each in found.items()}
            print(json.dumps({"version": trm_mlx.__version__, "coherence": shown}))
            return
        for name, each in found.items():
            shares = {kind: getattr(each, kind) for kind in ("known", "chance", "repeated")}
            cells = "  ".join(f"{kind} {value:.3f} +- {error:.3f}" for kind, (value, error) in shares.items())
            print(f"{name:8} {cells}  mentioning {each.mentioning}")


if __name__ == "__main__":
    main()
