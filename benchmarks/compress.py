"""What compression costs and gains on the demo: success before and after a recovery, latency, and size.

``python -m benchmarks.compress WORK_DIR`` from the repository's root makes samples from the demo's generator, prunes,
recovers, exports and validates, each with the command that users have, and prints a table with the bars that are met
and MISSED. A step whose result is in WORK_DIR is not run again; a recovery that was killed goes on. ``--for SECONDS``
ends a step early, so that the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.demo.samples import write_samples
from edgeglm.export.samples.shipped import DATA

# Of the decoder's and the tower's blocks in the demo.
BLOCKS = ("model.language_model.layers.", "model.visual.blocks.")
SCREENS, ROUNDS, REQUESTS = 1024, 5, 8
LIMIT_MINUTES = 60.0


class Steps:
    """Commands of edgeglm whose results are kept in a folder.

    Args:
        work: The folder.
        seconds: When to end, counted from now; None for never.
    """

    def __init__(self, work: Path, seconds: float | None) -> None:
        self.work, self.end = work, None if seconds is None else time.monotonic() + seconds

    def run(self, name: str, *arguments: object, statuses: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Return a command's JSON, with the seconds of all its attempts as ``spent``; exit where time is up."""
        file, clock = self.work / f"{name}.json", self.work / f"{name}.seconds"
        if file.exists():
            known: dict[str, Any] = json.loads(file.read_text())
            return known
        print(f"{name} …", file=sys.stderr, flush=True)
        started, spent = time.monotonic(), float(clock.read_text()) if clock.exists() else 0.0
        left = None if self.end is None else max(1.0, self.end - started)
        command = [sys.executable, "-m", "edgeglm", *map(str, arguments), "--json"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            clock.write_text(str(spent + time.monotonic() - started))
            sys.exit(f"{name}: time is up; run the same command to go on")
        spent += time.monotonic() - started
        if done.returncode not in statuses:
            sys.exit(f"{name}: exit code {done.returncode}")
        result: dict[str, Any] = {**json.loads(done.stdout), "spent": spent}
        file.write_text(json.dumps(result))
        return result


def gone(smaller: Path) -> float:
    """Return the share of the blocks' parameters that a smaller demo has lost."""
    return 1 - _parameters(smaller) / _parameters(DEMO)


def _parameters(folder: Path) -> int:
    header = Checkpoint.open(folder, headers_only=True)
    sizes = {name: tensor.nbytes for name, tensor in header.tensors.items()}  # of one dtype
    return sum(size for name, size in sizes.items() if name.startswith(BLOCKS))


def block_bytes(bundle: Path) -> int:
    """Return the bytes that the blocks' weights and scales have in the files of decoder and tower."""
    total = 0
    for module in ("decoder", "vision"):
        graph = onnx.load(str(bundle / module / "model.onnx"), load_external_data=False).graph
        for tensor in graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            total += int(entries.get("length", 0)) if tensor.name.startswith(BLOCKS) else 0
    return total


def success(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return the reference's and the artifact's step success of a validation."""
    metric = next(metric for metric in result["metrics"] if metric["name"] == "step_success")
    return metric["reference"], metric["artifact"]


def speeds(steps: Steps, before: Path, after: Path, precision: str) -> tuple[float, float]:
    """Return how many times faster prefill and decode are: the medians of rounds that alternate."""
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for number in range(ROUNDS):
        pair = [
            steps.run(f"bench-{precision}-{name}-{number}", "bench", bundle, "--requests", REQUESTS)
            for name, bundle in (("before", before), ("after", after))
        ]
        for kind, values in ratios.items():
            values.append(pair[1][f"{kind}_tokens_per_second"] / pair[0][f"{kind}_tokens_per_second"])
    prefill, decode = (sorted(values)[ROUNDS // 2] for values in ratios.values())
    return prefill, decode


def row(name: str, value: str, bar: str = "", met: bool | None = None) -> None:
    """Print a row of the table."""
    verdict = "" if met is None else "met" if met else "MISSED"
    print(f"| {name} | {value} | {bar} | {verdict} |")


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--prune", default="40%", metavar="RATE")
    parser.add_argument("--samples", type=int, default=4000, metavar="N")
    parser.add_argument("--epochs", type=int, default=8, metavar="N")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE")
    parser.add_argument("--screens", type=int, default=SCREENS, metavar="N")
    parser.add_argument("--for", dest="seconds", type=float, metavar="SECONDS")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    steps = Steps(work, arguments.seconds)
    data = work / "data" / "distill.jsonl"
    if not data.exists():
        write_samples("distill", arguments.samples, work / "made")
        (work / "made").rename(work / "data")
    measure(steps, arguments, data)


def measure(steps: Steps, arguments: argparse.Namespace, data: Path) -> None:
    """Compress, export and validate, and print the table."""
    work = steps.work
    plain, recovered = work / "pruned", work / "recovered"
    steps.run("pruned", "compress", "-o", plain, "--prune", arguments.prune)
    learned = steps.run(
        "recovered", "compress", "-o", recovered, "--prune", arguments.prune, "--distill", data,
        "--epochs", arguments.epochs, "--learning-rate", arguments.learning_rate,
    )  # fmt: skip
    bundles: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for name, model in (("demo", None), ("pruned", plain), ("recovered", recovered)):
        for precision in ("fp32", "int4") if name != "pruned" else ("fp32",):
            key = f"{name}-{precision}"
            bundles[key] = work / f"bundle-{key}"
            calibrated = ("--calibration", DATA / "calibration.jsonl") if precision == "int4" else ()
            made = steps.run(
                f"export-{key}", "export", *([model] if model else []), "--target", "cpu", "--precision", precision,
                "-o", bundles[key], *calibrated,
            )  # fmt: skip
            sizes[key] = made["bundle_bytes"]
    scores = {
        key: steps.run(f"validate-{key}", "validate", bundles[key], "--limit", arguments.screens, statuses=(0, 4))
        for key in ("pruned-fp32", "recovered-fp32", "recovered-int4")
    }
    original, before = success(scores["pruned-fp32"])
    _, after = success(scores["recovered-fp32"])
    print("| figure | measured | bar | |\n| --- | --- | --- | --- |")
    share, minutes = gone(recovered), learned["spent"] / 60
    row("parameters of the blocks gone", f"{share:.1%}", ">= 40%", share >= 0.4)
    row("step success of the original", f"{original:.2%}")
    row("before recovery", f"{before:.2%}")
    row("after recovery", f"{after:.2%}", "within 2 points", original - after <= 0.02)
    row("minutes of compressing and recovering", f"{minutes:.0f}", "<= 60", minutes <= LIMIT_MINUTES)
    for precision in ("fp32", "int4"):
        ratios = speeds(steps, bundles[f"demo-{precision}"], bundles[f"recovered-{precision}"], precision)
        for kind, ratio in zip(("prefill", "decode"), ratios, strict=True):
            row(f"{kind} in {precision}, times as fast", f"{ratio:.2f}", ">= 1.3", ratio >= 1.3)
    size = sizes["recovered-int4"] / sizes["demo-int4"]
    row("int4 bundle beside the demo's in int4", f"{size:.2f}", "<= 0.65", size <= 0.65)
    stored = block_bytes(bundles["recovered-int4"]) / block_bytes(bundles["demo-int4"])
    row("the same of the blocks' weights alone", f"{stored:.2f}")
    passed = scores["recovered-int4"]["passed"]
    row("gate of the int4 bundle at 2%", "passed" if passed else "failed", "passed", passed)


if __name__ == "__main__":
    main()
