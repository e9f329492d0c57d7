"""Vectors of the sampler's options: `python tests/golden/make_sampler_options.py`.

They are what `make_sampler.py`, the specification, says of bias, bans, presence and frequency penalties and
typical_p, with the numbers written as there.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from make_sampler import (
    MASK,
    SETTINGS,
    WORD,
    bell,
    completing,
    masked,
    packed,
    rounded,
    sample,
    splitmix64,
    steps_of,
    written,
)

FILE = Path(__file__).with_name("sampler_options.json")
DESCRIPTION = [
    "Sampler vectors, format trm.sampler-options/1, written by make_sampler_options.py; encoded as in sampler.json.",
    "cases: keys as there, with bias (pairs of id and amount) and banned (ids), and history counted in full.",
    "edges: as cases, where rounding, overflow, seeds and steps are at their ends.",
    "refused: sampling must fail at this temperature: nan, infinite, masked (all -inf), or banned (nothing is left).",
    "completing: pieces, bans and tail in hexadecimal; ids: those to ban after a text that ends in tail.",
]
STEPS = (0, 1, 2, 3, 2**20, 2**33)
MORE = ("typical_p", "presence_penalty", "frequency_penalty")


def option_case(
    name: str, logits: Sequence[float], settings: Sequence, more: dict, seed: int, steps: Sequence = STEPS
) -> dict:
    """One vector: settings in the order of SETTINGS, and what of the options is on."""
    logits = rounded(logits)
    chosen: dict = dict(zip(SETTINGS, settings, strict=True)) | dict(zip(MORE, (1.0, 0.0, 0.0), strict=True))
    chosen |= {key: value for key, value in more.items() if key in MORE}
    bias, banned = more.get("bias", {}), more.get("banned", [])
    history = [splitmix64(seed, part) % len(logits) for part in range(100, 112)]
    history += history[:4] + history[:2] + [max(range(len(logits)), key=lambda token: logits[token])] * 3
    tokens = [sample(logits, seed, step, history=history, bias=bias, banned=banned, **chosen) for step in steps]
    shown = {key: value.hex() if isinstance(value, float) else value for key, value in chosen.items()}
    pairs = [[token, amount.hex()] for token, amount in bias.items()]
    start = {"name": name, "logits": packed(logits), **shown, "bias": pairs, "banned": banned, "seed": str(seed)}
    return {**start, "history": history, "steps": list(steps), "tokens": tokens}


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


def edge_cases() -> list[dict]:
    """What falls out otherwise where a comparison, an order or a range is not kept."""
    free, greedy, coldest = (1.0, 0, 1.0, 0.0, 1.0), (0.0, 0, 1.0, 0.0, 1.0), (5e-324, 0, 1.0, 0.0, 1.0)
    row, ties, flat = bell(48, 21, 2.0), steps_of(bell(64, 22, 1.0), 1.0), [0.5] * 24
    late = (2**32 - 1, 2**32, 2**52 + 1, 2**53 - 1)
    overflows = (1.0, 0, 1.0, 0.0, 5e-324)  # positive logits of the history become +inf, and every weight 0
    return [
        option_case("seed of all ones", row, free, {}, WORD, STEPS + late),
        option_case("seed before the last", row, free, {}, WORD - 1, STEPS + late),
        option_case("seed of the highest bit", row, free, {}, 2**63, STEPS + late),
        option_case(
            "seed that the first step wraps to 0", row, free, {}, WORD - 0x9E3779B97F4A7C15 + 1, STEPS + late
        ),
        option_case("equals at the smallest temperature", [*flat, 0.0], coldest, {}, 1),
        option_case("two at a tiny temperature", [1.0, 1.0 + 2**-20, 0.0], (1e-6, 0, 1.0, 0.0, 1.0), {}, 2),
        option_case("greedy with every token forbidden", [MASK] * 5, greedy, {}, 3),
        option_case("forbidden but one", masked(row, lambda token: token == 9), (0.7, 5, 0.9, 0.2, 1.0), {}, 4),
        option_case(
            "forbidden among those kept", masked(row, lambda token: token < 3), (1.0, 20, 1.0, 0.0, 1.0), {}, 5
        ),
        option_case("penalty that overflows", row, overflows, {}, 6),
        option_case("typical of no weight", row, overflows, {"typical_p": 0.5}, 7),
        option_case("top_p and min_p of no weight", row, (1.0, 0, 0.5, 0.5, 5e-324), {}, 8),
        option_case("greedy among overflows", row, (0.0, 0, 1.0, 0.0, 5e-324), {}, 9),
        option_case("smallest typical_p", row, free, {"typical_p": 5e-324}, 10),
        option_case("largest typical_p below 1", row, free, {"typical_p": 1 - 2**-53}, 11),
        option_case("typical among equals", flat, free, {"typical_p": 0.55}, 12),
        option_case("largest penalties", row, free, {"presence_penalty": 100.0, "frequency_penalty": 100.0}, 13),
        option_case("largest rewards", row, free, {"presence_penalty": -100.0, "frequency_penalty": -100.0}, 14),
        option_case("penalties that cancel", row, free, {"presence_penalty": -0.3, "frequency_penalty": 0.1}, 15),
        option_case("bias cannot allow", masked(row, lambda token: token > 40), free, {"bias": {2: 100.0}}, 16),
        option_case("bias of a banned token", row, free, {"bias": {7: 100.0, 8: 50.0}, "banned": [7]}, 17),
        option_case("banned twice, but one", flat, free, {"banned": [*range(23), 0]}, 18),
        option_case("equals at the end of top_k", flat, (1.0, 23, 1.0, 0.0, 1.0), {"bias": {20: 0.1}}, 19),
        option_case("top_k of all", ties, (1.0, 64, 1.0, 0.0, 1.0), {}, 20),
        option_case("top_k of one", ties, (3.0, 1, 1.0, 0.0, 1.0), {"banned": [3]}, 21),
        option_case("one token", [0.0], (1.0, 40, 0.9, 0.1, 1.3), {"typical_p": 0.5}, 22),
        option_case("descending", sorted(row), (1.0, 7, 1.0, 0.0, 1.0), {}, 23),
    ]


def refused_cases() -> list[dict]:
    """Logits that must be refused whatever is banned, and bans that leave nothing."""
    rows = [
        ("nan", [0.0, math.nan, MASK], 0.0, []),
        ("nan", [0.0, math.nan, 1.0], 1.0, [1]),
        ("infinite", [0.0, 1.0, math.inf], 0.0, [2]),
        ("masked", [MASK] * 4, 5e-324, []),
        ("banned", [0.0, 1.0, MASK], 0.0, [1, 0]),
        ("banned", [0.0, 1.0, MASK], 1.0, [1, 0, 1]),
        ("banned", [MASK] * 4, 0.0, [2]),
    ]
    return [
        {"reason": reason, "logits": packed(logits), "temperature": temperature.hex(), "banned": banned}
        for reason, logits, temperature, banned in rows
    ]


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
    lines = {"cases": option_cases(), "edges": edge_cases(), "refused": refused_cases()}
    return written("trm.sampler-options/1", DESCRIPTION, lines | {"completing": completing_cases()})


if __name__ == "__main__":
    FILE.write_bytes(document().encode())
