"""The same model in PyTorch, eager and float32, as someone who writes PyTorch would: the other side of
`benchmarks/train.py`, which starts it as a process of its own, because two copies of MKL in one disturb each other.

Reads a folder with `model.json`, `weights.npz` and `batch.npy`; then, for each line on stdin, takes one training
step and answers with its loss, its seconds and its CPU seconds as a line of JSON.

Shapes: B batch, T tokens, D width, H heads, N key-value heads, K head width.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch  # ty: ignore[import-not-found]
import torch.nn.functional as F  # ty: ignore[import-not-found]
from torch import Tensor  # ty: ignore[import-not-found]

EPSILON = 1e-5


class TorchModel:
    """The weights of a `trm_mlx` model by their own names, and its forward pass."""

    def __init__(self, config: dict, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.weights = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}

    def __call__(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        c, w = self.config, self.weights
        K = c["width"] // c["heads"]
        angles = torch.arange(ids.shape[1])[:, None] * c["rope_base"] ** (-2 * torch.arange(K // 2) / K)
        self.turns = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        x = rms(F.embedding(ids, w["embedding.weight"]))
        for i in range(c["prelude"]):
            x = self.block(f"prelude.{i}", x, 1 / math.sqrt(c["prelude"]))
        h = anchor = rms(x)
        for index in range(c["depth"]):
            h = rms(h) + w["injection"] * anchor
            for i in range(c["core"]):
                h = self.block(f"core.{i}", h, 1 / (c["depth"] * math.sqrt(c["core"])), index)
        h = rms(h) + w["recall"] * anchor
        for i in range(c["coda"]):
            h = self.block(f"coda.{i}", h, 1 / math.sqrt(c["coda"]))
        return F.linear(rms(h, w["final_norm.weight"]), w["embedding.weight"])

    def block(self, name: str, x: Tensor, scale: float, index: int | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); index: the pass, in the core."""
        w = self.weights
        for branch, compute in (("attention", self.attention), ("feed_forward", self.feed_forward)):
            y = compute(f"{name}.{branch}", rms(x, w[f"{name}.{branch}_norm.weight"]))
            x = x + y * (scale if index is None else scale * w[f"{name}.{branch}_scale"][index])
        return x

    def attention(self, name: str, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        w, H, N = self.weights, self.config["heads"], self.config["kv_heads"]
        B, T, D = x.shape
        q, k, v = F.linear(x, w[f"{name}.qkv.weight"]).view(B, T, H + 2 * N, D // H).split([H, N, N], dim=2)
        q, k = rms(q, w[f"{name}.query_norm.weight"]), rms(k, w[f"{name}.key_norm.weight"])
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        q, k = (self.rope(a) for a in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != N)
        return F.linear(y.transpose(1, 2).reshape(B, T, D), w[f"{name}.out.weight"])

    def rope(self, x: Tensor) -> Tensor:
        """(B, H, T, K) -> the same."""
        low, high = x.chunk(2, dim=-1)
        return x * self.turns[0] + torch.cat([-high, low], dim=-1) * self.turns[1]

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        h = F.relu(F.linear(x, self.weights[f"{name}.up.weight"])).square()
        return F.linear(h, self.weights[f"{name}.down.weight"])


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x over the root of its mean square, times the weight."""
    return F.rms_norm(x, x.shape[-1:], weight, EPSILON)


def optimizers(model: TorchModel, fitting: dict) -> list[torch.optim.Optimizer]:
    """As `loop.optimizer_for`: the blocks' matrices apart from all else."""
    matrices, rest = [], []
    for name, weight in model.weights.items():
        matrix = weight.ndim == 2 and name.endswith(".weight") and not name.startswith("embedding")
        (matrices if matrix else rest).append(weight)
    decay = fitting["weight_decay"]
    if fitting["optimizer"] == "muon":
        first = torch.optim.Muon(matrices, lr=fitting["matrix_rate"], weight_decay=decay)
        return [first, torch.optim.AdamW(rest, lr=fitting["rate"], betas=(0.9, 0.95), weight_decay=0, fused=True)]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=fitting["rate"], betas=(0.9, 0.95), fused=True)]


def main() -> None:
    folder = Path(sys.argv[1])
    told = json.loads((folder / "model.json").read_text())
    torch.set_num_threads(told["threads"])
    model = TorchModel(told["model"], dict(np.load(folder / "weights.npz")))
    batch = torch.tensor(np.load(folder / "batch.npy"), dtype=torch.int64)
    updates = optimizers(model, told["fit"])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.weights.values(), told["fit"]["clip_norm"], foreach=True)
        for update in updates:
            update.step()
            update.zero_grad(set_to_none=True)
        value = loss.item()
        answer = {
            "loss": value,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - used,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
