"""Workers and programs: what comes back, how an end is told, and that none outlives us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgeglm.errors import AccuracyError, BudgetError, UnsupportedError
from edgeglm.process import child, run_program
from edgeglm.worker import Crashed, Overdue, Worker

ROOT = Path(__file__).parents[1]
NONE: type[Any] = type(None)
HOST_SIDE = (
    "edgeglm.export.chat.chat_worker",
    "edgeglm.export.targets.qnn.compile_worker",
    "edgeglm.export.foreign.graph_precision",
    "edgeglm.export.foreign.read.program_worker",
    "edgeglm.export.targets.litert.convert_worker",
    "edgeglm.export.trace.trace_worker",
)
START_WORKER = """
import sys
from edgeglm.worker import Worker
Worker(sys.argv[1], str, "the worker").run("sleep", "it")
"""


def ask(task: str, result: type[Any] = NONE, seconds: float | None = None, **options: Any) -> Any:  # noqa: ANN401
    """Have the worker of the tests do a task."""
    return Worker("tests.tasks", result, "the worker", seconds=seconds).run(task, "tests", **options)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    return [int(number) for path in Path(f"/proc/{pid}/task").glob("*/children") for number in path.read_text().split()]


def command_line(pid: int) -> str:
    """The program and its arguments, once it is loaded."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return " Z " not in re.sub(r"\(.*\)", "", Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return False


def test_result_and_progress_come_back_whatever_is_printed() -> None:
    shown: list[float] = []
    assert ask("answer", dict[str, bytes], show=shown.append) == {"answer": bytes(1 << 20)}
    assert shown == [0.5, 1.0]


def test_an_error_comes_back_as_it_was_raised() -> None:
    with pytest.raises(UnsupportedError) as caught:
        ask("refuse")
    error = caught.value
    assert (error.what, error.why, error.remedy) == ("vision: a", "b; c", "d")
    assert [(type(more), str(more)) for more in error.more] == [(AccuracyError, "decoder: is worse; measure")]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("killed", "tests: the worker was killed, most likely because memory ran out; free some memory"),
        ("short", "memory: is not enough for this; free some, or allow the process more"),
        ("full", "there: no space is left; free some"),
    ],
)
def test_a_want_of_memory_or_disk_is_one(task: str, line: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(line)):
        ask(task)


@pytest.mark.parametrize(
    ("task", "status", "why"),
    [
        ("broken", 1, "ValueError: too odd"),
        ("segfault", -signal.SIGSEGV, "it was ended by SIGSEGV"),
        ("exit", 3, "it ended with exit code 3"),
    ],
)
def test_a_crash_is_told_from_a_kill_for_memory(task: str, status: int, why: str) -> None:
    with pytest.raises(Crashed, match=why) as caught:
        ask(task)
    assert caught.value.status == status


def test_a_result_of_another_type_is_no_result() -> None:
    with pytest.raises(Exception, match="Expected `int`"):
        ask("answer", int)


def test_a_worker_that_takes_too_long_is_ended() -> None:
    with pytest.raises(Overdue):
        ask("sleep", seconds=0.5)
    assert children_of(os.getpid()) == []


def test_what_a_worker_leaves_behind_holds_nobody_up() -> None:
    assert ask("leave", str) == "done"


def test_modules_of_the_current_folder_are_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("msgspec", "sys", "typing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert ask("leave", str) == "done"


@pytest.mark.parametrize(
    "module", ["edgeglm.runtimes.engines.tensorrt.builder", *(HOST_SIDE if find_spec("onnx") else ())]
)
def test_each_worker_ends_with_its_parent(module: str) -> None:
    with child([sys.executable, "-c", START_WORKER, module], cwd=ROOT) as parent:
        wait_for(lambda: any("import_module" in command_line(pid) for pid in children_of(parent.pid)))
        (worker,) = children_of(parent.pid)
        os.kill(worker, signal.SIGSTOP)  # it cannot end by itself
        assert lives(worker)
        parent.kill()
        wait_for(lambda: not lives(worker))


def test_an_interrupt_before_a_program_is_loaded_ends_it(tmp_path: Path) -> None:
    started = tmp_path / "pid"

    def interrupt() -> None:
        started.write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.2)  # the parent is in Popen, and waits for us to be loaded

    with pytest.raises(KeyboardInterrupt), child(["sleep", "600"], before=interrupt):
        pytest.fail("the interrupt was lost")
    assert not lives(int(started.read_text()))


def test_a_program_says_how_it_ended() -> None:
    ran = run_program(["sh", "-c", "echo out; printf '\\377' >&2; exit 7"])
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "\ufffd")
    assert run_program(["sh", "-c", "kill -9 $$"]).code == -signal.SIGKILL


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_that_writes_without_end_is_ended(stream: int) -> None:
    with pytest.raises(UnsupportedError, match=r"sh: it writes more than 16MiB, and was ended; run it by hand"):
        run_program(["sh", "-c", f"yes >&{stream}"])


def test_nothing_else_starts_processes() -> None:
    starts = re.compile(r"subprocess\.(Popen|run|call|check_\w+|get\w+)\(|os\.(system|popen|fork|spawn\w+)\(")
    folders = [ROOT / name for name in ("edgeglm", "export", "runtimes", "devices")]
    files = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    assert [path for path in sorted(files) if starts.search(path.read_text())] == [ROOT / "edgeglm/process.py"]


def test_a_process_that_others_start_ends_with_its_parent() -> None:
    code = (
        "import time; from edgeglm.process import die_with_parent\n"
        "die_with_parent(); print(1, flush=True); time.sleep(600)"
    )
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with child([sys.executable, "-c", starts], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"1\n"
        (started,) = children_of(parent.pid)
        parent.kill()
        wait_for(lambda: not command_line(started))
