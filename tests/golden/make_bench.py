"""Numbers that benchmarks in other languages must come to: `python tests/golden/make_bench.py` writes `bench.json`.

percentiles: what NumPy's `percentile` gives of `values`, bit for bit (C99 hexadecimal floats); `mean` to 1e-12.
prompts: ids that `trm_mlx.trials.synthetic` draws. greatest: where `argmax` is, of numbers among which NaN is "nan".
"""

import json
from pathlib import Path

import numpy as np

import trm_mlx  # noqa: F401  (before MLX)
from trm_mlx import trials
from trm_mlx.splitmix import splitmix64

FILE = Path(__file__).with_name("bench.json")
LENGTHS = (1, 2, 3, 4, 5, 10, 11, 20, 21, 101, 255)
PROMPTS = [(0, 8, 4096), (1, 5, 320), (2**64 - 1, 6, 65536), (2**63, 4, 8), (1234567, 16, 8192)]
SCORES = [
    [0.0],
    [1, 3, 3, 2],
    [-0.0, 0.0],
    ["-inf", -5.0],
    [1.0, "nan", 9.0, "nan"],
    ["nan", 1.0],
    [2.0, "inf", "inf"],
]


def document() -> str:
    percentiles = []
    for length in LENGTHS:
        values = [(splitmix64(length, place) >> 11) * 2.0**-46 + 0.1 for place in range(length)]
        p50, p90, p95 = (float(each).hex() for each in np.percentile(values, [50, 90, 95]))
        shown = {"values": [each.hex() for each in values], "p50": p50, "p90": p90, "p95": p95}
        percentiles.append({**shown, "mean": float(np.mean(values)).hex()})
    prompts = [
        {"seed": str(seed), "vocabulary": vocabulary, "ids": trials.synthetic(seed, count, vocabulary)}
        for seed, count, vocabulary in PROMPTS
    ]
    greatest = [
        {"scores": [str(each) for each in row], "place": int(np.argmax(np.array(row, np.float32)))} for row in SCORES
    ]
    record = {"percentiles": percentiles, "prompts": prompts, "greatest": greatest}
    parts = [f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for key, rows in record.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(document())
