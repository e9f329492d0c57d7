"""What drafting is worth: the same texts with and without, in turns, and the ratio of their times.

python benchmarks/drafts.py --draft-depth 1 --rounds 6
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import trm_mlx  # before mlx.core
from trm_mlx import PRETRAINED, checkpoint, config
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.speculative import SpeculationConfig, speculative
from trm_mlx.decode.stream import Reply, StreamConfig, Timed, events
from trm_mlx.decode.words import WordsConfig

NO_END = WordsConfig(bias=("#2=-100", "#6=-100"))  # so that all texts are of one length


@dataclass(frozen=True, kw_only=True)
class DraftsConfig:
    """Write texts with drafts and without, and compare the times after the first token."""

    model: Annotated[Path, "model folder"] = PRETRAINED
    prompt: Annotated[str, "how each text begins"] = "Once upon a time"
    max_tokens: Annotated[int, "tokens of each text"] = 300
    rounds: Annotated[int, "texts on each side; one more on each is not counted"] = 6
    temperature: Annotated[float, "divides the logits; 0 is greedy"] = 0.8
    json: Annotated[bool, "print one JSON object"] = False
    speculation: SpeculationConfig = field(default_factory=lambda: SpeculationConfig(draft_depth=1))

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Pair:
    """Two texts of one seed: seconds after the first token by the clock and of the processor, plain over drafted."""

    clock: float
    processor: float
    acceptance: float
    tokens_per_verification: float
    told: float | None  # the speed-up that the text itself told


def compare(settings: DraftsConfig) -> list[Pair]:
    """Pairs of texts, of which the first is left out."""
    model, tokenizer = checkpoint.load(settings.model)
    prompt = [tokenizer.bos, *tokenizer.encode(settings.prompt)]
    how = StreamConfig(max_tokens=settings.max_tokens)
    words = NO_END if settings.temperature else WordsConfig()

    def write(seed: int, drafts: bool) -> tuple[Reply, float]:
        source = speculative(model, tokenizer, settings.speculation) if drafts else None
        sampling = SamplingConfig(temperature=settings.temperature, seed=seed)
        timed = Timed(events(model, tokenizer, prompt, how, sampling, words, source=source), len(prompt), source)
        writing = iter(timed)
        next(writing)
        start = time.process_time()
        for _ in writing:
            pass
        return timed.reply(), time.process_time() - start

    pairs = []
    for seed in range(settings.rounds + 1):
        (plain, before), (drafted, after) = write(seed, False), write(seed, True)
        assert drafted.drafts is not None
        pairs.append(
            Pair(
                drafted.tokens_per_second / plain.tokens_per_second,
                before / len(plain.tokens) / (after / len(drafted.tokens)),
                drafted.drafts.acceptance,
                drafted.drafts.tokens_per_verification,
                drafted.drafts.speed_up,
            )
        )
    return pairs[1:]


def main(argv: Sequence[str] | None = None) -> None:
    settings = config.parse(DraftsConfig, argv, program="benchmarks/drafts.py")
    with config.door("benchmarks/drafts.py"):
        pairs = compare(settings)
        if settings.json:
            print(json.dumps({"version": trm_mlx.__version__, "pairs": [asdict(pair) for pair in pairs]}))
            return

        def middle(name: str) -> str:
            found = sorted(value for pair in pairs if (value := getattr(pair, name)) is not None)
            if not found:
                return f"{name} unknown"
            return f"{name} {statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"

        names = ("clock", "processor", "told", "acceptance", "tokens_per_verification")
        print("  ".join(middle(name) for name in names))


if __name__ == "__main__":
    main()
