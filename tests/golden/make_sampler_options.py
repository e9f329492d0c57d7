"""Vectors of the sampler's options: `python tests/golden/make_sampler_options.py`.

They are what `make_sampler.py`, the specification, says of bias, bans, presence and frequency penalties and
typical_p, with the numbers written as there.
"""

from collections.abc import Sequence
from pathlib import Path

from make_sampler import SETTINGS, bell, completing, masked, packed, rounded, sample, splitmix64, steps_of, written

FILE = Path(__file__).with_name("sampler_options.json")
DESCRIPTION = [
    "Sampler vectors, format trm.sampler-options/1, written by make_sampler_options.py; encoded as in sampler.json.",
    "cases: keys as there, with bias (pairs of id and amount) and banned (ids), and history counted in full.",
    "completing: pieces, bans and tail in hexadecimal; ids: those to ban after a text that ends in tail.",
]
MORE = ("typical_p", "presence_penalty", "frequency_penalty")


def option_case(name: str, logits: Sequence[float], settings: Sequence, more: dict, seed: int) -> dict:
    """One vector: settings in the order of SETTINGS, and what of the options is on."""
    logits = rounded(logits)
    chosen: dict = dict(zip(SETTINGS, settings, strict=True)) | dict(zip(MORE, (1.0, 0.0, 0.0), strict=True))
    chosen |= {key: value for key, value in more.items() if key in MORE}
    bias, banned = more.get("bias", {}), more.get("banned", [])
    history = [splitmix64(seed, part) % len(logits) for part in range(100, 112)]
    history += history[:4] + history[:2] + [max(range(len(logits)), key=lambda token: logits[token])] * 3
    steps = [0, 1, 2, 3, 2**20, 2**33]
    tokens = [sample(logits, seed, step, history=history, bias=bias, banned=banned, **chosen) for step in steps]
    shown = {key: value.hex() if isinstance(value, float) else value for key, value in chosen.items()}
    pairs = [[token, amount.hex()] for token, amount in bias.items()]
    start = {"name": name, "logits": packed(logits), **shown, "bias": pairs, "banned": banned, "seed": str(seed)}
    return {**start, "history": history, "steps": steps, "tokens": tokens}


def option_cases() -> list[dict]:
    """Each option alone and all of them, greedy and drawn, on four rows."""
    rows = {
        "bell": bell(64, 11, 2.0),
        "ties": steps_of(bell(80, 12, 2.0), 0.5),
        "masked": masked(bell(96, 13, 1.5), lambda token: token % 5 == 2),
        "large": bell(512, 14, 2.5),
    }
    free, usual, greedy = (1.0, 0, 1.0, 0.0, 1.0), (0.8, 20, 0.95, 0.02, 1.2), (0.0, 0, 1.0, 0.0, 1.3)
    found = []
    for row, (name, logits) in enumerate(rows.items()):
        top = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
        bias = {top[0]: -3.7, top[5]: 2.3, top[1]: 0.1}
        everything = {"typical_p": 0.7, "presence_penalty": 0.3, "frequency_penalty": 0.7, "bias": bias}
        everything["banned"] = [top[1], top[3]]
        for column, (settings, more) in enumerate(
            [
                (free, {"typical_p": 0.2}),
                (free, {"typical_p": 0.9}),
                (usual, {"typical_p": 0.5}),
                (free, {"presence_penalty": 1.9}),
                (free, {"frequency_penalty": 0.9}),
                (greedy, {"presence_penalty": -0.4, "frequency_penalty": 1.1}),
                (free, {"bias": bias}),
                (free, {"banned": top[:4]}),
                (usual, everything),
                (greedy, everything),
            ]
        ):
            found.append(option_case(f"{name} {column}", logits, settings, more, splitmix64(50 + row, column)))
    return found


def completing_cases() -> list[dict]:
    """Banned texts spelled by pieces and by bytes, inside words and over the edges of tokens."""
    pieces = [
        b"",
        b"c",
        b"a",
        b"t",
        b"ca",
        b"at",
        b" cat",
        b"the",
        b"\xc3",
        b"\xa9",
        "caf\u00e9".encode(),
        b"tat",
        b"aa",
    ]
    bans = [b"cat", "\u00e9".encode(), b"aaa"]
    tails = [b"", b"c", b"ca", b"xca", b"cat", b"\xc3", b"caf\xc3", b"a", b"aa", b"t"]
    hexed = {"pieces": [piece.hex() for piece in pieces], "bans": [ban.hex() for ban in bans]}
    return [{**hexed, "tail": tail.hex(), "ids": completing(pieces, bans, tail)} for tail in tails]


def document() -> str:
    """The whole text of `sampler_options.json`."""
    return written("trm.sampler-options/1", DESCRIPTION, {"cases": option_cases(), "completing": completing_cases()})


if __name__ == "__main__":
    FILE.write_bytes(document().encode())
