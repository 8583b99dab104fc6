"""Data of a report; a value that was not measured is empty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import UNSET

from edgeglm import manifest
from edgeglm.export.metric import SHARE, UNITS, Metric
from edgeglm.manifest import Manifest
from edgeglm.roles import ModuleName

Point = tuple[float, float]  # x, y in thousandths of the screen
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """An answer, and the point of its tap, if it has one."""

    text: str
    point: Point | None = None


@dataclass(frozen=True)
class Case:
    """A screen that the bundle got wrong: what was asked, what is right and what both models answered.

    ``picture`` is a WebP file of the size ``width`` x ``height``; ``box`` is the target of a tap.
    """

    picture: bytes
    width: int
    height: int
    prompt: str
    box: Box | None
    target: Answer
    reference: Answer
    artifact: Answer
    reference_is_right: bool


@dataclass(frozen=True)
class Passage:
    """A window of text, and the perplexity of both models on it."""

    text: str
    reference: float
    artifact: float


@dataclass(frozen=True)
class Memory:
    """The peak of one answer in a fresh process, and what was predicted for the next longer context, in bytes."""

    tokens: int
    measured: int
    context: int
    predicted: int


@dataclass(frozen=True)
class Rung:
    """A precision that an export tried, or a search with `options`: the bundle's size, its drops and figures.

    ``refused`` is why there was none.
    """

    precision: str
    nbytes: int
    metrics: tuple[Metric, ...] = ()
    refused: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there was a bundle, and all of its metrics pass."""
        return self.refused is None and all(metric.passed for metric in self.metrics)

    @property
    def fell(self) -> str | None:
        """The reason why it was not taken, where a metric does not pass: first one that certainly fails."""
        failed = [metric for metric in self.metrics if not metric.passed]
        return min(failed, key=lambda metric: metric.verdict == "unclear").why.replace("_", " ") if failed else None

    @property
    def figure(self) -> float:
        """The figure that was to be least: of a search for speed or memory, or the size."""
        return next(iter(self.figures.values()), self.nbytes)

    @property
    def worst(self) -> float:
        """The largest drop as a share of what is allowed."""
        return max((metric.drop / metric.limit for metric in self.metrics if metric.limit), default=0.0)


@dataclass(frozen=True)
class Report:
    """A bundle's report.

    ``module_bytes`` are the modules' sizes, ``original_bytes`` the size of the checkpoint's weights. ``data`` says in
    a few words what the accuracy was measured on. ``sensitivity`` is the damage that a part does when it alone is
    quantized, as the KL divergence of the output from the original's in nats a token. ``ran`` is what ran each module
    where the accuracy was measured.
    """

    manifest: Manifest
    module_bytes: Mapping[ModuleName, int]
    original_bytes: int
    data: str = "samples"
    metrics: tuple[Metric, ...] = ()
    cases: tuple[Case, ...] = ()
    passages: tuple[Passage, ...] = ()
    memory: Memory | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    ladder: tuple[Rung, ...] = ()
    ran: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, module_bytes: Mapping[ModuleName, int], original_bytes: int) -> Report:
        """Return what the manifest says, with the accuracy that the export measured, if it did."""
        measured = manifest.measured
        if measured is UNSET:
            return cls(manifest, module_bytes, original_bytes)
        rungs = (
            Rung(rung.precision, rung.bundle_bytes, _metrics(rung.metrics), rung.refused, rung.figures, rung.options)
            for rung in measured.ladder
        )
        return cls(
            manifest,
            module_bytes,
            original_bytes,
            metrics=_metrics(measured.metrics),
            sensitivity={part: measured.sensitivity[part] for part in sorted(measured.sensitivity, key=_natural)},
            ladder=tuple(rungs),
        )

    @property
    def chosen(self) -> Rung | None:
        """The attempt that became the bundle: of those that pass, the one with the least figure."""
        return min((rung for rung in self.ladder if rung.passed), key=lambda rung: rung.figure, default=None)

    @property
    def bundle_bytes(self) -> int:
        """The size of all modules together."""
        return sum(self.module_bytes.values())


def _metrics(recorded: Iterable[manifest.Metric]) -> tuple[Metric, ...]:
    return tuple(
        Metric(
            metric.name,
            UNITS.get(metric.name, SHARE),
            metric.samples,
            metric.reference,
            metric.artifact,
            metric.drop,
            *metric.drop_interval,
            metric.limit,
        )
        for metric in recorded
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key with the numbers in a name as numbers, so that layer 10 comes behind layer 2."""
    return [(int(piece) if piece.isdecimal() else -1, piece) for piece in re.split(r"(\d+)", name)]
