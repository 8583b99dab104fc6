"""Commands whose streams, encodings and folders are as odd as a supervisor makes them: an exit code and a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.adversary.fuzzer import Fuzzer

PROMPTS = ["Select OK", "点一下确定", "\u00e9\u0301 \U0001f600", "a\x00b".replace("\x00", "\t")]
ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"XDG_CACHE_HOME": "/proc/x"},
    {"XDG_CACHE_HOME": "relative"},
    {"XDG_CACHE_HOME": "", "HOME": "/dev/null"},
    {"COLUMNS": "1"},
]
OPTIONS: list[list[str]] = [
    [], ["--json"], ["--threads", "1"], ["--threads", "0"], ["--threads", "-1"], ["--threads", "2147483648"],
    ["--max-new-tokens", "0"], ["--max-new-tokens", "99999999999"], ["--context", "0"], ["--context", "5"],
    ["--max-ram", "1MB"], ["--max-ram", "1e9GiB"], ["--max-ram", "x"], ["--low-rss"], ["--temperature", "nan"],
    ["--temperature", "-1"], ["--temperature", "1e-300"], ["--top-p", "0"], ["--top-p", "inf"], ["--seed", "-1"],
    ["--image", "/dev/zero"], ["--image", "/"], ["--image", ""], ["--memory-plot", "/proc/x.svg"], ["--unknown"],
]  # fmt: skip


def closed(number: int) -> Callable[[], None]:
    """Start with a descriptor closed."""
    return lambda: os.close(number)


def test_streams_and_options_end_in_an_exit_code(bundle: Path, tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer = fuzz("streams, encodings and options of the runner")
    programs = ([sys.executable, str(bundle / "run.pyz")], [sys.executable, "-m", "edgeglm", "run", str(bundle)])
    for _ in fuzzer.attempts():
        chance = fuzzer.random
        program, environment = chance.choice(programs), chance.choice(ENVIRONMENTS)
        options, prompt = chance.choice(OPTIONS), chance.choice(PROMPTS)
        short = [] if "--max-new-tokens" in options else ["--max-new-tokens", "3"]
        stream = chance.choice(["pipe", "pipe", "full", "closed", "no stdin", "no stderr"])
        before = {"closed": closed(1), "no stdin": closed(0), "no stderr": closed(2)}.get(stream)
        attempt = f"{program[1:]} {options} {prompt!r} {environment} {stream}"
        with open("/dev/full", "w") as full:
            try:
                done = subprocess.run(
                    [*program, "--prompt", prompt, *short, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=full if stream == "full" else subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=tmp_path,
                    env={**os.environ, **environment},
                    preexec_fn=before,
                    timeout=60,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                fuzzer.fault(attempt, "hangs")
                continue
        out, err = (data.decode(errors="replace") if data else "" for data in (done.stdout, done.stderr))
        if stream in ("pipe", "no stdin"):
            fuzzer.judge(attempt, done.returncode, out, err, {0, 2, 3, 5})
        elif done.returncode in (0, 2, 3, 5, 141) and "Traceback" not in err:
            fuzzer.saw(f"exit {done.returncode}")
        else:
            fuzzer.fault(attempt, f"exit {done.returncode}: {err[-200:]}")
