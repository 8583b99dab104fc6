"""A report as one HTML file that opens from disk and asks nothing of a network."""

from __future__ import annotations

import base64
import json
import logging
from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from edgeglm.engines import ENGINES
from edgeglm.export.evaluate.report.data import Case, Point, Report
from edgeglm.units import format_size

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def render(report: Report) -> str:
    """Return the page; every value is escaped, and equal reports give equal bytes."""
    return _template().render(report=report, manifest=report.manifest, engines=ENGINES, plots=_plots(report))


@cache  # every bundle that a ladder or a search tries has its page
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": format_size, "data_uri": _data_uri, "error": _error, "json": _json, "spot": _spot}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _plots(report: Report) -> dict[str, Markup]:
    if not (report.metrics or report.sensitivity or report.ladder):
        return {}
    # It says on stderr that it looks for fonts, the first time.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # Only here: an export that measured nothing need not load it.
    from edgeglm.export.evaluate.report import plots

    drawn = {}
    if any(metric.samples for metric in report.metrics):
        drawn["drops"] = plots.drops(report.metrics)
    if report.sensitivity:
        drawn["sensitivity"] = plots.sensitivity(report.sensitivity)
    if any(rung.refused is None for rung in report.ladder):
        drawn["ladder"] = plots.ladder(report.ladder, report.chosen)
    return {name: Markup(svg) for name, svg in drawn.items()}  # matplotlib escapes the names in it


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _error(error: float | None) -> str:
    return "–" if error is None else f"{error:.2g}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _spot(point: Point, case: Case) -> tuple[float, float]:
    """Return where a point is in the picture, in its pixels."""
    return round(point[0] * case.width / 1000, 1), round(point[1] * case.height / 1000, 1)
