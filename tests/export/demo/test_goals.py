"""Goals on the simulated phone: the oracle reaches them, chance does not."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

pytest.importorskip("PIL")

from edgeglm.actions import Action, parse_action
from edgeglm.export.demo.goals import Goal, play
from edgeglm.export.demo.phone import Phone
from edgeglm.export.demo.screens import APPS
from edgeglm.export.demo.steps import SWIPES
from edgeglm.export.demo.wishes import FEWEST_STEPS, MOST_STEPS, sample_goal

GOALS = 200


@pytest.fixture(scope="module")
def goals() -> list[tuple[Goal, Phone]]:
    return [sample_goal(Random(f"test/{index}"), ("en", "cn")[index % 2]) for index in range(GOALS)]


def test_a_seed_is_a_goal_and_its_phone(goals: list[tuple[Goal, Phone]]) -> None:
    assert [sample_goal(Random(f"test/{index}"), ("en", "cn")[index % 2]) for index in range(5)] == goals[:5]


def test_the_oracle_reaches_every_goal_and_finishes(goals: list[tuple[Goal, Phone]]) -> None:
    lengths: Counter[int] = Counter()
    for goal, before in goals:
        phone = before.copy()
        assert not goal.is_reached(phone, before)
        steps = [step for _, step in play(goal, phone)]
        assert goal.is_reached(phone, before), goal.wish
        assert steps[-1].action.startswith("finish(")
        lengths[len(steps)] += 1
    assert set(lengths) == set(range(FEWEST_STEPS, MOST_STEPS + 1))


def test_the_oracle_taps_again_where_a_tap_missed(goals: list[tuple[Goal, Phone]]) -> None:
    missed = 0
    for index, (goal, before) in enumerate(goals):
        phone = before.copy()
        played = list(play(goal, phone, (Random(index), 0.5)))
        assert goal.is_reached(phone, before), goal.wish
        for (seen, step), (after, again) in pairwise(played):
            if again.previous[-1].action != step.action:
                assert (after, again.thought, again.action) == (seen, step.thought, step.action)
                missed += 1
    assert missed > GOALS / 4


def test_goals_use_what_the_phone_can_do(goals: list[tuple[Goal, Phone]]) -> None:
    steps = [step for goal, phone in goals for _, step in play(goal, phone.copy())]
    actions = Counter(action.type for step in steps if (action := parse_action(step.action)))
    assert set(actions) == {
        "Launch", "Tap", "Double Tap", "Type", "Swipe", "Home", "Wait", "Take_over", "finish",
    }  # fmt: skip
    kinds = {task.kind for goal, _ in goals for _, tasks in goal.visits for task in tasks}
    assert kinds == {"search", "press", "like", "delete", "on", "off"}
    assert len({goal.wish for goal, _ in goals}) > 0.95 * GOALS


def test_a_thought_begins_with_the_part_of_the_wish_that_it_works_on(goals: list[tuple[Goal, Phone]]) -> None:
    for goal, phone in goals:
        *steps, last = [step for _, step in play(goal, phone.copy())]
        left = iter(goal.parts)  # of which a switch that is right already is passed over
        assert all(part in left for part in dict.fromkeys(step.thought.partition(": ")[0] for step in steps))
        assert last.thought == "Nothing is left to do."


def test_the_parts_of_a_wish_in_either_language_are_those_of_the_same_in_english(
    goals: list[tuple[Goal, Phone]],
) -> None:
    for index, (goal, _) in enumerate(goals):
        english, _ = sample_goal(Random(f"test/{index}"), "en")
        assert (goal.parts, goal.visits) == (english.parts, english.visits)
        assert re.search(".*".join(map(re.escape, english.parts)), english.wish)


def test_a_text_to_type_is_part_of_the_wish(goals: list[tuple[Goal, Phone]]) -> None:
    texts = [
        (goal.wish, task.name)
        for goal, _ in goals
        for _, tasks in goal.visits
        for task in tasks
        if task.kind == "search"
    ]
    assert len(texts) > 50
    assert all(f'"{text}"' in wish for wish, text in texts)


def test_history_has_each_step_with_the_app_in_front() -> None:
    goal, phone = sample_goal(Random("history"), "cn")
    steps = [step for _, step in play(goal, phone)]
    assert [turn.action for turn in steps[-1].previous] == [step.action for step in steps[:-1]]
    assert steps[1].previous[0].app == steps[0].app
    chinese = {app.chinese for app in APPS.values()}
    assert {step.app for step in steps} <= {"", *chinese}


def test_what_was_not_asked_for_spoils_a_goal(goals: list[tuple[Goal, Phone]]) -> None:
    for goal, before in goals[:40]:
        phone = before.copy()
        for _ in play(goal, phone):
            pass
        phone.effects.append(("pressed", "Maps", "heart button"))
        assert not goal.is_reached(phone, before)
        phone.effects.pop()
        phone.switches["Wi-Fi switch"] = not phone.switches["Wi-Fi switch"]
        assert not goal.is_reached(phone, before)


def test_chance_reaches_few_goals(goals: list[tuple[Goal, Phone]]) -> None:
    reached = 0
    for number, (goal, before) in enumerate(goals):
        random, phone = Random(number), before.copy()
        for _ in range(2 * MOST_STEPS):
            phone.perform(_any_action(random, goal, phone))
        reached += goal.is_reached(phone, before)
    assert reached < 0.1 * GOALS


def _any_action(random: Random, goal: Goal, phone: Phone) -> Action:
    """Return an action by someone who sees the elements and knows the apps, but not what is wished for."""
    element = random.choice(phone.scene.elements) if phone.scene.elements else None
    _, start, end = random.choice(list(SWIPES.values()))
    actions = [
        Action("Launch", {"app": random.choice(goal.visits)[0]}),
        Action("Swipe", {"start": start, "end": end}),
        *(Action(kind, {}) for kind in ("Back", "Home", "Wait", "Take_over")),
    ]
    if element:
        x, y = element.centre
        actions += [Action("Tap", {"element": (round(x / 168 * 1000), round(y / 336 * 1000))})] * 6
    return random.choice(actions)
