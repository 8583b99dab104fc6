"""The runner against other engines on the same weights, side by side: ``python benchmarks/speed.py WORK_DIR``.

Writes the 300M GLM-4 shape with random weights, exports it in int8, int4 and int4-128, and runs each contender in
processes of its own, in turns, so that a noisy machine hurts all of them alike; figures are medians over the turns.
llama.cpp takes part where ``gguf`` is installed here, and ``llama-cpp-python`` here or in the environment of
``--rivals PYTHON``; onnxruntime-genai, whose builder needs torch and transformers, where it is installed here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from edgeglm.units import format_size

HERE = Path(__file__).parent
Figures = dict[str, float]
Rows = dict[str, tuple[str, str, Path]]
COLUMNS = ("prefill", "decode", "agent_step_s", "load_s", "first_token_s", "peak", "anonymous")
# What is asked: a figure of one contender, of another, the ratio, and which way it must be.
BARS = (
    ("int4 decode", "edgeglm int4", "onnxruntime-genai int4", "decode", 1.0),
    ("int4 decode", "edgeglm int4", "llama.cpp Q4_0", "decode", 0.95),
    ("int4-128 decode", "edgeglm int4-128", "llama.cpp Q4_0", "decode", 0.95),
    ("int8 decode", "edgeglm int8", "llama.cpp Q8_0", "decode", 1.2),
    ("int8 prefill", "edgeglm int8", "llama.cpp Q8_0", "prefill", 3.5),
    ("int8 agent step", "edgeglm int8", "llama.cpp Q4_0", "agent_step_s", 0.6),
)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON", help="one that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    models = prepare(options.work, options.rivals)
    speed = bandwidth(options.threads)
    runs: dict[str, list[Figures]] = {name: [] for name in models}
    for _ in range(options.turns):
        for name, (python, contender, path) in models.items():
            runs[name].append(child(python, contender, path, options.threads))
    figures = {name: {key: median(run[key] for run in several) for key in several[0]} for name, several in runs.items()}
    print(f"{options.threads} threads, {options.turns} turns; memory is read at {speed / 1e9:.1f} GB/s\n")
    print("\n".join(table(figures)))
    print()
    print("\n".join(bars(figures)))
    for precision in ("int8", "int4"):
        share = figures[f"edgeglm {precision}"]["decode"] * decoder_bytes(options.work / precision) / speed
        print(f"{precision} decode reads weights at {share:.0%} of the memory's speed")
    for name in ("edgeglm int8", "llama.cpp Q4_0"):
        if name in figures:
            prefill, token, short = (figures[name][key] for key in ("step_prefill_s", "step_token_s", "decode"))
            print(
                f"agent step of {name}: prefill {prefill:.2f} s, then {1e3 * token:.1f} ms a token, "
                f"which behind a short prompt takes {1e3 / short:.1f} ms"
            )
    share = figures["edgeglm int4"]["python_share"]
    print(f"the Python layer takes {share:.1%} of an int4 decode step (asked: below 5%)")


def prepare(work: Path, rivals: str) -> Rows:
    """Make what is not there yet; gives the interpreter, the contender and the model of each row."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "glm4-300m"
    if not checkpoint.exists():
        run(sys.executable, HERE / "random_checkpoint.py", "glm4-300m", checkpoint)
    rows: Rows = {}
    for precision in ("int8", "int4", "int4-128"):
        if not (work / precision).exists():
            run(sys.executable, "-m", "edgeglm", "export", checkpoint, "--target", "cpu", "--precision", precision,
                "-o", work / precision)  # fmt: skip
        rows[f"edgeglm {precision}"] = (sys.executable, "edgeglm", work / precision)
        rows[f"edgeglm {precision} --low-rss"] = (sys.executable, "edgeglm-low-rss", work / precision)
        child(*rows[f"edgeglm {precision} --low-rss"], 1)  # the first time makes the file
    rows["transformers fp32"] = (sys.executable, "transformers", checkpoint)
    return rows | genai(work, checkpoint) | llama_cpp(work, checkpoint, rivals)


def genai(work: Path, checkpoint: Path) -> Rows:
    """Those of onnxruntime-genai."""
    if not has(sys.executable, "onnxruntime_genai"):
        print("onnxruntime-genai is left out: it is not installed")
        return {}
    rows = {}
    for precision in ("int8", "int4"):
        folder = work / f"genai-{precision}"
        if not folder.exists():
            run(sys.executable, HERE / "genai_model.py", checkpoint, precision, folder)
        rows[f"onnxruntime-genai {precision}"] = (sys.executable, "onnxruntime-genai", folder)
    return rows


def llama_cpp(work: Path, checkpoint: Path, rivals: str) -> Rows:
    """Those of llama.cpp."""
    if not (has(sys.executable, "gguf") and has(rivals, "llama_cpp")):
        print("llama.cpp is left out for want of gguf or llama-cpp-python")
        return {}
    rows = {}
    for kind in ("Q4_0", "Q8_0"):
        file = work / f"{kind}.gguf"
        if not file.exists():
            run(sys.executable, HERE / "gguf_model.py", checkpoint, kind, file)
        rows[f"llama.cpp {kind}"] = (rivals, "llama.cpp", file)
    return rows


def has(python: str, module: str) -> bool:
    """Whether an interpreter can import a module."""
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode


def run(*command: object) -> str:
    """A command's output; its errors go to the terminal."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def child(python: str, contender: str, model: Path, threads: int) -> Figures:
    """One contender's figures."""
    figures: Figures = json.loads(run(python, HERE / "contenders.py", contender, model, threads))
    return figures


def decoder_bytes(bundle: Path) -> int:
    """What each token reads."""
    return (bundle / "decoder" / "weights.bin").stat().st_size


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read."""
    arrays = [np.ones(64 << 20, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda array: array.dot(array), arrays))
            seconds.append(time.perf_counter() - start)
    return threads * arrays[0].nbytes / min(seconds)


def table(figures: dict[str, Figures]) -> Iterator[str]:
    """A row a contender."""
    yield f"{'':<24}PREFILL/S  DECODE/S  AGENT STEP  LOAD    FIRST TOKEN  PEAK RSS    ANONYMOUS"
    for name, figure in figures.items():
        prefill, decode, step, load, first, peak, anonymous = (figure[key] for key in COLUMNS)
        yield (
            f"{name:<24}{prefill:>9.0f}  {decode:>8.1f}  {step:>8.2f} s  {load:>4.2f} s  {first:>9.2f} s  "
            f"{format_size(int(peak)):<10}  {format_size(int(anonymous))}"
        )


def bars(figures: dict[str, Figures]) -> Iterator[str]:
    """What was asked, and what it is."""
    for what, ours, theirs, key, asked in BARS:
        if theirs in figures:
            ratio, least = figures[ours][key] / figures[theirs][key], key != "agent_step_s"
            met = ratio >= asked if least else ratio <= asked
            sign = ">=" if least else "<="
            yield f"{what:<16} {ratio:.2f}x {theirs:<16} asked {sign} {asked:.2f}x  {'met' if met else 'MISSED'}"


if __name__ == "__main__":
    main()
