"""Manifests that Python and Swift must read alike: `python tests/golden/make_manifest.py`.

The first ones are as `convert` writes them; each damaged one is one of them with a text replaced.
"""

import json
from pathlib import Path

from convert import manifest
from convert.manifest import FileRecord, FunctionPair, Manifest, Sampling, SelfTest, SelfTestStep, Tokens

FILE = Path(__file__).with_name("manifest.json")
DESCRIPTION = [
    "Manifests of exports, format trm.manifests/1, written by make_manifest.py.",
    "valid: texts that must be read. damaged: base, the number of a valid one; old, which it has once, is replaced",
    "by new; kind, why it must be refused: json, format, version, unknown, missing, type or value.",
]


def record(path: str, size: int) -> FileRecord:
    return FileRecord(path=path, bytes=size, sha256=f"{size:064x}")


def described(name: str, functions: tuple[FunctionPair, ...], **options) -> Manifest:
    """An export's manifest; context 1,024, chunk 64."""
    package = f"{name}.mlpackage"
    files = [
        record(f"{package}/Data/com.apple.CoreML/model.mlmodel", 821_596),
        record(f"{package}/Data/com.apple.CoreML/weights/weight.bin", 4_072_832),
        record(f"{package}/Manifest.json", 617),
        record("golden.json", 8_563),
        record("tokenizer.model", 63_212),
    ]
    steps = [(1, 4), (4057, 4060), (799, 4061)]
    sizes = {"vocabulary": 4096, "context": 1024, "window": 512, "chunk": 64, "kv_heads": 2, "head_width": 64}
    words = {"name": name, "package": package, "revision": "4f" * 32, "weights": "8-bit affine", "compress": "none"}
    usual = {"precision": "float16", "state": "model", "stored_parameters": 4_003_712}
    usual["effective_parameters"] = 5_184_640
    return Manifest(
        **{**sizes, **words, **usual, **options},
        slots=functions[-1].slots,
        functions=functions,
        tokens=Tokens(),
        sampling=Sampling(temperature=0.7, top_k=40, top_p=1.0, min_p=0.0, repetition_penalty=1.1),
        self_test=SelfTest(
            depth=functions[-1].depth,
            steps=tuple(SelfTestStep(id=token, top=tuple(range(top, top + 5))) for token, top in steps),
        ),
        files=tuple(files),
    )


def valid() -> list[str]:
    """Two depths and a state; one depth in float32 whose cache the app keeps; the least that can be."""
    shallow = FunctionPair(depth=1, decode="decode_r1", prefill="prefill_r1", slots=5)
    deep = FunctionPair(depth=2, decode="decode", prefill="prefill", slots=7)
    only = FunctionPair(depth=4, decode="decode", prefill="prefill", slots=9)
    made = [
        described("TinyStories4M", (shallow, deep)),
        described("Host4", (only,), state="host", precision="float32", window=0, weights="plain"),
    ]
    texts = [manifest.text(each).decode() for each in made]
    plain = json.loads(texts[1]) | {"files": [], "self_test": {"depth": 4, "steps": []}}
    plain["sampling"] = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    return [*texts, json.dumps(plain)]


DAMAGED = [
    ("json", '{\n "format"', '"format"'),
    ("json", '{\n "format"', '\ufeff{ "format"'),
    ("json", '"float16"', "'float16'"),
    ("json", '"version": 1', '"version": 01'),
    ("json", '"window": 512,', '"window": 512,,'),
    ("json", '"name": "TinyStories4M"', '"name": "Tiny\tStories4M"'),
    ("json", "0.7", ".7"),
    ("json", '"min_p": 0.0', '"min_p": +0.0'),
    ("format", '"trm.export"', '"trm.golden"'),
    ("format", ' "format": "trm.export",\n', ""),
    ("version", '"version": 1', '"version": 2'),
    ("version", '"version": 1', '"version": "1"'),
    ("unknown", '"chunk": 64', '"chunk": 64, "batch": 1'),
    ("unknown", '"pad": 3', '"pad": 3, "mask": 7'),
    ("unknown", '"bytes": 617', '"bytes": 617, "mode": 420'),
    ("missing", ' "window": 512,\n', ""),
    ("missing", '   "decode": "decode_r1",\n', ""),
    ("missing", '  "depth": 2,\n  "steps"', '  "steps"'),
    ("type", '"context": 1024', '"context": "1024"'),
    ("type", '"context": 1024', '"context": 1024.0'),
    ("type", '"context": 1024', '"context": 1e3'),
    ("type", '"window": 512', '"window": null'),
    ("type", '"kv_heads": 2', '"kv_heads": true'),
    ("type", '"float16"', '"bfloat16"'),
    ("type", '"state": "model"', '"state": "app"'),
    ("type", '"compress": "none"', '"compress": null'),
    ("type", '"temperature": 0.7', '"temperature": "0.7"'),
    ("type", '"temperature": 0.7', '"temperature": true'),
    ("type", '"revision": "' + "4f" * 32 + '"', '"revision": 4'),
    ("type", '"unknown": 0', '"unknown": [0]'),
    ("type", '"self_test": {', '"self_test": [], "steps": {'),
    ("value", '"vocabulary": 4096', '"vocabulary": 0'),
    ("value", '"vocabulary": 4096', '"vocabulary": 4061'),
    ("value", '"context": 1024', '"context": -1024'),
    ("value", '"context": 1024', '"context": 1048577'),
    ("value", '"context": 1024', '"context": 64'),
    ("value", '"chunk": 64', '"chunk": 1'),
    ("value", '"chunk": 64', '"chunk": 1024'),
    ("value", '"window": 512', '"window": -1'),
    ("value", '"head_width": 64', '"head_width": 1048576'),
    ("value", '"stored_parameters": 4003712', '"stored_parameters": 0'),
    ("value", '"effective_parameters": 5184640', '"effective_parameters": 1099511627777'),
    ("value", '"slots": 7,\n "kv_heads"', '"slots": 8,\n "kv_heads"'),
    ("value", '"slots": 5', '"slots": 7'),
    ("value", '"slots": 5', '"slots": 0'),
    ("value", '"depth": 1', '"depth": 0'),
    ("value", '"depth": 1', '"depth": 2'),
    ("value", '"depth": 1', '"depth": 3'),
    ("value", '"decode_r1"', '"decode"'),
    ("value", '"prefill_r1"', '"decode_r1"'),
    ("value", '"prefill_r1"', '""'),
    ("value", '"prefill_r1"', '"../prefill"'),
    ("value", '"name": "TinyStories4M"', '"name": "Tiny Stories"'),
    ("value", '"name": "TinyStories4M"', '"name": "Other"'),
    ("value", '"package": "TinyStories4M.mlpackage"', '"package": "../TinyStories4M.mlpackage"'),
    ("value", '"package": "TinyStories4M.mlpackage"', '"package": "TinyStories4M"'),
    ("value", '"end": 6', '"end": 5'),
    ("value", '"end": 6', '"end": 4096'),
    ("value", '"end": 6', '"end": -6'),
    ("value", '"temperature": 0.7', '"temperature": -0.7'),
    ("value", '"top_k": 40', '"top_k": -1'),
    ("value", '"top_p": 1.0', '"top_p": 0.0'),
    ("value", '"top_p": 1.0', '"top_p": 1.5'),
    ("value", '"min_p": 0.0', '"min_p": -0.1'),
    ("value", '"repetition_penalty": 1.1', '"repetition_penalty": 0'),
    ("value", '"depth": 2,\n  "steps"', '"depth": 3,\n  "steps"'),
    ("value", '"id": 799', '"id": 4096'),
    ("value", "     4064\n", "     4096\n"),
    ("value", "     4064\n", "     4063\n"),
    ("value", '"path": "golden.json"', '"path": "/golden.json"'),
    ("value", '"path": "golden.json"', '"path": "../golden.json"'),
    ("value", '"path": "golden.json"', '"path": "a/../golden.json"'),
    ("value", '"path": "golden.json"', '"path": "a/./golden.json"'),
    ("value", '"path": "golden.json"', '"path": "a//golden.json"'),
    ("value", '"path": "golden.json"', '"path": "a/"'),
    ("value", '"path": "golden.json"', '"path": ""'),
    ("value", '"path": "golden.json"', '"path": "a\\\\golden.json"'),
    ("value", '"path": "golden.json"', '"path": "golden.json\\u0000"'),
    ("value", '"path": "golden.json"', '"path": "golden.json\\n"'),
    ("value", '"path": "golden.json"', '"path": "g\u00f6lden.json"'),
    ("value", '"path": "golden.json"', '"path": "manifest.json"'),
    ("value", '"path": "golden.json"', '"path": "tokenizer.model"'),
    ("value", '"path": "golden.json"', '"path": "Tokenizer.Model"'),
    ("value", '"bytes": 8563', '"bytes": -1'),
    ("value", f'"sha256": "{8563:064x}"', f'"sha256": "{8563:063x}"'),
    ("value", f'"sha256": "{8563:064x}"', f'"sha256": "{"A" * 64}"'),
]


def document() -> str:
    """The whole text of `manifest.json`."""
    texts = valid()
    damaged = [{"base": 0, "kind": kind, "old": old, "new": new} for kind, old, new in DAMAGED]
    for case in damaged:
        assert texts[case["base"]].count(case["old"]) == 1, case
    parts = {"format": "trm.manifests/1", "description": DESCRIPTION, "valid": texts, "damaged": damaged}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in parts.items() if key not in ("valid", "damaged")]
    for key in ("valid", "damaged"):
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(each) for each in parts[key]) + "\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_bytes(document().encode())
