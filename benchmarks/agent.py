"""The demo agent on the runner and in transformers: ``python benchmarks/agent.py BUNDLE``.

Prints time and memory of a first answer in a fresh process, of answers in a process that has already answered, and of a
second question about the same screenshot. BUNDLE is one of the demo, such as ``build/demo``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from edgeglm.bundle import load_bundle
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.memory import peak_rss
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import message
from edgeglm.units import format_size

SCREENS = [DATA / "evaluation" / f"{index:04d}.webp" for index in range(30)]
QUESTIONS = ("Select OK", "Go back")
TURNS = 5


def main() -> None:
    """Print both tables."""
    bundle = Path(sys.argv[1])
    cold = [program(bundle, "--image", str(SCREENS[1]), "--prompt", QUESTIONS[0]) for _ in range(TURNS)]
    blind = program(bundle, "--prompt", QUESTIONS[0])
    rival = [json.loads(child("--transformers")) for _ in range(2)]
    peak, first = int(cold[0]["peak_rss_bytes"]), median(run["wall_ms"] for run in cold)
    print(
        f"a first answer, from the start of the process: runner {first:.0f} ms, transformers {rival[1]['cold']:.0f} ms"
    )
    print(f"peak RSS: runner {format_size(peak)}, transformers {format_size(rival[1]['peak'])}")
    print(f"without a picture the runner peaks at {format_size(int(blind['peak_rss_bytes']))}")
    opened = load_bundle(bundle)
    weights = opened.path("decoder/weights.bin").stat().st_size
    base = blind["peak_rss_bytes"] - weights - blind["state_bytes"]
    bound = base + weights + cold[0]["state_bytes"]
    print(
        f"vision and decoder peak at {peak / bound:.2f}x of decoder weights, keys and values, and engine (asked: 1.20x)"
    )
    first_token, reused, answers = warm(bundle)
    print(f"later answers: runner {answers:.0f} ms, transformers {rival[1]['warm']:.0f} ms")
    print(
        f"first token: {first_token:.1f} ms for a new screenshot, {reused:.1f} ms for another question about the same"
    )


def program(bundle: Path, *arguments: str) -> dict[str, float]:
    """What ``run.pyz`` reports in a fresh process, and how long that took."""
    start = time.perf_counter()
    result: dict[str, float] = json.loads(child(str(bundle / "run.pyz"), *arguments, "--json", script=False))
    return {**result, "wall_ms": (time.perf_counter() - start) * 1e3}


def child(*arguments: str, script: bool = True) -> str:
    """The output of a Python process."""
    command = [sys.executable, *([__file__] if script else []), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def warm(bundle: Path) -> tuple[float, float, float]:
    """Milliseconds to the first token for new and for known screenshots, and of whole answers."""
    fresh, known, whole = [], [], []
    with Runner(bundle) as runner:
        for screen in SCREENS:
            start = time.perf_counter()
            fresh.append(runner.answer([message("user", QUESTIONS[0], screen)]).time_to_first_token_ms)
            whole.append((time.perf_counter() - start) * 1e3)
            known.append(runner.answer([message("user", QUESTIONS[1], screen)]).time_to_first_token_ms)
    return median(fresh[1:]), median(known), median(whole[1:])


def in_transformers() -> None:
    """Print milliseconds of a first and of later answers, with all imports, and the peak RSS."""
    samples = list(read_samples(DATA / "evaluation.jsonl", len(SCREENS)))
    agent, times = WholeOriginal.load(DEMO), []
    for sample in samples:
        start = time.perf_counter()
        list(agent.answer([sample.image], [replace(sample, prompt=QUESTIONS[0]).messages]))
        times.append((time.perf_counter() - start) * 1e3)
        if len(times) == 1:
            cold = time.clock_gettime(time.CLOCK_BOOTTIME) - started()
    print(json.dumps({"cold": cold * 1e3, "warm": median(times[1:]), "peak": peak_rss()}))


def started() -> float:
    """When this process began, in seconds since the machine did."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / 100


if __name__ == "__main__":
    in_transformers() if sys.argv[1:] == ["--transformers"] else main()
