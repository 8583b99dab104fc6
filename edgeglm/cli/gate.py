"""The ladder of ``--accuracy-drop`` as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edgeglm.export.pipeline.gate import amount, describe
from edgeglm.manifest import Metric, Rung


def describe_ladder(rungs: Sequence[Rung]) -> list[dict[str, object]]:
    """Return the rungs as ``--json`` gives them."""
    return [{"metrics": [], "refused": None, **msgspec.to_builtins(rung)} for rung in rungs]


def ladder_table(rungs: Sequence[Rung]) -> Iterator[str]:
    """Yield the rungs as the lines of a table, with the drop of each metric."""
    names = list(dict.fromkeys(metric.name for rung in rungs for metric in rung.metrics))
    rows = [("PRECISION", "BUNDLE", *(f"{name} DROP" for name in names), "VERDICT")]
    for rung in rungs:
        drops = {metric.name: amount(metric, metric.drop) for metric in rung.metrics}
        verdict = "pass" if rung.passed else "refused" if rung.refused else _failing(rung.metrics)
        size = f"{rung.bundle_bytes / (1 << 20):.2f}MiB"
        rows.append((describe(rung), size, *(drops.get(name, "-") for name in names), verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _failing(metrics: Sequence[Metric]) -> str:
    """Return whether a drop exceeds its limit, or is unclear."""
    return "fail" if any(metric.drop > metric.limit for metric in metrics) else "unclear"
