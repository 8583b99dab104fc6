from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

pytest.importorskip("PIL")

from edgeglm.actions import ACTIONS, parse_action
from edgeglm.export.demo.glyphs import GLYPHS, _shapes
from edgeglm.export.demo.render import SCALE, render
from edgeglm.export.demo.screens import APPS, CHINESE, HEIGHT, KINDS, ROWS, TOOLS, WIDTH, Scene, sample_scene
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_step
from edgeglm.export.demo.words import sample_text


def scenes(count: int, split: str = "test") -> list[Scene]:
    return [sample_scene(Random(f"{split}/{index}")) for index in range(count)]


def steps(count: int) -> list[tuple[Scene, Step]]:
    pairs = []
    for index in range(count):
        random = Random(f"test/{index}")
        scene = sample_scene(random)
        pairs.append((scene, sample_step(scene, random)))
    return pairs


def test_a_seed_is_a_screen() -> None:
    assert scenes(20) == scenes(20)
    assert scenes(20) != scenes(20, "other")
    for scene in scenes(20):
        assert render(scene).tobytes() == render(scene).tobytes()


def test_every_kind_is_drawn_at_full_size() -> None:
    seen = {scene.kind: render(scene) for scene in scenes(300)}
    assert set(seen) == set(KINDS)
    assert {image.size for image in seen.values()} == {(WIDTH * SCALE, HEIGHT * SCALE)}


def test_elements_are_named_once_and_on_the_canvas() -> None:
    for scene in scenes(500):
        names = [element.name for element in scene.elements]
        assert len(set(names)) == len(names)
        for element in scene.elements:
            x0, y0, x1, y1 = element.box
            assert -4 <= x0 < x1 <= WIDTH + 4
            assert 0 <= y0 < y1 <= HEIGHT
            assert element.name in CHINESE


def test_the_world_is_as_rich_as_promised() -> None:
    assert len(APPS) >= 24
    seen = {element.name for scene in scenes(1500) for element in scene.elements}
    assert seen == set(CHINESE)


def test_every_glyph_is_drawable() -> None:
    sizes = {"E": 4, "R": 4, "A": 6}
    for name in GLYPHS:
        for kind, _, numbers in _shapes(name):
            assert len(numbers) == sizes.get(kind, len(numbers) // 2 * 2), name
    used = {app.glyph for app in APPS.values()} | {glyph for _, glyph, _ in ROWS.values()} | set(TOOLS)
    assert used | {"cross", "arrow", "lens", "lock"} == set(GLYPHS)


def test_every_action_is_asked_for_and_parses() -> None:
    found: Counter[str] = Counter()
    for _, step in steps(3000):
        action = parse_action(step.response)
        assert action is not None, step
        found[action.type] += 1
    assert set(found) == set(ACTIONS) - {"Type_Name", "Interact", "Note", "Call_API"}


def test_taps_point_into_their_box() -> None:
    taps = [(scene, step) for scene, step in steps(1000) if step.box]
    assert len(taps) > 400
    for _, step in taps:
        action = parse_action(step.response)
        assert action is not None
        assert action.point is not None
        assert step.box is not None
        x, y = action.point[0] / 1000 * WIDTH, action.point[1] / 1000 * HEIGHT
        x0, y0, x1, y1 = step.box
        assert x0 <= x <= x1
        assert y0 <= y <= y1


def test_text_to_type_stands_in_the_instruction_and_is_not_a_closed_list() -> None:
    typed = []
    for _, step in steps(6000):
        action = parse_action(step.response)
        if action is not None and action.type == "Type":
            text = action.arguments["text"]
            assert f'"{text}"' in step.instruction
            typed.append(text)
    assert len(typed) > 100
    assert len(set(typed)) > 0.9 * len(typed)


def test_instructions_come_in_english_and_chinese() -> None:
    chinese = [bool(re.search(r"[\u4e00-\u9fff]", step.thought)) for _, step in steps(1000)]
    assert 0.25 < sum(chinese) / len(chinese) < 0.55


def test_goals_take_several_steps_and_end_in_finish() -> None:
    histories = Counter(len(step.previous) for _, step in steps(3000))
    assert histories[1] > 100
    assert histories[2] > 50
    assert histories[3] > 5
    finished = [step for _, step in steps(3000) if len(step.previous) > 1 and "finish(" in step.action]
    assert finished


def test_invented_words_do_not_repeat() -> None:
    random = Random("words")
    texts = [sample_text(random) for _ in range(2000)]
    assert len(set(texts)) > 1600
    assert not any('"' in text or "\n" in text for text in texts)
