"""The report: one file that asks nothing of a network, escapes whatever it shows, and is the same for the same data."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import msgspec
from PIL import Image

from edgeglm import manifest
from edgeglm.export.evaluate.report.data import Answer, Case, Memory, Passage, Report, Rung
from edgeglm.export.evaluate.report.page import render
from edgeglm.export.evaluate.report.plots import COLOURS, drops, ladder
from edgeglm.export.metric import PERPLEXITY, SHARE, Metric
from tests.bundles import sample_manifest

HOSTILE = '</text></svg><script>alert("x")</script><img src=http://x onerror=y>\'"&$\\frac$'
DRAWN = {"g", "text", "path", "use", "defs", "clippath", "rect", "tspan"}
SVG = "{http://www.w3.org/2000/svg}"


def webp() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (200, 400), "navy").save(out, "WEBP")
    return out.getvalue()


def metric(name: str = "tap_hit", drop: float = 0.01, high: float = 0.015) -> Metric:
    return Metric(name, SHARE, 1024, 0.95, 0.95 - drop, drop, drop - 0.005, high, 0.02)


def plain() -> Report:
    return Report(sample_manifest(), {"embedding": 1 << 20, "decoder": 3 << 20}, 16 << 20)


def whole(word: str = "zebra") -> Report:
    """Everything that a report may hold, with `word` wherever a text stands that others wrote."""
    made = sample_manifest()
    made = msgspec.structs.replace(
        made,
        model=msgspec.structs.replace(made.model, name=word),
        provenance=msgspec.structs.replace(made.provenance, options={word: word}, versions={word: word}),
    )
    answer = Answer(word, (250, 750))
    case = Case(
        webp(), 200, 400, word, (100.0, 500.0, 300.0, 600.0), answer, Answer(word), Answer(word, (900, 10)), True
    )
    metrics = (metric(), metric("step_success", 0.03, 0.04), Metric(word, PERPLEXITY, 9, 8, 9, 0.1, 0, 0.3, 0.2, 77))
    return Report(
        made,
        {"embedding": 1 << 20, "decoder": 3 << 20},
        16 << 20,
        word,
        metrics,
        (case,),
        (Passage(word, 12.5, 13.25),),
        Memory(119, 91 << 20, 1024, 94 << 20),
        {word: 0.25, "decoder.layer.1": 0.5},
        (Rung(word, 0, refused=word), Rung(word, 2 << 20, metrics), Rung("milder", 3 << 20, (metric(),) * 3)),
    )


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("report", [plain(), whole(), whole(HOSTILE)], ids=["plain", "whole", "hostile"])
def test_a_page_asks_nothing_of_a_network_and_runs_nothing(report: Report) -> None:
    page = Page(render(report))
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "a", "img"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value.startswith(("data:image/webp;base64,", "#")) for value in addresses)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "url(http" not in render(report)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_every_text_of_others_is_shown_as_it_is() -> None:
    names, hostile = Page(render(whole())), Page(render(whole(HOSTILE)))
    # A long name leaves room for fewer ticks.
    assert [tag for tag in hostile.tags if tag not in DRAWN] == [tag for tag in names.tags if tag not in DRAWN]
    in_json = hostile.text.count(json.dumps(HOSTILE)[1:-1])
    assert hostile.text.count(HOSTILE) + in_json == names.text.count("zebra") > 15


def test_equal_reports_give_equal_bytes_without_a_time_in_them() -> None:
    assert render(whole()) == render(whole())
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", render(whole()))


def test_what_was_not_measured_is_not_there() -> None:
    assert headings(plain()) == ["Modules", "Memory", "Provenance"]
    assert "not measured" in render(plain())
    assert headings(whole()) == [
        "Modules",
        "Accuracy",
        "Sensitivity",
        "Ladder",
        "Memory",
        "Worst cases",
        "Worst passages",
        "Provenance",
    ]


def headings(report: Report) -> list[str]:
    return re.findall(r"<h2>(.*)</h2>", render(report))


def words(report: Report) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", render(report)).split())


def test_sizes_verdicts_and_memory_are_told() -> None:
    text = words(whole())
    assert "4MiB of modules, from a checkpoint of 16MiB (-75%)" in text
    assert "fails 1 of 3 metrics within their limits at 95% confidence" in text
    assert "unclear 77 samples would tell" in text
    assert "119 tokens 94MiB 91MiB" in text
    assert "passes 1 of 1 metrics within their limits at 95% confidence" in words(replace(plain(), metrics=(metric(),)))


def test_taps_and_target_are_drawn_where_they_are() -> None:
    (drawn,) = re.findall(r'<svg viewBox="0 0 200 400".*?</svg>', render(whole()), re.DOTALL)
    root = ElementTree.fromstring(drawn)
    picture, box, tap = root
    assert base64.b64decode(picture.attrib["href"].partition(",")[2]) == webp()
    assert [box.attrib[name] for name in ("x", "y", "width", "height")] == ["20.0", "200.0", "40.0", "40.0"]
    assert (tap.attrib["cx"], tap.attrib["cy"], tap.attrib["fill"]) == ("180.0", "4.0", "#cf222e")


def test_a_drop_is_drawn_against_its_limit_in_the_colour_of_its_verdict() -> None:
    colours = {name: colour in drops([metric("one")]) for name, colour in COLOURS.items()}
    assert colours == {"pass": True, "fail": False, "unclear": False}
    drawn = drops([metric("one", 0.03, 0.04), metric("two", 0.01, 0.03)])
    assert COLOURS["pass"] not in drawn
    assert COLOURS["fail"] in drawn
    assert COLOURS["unclear"] in drawn
    texts = ["".join(text.itertext()).strip() for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert {"one", "two", "1.00"} <= set(texts)


def test_a_metric_without_samples_is_no_plot() -> None:
    report = replace(plain(), metrics=(Metric("tap_hit", SHARE, 0, 0, 0, 0, 0, 0, 0.02),))
    assert "<svg" not in render(report)


def test_what_the_manifest_says_was_measured_is_shown() -> None:
    recorded = manifest.Metric("tap_hit", 1024, 0.95, 0.94, 0.01, (0.005, 0.015), 0.02, True)
    error = manifest.Metric("median_tap_error", 626, 10.3, 10.5, 0.2, (-0.1, 0.5), 20.0, True)
    lost = manifest.Metric("tap_hit", 1024, 0.95, 0.9, 0.05, (0.04, 0.06), 0.02, False)
    measured = manifest.Measured(
        (recorded, error),
        (
            manifest.Rung("int4", 2 << 20, False, (lost, error), options={"equalization": "off"}),
            manifest.Rung("odd", 0, False, refused="computes garbage"),
            manifest.Rung("int8", 4 << 20, True, (recorded, error)),
        ),
        {"decoder.layer.10": 0.1, "decoder.layer.2": 0.3},
    )
    made = msgspec.structs.replace(sample_manifest(), measured=measured)
    report = Report.of(made, plain().module_bytes, plain().original_bytes)
    assert [(metric.value(metric.artifact), metric.verdict) for metric in report.metrics] == [
        ("94.00%", "pass"),
        ("10.5", "pass"),
    ]
    assert [(rung.passed, round(rung.worst, 3)) for rung in report.ladder] == [(False, 2.5), (False, 0.0), (True, 0.5)]
    assert list(report.sensitivity) == ["decoder.layer.2", "decoder.layer.10"]
    text = words(report)
    assert "passes 2 of 2 metrics within their limits at 95% confidence" in text
    fallen = "1 int4 equalization: off 2MiB 5.00% 0.2 no tap hit drops by 5.00%, more than 2.00%"
    assert f"{fallen} 2 odd – computes garbage no 3 int8 4MiB 1.00% 0.2 chosen" in text


def test_of_those_that_pass_the_one_with_the_least_figure_is_chosen_and_has_a_ring() -> None:
    unclear = manifest.Metric("tap_hit", 154, 0.95, 0.95, 0.0, (0.0, 0.0195), 0.01, False)
    recorded = manifest.Metric("tap_hit", 1024, 0.95, 0.94, 0.01, (0.005, 0.015), 0.02, True)
    rungs = (
        manifest.Rung("fp16", 9 << 20, False, (unclear,), figures={"answer_ms": 10.0}),
        manifest.Rung("int8", 4 << 20, True, (recorded,), figures={"answer_ms": 30.0}),
        manifest.Rung("int8-block", 5 << 20, True, (recorded,), figures={"answer_ms": 20.0}),
    )
    made = msgspec.structs.replace(sample_manifest(), measured=manifest.Measured((recorded,), rungs, {}))
    report = Report.of(made, plain().module_bytes, plain().original_bytes)
    assert report.chosen is report.ladder[2]
    text = words(report)
    too_few = "no 154 samples are too few to tell: tap hit drops by 0.00%, but it may be 1.95%"
    assert f"10.0 ms 0.00% {too_few} 2 int8 4MiB 30.0 ms 1.00% pass 3 int8-block 5MiB 20.0 ms 1.00% chosen" in text
    drawn, without = ladder(report.ladder, report.chosen), ladder(report.ladder, None)
    assert drawn.count("<use ") == without.count("<use ") + 1


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in words(Report.of(sample_manifest(), plain().module_bytes, 0))
