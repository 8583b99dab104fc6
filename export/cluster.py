"""Ray, which runs pieces of work on the machines of a cluster, or side by side on this one.

The driver, which is this process, keeps all results; a piece of work gets a frozen value and returns another one. Work
whose process dies is started again.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.exits import explain
from edgeglm.scratch import PREFIX, scratch_folder
from edgeglm.store import sweep
from edgeglm.units import format_size
from edgeglm.worker import Failure, error_of, failure_of

T = TypeVar("T")
R = TypeVar("R")
Running = Any  # Ray's reference to the result of a piece of work

LOCAL, OPTION = "local", "--cluster"
MISSING = re.compile(r"No module named '([\w.]+)'")
# How often work is started again whose process died.
RETRIES = 3
# The processes of a Ray of our own, beside its workers; and its store of objects, which here are small.
RAY_BYTES, STORE_BYTES = 600 << 20, 80 << 20

# No word to Ray's makers; a machine that is busy starts its processes late.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # its lines on a worker that died would come into the command's output
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_worker_niceness": "0",  # else 15: whatever else runs would come before a trial, and into its figures
}


@dataclass(frozen=True)
class Task(Generic[T]):
    """Something to do, and the bytes of memory that it takes at most."""

    item: T
    bytes: int


@dataclass(frozen=True)
class Cluster:
    """A Ray that is connected.

    Args:
        address: As the user names it.
        processors: Of all machines, so many pieces of work are under way together at most.
        machine: The processors of the smallest machine.
        bytes: The memory of the largest machine that work can have.
    """

    address: str
    processors: int
    machine: int
    bytes: int

    def start(self, work: Callable[[T], R], item: T, needed: int, processors: int = 1) -> Running:
        """Start a piece of work as soon as a machine has room for it.

        Args:
            work: A function of a module, which is imported there.
            item: What it is given.
            needed: Bytes of memory that it takes at most.
            processors: That it has for itself.

        Raises:
            BudgetError: No machine has the memory.
        """
        import ray

        if needed > self.bytes:
            why = f"a worker has {format_size(self.bytes)} at most, and {format_size(needed)} are needed"
            raise BudgetError(f"{OPTION} {self.address}", why, "give more by --max-ram, or a larger machine")
        remote = ray.remote(num_cpus=processors, memory=needed, max_retries=RETRIES)(_answer)
        return remote.remote(work, item, metadata.version("edgeglm"), os.getcwd())

    def first(self, running: Sequence[Running]) -> Running:
        """Wait for work to end, and return what is the first to."""
        import ray

        return ray.wait(list(running), num_returns=1)[0][0]

    def result(self, running: Running) -> Any:  # noqa: ANN401
        """Return the result of work that has ended.

        Raises:
            EdgeglmError: The work raised it, or it could not be done there.
        """
        import ray

        what = f"{OPTION} {self.address}"
        try:
            result = ray.get(running)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            why = f"a worker was killed {RETRIES + 1} times, most likely because memory ran out"
            raise BudgetError(what, why, "give less by --max-ram, or a larger machine") from error
        except ray.exceptions.RayTaskError as error:
            if not (missing := MISSING.search(str(error))):
                raise
            remedy = f"run pip install 'edgeglm[export,search,cluster]=={metadata.version('edgeglm')}' there"
            raise UnsupportedError(what, f"a worker has no module {missing[1]}", remedy) from error
        if isinstance(result, Failure):
            raise error_of(result)
        return result

    def run(self, tasks: Sequence[Task[T]], work: Callable[[T], R]) -> Generator[tuple[T, R], None, None]:
        """Yield each item with its result as soon as it is there."""
        running = {self.start(work, task.item, task.bytes): task.item for task in tasks}
        while running:
            done = self.first([*running])
            yield running.pop(done), self.result(done)


def check_cluster(address: str | None) -> None:
    """Check that Ray is installed where it is asked for, and that something listens there. Raises UsageError."""
    if address is None:
        return
    if find_spec("ray") is None:
        raise UsageError(f"{OPTION} {address}", "needs Ray, which is not installed", "pip install 'edgeglm[cluster]'")
    if address != LOCAL:
        _check_address(address)


@contextmanager
def connect(address: str, budget: int) -> Iterator[Cluster]:
    """Yield a cluster, whose work ends with the block.

    Args:
        address: The host and port of its head, or ``local`` to start one here that ends with the block.
        budget: Bytes of memory that one here may have.

    Raises:
        UsageError: Ray is not installed, or nothing answers there.
        BudgetError: The budget has no room for it.
    """
    check_cluster(address)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    with ExitStack() as leave:
        if address == LOCAL:
            quiet |= _local(budget, leave.enter_context(scratch_folder("ray")))
        leave.callback(sweep, Path(tempfile.gettempdir()), PREFIX)  # what killed workers left here
        leave.callback(ray.shutdown)
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, **quiet)
        except Exception as error:  # which Ray raises as it is where its processes are late
            why = f"Ray does not answer: {str(error).strip().splitlines()[0]}"
            remedy = "try again when this machine has less to do" if address == LOCAL else "see ray status there"
            raise UsageError(f"{OPTION} {address}", why, remedy) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's own prints a trace and ends the process as it is
        yield _connected(address)


def _check_address(address: str) -> None:
    """Check that something listens there: Ray itself takes minutes to say no. Raises UsageError."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        why = "is no HOST:PORT" if isinstance(error, ValueError) else f"nothing answers there: {reason}"
        raise UsageError(f"{OPTION} {address}", why, f"give the address that ray status names, or {LOCAL}") from error


def _local(budget: int, folder: Path) -> dict[str, Any]:
    """Return the options of a Ray of our own."""
    if budget <= RAY_BYTES:
        why = f"Ray itself takes {format_size(RAY_BYTES)} of {format_size(budget)}"
        raise BudgetError(f"{OPTION} {LOCAL}", why, "give more by --max-ram, or leave it out")
    return {
        "num_cpus": len(os.sched_getaffinity(0)),
        "num_gpus": 0,
        "_memory": budget - RAY_BYTES,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": str(folder),
    }


def _connected(address: str) -> Cluster:
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise UsageError(f"{OPTION} {address}", "has no machine with a processor", "add one by ray start there")
    processors = [int(machine["CPU"]) for machine in machines]
    return Cluster(
        address, sum(processors), min(processors), max(int(machine.get("memory", 0)) for machine in machines)
    )


def _answer(work: Callable[[T], R], item: T, version: str, folder: str) -> R | Failure:
    """Do work, in a worker of Ray's; an error of ours is returned with its parts."""
    try:
        if version != metadata.version("edgeglm"):
            why = f"a worker has edgeglm {metadata.version('edgeglm')}, and this is {version}"
            raise UnsupportedError(OPTION, why, "install the same version everywhere")
        if os.path.isdir(folder):  # what relative paths start from
            os.chdir(folder)
        return work(item)
    except Exception as error:
        if explained := explain(error):
            return failure_of(explained)
        raise
