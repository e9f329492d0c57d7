"""Marks a test that runs with MLX's own operations, and with those of the Linux CPU where it is one."""

import pytest

import trm_mlx  # noqa: F401  (before mlx.core)
from trm_mlx import fused

BOTH = pytest.mark.parametrize("forms", ["plain", "fused"] if fused.active() == "fused" else ["plain"], indirect=True)
