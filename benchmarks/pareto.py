"""Size, accuracy and peak memory of the demo in every precision, and of what the ladder makes of int4.

``python -m benchmarks.pareto WORK_DIR`` from the repository's root exports the demo in each precision, validates each
bundle on the whole evaluation set, runs it on one screen in a fresh process, and prints one table; with
``--plot FILE.svg`` it draws size against accuracy. ``mixed`` is ``--precision int4 --accuracy-drop PCT``. With
``--outliers FACTOR`` all of it is done on a copy of the demo with the outlier channels of a large language model
(``--channels`` of them, of 256), which computes the same in fp32. What is measured already lies in WORK_DIR and is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.samples.shipped import DATA
from edgeglm.units import format_size
from tests.export.outliers import inject_outliers

UNIFORM = ("fp32", "fp16", "int8", "int8-block", "int4", "int4-128")
ACCURACY_FAILED = 4
CHANNELS = 8
EVALUATION = DATA / "evaluation.jsonl"
HEADINGS = (
    "PRECISION", "BUNDLE", "TO FP32", "TO FP16", "STEP SUCCESS", "KEPT", "DROP", "TAP ERROR", "PEAK RSS", "AT 2%",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One bundle; accuracies are shares, the tap error is in thousandths of the screen."""

    precision: str
    bundle_bytes: int = 0
    step_success: float = 0.0
    reference: float = 0.0
    tap_error: float = 0.0
    peak_rss_bytes: int = 0
    verdict: str = "refused"

    def cells(self, fp32: int, fp16: int) -> tuple[str, ...]:
        """As the table shows it."""
        if not self.bundle_bytes:
            return self.precision, *("-" * (len(HEADINGS) - 2)), self.verdict
        return (
            self.precision,
            format_size(self.bundle_bytes),
            f"{self.bundle_bytes / fp32 - 1:+.0%}",
            f"{self.bundle_bytes / fp16 - 1:+.0%}",
            f"{self.step_success:.2%}",
            f"{self.step_success / self.reference:.1%}",
            f"{self.reference - self.step_success:+.2%}",
            f"{self.tap_error:.1f}",
            format_size(self.peak_rss_bytes),
            self.verdict,
        )


class Bench:
    """The model, and where its bundles go."""

    def __init__(self, work: Path, outliers: float | None, channels: int, accuracy_drop: str) -> None:
        self.work = work / ("demo" if outliers is None else f"outliers-{outliers:g}-{channels}")
        self.work.mkdir(parents=True, exist_ok=True)
        self.accuracy_drop, self.model = accuracy_drop, [] if outliers is None else [str(self.work / "model")]
        self.data = [] if outliers is None else ["--data", str(EVALUATION), "--reference", self.model[0]]
        if outliers is not None and not (self.work / "model").exists():
            inject(outliers, self.work / "model", channels)

    def row(self, precision: str) -> Row:
        """Export, validate and run."""
        cache = self.work / f"{precision}.json"
        if cache.exists():
            return Row(**json.loads(cache.read_text()))
        print(f"{precision} …", file=sys.stderr)
        row = self._row(precision)
        cache.write_text(json.dumps(asdict(row)))
        return row

    def _row(self, precision: str) -> Row:
        bundle = self.work / precision
        gate = ["--accuracy-drop", self.accuracy_drop] if precision == "mixed" else []
        data = ["--calibration", str(EVALUATION)] if gate and self.model else []
        asked = "int4" if precision == "mixed" else precision
        made = edgeglm("export", *self.model, "--target", "cpu", "--precision", asked, "-o", str(bundle), *gate, *data)
        if made is None or not made["bundle"]:
            return Row(precision)
        (self.work / f"{precision}.export.json").write_text(json.dumps(made, indent=1))
        found = edgeglm("validate", str(bundle), *self.data)
        assert found is not None
        metrics = {metric["name"]: metric for metric in found["metrics"]}
        verdicts = [metric["verdict"] for metric in metrics.values()]
        verdict = next((name for name in ("fail", "unclear") if name in verdicts), "pass")
        image = next((DATA / "evaluation").glob("*.webp"))
        ran = edgeglm("run", str(bundle), "--image", str(image), "--prompt", "Tap Bluetooth")
        assert ran is not None
        success = metrics["step_success"]
        return Row(
            precision,
            made["bundle_bytes"],
            success["artifact"],
            success["reference"],
            metrics["median_tap_error"]["artifact"],
            ran["peak_rss_bytes"],
            verdict,
        )


def inject(factor: float, folder: Path, channels: int = CHANNELS) -> None:
    """A copy of the demo with outlier channels."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in DEMO.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = {name: value.float() for name, value in load_file(DEMO / "model.safetensors").items()}
    save_file(inject_outliers(state, factor, channels), folder / "model.safetensors", {"format": "pt"})


def edgeglm(*arguments: str) -> dict | None:  # type: ignore[type-arg]
    """What a command prints with ``--json`` in a fresh process; None where its accuracy gate left nothing to print."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeglm", *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, ACCURACY_FAILED):
        sys.exit(f"edgeglm {' '.join(arguments)} ended with {done.returncode}")
    result: dict | None = json.loads(done.stdout) if done.stdout else None  # type: ignore[type-arg]
    return result


def table(rows: list[Row]) -> str:
    """The rows as lines."""
    sizes = {row.precision: row.bundle_bytes for row in rows}
    cells = [HEADINGS, *(row.cells(sizes["fp32"], sizes["fp16"]) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def plot(rows: list[Row], file: Path) -> None:
    """Size against accuracy, with the line that no bundle is both above and left of."""
    shown = sorted((row for row in rows if row.bundle_bytes), key=lambda row: row.bundle_bytes)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes, shares = [row.bundle_bytes / 2**20 for row in shown], [100 * row.step_success for row in shown]
    axes.scatter(sizes, shares)
    for row, size, share in zip(shown, sizes, shares, strict=True):
        axes.annotate(row.precision, (size, share), xytext=(5, 5), textcoords="offset points")
    front = [index for index, share in enumerate(shares) if share > max(shares[:index], default=-1)]
    axes.step([sizes[index] for index in front], [shares[index] for index in front], where="post", alpha=0.4)
    axes.axhline(100 * shown[0].reference, linestyle="--", linewidth=0.8, label="original in fp32")
    axes.set(xlabel="bundle, MiB", ylabel="step success, %")
    axes.legend()
    figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--accuracy-drop", default="2%", metavar="PCT")
    parser.add_argument("--outliers", type=float, metavar="FACTOR")
    parser.add_argument("--channels", type=int, default=CHANNELS, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    arguments = parser.parse_args()
    bench = Bench(arguments.work, arguments.outliers, arguments.channels, arguments.accuracy_drop)
    rows = [bench.row(precision) for precision in (*UNIFORM, "mixed")]
    print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
