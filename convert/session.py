"""The caller's side of docs/export.md: a text read token by token and chunk by chunk, the same over any runner.

Shapes: T tokens of a call, V vocabulary, S_r slots of the depth, N key-value heads, C context, K head width.
"""

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from convert.manifest import Manifest


class Runner(Protocol):
    """Runs the functions of one package, and owns the state if the package has one."""

    def call(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a function, by name."""
        ...

    def reset(self) -> None:
        """Begin a text: the state is zero again."""
        ...


class Session:
    """One text at one depth. Two sessions over one runner take turns by text: each begins with `reset`.

    Raises:
        ValueError: that depth was not exported.
    """

    def __init__(self, manifest: Manifest, runner: Runner, depth: int | None = None) -> None:
        self.manifest, self.runner, self.pair = manifest, runner, manifest.pair(depth)
        self.cache: np.ndarray | None = None  # (2 S, N, C, K)
        if manifest.state == "host":
            self.cache = np.zeros(manifest.cache_shape, np.dtype(manifest.precision))
        self.position = 0  # tokens in the cache
        self.reset()

    def reset(self) -> None:
        """Begin a text."""
        self.position = 0
        if self.cache is not None:
            self.cache.fill(0)
        self.runner.reset()

    def append(self, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Read tokens; a text that is refused leaves the cache as it was.

        Args:
            ids: the next tokens of the text, at least one.
            every: give the scores after each token, which reads them one by one, and not in chunks.

        Returns:
            float32 scores of the token after the last one, (V,); with `every` (len(ids), V).

        Raises:
            ValueError: no ids, one outside the vocabulary, or more than the context has room for.
        """
        ids = self._checked(ids)
        if every:
            return np.stack([self._read([token]) for token in ids])
        chunk, done = self.manifest.chunk, 0
        while True:
            fits = self.position + chunk <= self.manifest.context
            part = ids[done : done + chunk] if fits else ids[done : done + 1]
            logits = self._read(part)
            done += len(part)
            if done == len(ids):
                return logits

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [operator.index(token) for token in ids]
        if not ids:
            raise ValueError("ids must hold at least one token, got none")
        for token in ids:
            if not 0 <= token < self.manifest.vocabulary:
                raise ValueError(f"ids must be from 0 to {self.manifest.vocabulary - 1}, got {token}")
        if self.position + len(ids) > self.manifest.context:
            raise ValueError(
                f"a text must fit in the context of {self.manifest.context} tokens, "
                f"got {len(ids)} after {self.position}; reset begins a new text"
            )
        return ids

    def _read(self, ids: list[int]) -> np.ndarray:
        """One call: (V,) scores after the last of the ids, which fit in the context as the call needs them to."""
        start, count = self.position, len(ids)
        row = np.zeros((1, 1 if count == 1 else self.manifest.chunk), np.int32)
        row[0, :count] = ids
        inputs = {"input_ids": row, "position": np.array([start], np.int32)}
        if count > 1:
            inputs["last_index"] = np.array([count - 1], np.int32)
        if self.cache is not None:
            inputs["kv_cache"] = self.cache
        outputs = self.runner.call(self.pair.decode if count == 1 else self.pair.prefill, inputs)
        if self.cache is not None:
            rows = outputs["kv_rows"]  # (2 S_r, N, T, K)
            self.cache[: 2 * self.pair.slots, :, start : start + count] = rows[:, :, :count]
        self.position += count
        return np.asarray(outputs["logits"], np.float32).reshape(self.manifest.vocabulary)
