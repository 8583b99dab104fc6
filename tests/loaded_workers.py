"""Processes that have loaded a worker of the host side, or the command line, and fork for every task.

Loading one takes longer than its work on a small model, and is the same each time. A fork is as far as a worker of
its own that has just read its imports: it has the environment, the folder and the limits of who asks, no task is behind
it, and it ends with its task.

Run as a program with the name of its first module, it is such a process: each message on its stdin is the settings of a
worker and four files, its stdin, stdout and stderr, and where its id and then its exit code are told. Before it forks
for a module that it has not loaded, it loads it.
"""

from __future__ import annotations

import array
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from edgeglm.process import child, die_with_parent
from edgeglm.worker import Worker

ROOT = Path(__file__).parents[1]
TRACER, CONVERTER = "edgeglm.export.trace.trace_worker", "edgeglm.export.targets.litert.convert_worker"
CHAT, PROGRAM = "edgeglm.export.chat.chat_worker", "edgeglm.export.foreign.read.program_worker"
PRECISION = "edgeglm.export.foreign.graph_precision"
VALIDATOR, COMMAND = "edgeglm.export.api_worker", "edgeglm.__main__"
WORKERS = (TRACER, CONVERTER, CHAT, PROGRAM, PRECISION, VALIDATOR)
# Which of them share a process: originals are computed with what traces are, torch and transformers.
SHARED = {VALIDATOR: TRACER}
# What they import when they use it. None of a command's reads the hub's address, which a test may give it.
LATER = {
    VALIDATOR: (
        "edgeglm.export.pipeline.job",
        "edgeglm.export.evaluate.comparison",
        "edgeglm.export.evaluate.original.whole",
    ),
    PRECISION: (
        "edgeglm.export.foreign.fp16.half_nodes",
        "edgeglm.export.foreign.quantize.int8",
        "edgeglm.export.targets.qnn.quantize",
    ),
    COMMAND: ("edgeglm.cli.main", "edgeglm.cli.export", "edgeglm.cli.plan", "edgeglm.export.pipeline.opening"),
}
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
MOST_BYTES = 1 << 20  # of a task's settings


class Forked:
    """A worker or command, as far as `edgeglm.worker.Worker` knows a `subprocess.Popen`."""

    def __init__(self, server: socket.socket, module: str, arguments: Sequence[str] = ()) -> None:
        settings = {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "limits": [(kind, *resource.getrlimit(kind)) for kind in LIMITS],
        }
        pipes = [os.pipe() for _ in range(4)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1], pipes[3][1]]
        socket.send_fds(server, [json.dumps(settings).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin: IO[bytes] = os.fdopen(pipes[0][1], "wb")
        self.stdout: IO[bytes] = os.fdopen(pipes[1][0], "rb")
        self.stderr: IO[bytes] = os.fdopen(pipes[2][0], "rb")
        self._told: IO[bytes] = os.fdopen(pipes[3][0], "rb", buffering=0)
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        if self.returncode is None:
            self.returncode = int(self._told.readline())
        return self.returncode

    def ends_within(self, seconds: float) -> bool:
        """Return whether it has ended, for which it has so much time."""
        return self.returncode is not None or bool(select.select([self._told], [], [], seconds)[0])

    def kill(self) -> None:
        """End it."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and close its files."""
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr, self._told):
            with suppress(OSError):
                stream.close()


class Loaded:
    """The loaded processes, each of which is started when the first worker of its module is."""

    def __init__(self) -> None:
        self.is_used = True
        self._servers = dict[str, socket.socket]()

    def starts(self, worker: Worker[Any]) -> bool:
        """Return whether a worker is started by a fork."""
        return self.is_used and worker.module in WORKERS and worker.start is child

    @contextmanager
    def start(self, module: str, command: object, **options: object) -> Iterator[Any]:
        """Start a worker, as `edgeglm.process.child` starts one by its command."""
        worker = Forked(self._server(SHARED.get(module, module)), module)
        try:
            yield worker
        finally:
            worker.close()

    def command(self, *arguments: object) -> Forked:
        """Start a command; it is the caller's to close."""
        return Forked(self._server(COMMAND), COMMAND, [str(argument) for argument in arguments])

    def _server(self, module: str) -> socket.socket:
        if module not in self._servers:
            self._servers[module], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            program = [sys.executable, "-m", "tests.loaded_workers", module]
            with theirs:
                subprocess.run(program, stdin=theirs.fileno(), check=True, cwd=ROOT)
        return self._servers[module]

    def close(self) -> None:
        """Let them end."""
        for server in self._servers.values():
            server.close()


@cache
def _load(module: str) -> Any:  # noqa: ANN401
    """Import a worker, and what its work imports; have the exporter read its operators."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("edgeglm.export")
        worker: Any = import_module(module)
        for name in LATER.get(module, ()):
            import_module(name)
        if module == TRACER:
            for family in worker.FAMILIES.values():
                import_module(family.modeling)
            _load_exporter({kind.opset for kind in worker.DIALECTS.values()})
        if module == PROGRAM:
            _load_exporter({worker.OPSET})
    logging.disable(logging.NOTSET)
    return worker


def _load_exporter(opsets: Iterable[int]) -> None:
    for name in ("torch.export._trace", "torch._functorch.aot_autograd", "torch.onnx._internal.exporter._core"):
        import_module(name)
    registry: Any = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    for opset in opsets:
        registry.from_torchlib(opset_version=opset)


def _work(worker: Any, settings: dict[str, Any], files: array.array[int]) -> int:  # noqa: ANN401
    """Be the worker: do the task on stdin."""
    os.setsid()
    for descriptor, file in enumerate(files[:3]):
        os.dup2(file, descriptor)
    for file in files:
        os.close(file)
    os.chdir(settings["folder"])
    os.environ.clear()
    os.environ.update(settings["environment"])
    for limit in settings["limits"]:
        resource.setrlimit(limit[0], limit[1:])
    # Anew: those that were opened before believe of a pipe what was so of a file.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv[1:] = settings["arguments"]
    if settings["module"] == COMMAND:
        gc.enable()  # as workers do by themselves
    return int(worker.main())


def _watch(worker: Any, settings: dict[str, Any], files: array.array[int]) -> None:  # noqa: ANN401
    """Fork the worker, and tell its id and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    pid = os.fork()
    if not pid:
        die_with_parent()
        code = 1
        try:
            code = _work(worker, settings, files)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    for file in files[:3]:
        os.close(file)
    os.write(files[3], f"{pid}\n".encode())
    os.write(files[3], f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


def main() -> None:
    """Load the worker, and fork for each message until its sender has ended; a child of nobody, whom tests count."""
    if os.fork():
        os._exit(0)
    gc.disable()
    server = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    _load(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while (received := socket.recv_fds(server, MOST_BYTES, 4))[0]:
        files, settings = array.array("i", received[1]), json.loads(received[0])
        worker = _load(settings["module"])
        if not os.fork():
            server.close()
            _watch(worker, settings, files)
            os._exit(0)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
