"""The steps of a phone agent, edgeglm beside other engines: ``python -m benchmarks.episode WORK_DIR``.

An episode has ten steps in the message form of Open-AutoGLM's client: a long system prompt, a history without its
pictures, and one new screenshot. The model is the 300M GLM-4.1V shape with random weights. Every engine is fed the same
answers and given the features of pictures. Each keeps what a prompt shares with the one before it. The demo's answers
are its own, and its pictures are encoded.

All contenders are loaded at once and take turns step by step, so that a noisy machine hurts all of them alike. The
first episode begins with the process; the second one is another task in the same process. Figures are medians.
llama.cpp takes part where ``gguf`` is installed here, and ``llama-cpp-python`` here or in ``--rivals PYTHON``;
onnxruntime-genai where it is installed here; an earlier edgeglm where ``--before PYTHON`` has it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.episode_bars import bars
from benchmarks.episode_models import DEMO_STEPS, demo, scripted
from benchmarks.episode_worker import Figures
from benchmarks.worker_process import NO_OPTIONS, Contender, WorkerProcess, forget_pages
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.units import format_size

START, WARM = 0, 1  # the episode that begins with the process, and the one behind it
DECODERS = ("edgeglm int8", "edgeglm int4", "edgeglm int4-128", "llama.cpp Q4_0", "llama.cpp Q8_0")
SHORT, LONG = 256, 3000
ROUNDS, TOKENS = 5, 8
SLOW = "transformers fp32"  # takes part in the first turn alone


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON", help="one that has llama-cpp-python")
    parser.add_argument("--before", metavar="PYTHON", help="one that has an earlier edgeglm")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of an episode (default: 10)")
    parser.add_argument("--ablate", action="store_true", help="run edgeglm also without its parts, and with each alone")
    parser.add_argument("--demo", action="store_true", help="run the demo's episodes alone")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="contenders whose names begin so")
    options = parser.parse_args()
    kernels = read_machine().int8_kernels
    print(f"{options.threads} threads, {options.turns} turns of {options.steps} steps; {describe_kernels(kernels)}")
    figures: dict[str, Figures] = {}
    groups = [(demo(options.work, options.before, ablate=options.ablate), min(DEMO_STEPS, 3 * options.steps))]
    if not options.demo:
        shape = scripted(options.work, options.rivals, options.before, ablate=options.ablate)
        groups.insert(0, (shape, options.steps))
    for contenders, steps in groups:
        chosen = {name: contender for name, contender in contenders.items() if name.startswith(tuple(options.only))}
        group = measure(chosen, options.threads, options.turns, steps)
        print("\n".join(["", *table(group)]), flush=True)
        figures |= group
    print("\n".join(["", *decoding(figures), "", *bars(figures, "vnni" in kernels)]))


def measure(contenders: Mapping[str, Contender], threads: int, turns: int, steps: int) -> dict[str, Figures]:
    """Return the medians of each contender over the turns."""
    runs: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(turns):
        alive = {name: contender for name, contender in contenders.items() if not number or name != SLOW}
        for name, figures in turn(alive, threads, steps).items():
            runs[name].append(figures)
        print(f"turn {number + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
    return {name: {key: median(run[key] for run in several) for key in several[0]} for name, several in runs.items()}


def turn(contenders: Mapping[str, Contender], threads: int, steps: int) -> dict[str, Figures]:
    """Return the figures of both episodes, one process a contender."""
    for contender in contenders.values():
        contender.forget()  # an episode's screenshots are new in each turn, and the system prompt is not
        if contender.options != NO_OPTIONS:
            cold_answer(contender, threads)
    cold = {name: cold_answer(contender, threads) for name, contender in contenders.items()}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(WorkerProcess(contender, threads)) for name, contender in contenders.items()
        }
        start = episode(workers, START, steps)
        peaks = {name: worker.ask("peak")["peak"] for name, worker in workers.items()}
        warm = episode(workers, WARM, steps)
        tokens = decode({name: worker for name, worker in workers.items() if name in DECODERS})
        return {
            name: {
                "cold": cold[name],
                "start": worker.loaded + sum(step["seconds"] for step in start[name]),
                "peak": peaks[name],
                **tokens.get(name, {}),
                **summary(warm[name]),
            }
            for name, worker in workers.items()
        }


def cold_answer(contender: Contender, threads: int) -> float:
    """Return the seconds from the start of a process to the end of its first answer, its model not in memory."""
    forget_pages(contender.model)
    with WorkerProcess(contender, threads) as worker:
        return worker.loaded + worker.ask("step", START, 0)["seconds"]


def episode(workers: Mapping[str, WorkerProcess], number: int, steps: int) -> dict[str, list[Figures]]:
    """Return each contender's figures of each step; they take turns."""
    done: dict[str, list[Figures]] = {name: [] for name in workers}
    for step in range(steps):
        for name, worker in workers.items():
            done[name].append(worker.ask("step", number, step))
            print(f"episode {number}, step {step}: {name} {done[name][-1]}", file=sys.stderr, flush=True)
    return done


def decode(workers: Mapping[str, WorkerProcess]) -> dict[str, Figures]:
    """Return each contender's seconds of a token behind a short and behind a long prompt; they take turns."""
    seconds: dict[str, Figures] = {name: {} for name in workers}
    for key, behind in (("short", SHORT), ("long", LONG)):
        rounds = [
            {name: worker.ask("decode", behind, TOKENS)["token"] for name, worker in workers.items()}
            for _ in range(ROUNDS)
        ]
        for name in workers:
            seconds[name][key] = median(turn[name] for turn in rounds)
    return seconds


def summary(steps: list[Figures]) -> Figures:
    """Return the sum and the medians of an episode's steps."""
    return {
        "warm": sum(step["seconds"] for step in steps),
        "step": median(step["seconds"] for step in steps),
        "first": median(step["first"] for step in steps),
        "rest": median((step["seconds"] - step["first"]) / max(1, step["tokens"] - 1) for step in steps),
        "passes": sum(step["passes"] for step in steps) / sum(step["tokens"] for step in steps),
        "prefilled": median(step["prefilled"] for step in steps),
        "cpu": median(step["cpu"] for step in steps),
    }


def table(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a row a contender."""
    yield f"{'':<23}COLD     START     WARM      STEP     FIRST TOKEN  A TOKEN  PASSES  PREFILLED  CPU       PEAK RSS"
    for name, row in figures.items():
        yield (
            f"{name:<22} {row['cold']:>5.2f} s  {row['start']:>6.2f} s  {row['warm']:>6.2f} s  {row['step']:>6.3f} s  "
            f"{row['first']:>9.3f} s  {1e3 * row['rest']:>4.1f} ms  {row['passes']:>6.2f}  {row['prefilled']:>9.0f}  "
            f"{row['cpu']:>6.3f} s  "
            f"{format_size(int(row['peak']))}"
        )


def decoding(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a row a contender that was asked for single tokens."""
    for name, row in figures.items():
        if "short" in row:
            short, long = 1e3 * row["short"], 1e3 * row["long"]
            yield f"{name:<22} a token behind {SHORT}: {short:.1f} ms, {LONG}: {long:.1f} ms, {long / short:.2f}x"


if __name__ == "__main__":
    main()
