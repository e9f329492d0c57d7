"""`python -m trm_mlx VERB ...`: lists the verbs, and imports one only when it is called."""

import sys
from importlib import import_module

from trm_mlx import __version__
from trm_mlx.config import door, nearest

VERBS = {
    "train": "train a model on text, or go on training",
    "quantize": "round a model to 8, 6 or 4 bits",
    "generate": "write text",
    "chat": "talk with a model",
    "evaluate": "perplexity and bits per byte of text, at each depth",
    "benchmark": "time to the first token, time per token, memory; compare reports",
    "doctor": "what this machine has, how fast it is, what is missing",
}


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in VERBS:
        import_module(f"trm_mlx.{words[0]}").main(words[1:])
        return
    if words and words[0] not in ("-h", "--help", "--version"):
        print(
            f"trm_mlx: unknown verb {words[0]}; {nearest(words[0], VERBS, 'see python -m trm_mlx')}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    with door("trm_mlx"):
        if words == ["--version"]:
            print(__version__)
            return
        print(f"trm_mlx {__version__}: tiny recursive language models\n\npython -m trm_mlx VERB --help\n")
        for verb, what in VERBS.items():
            print(f"  {verb:10} {what}")


if __name__ == "__main__":
    main()
