"""The end of a ladder or search without a bundle that passes: what would help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.evaluate.statistics import RULE_OF_THREE, compare, mean
from edgeglm.export.metric import SHARE
from edgeglm.export.metric import Metric as Compared
from edgeglm.export.pipeline.gate import nothing_passed
from edgeglm.export.pipeline.ladder import Ladder, Means
from edgeglm.export.prepare.types import Request
from edgeglm.manifest import Metric, Rung


def ended(compared: Compared) -> str:
    """What is said where a bundle with this metric came nearest."""
    interval = (compared.low, compared.high)
    values = (compared.samples, compared.reference, compared.artifact, compared.drop, interval, compared.limit)
    metric = Metric(compared.name, *values, passed=False)
    request = Request(DEMO, "demo", load_profile("cpu"), "int4")
    means = Means(Path("work"), [], None, lambda _: (), lambda _: 0, lambda _: None, lambda _: None)
    ladder = Ladder(request, means, [Rung("vision=fp16", 1, passed=False, metrics=(metric,))])
    return str(nothing_passed(Path("bundle"), ladder))


def test_too_few_samples_for_a_limit_are_the_reason() -> None:
    same = np.ones(154)
    said = ended(compare("tap_hit", SHARE, same, same, 0.015, mean, unseen=RULE_OF_THREE / len(same)))
    assert "; 154 samples leave 1.95% open even where nothing differs; measure on more samples, or allow more" in said


def test_two_samples_leave_everything_open() -> None:
    same = np.ones(2)
    said = ended(compare("tap_hit", SHARE, same, same, 0.02, mean, unseen=RULE_OF_THREE / len(same)))
    assert "; 2 samples leave 100.00% open even where nothing differs; measure on more samples" in said


def test_a_drop_that_is_seen_is_the_reason_where_it_is_one() -> None:
    same, worse = np.ones(1000), np.r_[np.zeros(100), np.ones(900)]
    said = ended(compare("tap_hit", SHARE, same, worse, 0.02, mean, unseen=RULE_OF_THREE / len(same)))
    assert "samples" not in said
    assert said.endswith("allow more with --accuracy-drop")
