"""How near scores are to the reference's: a package's to MLX's, and a rounded model's to the plain one's.

Shapes: n rows, V vocabulary.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convert import golden, manifest
from convert.manifest import Manifest
from trm_mlx import checkpoint
from trm_mlx.model import TinyRecursiveLM

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

if TYPE_CHECKING:  # which needs coremltools
    from convert.execute import Package


@dataclass
class Agreement:
    """Scores of a package beside MLX's, row by row."""

    rows: list[np.ndarray] = field(default_factory=list)  # each (V,), the package's
    wanted: list[np.ndarray] = field(default_factory=list)  # MLX's

    def add(self, rows: np.ndarray, wanted: np.ndarray) -> None:
        """Add (n, V) scores of both."""
        self.rows += list(np.atleast_2d(rows))
        self.wanted += list(np.atleast_2d(wanted))

    def figures(self, tolerance: float) -> dict[str, float]:
        """Errors absolute and as shares of the largest score, agreement of the likeliest tokens, KL in nats.

        A position is a tie, and not counted, if MLX's own two likeliest tokens are nearer to each other than twice
        the error that is allowed.
        """
        rows, wanted = np.stack(self.rows).astype(np.float64), np.stack(self.wanted).astype(np.float64)
        error, largest = np.abs(rows - wanted), np.abs(wanted).max()
        seconds = np.sort(wanted, axis=-1)[:, -2:]
        clear = seconds[:, 1] - seconds[:, 0] > 2 * tolerance * largest
        same = rows.argmax(-1) == wanted.argmax(-1)
        shares, own = (_log_softmax(each) for each in (wanted, rows))
        return {
            "positions": len(rows),
            "max_error": float(error.max()),
            "mean_error": float(error.mean()),
            "relative_error": float(error.max() / largest),
            "ties": int((~clear).sum()),
            "top1_agreement": float(same[clear].mean()) if clear.any() else 1.0,
            "kl_nats": float((np.exp(shares) * (shares - own)).sum(-1).mean()),
        }


def take_weights(model: TinyRecursiveLM, package: "Package", told: Manifest) -> None:
    """Give MLX the matrices of a package, which coremltools may have rounded."""
    weights = package.weights(told.functions[-1].decode)
    matrices = {name: weights[name.replace(".", "_")][:, :, 0, 0] for name in model.config.matrices()}
    model.update(tree_unflatten([(name, mx.array(array.astype(np.float32))) for name, array in matrices.items()]))


def damage(export: Path, folder: Path) -> dict[str, float]:
    """What rounding at export costs: the error of the matrices, and of the scores over the golden context.

    Args:
        export: an export folder.
        folder: the model folder that it was made from.

    Returns:
        The root mean square error of the matrices as a share of theirs, and figures at the deepest exported depth.
    """
    from convert.execute import Package

    told, found = manifest.read(export), Agreement()
    depth, ids = told.functions[-1].depth, golden.read(export).context
    model, _ = checkpoint.load(folder, mx.float32, packed=False)
    plain, wanted = _matrices(model), golden.scores(model, ids, depth)
    take_weights(model, Package(export / told.package), told)
    found.add(golden.scores(model, ids, depth), wanted)
    error = sum(float(np.square(array - plain[name]).sum()) for name, array in _matrices(model).items())
    share = (error / sum(float(np.square(array).sum()) for array in plain.values())) ** 0.5
    figures = found.figures(0)
    return {"weight_error": share, **{name: figures[name] for name in ("positions", "kl_nats", "top1_agreement")}}


def _matrices(model: TinyRecursiveLM) -> dict[str, np.ndarray]:
    wanted = model.config.matrices()
    return {name: np.array(array) for name, array in tree_flatten(model.parameters()) if name in wanted}


def line(what: str, figures: dict[str, float]) -> str:
    """Figures for people."""
    shown = {"positions": "d", "ties": "d", "top1_agreement": ".2%"}
    return f"{what:9} " + "  ".join(f"{name} {value:{shown.get(name, '.1e')}}" for name, value in figures.items())


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))
