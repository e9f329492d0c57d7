"""Ranks: the processes that train one model together, each on its rows of every batch.

`mlx.launch` starts them, and MLX's distributed engine (ring, jaccl, NCCL or MPI) carries what they tell each other.
Rank 0 alone reads the command line, the text and the run folder; the others need no file but this package. A process
that was not launched so is alone: for it nothing here does anything.

Environment: TRM_MLX_TIMEOUT, seconds (default 600) after which a rank that others wait for is taken for lost. Work of
rank 0 alone, such as an evaluation, has no limit.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

Result = TypeVar("Result")

MARKS = {"ring": "MLX_HOSTFILE", "jaccl": "MLX_IBV_DEVICES", "nccl": "NCCL_HOST_IP", "mpi": "OMPI_COMM_WORLD_RANK"}


class Ranks:
    """This process's place among those that train together, and what they do together.

    Every rank must call the same methods in the same order: each call waits for all of them.

    Raises:
        ConnectionError: from every method, another rank was lost; says how far training is, from `place`.
    """

    def __init__(self, group: mx.distributed.Group | None = None, seconds: float = 600) -> None:
        self.group, self.seconds = group, seconds
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)
        self.place = "before the first step"

    def sum(self, tree: Any, limited: bool = True) -> Any:
        """The sum over the ranks of each array of a tree, the same at every rank; one message a type of number."""
        if self.size == 1:
            return tree
        names, arrays = zip(*tree_flatten(tree), strict=True)
        sums, order = list(arrays), sorted(range(len(names)), key=names.__getitem__)  # ranks may differ in order
        for dtype in dict.fromkeys(arrays[place].dtype for place in order):
            same = [place for place in order if arrays[place].dtype == dtype]
            whole = self._all_sum(mx.concatenate([arrays[place].reshape(-1) for place in same]), limited)
            start = 0
            for place in same:
                end = start + arrays[place].size
                sums[place] = whole[start:end].reshape(arrays[place].shape)
                start = end
        ordered = iter(sums)
        return tree_map(lambda _: next(ordered), tree)

    def send(self, tree: Any) -> Any:
        """Rank 0's tree at every rank; the others give arrays of the same names, types and shapes."""
        return self.sum(tree if self.rank == 0 else tree_map(mx.zeros_like, tree))

    def send_bytes(self, content: bytes = b"") -> bytes:
        """Rank 0's bytes at every rank."""
        if self.size == 1:
            return content
        size = self.send({"size": mx.array(len(content))})["size"].item()
        given = mx.array(list(content), mx.uint8) if self.rank == 0 else mx.zeros((size,), mx.uint8)
        return bytes(self.send({"bytes": given})["bytes"].tolist())

    def lead(self, work: Callable[[], Result], flag: bool = False) -> tuple[Result | int | None, bool]:
        """What rank 0's work gives (as 0 or 1 at the others, which wait for it), and whether any rank has the flag.

        Where the work fails all ranks end, and rank 0 says why. One message.
        """
        if self.size == 1:
            return work(), flag
        if self.rank:
            status, given, flags = self._meet(0, 0, flag, limited=False)
            if status:
                raise self._gone(status - 1)
            return given, flags > 0
        status, result = 2, None
        try:
            result = work()
            status = 0
        except SystemExit as error:
            status = 1 + error.code if isinstance(error.code, int) else 2
            raise
        except (ValueError, FileNotFoundError):  # which `config.door` exits with 2 for
            status = 3
            raise
        finally:
            *_, flags = self._meet(status, result is True, flag)
        return result, flags > 0

    def _meet(self, *numbers: int, limited: bool = True) -> list[int]:
        return self.sum({"numbers": mx.array([int(each) for each in numbers])}, limited)["numbers"].tolist()

    def alike(self, error: BaseException) -> BaseException:
        """An error that every rank meets in the same place: rank 0 says it, the others leave without a word."""
        return self._gone(130 if isinstance(error, KeyboardInterrupt) else 1) if self.rank else error

    def _gone(self, status: int) -> SystemExit:
        time.sleep(1)  # mlx.launch ends all ranks once one has failed, and rank 0 is to speak first
        return SystemExit(status)

    def _all_sum(self, array: mx.array, limited: bool) -> mx.array:
        mx.eval(array)  # so that the limit is on the others alone
        with ExitStack() as stack:
            if limited:
                stack.enter_context(self._limit())
            try:
                result = mx.distributed.all_sum(array, group=self.group)
                mx.eval(result)
            except RuntimeError as error:
                raise ConnectionError(f"{self._other()} was lost {self.place}") from error
        return result

    @contextmanager
    def _limit(self) -> Generator[None]:
        """End this process when the others stay silent: MLX waits for ever for one that vanished without a word."""

        def end() -> None:
            line = f"{self._other()} was silent for {self.seconds:g} seconds {self.place}"
            print(f"trm_mlx: error: {line}", file=sys.stderr, flush=True)
            os._exit(1)

        timer = threading.Timer(self.seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _other(self) -> str:
        return f"rank {1 - self.rank}" if self.size == 2 else "another rank"


ALONE = Ranks()


def join() -> Ranks:
    """The ranks that this process was launched among; it alone, at no cost, if it was not launched so.

    Raises:
        ValueError: the timeout is no number of seconds, or the environment names a file of hosts that is not there.
        RuntimeError: the others cannot be reached.
    """
    launched = "MLX_RANK" in os.environ or MARKS["mpi"] in os.environ
    backend = next((name for name, mark in MARKS.items() if os.environ.get(mark)), None)
    if not launched or backend is None:
        return ALONE
    if backend == "ring":
        path = os.environ[MARKS["ring"]]
        try:
            with open(path) as file:
                if not file.read().strip():  # what mlx.launch writes for one rank, and MLX cannot read
                    return ALONE
        except OSError:
            raise ValueError(
                f"MLX_HOSTFILE must name the hosts of a ring, and {path} is not there; unset it"
            ) from None
    try:
        seconds = float(os.environ.get("TRM_MLX_TIMEOUT", "600"))
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"TRM_MLX_TIMEOUT must be seconds above 0, got {os.environ['TRM_MLX_TIMEOUT']}")
    group = mx.distributed.init(strict=True, backend=backend)
    return Ranks(group, seconds) if group.size() > 1 else ALONE
