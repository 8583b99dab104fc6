"""INT8 of users' graphs beside ONNX Runtime's own tools: error on unseen samples, size and time, in one run.

    python -m benchmarks.own_graph                 # graphs that are made here
    python -m benchmarks.own_graph --dense         # small dense networks
    python -m benchmarks.own_graph DIR             # NAME.onnx, and its samples NAME/*.npz, for each NAME
    python -m benchmarks.own_graph --memory [DIR]  # the peak memory of each export, predicted and measured
    python -m benchmarks.own_graph --haswell …     # errors on an emulated CPU without VNNI

A quarter of the samples is seen by nobody. The others calibrate edgeglm and ONNX Runtime: its `quantize_static` and
`quantize_dynamic` with their defaults, and its tuned settings (per channel, only products, 7 bits, percentiles). The
one with the least error is the bar, of those that are at most a quarter larger than the smallest, edgeglm's among them:
what leaves most of the weights in floating point is no INT8.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.dense_graphs import write_dense
from benchmarks.emulated import run_there
from benchmarks.own_graphs import write_graphs
from edgeglm.errors import EdgeglmError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.foreign.measure.clamps import reach_of
from edgeglm.export.foreign.measure.difference import Comparison, worst_of
from edgeglm.export.foreign.measure.places import places_of
from edgeglm.units import format_size

Arrays = Mapping[str, NDArray[Any]]
MORE_ERROR, MORE_BYTES, MORE_TIME = 1.1, 1.05, 1.1
# An error below which none is worse than another.
ROUNDING = 1e-3
SAME_SIZE = 1.25
MORE_MEMORY = 1.05  # of the predicted peak
ROUNDS = 30


@dataclass
class Contender:
    """A quantized graph: its error on unseen samples, its bytes, its time relative to the bar's."""

    name: str
    file: Path
    error: float
    size: int
    time: float = 1.0


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples, one after the other."""

    def __init__(self, samples: list[Arrays]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> Arrays | None:
        """Return the next sample, None after the last."""
        return next(self.samples, None)


def settings(samples: list[Arrays]) -> dict[str, Callable[[Path, Path], None]]:
    """Return ONNX Runtime's ways to quantize a file, by name."""
    channels: dict[str, Any] = {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    }
    products = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"]}

    def static(**options: Any) -> Callable[[Path, Path], None]:  # noqa: ANN401
        return lambda source, out: quantize_static(source, out, Reader(samples), **options)

    def dynamic(**options: Any) -> Callable[[Path, Path], None]:  # noqa: ANN401
        return lambda source, out: quantize_dynamic(source, out, **options)

    bodies = {"extra_options": {"EnableSubgraph": True}}
    percentile = {"calibrate_method": CalibrationMethod.Percentile}
    return {
        "static, default": static(),
        "dynamic, default": dynamic(),
        "static, channels": static(**channels),
        "static, products": static(**channels, **products),
        "static, products, percentile": static(**channels, **products, **percentile),
        "dynamic, channels": dynamic(per_channel=True, weight_type=QuantType.QInt8, **bodies),
        "dynamic, channels, products": dynamic(
            per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "LSTM"], **bodies
        ),
    }


def session(file: Path) -> onnxruntime.InferenceSession:
    """Open a file on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def error_of(file: Path, original: Path, samples: list[Arrays]) -> float:
    """Return the worst error over samples, as an export measures it."""
    one, other = map(session, (original, file))
    names = [value.name for value in one.get_outputs()]
    wanted, made = (
        [dict(zip(names, opened.run(names, dict(sample)), strict=True)) for sample in samples]
        for opened in (one, other)
    )
    return worst_error(original, samples, wanted, made)


def measure_there(contenders: list[Contender], original: Path, samples: list[Arrays], work: Path) -> None:
    """Measure the errors of contenders on a CPU without VNNI."""
    wanted, *made = run_there([original, *(contender.file for contender in contenders)], samples, work)
    for contender, outputs in zip(contenders, made, strict=True):
        contender.error = worst_error(original, samples, wanted, outputs)


def worst_error(original: Path, samples: list[Arrays], wanted: Sequence[Arrays], made: Sequence[Arrays]) -> float:
    """Return the error of the worst output, of the original's outputs and others."""
    comparison = Comparison(places := places_of(original))
    for want, got in zip(wanted, made, strict=True):
        comparison.add(want, got)
    worst = worst_of(comparison.differences(lambda: reach_of(original, samples, places)))
    return worst.error or 0.0 if worst else 0.0


def peers(file: Path, work: Path, seen: list[Arrays], unseen: list[Arrays]) -> Iterator[Contender]:
    """Yield what ONNX Runtime's tools make of a file, without what they fail on."""
    prepared = work / "prepared.onnx"
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    for name, quantize in settings(seen).items():
        out = work / f"{name.replace(', ', '-')}.onnx"
        with contextlib.suppress(Exception):  # a setting that the tool or the engine does not take is no peer
            quantize(prepared, out)
            yield Contender(name, out, error_of(out, file, unseen), out.stat().st_size)


def ours(file: Path, work: Path, seen: list[Arrays], unseen: list[Arrays]) -> Contender:
    """Return edgeglm's INT8 of a file. Raises EdgeglmError where it refuses it."""
    folder, bundle = work / "seen", work / "bundle"
    folder.mkdir()
    for index, sample in enumerate(seen):
        np.savez(folder / f"{index:04}.npz", **sample)  # type: ignore[arg-type]
    export(ExportRequest(model=str(file), target="cpu", precision="int8", calibration=folder, output=bundle))
    size = sum(path.stat().st_size for path in (bundle / "graph").iterdir())
    return Contender("edgeglm", bundle / "graph/model.onnx", error_of(bundle / "graph/model.onnx", file, unseen), size)


def measure_times(contenders: list[Contender], sample: Arrays) -> None:
    """Time the graphs side by side: the median of the ratios of rounds, in which each runs once, to the first."""
    sessions = [session(contender.file) for contender in contenders]
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for opened in sessions:
            start = time.perf_counter()
            opened.run(None, dict(sample))
            times.append(time.perf_counter() - start)
        rounds.append(times)
    for index, contender in enumerate(contenders):
        contender.time = statistics.median(times[index] / times[0] for times in rounds)


def compare(file: Path, *, there: bool = False) -> bool:
    """Print a graph's figures beside those of the better peer; return whether all bars are met.

    Args:
        file: The graph.
        there: Whether errors are those on an emulated CPU without VNNI; nothing is timed then.
    """
    samples: list[Arrays] = [dict(np.load(path)) for path in sorted(file.with_suffix("").glob("*.npz"))]
    unseen = samples[3::4] or samples
    seen = [sample for index, sample in enumerate(samples) if index % 4 != 3]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            others = list(peers(file, work, seen, unseen))
        try:
            mine = ours(file, work, seen, unseen)
        except EdgeglmError as error:
            print(f"{file.stem:22} MISSED refused: {error}")
            return False
        if there:
            measure_there([*others, mine], file, unseen, work)
        others.sort(key=lambda peer: (round(peer.error, 4), peer.size))
        smallest = min([mine.size, *(peer.size for peer in others)])
        best = next((peer for peer in others if peer.size <= smallest * SAME_SIZE), mine)
        met = [mine.error <= max(best.error * MORE_ERROR, ROUNDING), mine.size <= best.size * MORE_BYTES]
        ratios = f"size {mine.size / best.size:.2f}"
        if not there:
            measure_times([best, mine], unseen[0])
            met.append(mine.time / best.time <= MORE_TIME)
            ratios += f"  time {mine.time / best.time:.2f}"
        verdicts = " ".join("met" if passed else "MISSED" for passed in met)
        defaults = [f"{peer.error:.2g}" for peer in others if "default" in peer.name]
        peer = f"best {best.error:.2g}: {best.name}; defaults {', '.join(defaults)}"
        print(f"{file.stem:22} error {mine.error:.2g} ({peer})  {ratios}  {verdicts}")
        return all(met)


def compare_memory(file: Path, precision: str) -> bool:
    """Print the peak of an export in a fresh process beside the predicted one; return whether it holds."""
    with tempfile.TemporaryDirectory() as work:
        options = ["--calibration", file.with_suffix(""), "--target", "cpu", "--precision", precision]
        command = [sys.executable, "-m", "edgeglm", "export", str(file), *map(str, options)]
        command += ["-o", f"{work}/bundle", "--json"]
        made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    measured, predicted = made["peak_rss_bytes"], made["predicted_peak_rss_bytes"]
    sizes = f"{format_size(measured):>10} measured  {format_size(predicted):>10} predicted"
    print(f"{file.stem:22} {precision} {sizes}  {predicted / measured - 1:+.1%}")
    return bool(measured <= predicted * MORE_MEMORY)


def main() -> int:
    """Compare all graphs of a folder, or those that are made here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--dense", action="store_true", help="small dense networks")
    parser.add_argument("--memory", action="store_true", help="predicted and measured peaks")
    parser.add_argument(
        "--haswell", action="store_true", help="errors on an emulated CPU without VNNI; nothing is timed"
    )
    asked = parser.parse_args()
    folder = asked.folder
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as made:
        write = write_dense if asked.dense else write_graphs
        files = sorted(folder.glob("*.onnx")) if folder else write(Path(made))
        if asked.memory:
            met = [compare_memory(file, precision) for file in files for precision in ("int8", "fp32")]
        else:
            met = [compare(file, there=asked.haswell) for file in files]
        return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
