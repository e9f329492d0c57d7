"""Makes MLX fast on this machine before it is imported, and says what it runs on.

MLX's Linux CPU wheel links a reference BLAS whose matrix products run tens of times below the machine's speed.
MLX binds `cblas_sgemm` by name when it is loaded, so a real BLAS that is in the process before `mlx.core` takes its
place. `prepare()` puts it there; `import trm_mlx` calls it. macOS, and MLX on CUDA, need none of this.

Environment: TRM_MLX_BLAS, the path of a BLAS library to use, or "none"; TRM_MLX_THREADS, its threads (default 1,
because threads that spin beside a busy core run at a fraction of one).
"""

import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

blas: str | None = None  # the library that serves MLX's matrix products; None: the one it came with
_prepared = False


def cure() -> str:
    """The command that gives this machine a real BLAS."""
    openblas = "sudo apt-get install libopenblas0-pthread"
    if platform.machine() != "x86_64":
        return openblas
    return f"{openblas}, or pip install mkl" if _amd() else f"pip install mkl, or {openblas}"


def prepare() -> None:
    """Give MLX a real BLAS where it needs one; one warning line on stderr, with the cure, where there is none."""
    global blas, _prepared
    if _prepared:
        return
    _prepared = True
    for number in range(3):  # a closed one would be given to the next file opened, and MLX takes 0 for no file
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.platform != "linux" or not _reference_blas():
        return
    if "mlx.core" in sys.modules:
        print(
            "trm_mlx: mlx.core was imported first, so its slow BLAS stays; import trm_mlx before mlx",
            file=sys.stderr,
        )
        return
    _keep_memory()
    threads = os.environ.get("TRM_MLX_THREADS")
    put = os.environ.__setitem__ if threads else os.environ.setdefault
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        put(name, threads or "1")
    put("MKL_THREADING_LAYER", "SEQUENTIAL" if threads in (None, "1") else "INTEL")
    wanted = os.environ.get("TRM_MLX_BLAS")
    if wanted == "none":
        return
    for library in [wanted] if wanted else candidates():
        try:
            if hasattr(ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL), "cblas_sgemm"):
                blas = library
                return
        except OSError:
            continue
    print(
        f"trm_mlx: {wanted or 'no fast BLAS'} could not be loaded, so matrix products run 20 to 60 times slower; "
        f"{cure()}",
        file=sys.stderr,
    )


def _keep_memory() -> None:
    """Let glibc keep what MLX frees. It would give every array above 32 MiB back to the system at once, and faulting
    the next one's pages in costs more than most operations on them."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if adjust:
        adjust(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD of malloc.h: the largest int
        adjust(-3, 1 << 30)  # M_MMAP_THRESHOLD


def candidates() -> list[str]:
    """Libraries that may hold a fast `cblas_sgemm`, best first: MKL beside this Python, then the system's.

    On AMD the system's come first: training with MKL is up to 1.17 times slower there, see docs/speed.md.
    """
    folders = dict.fromkeys([Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", *_user_folders()])
    mkl = [str(file) for folder in folders for file in sorted(folder.glob("libmkl_rt.so*"), reverse=True)]
    # By soname, so that the loader's own search path decides; a plain libblas.so.3 may be the reference one.
    system = ["libopenblas.so.0", "libopenblas.so", "libblis.so.4", "libarmpl_lp64.so"]
    return [*system[:2], *mkl, *system[2:]] if _amd() else [*mkl, *system]


def _amd() -> bool:
    """Whether the processor is AMD's."""
    cpus = Path("/proc/cpuinfo")
    return cpus.is_file() and "AuthenticAMD" in cpus.read_text()


def _user_folders() -> list[Path]:
    import site

    return [Path(site.getuserbase()) / "lib"] if site.ENABLE_USER_SITE else []


def _reference_blas() -> bool:
    """Whether the installed MLX is the CPU wheel, which carries the reference BLAS beside it."""
    found = importlib.util.find_spec("mlx")
    folders = found.submodule_search_locations if found else None
    return any(any(Path(folder).parent.glob("mlx_cpu.libs/libblas*")) for folder in folders or ())
