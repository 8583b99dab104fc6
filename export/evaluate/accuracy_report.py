"""The report of a bundle that was measured: accuracy, memory and the worst cases, besides what its manifest says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from edgeglm.actions import parse_action
from edgeglm.bundle import Bundle
from edgeglm.errors import UsageError
from edgeglm.export.evaluate.report.data import Answer, Case, Memory, Passage, Report
from edgeglm.export.evaluate.report.page import render
from edgeglm.export.evaluate.tasks.agent import worst_answers
from edgeglm.export.evaluate.tasks.success import succeeds
from edgeglm.export.evaluate.tasks.text import Scores, worst_windows
from edgeglm.export.metric import Metric
from edgeglm.export.samples.screenshots import Sample
from edgeglm.export.samples.windows import Windows
from edgeglm.process import run_program

CASES, PASSAGES = 9, 5
# Of a picture in the page, in pixels, and of a passage in characters.
LONGEST_SIDE, SHOWN = 720, 280
TOKENS = 64  # of the answer whose memory is measured


@dataclass(frozen=True)
class OnScreens:
    """The results on screens: the metrics, both models' answers, and what ran each module of the bundle."""

    metrics: list[Metric]
    screens: Sequence[Sample]
    reference: Sequence[str]
    artifact: Sequence[str]
    ran: Mapping[str, str]

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.screens)


@dataclass(frozen=True)
class OnText:
    """The results on a text: the metrics, and both models' scores of its windows."""

    metrics: list[Metric]
    windows: Windows
    reference: Scores
    artifact: Scores

    @property
    def samples(self) -> int:
        """The number of windows."""
        return len(self.windows.sequences)


Found = OnScreens | OnText


def write_report(file: Path, bundle: Bundle, original_bytes: int, found: Found) -> None:
    """Write the page of a bundle and of what was found of it. Raises UsageError."""
    manifest = bundle.manifest
    cases: tuple[Case, ...] = ()
    passages: tuple[Passage, ...] = ()
    if isinstance(found, OnScreens):
        data, cases = f"{found.samples} screens", tuple(_cases(found))
        question, picture = found.screens[0].prompt, found.screens[0].screen
    else:
        data, passages = f"{found.samples} windows of text", tuple(_passages(bundle, found))
        question, picture = passages[0].text, None
    sizes = {module.name: manifest.module_bytes(module) for module in manifest.modules}
    report = replace(
        Report.of(manifest, sizes, original_bytes),
        data=data,
        metrics=tuple(found.metrics),
        cases=cases,
        ran=found.ran if isinstance(found, OnScreens) else {},
        passages=passages,
        memory=_memory(bundle, question, picture if isinstance(picture, Path) else None),
    )
    try:
        file.write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(file, f"cannot be written: {error.strerror}", "give another file") from error


def _cases(found: OnScreens) -> Iterator[Case]:
    expected = [sample.expected for sample in found.screens]
    for index in worst_answers(expected, found.reference, found.artifact, CASES):
        want, image = expected[index], found.screens[index].image
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        yield Case(
            _webp(image),
            image.width,
            image.height,
            found.screens[index].prompt,
            want.box,
            _shown(want.response),
            _shown(found.reference[index]),
            _shown(found.artifact[index]),
            succeeds(want, found.reference[index]),
        )


def _webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=75)
    return out.getvalue()


def _shown(answer: str) -> Answer:
    """Return an answer's action alone, where it has one."""
    action = parse_action(answer)
    if action is None:
        return Answer(answer)
    values = (list(value) if isinstance(value, tuple) else value for value in action.arguments.values())
    return Answer(" ".join([action.type, *map(str, values)]), action.point)


def _passages(bundle: Bundle, found: OnText) -> Iterator[Passage]:
    for text, reference, artifact in worst_windows(bundle, found.windows, found.reference, found.artifact, PASSAGES):
        yield Passage(" ".join(text.split())[:SHOWN], reference, artifact)


def _memory(bundle: Bundle, question: str, picture: Path | None) -> Memory | None:
    """Return the peak of one answer in its own process; None if there is none, or it is for another device."""
    if any(module.placement != "cpu" for module in bundle.manifest.modules):
        return None
    command = [sys.executable, "-m", "edgeglm.runtimes", str(bundle.folder), "--json", "--max-new-tokens", str(TOKENS)]
    command += [f"--prompt={question}", *([f"--image={picture}"] if picture else [])]
    ran = run_program(command)
    if ran.code:
        return None
    answer = json.loads(ran.out)
    tokens = answer["prompt_tokens"] + answer["generated_tokens"]
    predicted = bundle.manifest.predicted.device_peak_rss_bytes
    context = min((length for length in predicted if length >= tokens), default=max(predicted))
    return Memory(tokens, answer["peak_rss_bytes"], context, predicted[context])
