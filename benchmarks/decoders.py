"""What `benchmarks/decode.py` compares: each writes greedily with random weights of the same shapes.

    python benchmarks/decoders.py NAME         # serves rounds: a line "task" comes in, a line of JSON goes out

A decoder is a class with a method for each task that it knows; a method does the untimed part and returns the timed
one. It runs in a process of its own, because a process has one BLAS, and one thread of it.

Shapes: width 256, 4 heads, 2 key-value heads of 64, 8 blocks of 0.59M weights, vocabulary 4,096. Ours: 5 stored
blocks, 1 + 3 x 2 passes + 1. Theirs: 8 blocks of a llama, SwiGLU of 512.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # which imports MLX
    from trm_mlx.decode.folded import Weights
    from trm_mlx.model import ModelConfig

WIDTH, HEADS, KV_HEADS, HEAD, BLOCKS, HIDDEN, VOCABULARY, CONTEXT = 256, 4, 2, 64, 8, 512, 4096, 4608
PROMPT, NEW, LONG, ROWS, SHORT = 128, 64, 512, 64, 32  # tokens, tokens, tokens, texts, tokens

Work = Callable[[], object]


def drawn(count: int, seed: int = 0) -> list[int]:
    """Ids of a prompt."""
    return np.random.default_rng(seed).integers(7, VOCABULARY, count).tolist()


def shape() -> "ModelConfig":
    """Of ours."""
    from trm_mlx.model import ModelConfig

    return ModelConfig(
        vocabulary=VOCABULARY, width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, prelude=1, core=3, coda=1, depth=2,
        context=CONTEXT,
    )  # fmt: skip


class Ours:
    """`trm_mlx.decode.step.StepModel`."""

    def __init__(self) -> None:
        import trm_mlx  # noqa: F401  (before mlx.core: it gives MLX its BLAS)

        # isort: split
        from trm_mlx.decode.step import StepModel
        from trm_mlx.model import TinyRecursiveLM

        self.model = TinyRecursiveLM(shape())
        self.text = StepModel(self.model)

    def decode(self) -> Work:
        self.text.reset()
        self.text.scores(drawn(PROMPT))

        def work() -> None:
            token = 7
            for _ in range(NEW):
                token = int(self.text.scores([token]).argmax())

        return work

    def prefill(self) -> Work:
        self.text.reset()
        return lambda: self.text.scores(drawn(LONG))

    def batch(self) -> Work:
        import mlx.core as mx

        self.text.reset()
        prompts = mx.array([drawn(SHORT, row) for row in range(ROWS)])

        def work() -> None:
            token = self.text.append(prompts).argmax(-1)[:, None]
            for _ in range(NEW - 1):
                token = self.text.append(token).argmax(-1)[:, None]
                mx.async_eval(token)
            mx.eval(token)

        return work


class Numpy:
    """The same step in bare NumPy, from the same folded weights; it has to agree with ours."""

    def __init__(self) -> None:
        ours = Ours()
        folded, c = ours.text.folded, ours.model.config
        assert folded is not None, "the folded step is the one of the Linux CPU; unset TRM_MLX_FUSED"
        parts = [(folded.prelude, 0), *((folded.core, index) for index in range(c.depth)), (folded.coda, 0)]
        self.parts = [[block[index] for block in part] for part, index in parts]
        self.embedding, self.head = folded.embedding, folded.head
        self.injection, self.recall = folded.injection, folded.recall
        angles = np.arange(CONTEXT)[:, None] * c.rope_base ** (-2 * np.arange(HEAD // 2) / HEAD)
        self.cosines, self.sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.kept = np.zeros((BLOCKS, 2 * KV_HEADS, CONTEXT, HEAD), np.float32)
        wanted = np.array(ours.text.append(drawn(20))[0])
        found = [self.step(token, place) for place, token in enumerate(drawn(20))][-1]
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), "NumPy's step must agree with ours"

    def block(self, x: np.ndarray, w: "Weights", kept: np.ndarray, place: int) -> np.ndarray:
        z = (rms(x) @ w.qkv).reshape(-1, HEAD)
        q = z[: HEADS + KV_HEADS]
        q = q / np.sqrt((q * q).mean(1, keepdims=True) + np.float32(1e-5)) * w.gain.reshape(-1, HEAD)
        low, high, cosine, sine = q[:, : HEAD // 2], q[:, HEAD // 2 :], self.cosines[place], self.sines[place]
        q = np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=1)
        kept[:KV_HEADS, place], kept[KV_HEADS:, place] = q[HEADS:], z[HEADS + KV_HEADS :]
        scores = q[:HEADS].reshape(KV_HEADS, -1, HEAD) @ kept[:KV_HEADS, : place + 1].swapaxes(1, 2)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        mean = (e @ kept[KV_HEADS:, : place + 1]) / e.sum(-1, keepdims=True)
        x = x + (mean.reshape(-1) @ w.out) * w.attention_scale
        h = np.maximum(rms(x) @ w.up, 0)
        h *= h
        return x + (h @ w.down) * w.feed_forward_scale

    def step(self, token: int, place: int) -> np.ndarray:
        h, slot = rms(self.embedding[token]), 0
        anchor = h
        for number, blocks in enumerate(self.parts):
            if number:
                last = number == len(self.parts) - 1
                h = rms(h) + (self.recall if last else self.injection) * anchor
            for w in blocks:
                h = self.block(h, w, self.kept[slot], place)
                slot += 1
            if not number:
                h = anchor = rms(h)
        return rms(h) @ self.head

    def decode(self) -> Work:
        for place, token in enumerate(drawn(PROMPT)):
            self.step(token, place)

        def work() -> None:
            token = 7
            for place in range(PROMPT, PROMPT + NEW):
                token = int(self.step(token, place).argmax())

        return work


def rms(x: np.ndarray) -> np.ndarray:
    return x * np.float32(1 / math.sqrt(x @ x / x.size + 1e-5))


class MlxLm:
    """mlx-lm's `generate_step` and `BatchGenerator` on a llama, with the BLAS that ours has."""

    def __init__(self) -> None:
        import trm_mlx  # noqa: F401  (gives MLX its BLAS, or with TRM_MLX_BLAS=none leaves it as installed)

        # isort: split
        import mlx.core as mx
        from mlx.utils import tree_map
        from mlx_lm.models.llama import Model, ModelArgs  # ty: ignore[import-not-found]

        args = ModelArgs(
            model_type="llama", hidden_size=WIDTH, num_hidden_layers=BLOCKS, intermediate_size=HIDDEN,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
        )  # fmt: skip
        self.model = Model(args)
        self.model.update(tree_map(lambda a: 0.06 * mx.random.normal(a.shape), self.model.parameters()))
        mx.eval(self.model.parameters())

    def decode(self) -> Work:
        import mlx.core as mx
        from mlx_lm.generate import generate_step  # ty: ignore[import-not-found]

        steps = generate_step(mx.array(drawn(PROMPT)), self.model, max_tokens=NEW + 2)
        next(steps)
        return lambda: [int(next(steps)[0]) for _ in range(NEW)]

    def prefill(self) -> Work:
        import mlx.core as mx
        from mlx_lm.generate import generate_step  # ty: ignore[import-not-found]

        return lambda: next(generate_step(mx.array(drawn(LONG)), self.model, max_tokens=1))

    def batch(self) -> Work:
        from mlx_lm.generate import BatchGenerator  # ty: ignore[import-not-found]

        def work() -> None:
            batch = BatchGenerator(
                self.model, max_tokens=NEW, completion_batch_size=ROWS, prefill_batch_size=ROWS, stop_tokens=[]
            )
            batch.insert([drawn(SHORT, row) for row in range(ROWS)])
            made = 0
            while made < ROWS * NEW:
                made += len(batch.next()[1])
            batch.close()

        return work


class LlamaCpp:
    """llama.cpp through llama-cpp-python, float32, on a llama written as GGUF."""

    def __init__(self) -> None:
        import llama_cpp  # ty: ignore[import-not-found]

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "random.gguf"
            write_gguf(file)
            self.llama = llama_cpp.Llama(
                str(file), n_ctx=LONG + 256, n_batch=LONG, n_threads=1, n_threads_batch=1, verbose=False
            )  # fmt: skip
        self.scores = lambda: np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.llama.ctx), (VOCABULARY,))

    def decode(self) -> Work:
        self.llama.reset()
        self.llama.eval(drawn(PROMPT))

        def work() -> None:
            token = 7
            for _ in range(NEW):
                self.llama.eval([token])
                token = int(self.scores().argmax())

        return work

    def prefill(self) -> Work:
        self.llama.reset()
        return lambda: self.llama.eval(drawn(LONG))


def write_gguf(file: Path) -> None:
    """A llama with random float32 weights and no tokenizer."""
    import gguf  # ty: ignore[import-not-found]

    random, writer = np.random.default_rng(0), gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.06, shape).astype(np.float32))

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for block in range(BLOCKS):
        for name, rows, columns in (
            ("attn_q", HEADS * HEAD, WIDTH), ("attn_k", KV_HEADS * HEAD, WIDTH), ("attn_v", KV_HEADS * HEAD, WIDTH),
            ("attn_output", WIDTH, WIDTH), ("ffn_gate", HIDDEN, WIDTH), ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ):  # fmt: skip
            matrix(f"blk.{block}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


DECODERS = {"ours": Ours, "numpy": Numpy, "mlx-lm": MlxLm, "mlx-lm as installed": MlxLm, "llama.cpp": LlamaCpp}


def serve(name: str) -> None:
    """Rounds until stdin ends; what a round printed to stdout by itself goes to stderr."""
    out, sys.stdout = sys.stdout, sys.stderr
    decoder = DECODERS[name]()
    print(
        json.dumps([task for task in ("decode", "prefill", "batch") if hasattr(decoder, task)]), file=out, flush=True
    )
    for line in sys.stdin:
        work = getattr(decoder, line.strip())()
        start, used = time.perf_counter(), time.process_time()
        work()
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
        print(json.dumps(spent), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
