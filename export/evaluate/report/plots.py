"""The plots of a report as SVG to stand in a page: no network, no time, the same bytes for the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from edgeglm.export.evaluate.report.data import Rung
from edgeglm.export.metric import Metric

INK, MUTED, ACCENT, GRID = "#1f2328", "#6e7781", "#2f6f9f", "#d8dee4"
COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "unclear": "#9a6700"}
WIDTH = 7.2  # inches
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
}


def drops(metrics: Sequence[Metric]) -> str:
    """Return each metric's drop with its interval, as a share of what is allowed, which is the line at 1."""
    shown = [metric for metric in metrics if metric.samples and metric.limit]

    def draw(axes: Axes) -> None:
        for row, metric in enumerate(shown):
            low, drop, high = (value / metric.limit for value in (metric.low, metric.drop, metric.high))
            colour = COLOURS[metric.verdict]
            axes.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.3, solid_capstyle="round")
            axes.plot([drop], [row], "o", color=colour, markersize=6)
        axes.axvline(0, color=GRID, linewidth=1, zorder=0)
        axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlabel("drop as a share of the limit: the dot was measured, the bar holds it with 95%")
        _rows(axes, [metric.name.replace("_", " ") for metric in shown])
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, -0.1), max(right, 1.15))

    return _svg("drops", 0.9 + 0.42 * len(shown), draw)


def sensitivity(divergences: Mapping[str, float]) -> str:
    """Return a bar for each part of a module."""

    def draw(axes: Axes) -> None:
        axes.barh(range(len(divergences)), list(divergences.values()), color=ACCENT, height=0.7)
        axes.set_xlabel("KL divergence of the output when this part alone is quantized, nats a token")
        _rows(axes, list(divergences))

    return _svg("sensitivity", 0.8 + 0.24 * len(divergences), draw)


def ladder(rungs: Sequence[Rung], chosen: Rung | None) -> str:
    """Plot what was to be least against loss: a numbered dot for each rung that was measured, and the Pareto front.

    The one that was chosen has a ring.
    """
    measured = {number: rung for number, rung in enumerate(rungs, start=1) if rung.refused is None}
    title, figure = _figure(list(measured.values()))

    def draw(axes: Axes) -> None:
        front = pareto([(figure(rung), rung.worst) for rung in measured.values()])
        axes.step(*zip(*front, strict=True), where="post", color=ACCENT, linewidth=1, zorder=0)
        for number, rung in measured.items():
            place = figure(rung), rung.worst
            if rung is chosen:
                axes.plot(*([value] for value in place), "o", color=INK, markerfacecolor=GRID, markersize=13)
            axes.plot(
                *([value] for value in place), "o", color=COLOURS["pass" if rung.passed else "fail"], markersize=7
            )
            axes.annotate(f"{number}", place, (8, 6), textcoords="offset points", color=INK)
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(0.12, 0.18)
        axes.set_xlabel(title)
        axes.set_ylabel("worst drop / limit")

    return _svg("ladder", 3.4, draw)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one is below in both, from the left."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _figure(rungs: Sequence[Rung]) -> tuple[str, Callable[[Rung], float]]:
    """Return what the axis is called, and the figure of a rung: of a search for speed or memory, or the size."""
    goal = {name for rung in rungs for name in rung.figures}
    if "answer_ms" in goal:
        return "time of an answer, ms", lambda rung: rung.figures["answer_ms"]
    if "peak_rss_bytes" in goal:
        return "peak resident memory, MiB", lambda rung: rung.figures["peak_rss_bytes"] / 2**20
    return "size of the bundle, MiB", lambda rung: rung.nbytes / 2**20


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    # The salt makes the ids of elements, which must differ between the plots of a page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"edgeglm {name}"}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes)
        out = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    return text[text.index("<svg") :]
