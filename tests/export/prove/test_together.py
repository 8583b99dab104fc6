"""Inputs that pass through a segment together: as each would alone, and every weight is asked for once."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np

from edgeglm.devices.loader import load_profile
from edgeglm.export.calibrate.walk import TOGETHER, cut_into_groups
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Prompt, prompt_inputs, vision_inputs
from edgeglm.export.prove.reference import OriginalWeights, Segment
from edgeglm.export.prove.values import Values, feeds, passed_on, relative_error
from edgeglm.export.quantize.rounding import Floats
from edgeglm.roles import DECODER, encoder_of


class Counted(OriginalWeights):
    """The original's weights, that count how often they are asked for."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared.checkpoint)
        self.asked: Counter[str] = Counter()

    def product(self, x: Floats, weight: str) -> Floats:
        self.asked[weight] += 1
        return super().product(x, weight)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(open_export(Request(DEMO, "demo", load_profile("cpu"), "fp32")))


def inputs_of(prepared: Prepared, module: str) -> list[Values]:
    """Three prompts of different lengths for the decoder; pictures of noise for the tower."""
    random, vision = np.random.default_rng(0), prepared.probe.model.vision
    assert vision
    if module != DECODER:
        size = vision.channels * vision.temporal_patch * vision.patch**2
        patches = [random.standard_normal((vision.grid[0] * vision.grid[1], size), np.float32) for _ in range(3)]
        return [vision_inputs(prepared, Prompt([], np.zeros(0, bool), patches=seen)) for seen in patches]
    rows = [random.standard_normal((length, 256)).astype(np.float32) for length in (5, 1, 9)]
    return [prompt_inputs(prepared, Prompt([40] * len(row), np.zeros(len(row), bool)), row) for row in rows]


@pytest.mark.parametrize("module", [encoder_of("image"), DECODER])
def test_several_inputs_come_out_as_alone(prepared: Prepared, module: str) -> None:
    states = inputs_of(prepared, module)
    for _, model in list(segments(stack_of(module, prepared.probe), "portable"))[:2]:  # type: ignore[arg-type]
        weights = Counted(prepared)
        segment = Segment(model, weights)
        fed = [feeds(model.graph.inputs, state) for state in states]
        alone = [segment.run(feed) for feed in fed]
        assert set(weights.asked.values()) <= {len(fed)}
        weights.asked.clear()
        together = segment.run_together(fed)
        assert set(weights.asked.values()) <= {1}
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            assert all(relative_error(other[name], one[name]) < 1e-5 for name in one)
        states = [{**state, **passed_on(output)} for state, output in zip(states, alone, strict=True)]
    assert weights.asked


def test_prompts_are_grouped_in_their_order() -> None:
    prompts = [Prompt([0] * length, np.zeros(length, bool)) for length in (TOGETHER + 1, 200, 300, 13, 512)]
    prompts[3].patches = np.zeros((400, 4), np.float32)
    groups = cut_into_groups(prompts)
    assert [(group.start, group.stop) for group in groups] == [(0, 1), (1, 3), (3, 4), (4, 5)]
