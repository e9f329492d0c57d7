"""The sampler's specification, and the vectors made from it: `python tests/golden/make_sampler.py`.

The first half is the specification, in plain Python: only IEEE doubles with + - * / floor and compare,
and 64-bit integers. It is written to be read and translated, not to be fast; every sampler must agree
with it bit for bit. The second half writes `sampler.json`, the same bytes on every machine: its random
numbers are the specification's own, and nothing calls a math library. The vectors of bias, bans, presence and
frequency penalties and typical_p are made by `make_sampler_options.py`.
"""

import base64
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

FILE = Path(__file__).with_name("sampler.json")
WORD = (1 << 64) - 1
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471803691238  # 0x3fe62e42fee00000
LN2_LOW = 1.9082149292705877e-10  # 0x3dea39ef35793c76
TAYLOR = [1.0, 1.0, 0.5, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880]
TAYLOR += [1 / 3628800, 1 / 39916800, 1 / 479001600, 1 / 6227020800]


def splitmix64(seed: int, step: int) -> int:
    """Output number `step`, from 0, of SplitMix64 started at seed."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def uniform(seed: int, step: int) -> float:
    """The draw of one step: at least 0, below 1."""
    return (splitmix64(seed, step) >> 11) * 2.0**-53


def exp_det(x: float) -> float:
    """e to the x; 0 at or below -700 and for NaN. Multiply and add must not be fused."""
    if not x > -700.0:
        return 0.0
    k = math.floor(x * LOG2_E + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    total = TAYLOR[13]
    for power in range(12, -1, -1):
        total = total * r + TAYLOR[power]
    return math.ldexp(total, k)


def sample(
    logits: Sequence[float],
    seed: int,
    step: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Collection[int] = (),
    *,
    bias: Mapping[int, float] | None = None,
    banned: Collection[int] = (),
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    typical_p: float = 1.0,
) -> int:
    """The next token. ValueError: NaN or +inf among the logits, or nothing left to draw from.

    The steps stand in their order. Those of the keywords change no bit when they are off. `history` is the
    prompt and what was written, each token as often as it came.
    """
    values = [float(value) for value in logits]
    if any(not value < math.inf for value in values):  # NaN is below nothing
        raise ValueError("non-finite logits")
    for token, amount in (bias or {}).items():
        values[token] = values[token] + amount
    for token in banned:
        values[token] = -math.inf
    if banned and max(values) == -math.inf:
        raise ValueError("all banned")
    if repetition_penalty != 1.0:
        for token in set(history):
            old = values[token]
            values[token] = old / repetition_penalty if old > 0 else old * repetition_penalty
    if presence_penalty != 0.0 or frequency_penalty != 0.0:
        for token, count in Counter(history).items():
            values[token] = values[token] - (presence_penalty + frequency_penalty * count)
    if temperature == 0.0:
        best = 0
        for token in range(1, len(values)):
            if values[token] > values[best]:
                best = token
        return best
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if values[order[0]] == -math.inf:
        raise ValueError("all masked")
    if top_k > 0:
        order = order[:top_k]
    peak = values[order[0]]
    weights = [
        exp_det((values[token] - peak) / temperature) if values[token] != -math.inf else 0.0 for token in order
    ]
    if typical_p < 1.0 and added(weights) > 0.0:
        kept_places = typical([(values[token] - peak) / temperature for token in order], weights, typical_p)
        order, weights = [order[place] for place in kept_places], [weights[place] for place in kept_places]
    if top_p < 1.0:
        limit = top_p * added(weights)
        running, kept = 0.0, len(weights)
        for place, weight in enumerate(weights):
            running += weight
            if running >= limit:
                kept = place + 1
                break
        order, weights = order[:kept], weights[:kept]
    if min_p > 0.0:
        kept = 1
        while kept < len(weights) and weights[kept] >= min_p * weights[0]:
            kept += 1
        order, weights = order[:kept], weights[:kept]
    target = uniform(seed, step) * added(weights)
    running = 0.0
    for token, weight in zip(order, weights, strict=True):
        running += weight
        if running > target:
            return token
    return order[-1]


def typical(steps: Sequence[float], weights: Sequence[float], share: float) -> list[int]:
    """The ascending places that typical sampling keeps (arXiv 2202.00666, section 4).

    Information is -log p = c - step and the entropy c - mean, with the same c: no logarithm is needed.
    """
    places = range(len(weights))
    mean = added([weights[place] * steps[place] for place in places if weights[place] > 0.0]) / added(weights)
    distance = [abs(steps[place] - mean) if weights[place] > 0.0 else math.inf for place in places]
    nearest = sorted(places, key=lambda place: (distance[place], place))
    limit = share * added([weights[place] for place in nearest])
    running = 0.0
    for count, place in enumerate(nearest, 1):
        running += weights[place]
        if running >= limit:
            return sorted(nearest[:count])
    return list(places)


def completing(pieces: Sequence[bytes], bans: Sequence[bytes], tail: bytes) -> list[int]:
    """The ids to ban: with the bytes of each, a text that ends in `tail` comes to hold one more banned text.

    pieces: the UTF-8 bytes that each id stands for, one byte for a byte token and none for a control token.
    tail: the bytes since the last control token of the prompt, of the prompt and of all that was written.
    """
    return [
        token
        for token, piece in enumerate(pieces)
        if any(ban in (tail[len(tail) - min(len(tail), len(ban) - 1) :] + piece) for ban in bans)
    ]


def added(weights: Sequence[float]) -> float:
    """The sum from left to right (the built-in `sum` compensates since Python 3.12)."""
    total = 0.0
    for weight in weights:
        total += weight
    return total


# Below: the vectors.

DESCRIPTION = [
    "Sampler vectors, format trm.sampler/1, written by make_sampler.py, which is also the specification.",
    "64-bit integers are decimal strings: JSON readers lose what lies above 2^53.",
    "Settings that are doubles are C99 hexadecimal floats (0x1.8p-1 is 0.75).",
    "Keys that end in _bits hold the 16 hexadecimal digits of an IEEE double or of a UInt64.",
    "logits: base64 of little-endian float32, one per id; -inf forbids a token.",
    "splitmix64, uniform: output number `step` of the seed. exp_det: x to e^x; NaN gives 0.",
    "cases: each of `steps` must give the token at the same place in `tokens`.",
    "history: ids to penalize, with repeats and in any order; each distinct id counts once.",
    "refused: sampling must fail, because of `reason`: nan, infinite (+inf), or masked (all -inf).",
]
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MASK = -math.inf


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def packed(logits: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(logits)}f", *logits)).decode()


def rounded(logits: Sequence[float]) -> list[float]:
    """The nearest float32 to each, as a reader of the file will have them."""
    return list(struct.unpack(f"<{len(logits)}f", struct.pack(f"<{len(logits)}f", *logits)))


def bell(size: int, seed: int, spread: float) -> list[float]:
    """Roughly normal logits: twelve uniforms added, minus six."""
    rows = ([uniform(seed, 12 * place + part) for part in range(12)] for place in range(size))
    return rounded([spread * (added(row) - 6.0) for row in rows])


def steps_of(logits: Sequence[float], spacing: float) -> list[float]:
    """The same logits moved down to multiples of spacing, so that many tie exactly."""
    return [math.floor(value / spacing) * spacing for value in logits]


def masked(logits: Sequence[float], allowed: Callable[[int], bool]) -> list[float]:
    return [value if allowed(token) else MASK for token, value in enumerate(logits)]


def case(name: str, logits: Sequence[float], settings: Sequence, seed: int, steps: list[int]) -> dict:
    """One vector: settings in the order of SETTINGS, a history made from the seed, a draw at each step."""
    logits = rounded(logits)
    chosen: dict = dict(zip(SETTINGS, settings, strict=True))
    history = [splitmix64(seed, part) % len(logits) for part in range(100, 112)]
    tokens = [sample(logits, seed, step, history=history, **chosen) for step in steps]
    shown = {key: value.hex() if isinstance(value, float) else value for key, value in chosen.items()}
    start = {"name": name, "logits": packed(logits), **shown, "seed": str(seed)}
    return {**start, "history": history, "steps": steps, "tokens": tokens}


def cases() -> list[dict]:
    """48 of them, six draws from each: seven rows of logits with six settings, and six on the edge."""
    rows = {
        "bell": bell(64, 1, 3.0),
        "flat": [0.25] * 40,
        "ties": steps_of(bell(80, 2, 2.0), 0.5),
        "masked": masked(bell(96, 3, 1.5), lambda token: token % 5 == 2),
        "both zeros": [-0.0, 0.0, -1.0, 0.0, -0.0, -1.0, MASK, -0.0],
        "extremes": [3.4e38, 3.4e38, 1e-45, -1e-45, 0.0, -3.4e38, MASK, 88.0, -104.0, 65504.0],
        "large": bell(2048, 4, 2.5),
    }
    greedy = [(0.0, 0, 1.0, 0.0, 1.0), (0.0, 3, 0.5, 0.5, 1.7)]
    drawn = [
        (1.0, 11, 1.0, 0.0, 1.0),
        (0.8, 40, 1.0, 0.0, 1.2),
        (0.7, 0, 0.9, 0.0, 1.1),
        (1.3, 7, 0.95, 0.05, 1.3),
        (2.0, 0, 1.0, 0.1, 0.8),
    ]
    found = []
    for row, (name, logits) in enumerate(rows.items()):
        for column, settings in enumerate([greedy[row % 2], *drawn]):
            steps = [0, 1, 2, 3, 1000 + column, 2**32 + row]
            found.append(case(f"{name} {column}", logits, settings, splitmix64(row, column), steps))
    return found + edges()


def edges() -> list[dict]:
    """Six draws from each of six cases that fall out otherwise where one rule is not kept."""
    steps = list(range(6))
    only = masked([0.0] * 12, lambda token: token == 7)
    # Here exp_det is one unit above, then below, both the true exponential and its own fused form.
    above, below = -39 / 256, -31 / 256
    reached, missed = exp_det(above), math.nextafter(exp_det(below), 1.0)
    half = 3453682501520545093  # this seed's first draw is 0.5, where token 3 ends exactly, so 4 is taken
    # These draws fall within 1e-9 of the end of a token: sums in float32 give its neighbour.
    close = [2974105, 1582682, 2483077, 1963456, 1585766, 556997]
    return [
        case("smallest temperature", only, (5e-324, 1000, 1e-300, 1.0, 1.0), 3, steps),
        case("largest temperature", bell(32, 5, 3.0), (1e308, 0, 1.0, 0.0, 1.0), 4, steps),
        case("min_p reached exactly", [0.0] + [above] * 9, (1.0, 0, 1.0, reached, 1.0), 5, steps),
        case("min_p missed by one bit", [0.0] + [below] * 9, (1.0, 0, 1.0, missed, 1.0), 6, steps),
        case("top_p of a sum, not of shares", [1.0] * 10, (1.0, 0, 0.8, 0.0, 1.0), half, steps),
        case("sums in double", bell(2048, 4, 2.5), (1.0, 0, 1.0, 0.0, 1.0), 9, close),
    ]


def document() -> str:
    """The whole text of `sampler.json`."""
    seeds = [(1234567, step) for step in range(3)] + [(seed, 0) for seed in (0, 2**63, WORD)] + [(42, 2**40)]
    turns = [0.0, -0.0, -5e-324, -1e-17, -0.34657359027997264, -0.34657359027997259, -0.5, -1.0, -87.5]
    turns += [-699.9999999999999, -700.0, -700.0000000000001, -745.2, -1e300, -math.inf, math.nan]
    inside = [reach * uniform(5, step) for reach in (-40.0, -700.0) for step in range(40)]
    refused = [("nan", [0.0, math.nan, MASK]), ("infinite", [0.0, 1.0, math.inf]), ("masked", [MASK] * 4)]
    lines = {
        "splitmix64": [
            {"seed": str(seed), "step": str(step), "value_bits": f"{splitmix64(seed, step):016x}"}
            for seed, step in seeds
        ],
        "uniform": [
            {"seed": str(seed), "step": str(step), "value_bits": bits(uniform(seed, step))} for seed, step in seeds
        ],
        "exp_det": [{"x_bits": bits(x), "value_bits": bits(exp_det(x))} for x in turns + inside],
        "cases": cases(),
        "refused": [{"reason": reason, "logits": packed(logits)} for reason, logits in refused],
    }
    return written("trm.sampler/1", DESCRIPTION, lines)


def written(form: str, description: list[str], lines: dict[str, list[dict]]) -> str:
    """A file of vectors as text."""
    parts = [f'"format": {json.dumps(form)}', f'"description": {json.dumps(description, indent=1)}']
    for key, rows in lines.items():  # one vector a line, so that a difference reads well
        parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_bytes(document().encode())
