"""The requests, the progress and the results of `edgeglm.export.api`: plain data, which a worker takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgeglm.bundle import read_sealed
from edgeglm.errors import AccuracyError
from edgeglm.export.graph.violation import Violation
from edgeglm.export.metric import Metric
from edgeglm.export.model import KvType
from edgeglm.manifest import GraphManifest, Manifest, Rung

Size = tuple[int, int]
Switch = Literal["on", "off"]
# What a file of samples is called; any other is a text.
SAMPLES = ".jsonl"


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A model for a device.

    Args:
        target: A device profile: a name, or the path of a file.
        model: The folder of a checkpoint, or org/name on the hub; None for the demo.
        precision: ``auto``, a precision, or one by module, as ``--precision`` takes it.
        context: Tokens of a conversation at most; None for the profile's and the model's.
        image_sizes: Pictures that the vision module takes, each (width, height) in pixels.
        adapter: The folder of a LoRA adapter that is merged into the weights.
        prefixes: Files of messages that prompts begin with, whose state the bundle ships.
        kv: ``fp32`` or ``fp16``, what the decoder's keys and values are stored in.
    """

    target: str
    model: str | None = None
    precision: str = "auto"
    context: int | None = None
    image_sizes: tuple[Size, ...] = ()
    adapter: str | None = None
    prefixes: tuple[Path, ...] = ()
    kv: KvType = "fp32"


class ExportRequest(PlanRequest, frozen=True, kw_only=True, tag=True):
    """A bundle to write.

    Args:
        model: Also the path of an ONNX graph.
        output: The bundle's folder; None for a name of model and device in the current folder.
        format: ``onnx`` or ``tflite``, or by module, as ``--format`` takes it.
        max_ram: Bytes that all processes may take together; None for 60% of what is available.
        accuracy_drop: The largest drop of a metric, such as 0.02; None measures nothing.
        max_error: The largest relative error of an output of an ONNX graph; None for less than 0.5.
        calibration: Samples or a text to calibrate with; None for the demo's own.
        equalization: ``on`` or ``off``, whether a calibration moves scales between weights.
        resume: Whether to go on from a partial bundle.
    """

    output: Path | None = None
    format: str = "onnx"
    max_ram: int | None = None
    accuracy_drop: float | None = None
    max_error: float | None = None
    calibration: Path | None = None
    equalization: Switch = "on"
    resume: bool = True


class SearchRequest(ExportRequest, frozen=True, kw_only=True, tag=True):
    """A bundle to search for: the best that passes ``accuracy_drop``, whose precision is found.

    Args:
        goal: What is to be least: ``size`` of the bundle, ``latency`` of an answer or ``memory`` of a run.
        trials: Bundles that are measured at most.
        study: The file that the search goes on from; None for the bundle's name with ``.study``.
        cluster: The address of the Ray that makes and measures bundles, or ``local``; None for this process.
        equalizations: What ``equalization`` can be.
        also: Smaller checkpoints that `compress` made of the model, to choose from too.
        formats: What those of modules can be: ``onnx``, ``tflite``.
        prune: Rates of pruning as `CompressRequest` has them: a checkpoint of each is made, to choose from too.
        via: The board that latency or memory is measured on, ``ssh HOST`` or ``adb``; None for this machine.
        python: Python's command there.
        limit: How many samples, or windows of text, a bundle is measured on at most.
    """

    goal: Literal["size", "latency", "memory"] = "size"
    trials: int = 20
    study: Path | None = None
    cluster: str | None = None
    equalizations: tuple[Switch, ...] = ("on",)
    formats: tuple[str, ...] = ("onnx",)
    also: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()
    via: str | None = None
    python: str = "python3"
    limit: int | None = None


class ValidateRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A bundle to compare with its original.

    Args:
        bundle: Its folder.
        accuracy_drop: The largest drop of a metric that passes.
        data: Samples (.jsonl) or a text; None for the demo's held-out screens.
        reference: The original, as MODEL; None for the demo.
        adapter: The adapter that the bundle was exported with.
        limit: How many samples, or windows of text, at most.
        max_ram: Bytes that all processes may take together; None for 60% of what is available.
        report: An HTML page to write.
        masks: Regions that are blanked in the bundle's screens: left, top, width and height in pixels.
    """

    bundle: Path
    accuracy_drop: float = 0.02
    data: Path | None = None
    reference: str | None = None
    adapter: str | None = None
    limit: int | None = None
    max_ram: int | None = None
    report: Path | None = None
    masks: tuple[tuple[int, int, int, int], ...] = ()


class CompressRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A smaller checkpoint to write.

    Args:
        output: Its folder, which is new.
        model: As in `PlanRequest`.
        prune: The share of the blocks' parameters that goes, or ``mlp=50%,heads=50%,layers=1``.
        sparse: In place of it, ``2:4`` or the share of the blocks' weights that become zero.
        by: ``activations`` or ``l1``, what the importance of a channel, head or layer is taken from.
        calibration: Samples or a text; None for the demo's own.
        max_ram: Bytes that all processes may take together; None for 60% of what is available.
        distill: Samples (.jsonl) or a text that what is left learns on, from the original; None for none.
        epochs: How often it sees them; None for 3.
        learning_rate: The highest one; None for 1e-4.
        freeze: Modules that do not learn.
        resume: Whether to go on from a partial checkpoint.
        distributed: Whether torchrun has started this process as one of those that recover it.
    """

    output: Path
    model: str | None = None
    prune: str | None = None
    sparse: str | None = None
    distill: Path | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    freeze: tuple[str, ...] = ()
    resume: bool = True
    distributed: bool = False
    by: str = "activations"
    calibration: Path | None = None
    max_ram: int | None = None


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """TensorRT engines of a bundle to build.

    Args:
        bundle: Its folder.
        sm: A compute capability without the dot, to build without a GPU; None for the GPU that is here.
    """

    bundle: Path
    sm: int | None = None


@dataclass(frozen=True)
class Progress:
    """The stage of a long call, and its progress.

    Args:
        stage: In a few words.
        done: From 0 to 1; None where nobody knows.
        total_bytes: Of what is being written; 0 where it is not bytes.
        rss_bytes: Resident memory of all processes now; 0 where it is not measured.
        rung: A precision that was tried, when its metrics are known.
    """

    stage: str
    done: float | None = None
    total_bytes: int = 0
    rss_bytes: int = 0
    rung: Rung | None = None


Show = Callable[[Progress], None]


class ExportResult(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was written.

    Args:
        bundle: Its folder.
        notes: What the user should know.
        rungs: The precisions that were tried for ``accuracy_drop``, the one taken included.
        fixes: Of a graph: what was rewritten for the device.
        peak_rss_bytes: Of all processes, as measured; `predicted_peak_rss_bytes` as foreseen, `max_ram` as allowed.
        seconds: That it took.
    """

    bundle: Path
    notes: Sequence[str]
    rungs: Sequence[Rung] = ()
    fixes: Sequence[Violation] = ()
    predicted_peak_rss_bytes: int
    max_ram: int
    peak_rss_bytes: int = 0
    seconds: float = 0.0

    @property
    def manifest(self) -> Manifest | GraphManifest:
        """Read the manifest of a checkpoint's bundle, or of a graph's."""
        return read_sealed(self.bundle)


class ValidateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of a bundle against its original.

    Args:
        bundle: Its folder.
        samples: How many screens, or windows of a text.
        metrics: Each with its drop, the interval of 95% around it, and the verdict.
        streamed: Why the original was streamed; None where it was loaded as a whole.
        unproven: Why the streamed original was not compared with transformers' own loading; None where it was.
        ran: The engine that ran each module.
    """

    bundle: Path
    samples: int
    metrics: Sequence[Metric]
    streamed: str | None
    unproven: str | None
    ran: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every metric is within its limit at 95% confidence."""
        return all(metric.passed for metric in self.metrics)

    def check(self) -> None:
        """Raise AccuracyError for the metric that failed, first for one that certainly did."""
        for metric in sorted(self.metrics, key=lambda metric: metric.verdict == "unclear"):
            if not metric.passed:
                raise AccuracyError(self.bundle, metric.why, _remedy(metric))


def _remedy(metric: Metric) -> str:
    if metric.verdict == "fail":
        return "export it in a higher precision, or allow more with --accuracy-drop"
    return f"give about {metric.needed} samples"


class CompressResult(msgspec.Struct, frozen=True, kw_only=True):
    """A smaller checkpoint that was written.

    Args:
        folder: Its folder.
        parts: By module, what is left of it.
        parameters: Of the original and of this one.
        bytes: Of the original's weights and of these.
        recovery: The held-out scores, before it and after each epoch.
        notes: What the user should know.
        peak_rss_bytes: Of all processes, as measured; `max_ram` as allowed.
        seconds: That it took.
    """

    folder: Path
    parts: Mapping[str, Mapping[str, tuple[int, int]]]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    recovery: Sequence[float] = ()
    notes: Sequence[str]
    max_ram: int
    peak_rss_bytes: int = 0
    seconds: float = 0.0
