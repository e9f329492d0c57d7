"""What a model has read of a text, kept for the next text that begins the same, in memory or in a file.

A file is a safetensors file: the ids, and the arrays of each slot of the cache by its number. Its metadata has the
model's revision, the depth, the kind of cache, and the hashes of the arrays and of all that.
"""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import mlx.core as mx
import numpy as np

from trm_mlx import config, tensors
from trm_mlx.cache import EVERYTHING, SPARE, CacheConfig, encoded
from trm_mlx.checkpoint import facts_digest
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.stream import check_prompt
from trm_mlx.model import TinyRecursiveLM

FORMAT = {"format": "trm_mlx.prompt_cache", "version": "1"}
ANEW = "remove it, or leave it out, and the prompt is read anew"


class PromptCache(StepModel):
    """A text that a model has read, to go on from with any text that begins the same.

    Give one to several calls of `generate` or `stream`, one after the other: each reads only what comes after the
    longest beginning that its prompt shares with the text before. It stands for the model as it was: make a new one
    after changing weights. One text at a time uses it.

    Args:
        model: what reads.
        depth: passes through the core; None: all.
        kind: what is kept of the text. From a window, no more than the newest 16 tokens can be taken back: a prompt
            that shares less is read anew.
    """

    def __init__(self, model: TinyRecursiveLM, depth: int | None = None, kind: CacheConfig = EVERYTHING) -> None:
        super().__init__(model, depth, kind)
        self.reused = 0  # tokens of the last prompt that were not read again
        self._read: list[Sequence[int] | mx.array] = []
        self._sound, self._busy = True, Lock()

    @property
    def ids(self) -> list[int]:
        """The tokens that were read, in order."""
        ids = [token for each in self._read for token in np.array(each).reshape(-1).tolist()]
        self._read = [ids]
        return list(ids)

    def reset(self) -> None:
        super().reset()
        self._read, self._sound = [], True

    def trim(self, position: int) -> None:
        super().trim(position)
        self._read = [self.ids[:position]]

    def scores(self, ids: Sequence[int]) -> np.ndarray:
        return np.array(self.append(ids)[0])

    def append(self, ids: Sequence[int] | mx.array, *, every: bool = False) -> mx.array:
        if (ids.shape[0] if isinstance(ids, mx.array) else 1) != 1:
            raise ValueError("a prompt cache holds one text, got several rows")
        self._sound = False
        logits = super().append(ids, every=every)
        self._read.append(ids)
        self._sound = True  # an interruption, on the way here, leaves a cache that cannot be told from a whole one
        return logits

    @contextmanager
    def begun(self, prompt: Sequence[int], depth: int | None, kind: CacheConfig) -> Generator[StepModel]:
        """The text, trimmed to what it shares with the prompt, for `stream.events`; nobody else has it inside.

        At least one token of the prompt is left to read, whose scores are what the prompt goes on from.

        Raises:
            ValueError: the prompt is empty or fills the context, or depth or kind are not those of the cache.
            RuntimeError: another text is using it.
        """
        check_prompt(prompt, self.model.config.context)
        self.check(depth, kind)
        with self._alone():
            self._share(prompt[:-1])
            yield self

    def read(self, prompt: Sequence[int]) -> None:
        """Hold this prompt and nothing else; what is shared with the text before is not read again.

        Raises:
            ValueError: the prompt is empty or fills the context.
            RuntimeError: another text is using the cache.
        """
        check_prompt(prompt, self.model.config.context)
        with self._alone():
            self._share(prompt)
            if rest := prompt[self.position :]:
                self.append(rest)

    def check(self, depth: int | None, kind: CacheConfig) -> None:
        """Refuse another depth or kind than those of the cache: what was read then is something else."""
        depth = self.model.config.at_depth(depth)
        if depth != self.depth:
            raise ValueError(
                f"this prompt cache was read at depth {self.depth}, got depth {depth}; read the prompt anew"
            )
        if kind != self.kind:
            changed = [
                key.name for key in config.keys(CacheConfig, kind) if key.default != getattr(self.kind, key.name)
            ]
            was, now = ({name: getattr(each, name) for name in changed} for each in (self.kind, kind))
            raise ValueError(
                f"this prompt cache was read with {_listed(was)}, got {_listed(now)}; read the prompt anew"
            )

    @contextmanager
    def _alone(self) -> Generator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("a prompt cache serves one text at a time; finish or close the stream that has it")
        try:
            yield
        finally:
            try:
                mx.eval(self.cache.arrays)  # another thread may have it next, and could not
            finally:
                self._busy.release()

    def _share(self, prompt: Sequence[int]) -> None:
        """Trim to the longest beginning shared with a prompt, or to nothing where a window has let go of its end."""
        if not self._sound:
            self.reset()
        pairs = zip(self.ids, prompt, strict=False)
        shared = next((place for place, (mine, other) in enumerate(pairs) if mine != other), None)
        shared = min(self.position, len(prompt)) if shared is None else shared
        if self.cache.can_trim(shared):
            self.trim(shared)
        else:
            self.reset()
        self.reused = self.position

    def save(self, path: Path) -> None:
        """Write what was read to a .safetensors file; a file that is there is replaced, whole or not at all.

        Raises:
            ValueError: nothing was read, the model is of no folder, or the file's name ends otherwise.
            OSError: it could not be written; what was there is as it was.
        """
        if path.suffix != ".safetensors":
            raise ValueError(f"a prompt cache must be in a .safetensors file, got {path}")
        if self.model.revision is None:
            raise ValueError("a prompt cache can be saved of a model that trm_mlx.load gave, got one of no folder")
        with self._alone():
            if not self.position or not self._sound:
                raise ValueError("a prompt cache must have read something before it is saved")
            reach = _reach(self)
            places = min(reach, self.cache.ring) if self.cache.ring else reach
            arrays = {
                f"{number}.{place}": part[:, :, :places]
                for number, slot in enumerate(self.cache.slots)
                for place, part in enumerate(slot.parts)
            }
            arrays["ids"] = mx.array(self.ids, dtype=mx.uint32)
            facts = _facts(self.model) | {
                "depth": str(self.depth),
                "kind": json.dumps(config.to_json(self.kind)),
                "reach": str(reach),
            }
            tensors.write(path, arrays, facts | {"facts": facts_digest(facts)})

    @classmethod
    def load(cls, path: Path, model: TinyRecursiveLM) -> "PromptCache":
        """What `save` wrote, of the same model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, of another version, or of another model.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no prompt cache at {path}")
        if path.suffix != ".safetensors":
            raise ValueError(f"a prompt cache must be in a .safetensors file, got {path}")
        arrays, facts = tensors.read(path)
        facts.pop("sha256")
        digest = facts.pop("facts", None)
        if facts.get("format") != FORMAT["format"]:
            raise ValueError(f"{path} must be a prompt cache of trm_mlx, got a file of something else")
        if facts.get("version") != FORMAT["version"]:
            raise ValueError(
                f"{path} has version {facts.get('version')!r}, this program reads {FORMAT['version']}; {ANEW}"
            )
        if digest != facts_digest(facts) or facts.keys() != {*_facts(model), "depth", "kind", "reach"}:
            raise ValueError(f"{path} is damaged: its facts are not those it was saved with; {ANEW}")
        for name, value in _facts(model).items():
            if facts[name] != value:
                raise ValueError(f"{path} must be of {name} {value[:12]}, got {facts[name][:12]}; {ANEW}")
        kind = config.from_json(CacheConfig, json.loads(facts["kind"]), str(path))
        held = cls(model, int(facts["depth"]), kind)
        held._restore(path, arrays, int(facts["reach"]))
        return held

    def _restore(self, path: Path, arrays: dict[str, mx.array], reach: int) -> None:
        """Take the arrays of a file in, each of the shape and type that this model and kind of cache have."""
        ids, cache, c = np.array(arrays.get("ids", [])), self.cache, self.model.config
        length, most = ids.size, ids.max(initial=0)
        if ids.dtype != np.uint32 or ids.ndim != 1 or not 0 < length <= c.context or most >= c.vocabulary:
            raise ValueError(f"{path}: ids must be 1 to {c.context} tokens below {c.vocabulary}")
        if not length <= reach <= length + (SPARE if cache.ring and reach > cache.ring else 0):
            raise ValueError(f"{path}: reach must fit its {length} tokens, got {reach}")
        places = min(reach, cache.ring or reach)
        like = mx.zeros((1, 2 * c.kv_heads, places, c.head_width), self.model.final_norm.weight.dtype)
        forms = {  # by slot, what its parts look like
            number: {f"{number}.{place}": part for place, part in enumerate(encoded(like, self.kind.cache_bits))}
            for number, slot in enumerate(cache.slots)
            if slot.lender is None
        }
        expected = {name: part for parts in forms.values() for name, part in parts.items()}
        tensors.check_shapes(path, {"ids": ids.shape} | {name: part.shape for name, part in expected.items()}, arrays)
        for name, part in expected.items():
            if arrays[name].dtype != part.dtype:
                raise ValueError(f"{path}: {name!r} must be of {part.dtype}, got {arrays[name].dtype}")
        for number, parts in forms.items():
            slot = cache.slots[number]
            slot.parts = [arrays[name] for name in parts]
            slot.reserve(cache.capacity(reach), like=slot.parts)
        cache.length, cache.reach, self._read = length, reach, [ids.tolist()]
        mx.eval(cache.arrays)


def _facts(model: TinyRecursiveLM) -> dict[str, str]:
    """What a file says of the model that it belongs to."""
    numbers = str(model.final_norm.weight.dtype).removeprefix("mlx.core.")
    return FORMAT | {"model": str(model.revision), "numbers": numbers}


def _reach(cache: PromptCache) -> int:
    """How far the arrays are written: of a ring that never was full, and of what is none, no farther than is read."""
    held = cache.cache
    return held.reach if held.ring and held.reach > held.ring else held.length


def _listed(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
