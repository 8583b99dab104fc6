"""Goals on the simulated phone: a wish in words, what it comes to, and the oracle that performs it step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from edgeglm.actions import parse_action
from edgeglm.export.demo.phone import TRASH, Effect, Phone, element_at, name_of
from edgeglm.export.demo.screens import Scene
from edgeglm.export.demo.steps import SWIPES, Step, Turn, do, finish, to_units

# Messages to the user in English and Chinese. Thoughts are in English, as all that is written on the screens.
DONE = ("Done", "已完成")
LOG_IN = ("Please log in", "请先登录")
# What a tap opens, closes or turns: that it missed is seen on the screen that follows.
SEEN = (TRASH, "search box", "close button", "OK")
MISSED_BY = 60  # thousandths of the screen, at most


@dataclass(frozen=True)
class Task:
    """A thing to do in an app: "search" for a text, "press" or "like" an element, "delete", or a switch "on" or "off".

    `name` is the text or the element; the element stands on page `page` of the app.
    """

    kind: str
    name: str
    page: int = 0

    @property
    def target(self) -> str:
        """The element that is touched first."""
        return "search box" if self.kind == "search" else self.name

    def effect(self, app: str) -> Effect | None:
        """Return what happens when it is done; a switch only changes the state."""
        kinds = {"search": "typed", "press": "pressed", "like": "Double Tap", "delete": "confirmed"}
        return (kinds[self.kind], app, self.name) if self.kind in kinds else None

    def is_done(self, phone: Phone, app: str) -> bool:
        """Return whether the phone's state has it."""
        effect = self.effect(app)
        return effect in phone.effects if effect else phone.switches[self.name] is (self.kind == "on")


@dataclass(frozen=True)
class Goal:
    """A wish: apps with tasks one after another, at the end the home screen or not.

    `wish` is in `language`, "en" or "cn". `parts` are those of its words that ask for one thing each, in their order
    and in English: for each visit to open the app and each of its tasks, at last the home screen.
    """

    wish: str
    parts: tuple[str, ...]
    language: str
    visits: tuple[tuple[str, tuple[Task, ...]], ...]
    ends_at_home: bool

    def is_reached(self, phone: Phone, before: Phone) -> bool:
        """Return whether a phone that was `before` has all that was asked for, and nothing that was not."""
        wanted = [task.effect(app) for app, tasks in self.visits for task in tasks]
        switches = {task.name: task.kind == "on" for _, tasks in self.visits for task in tasks if not task.effect("")}
        happened = [effect for effect in phone.effects if effect[0] != "opened"]
        front = "" if self.ends_at_home else self.visits[-1][0]
        return (
            all(("opened", app, "") in phone.effects for app, _ in self.visits)
            and sorted(happened) == sorted(filter(None, wanted))
            and phone.switches == {**before.switches, **switches}
            and phone.front == front
        )

    def next_step(self, phone: Phone, turns: Sequence[Turn] = ()) -> Step:
        """Return what the oracle does next; its thought begins with the part of the wish that it works on."""
        parts = list(self.parts)
        for app, tasks in self.visits:
            opening, *doing = parts[: 1 + len(tasks)]
            mover = _Mover(self, phone, tuple(turns), opening)
            del parts[: 1 + len(tasks)]
            open_tasks = [task for task in tasks if not task.is_done(phone, app)]
            if ("opened", app, "") in phone.effects and not open_tasks:
                continue
            if phone.front != app:
                return mover.launch(app)
            return mover.unblock() or replace(mover, part=doing[tasks.index(open_tasks[0])]).perform(open_tasks[0])
        if self.ends_at_home and phone.front:
            return _Mover(self, phone, tuple(turns), parts[0]).step("Go home.", do("Home"))
        return _Mover(self, phone, tuple(turns), "").finish()


@dataclass(frozen=True)
class _Mover:
    """Writes the steps of a part of a goal on a phone as it is."""

    goal: Goal
    phone: Phone
    turns: tuple[Turn, ...]
    part: str

    def step(self, thought: str, action: str) -> Step:
        front = name_of(self.phone.front, self.goal.language)
        part = f"{self.part}: " if self.part else ""
        return Step(self.goal.wish, self.turns, part + thought, action, app=front)

    def say(self, message: tuple[str, str]) -> str:
        """Return a message in the goal's language."""
        return message[self.goal.language == "cn"]

    def launch(self, app: str) -> Step:
        return self.step(f"Open {app}.", do("Launch", app=name_of(app, self.goal.language)))

    def finish(self) -> Step:
        return self.step("Nothing is left to do.", finish(self.say(DONE)))

    def unblock(self) -> Step | None:
        """Return the step that deals with what stands before an app's pages."""
        block = self.phone.app.block if self.phone.app else ""
        if block == "popup":
            return self.touch("close button")
        if block == "loading":
            return self.step("The page is loading.", do("Wait", duration="2 seconds"))
        if block == "login":
            return self.step("The user must log in.", do("Take_over", message=self.say(LOG_IN)))
        return None

    def perform(self, task: Task) -> Step:
        """Return the step that brings a task nearer, in its app."""
        app = self.phone.app
        assert app is not None
        if app.dialog:
            return self.touch("OK")
        if task.kind == "search" and app.is_focused:
            return self.step(f'The keyboard is open, type "{task.name}".', do("Type", text=task.name))
        if task.page > app.page:
            _, start, end = SWIPES["down"]
            return self.step(f"{task.target} is not here.", do("Swipe", start=start, end=end))
        if task.kind == "search":
            return self.touch("search box", thought=f'Tap the search box to type "{task.name}".')
        return self.touch(task.target, "Double Tap" if task.kind == "like" else "Tap")

    def touch(self, element: str, action: str = "Tap", thought: str = "") -> Step:
        """Return a tap on the middle of an element."""
        target = self.phone.scene.find(element)
        assert target is not None
        return replace(
            self.step(thought or f"{action} {element}.", do(action, element=to_units(*target.centre))), box=target.box
        )


def play(goal: Goal, phone: Phone, slips: tuple[Random, float] | None = None) -> Iterator[tuple[Scene, Step]]:
    """Perform a goal as the oracle does; yield each screen with its step.

    Args:
        goal: What to do.
        phone: On which it is done.
        slips: Share of the taps whose effect is seen that miss, so that the oracle taps again, and what draws them.
    """
    turns: list[Turn] = []
    while True:
        step = goal.next_step(phone, turns)
        yield phone.scene, step
        if slips and slips[0].random() < slips[1] and (missed := _miss(step, phone, slips[0])):
            turns.append(replace(step.turn, action=missed))
            continue
        action = parse_action(step.action)
        assert action is not None
        if action.type == "finish":
            return
        phone.perform(action)
        turns.append(step.turn)


def _miss(step: Step, phone: Phone, random: Random) -> str | None:
    """Return a tap next to the element that a step taps, which touches nothing; None where there is none."""
    action = parse_action(step.action)
    if action is None or action.type != "Tap" or not action.point:
        return None
    element = element_at(phone.scene, action.point)
    if element is None or (element.name not in SEEN and element.name not in phone.switches):
        return None
    x, y = (min(999, max(0, axis + random.randint(-MISSED_BY, MISSED_BY))) for axis in action.point)
    return do("Tap", element=(x, y)) if element_at(phone.scene, (x, y)) is None else None
