import os
import subprocess
import sys
from pathlib import Path

import pytest

from trm_mlx import backend, doctor

linux = pytest.mark.skipif(sys.platform != "linux", reason="MLX needs no BLAS of ours elsewhere")
ROOT = Path(__file__).parent.parent


def python(code, **environment):
    """Run code in a fresh interpreter; its stdout and stderr lines."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


@linux
def test_blas_is_found_and_serves_the_products_silently():
    code = """
import trm_mlx
from trm_mlx import backend, doctor
print(backend.blas, doctor.gflops())
"""
    (line,), errors = python(code)
    library, speed = line.rsplit(" ", 1)
    assert library != "None"
    assert float(speed) > doctor.SLOW
    assert not errors


@linux
def test_a_blas_that_cannot_be_loaded_gives_one_line_with_the_cure():
    _, errors = python("import trm_mlx", TRM_MLX_BLAS="/nowhere/libblas.so")
    assert len(errors) == 1
    assert "/nowhere/libblas.so could not be loaded" in errors[0]
    assert backend.cure() in errors[0]


@linux
def test_a_library_without_products_is_not_taken_for_a_blas():
    _, errors = python("import trm_mlx", TRM_MLX_BLAS="libm.so.6")
    assert len(errors) == 1
    assert "libm.so.6 could not be loaded" in errors[0]


@linux
def test_no_blas_is_a_choice():
    assert python("import trm_mlx; print(trm_mlx.backend.blas)", TRM_MLX_BLAS="none") == (["None"], [])


@linux
def test_mlx_imported_first_is_told_in_one_line():
    _, errors = python("import mlx.core, trm_mlx")
    assert len(errors) == 1
    assert "import trm_mlx before mlx" in errors[0]


@linux
def test_threads_come_from_one_variable():
    code = "import trm_mlx, os; print(os.environ['MKL_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    assert python(code, TRM_MLX_THREADS="2")[0] == ["2 2"]
    assert python(code)[0] == ["1 1"]


@linux
def test_large_arrays_reuse_memory_instead_of_faulting_it_in_again():
    code = """
import trm_mlx, mlx.core as mx, resource
x = mx.zeros((3000, 4096)); mx.eval(x)
for _ in range(2): mx.eval(x + 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): mx.eval(x + 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    (faults,), _ = python(code)
    assert int(faults) < 3000, "each of the ten arrays has 12,000 pages"


@linux
def test_products_are_right_with_the_blas_in_place():
    code = """
import trm_mlx, mlx.core as mx, numpy as np
draw = np.random.default_rng(0)
for m, k, n in ((1, 7, 5), (3, 64, 65), (130, 33, 4), (257, 300, 129)):
    a, b = (draw.normal(size=s).astype(np.float32) for s in ((m, k), (n, k)))
    for x, y in ((mx.array(a) @ mx.array(b).T, a @ b.T), (mx.array(b) @ mx.array(a).T, b @ a.T)):
        assert np.abs(np.array(x) - y).max() < 1e-3
    batch = mx.array(np.stack([a, 2 * a])) @ mx.array(b).T
    assert np.abs(np.array(batch[1]) - 2 * a @ b.T).max() < 2e-3
print("right")
"""
    assert python(code)[0] == ["right"]


@pytest.mark.parametrize(("amd", "first"), [(True, "openblas"), (False, "mkl")])
def test_order_of_libraries_is_that_of_their_speed(monkeypatch, tmp_path, amd, first):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmkl_rt.so.3").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(backend, "_amd", lambda: amd)
    names = [Path(library).name for library in backend.candidates()]
    assert first in names[0]
    assert {"libmkl_rt.so.3", "libopenblas.so.0", "libblis.so.4"} <= set(names)


def test_macos_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(backend, "_prepared", False)
    monkeypatch.setattr(backend, "blas", None)
    monkeypatch.setattr(backend, "candidates", lambda: pytest.fail("looked for a BLAS"))
    backend.prepare()
    assert backend.blas is None
