"""Single steps: each is what its scene shows."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("PIL")

from edgeglm.actions import parse_action
from edgeglm.export.demo.screens import sample_scene
from edgeglm.export.demo.single_steps import SingleSteps


def samplers(count: int) -> list[SingleSteps]:
    return [SingleSteps(sample_scene(Random(index)), Random(-index)) for index in range(count)]


def test_a_missing_element_is_swiped_for() -> None:
    steps = [(sampler, step) for sampler in samplers(300) if (step := sampler.tap_missing())]
    assert len(steps) > 100
    for sampler, step in steps:
        action = parse_action(step.action)
        assert action is not None
        assert action.type == "Swipe"
        seen = [sampler.name(element.name) for element in sampler.scene.elements]
        assert step.thought not in {said.format(name) for name in seen for said in ("{} is not here.", "这里没有{}。")}


def test_a_named_element_is_tapped_inside_its_box() -> None:
    for sampler in samplers(300):
        if step := sampler.tap_named():
            assert step.box in {element.box for element in sampler.scene.elements}


def test_a_text_is_typed_where_the_search_box_has_the_focus() -> None:
    kinds = set()
    for sampler in samplers(300):
        action = parse_action(sampler.type_text().action)
        assert action is not None
        box = sampler.scene.find("search box")
        assert action.type == ("Type" if box and sampler.scene.focused else "Tap" if box else "finish")
        kinds.add(action.type)
    assert kinds == {"Type", "Tap", "finish"}
