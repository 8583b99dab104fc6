"""What a report shows: plain data, of which what was not measured is empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeglm.export.metric import Metric
from edgeglm.manifest import Manifest, ModuleName

Point = tuple[float, float]  # x, y in thousandths of the screen
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """What was answered, and where it taps, if it does."""

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
class Sensitivity:
    """The damage that a block does when it alone is quantized: KL divergence of the output from the original's."""

    block: str
    divergence: float


@dataclass(frozen=True)
class Rung:
    """One attempt of an export that rolls back: how it was made, how large it is, what it lost."""

    precision: str
    nbytes: int
    metrics: tuple[Metric, ...]

    @property
    def passed(self) -> bool:
        """Whether all of its metrics pass."""
        return all(metric.passed for metric in self.metrics)

    @property
    def worst(self) -> float:
        """The largest drop as a share of what is allowed."""
        return max((metric.drop / metric.limit for metric in self.metrics if metric.limit), default=0.0)


@dataclass(frozen=True)
class Report:
    """A bundle's report.

    ``module_bytes`` are the modules' sizes, ``original_bytes`` the size of the checkpoint's weights. ``data`` says in
    a few words what the accuracy was measured on.
    """

    manifest: Manifest
    module_bytes: Mapping[ModuleName, int]
    original_bytes: int
    data: str = ""
    metrics: tuple[Metric, ...] = ()
    cases: tuple[Case, ...] = ()
    passages: tuple[Passage, ...] = ()
    memory: Memory | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    ladder: tuple[Rung, ...] = ()

    @property
    def bundle_bytes(self) -> int:
        """The size of all modules together."""
        return sum(self.module_bytes.values())
