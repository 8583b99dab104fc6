"""Sampled goals: what is wished for in which words, and a phone on which it can be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import TypeVar

from edgeglm.export.demo.goals import Goal, Task, play
from edgeglm.export.demo.phone import SETTINGS, TRASH, App, Phone, element_at, name_of
from edgeglm.export.demo.screens import APPS, CHINESE, COLOURS, ROWS, TOOLS, Scene, sample_scene
from edgeglm.export.demo.steps import to_units
from edgeglm.export.demo.words import sample_text

T = TypeVar("T")

# Of a goal, with the one that finishes it.
FEWEST_STEPS, MOST_STEPS = 2, 8
PRESSED = [f"{name} button" for name in (*COLOURS, *TOOLS) if f"{name} button" != TRASH]
BLOCKS = {"": 0.6, "popup": 0.16, "loading": 0.12, "login": 0.12}
SECOND_PAGE = 0.3  # of targets that must be searched
KINDS = {"search": 4, "press": 4, "delete": 2, "like": 1}
# How often to try for a page with all targets, before other targets are chosen.
TRIES = 60

# What comes before an app's tasks, and what joins the two.
VISITS = {
    "en": (("open {a}", " and "), ("in {a}", ", ")),
    "cn": (("打开{a}", "，"), ("在{a}里", "")),
}
OPEN = {"en": ("open {a}", "launch {a}"), "cn": ("打开{a}", "启动{a}")}
TASKS = {
    "search": {"en": ('search for "{n}"', 'look for "{n}"'), "cn": ('搜索"{n}"', '查找"{n}"')},
    "press": {"en": ("tap the {n}", "press the {n}"), "cn": ("点击{n}", "按{n}")},
    "like": {"en": ("double tap the {n}", "like the {n}"), "cn": ("双击{n}", "给{n}点赞")},
    "delete": {"en": ("delete this and confirm", "delete it, then confirm"), "cn": ("删除并确认", "删除它并确认")},
    "on": {"en": ("turn on {n}", "switch on {n}"), "cn": ("打开{n}", "把{n}打开")},
    "off": {"en": ("turn off {n}", "switch off {n}"), "cn": ("关闭{n}", "把{n}关闭")},
}
AND = {"en": (" and ", ", then "), "cn": ("，再", "，然后")}
THEN = {"en": ", then ", "cn": "，然后"}
GO_HOME = {"en": ("go home", "go to the home screen"), "cn": ("回到主屏幕", "回桌面")}


def sample_goal(random: Random, language: str, in_settings: bool = False) -> tuple[Goal, Phone]:
    """Return a goal of FEWEST_STEPS to MOST_STEPS in a language, and a phone on which it can be done.

    Args:
        random: Draws it.
        language: Of the wish, "en" or "cn".
        in_settings: It visits the settings; otherwise one in twenty does.
    """
    while True:
        goal = _sample_wish(random, language, in_settings)
        if (phone := _build(random, goal)) is None:
            continue
        trial = phone.copy()
        steps = sum(1 for _ in play(goal, trial))
        if FEWEST_STEPS <= steps <= MOST_STEPS and goal.is_reached(trial, phone):
            return goal, phone


def sample_other(random: Random, language: str, goal: Goal, phone: Phone) -> Goal | None:
    """Return another goal for a goal's phone, of what its apps or one more have; None where a try failed."""
    more = random.choice([app for app in APPS if app != phone.front])
    apps = list(dict.fromkeys([*(app for app, _ in goal.visits), more]))
    names = random.sample(apps, min(len(apps), random.choices((1, 2), (3, 2))[0]))
    other = _write_goal(random, language, tuple((app, _choose_tasks(random, phone.apps[app])) for app in names))
    trial = phone.copy()
    steps = sum(1 for _ in play(other, trial))
    return other if FEWEST_STEPS <= steps <= MOST_STEPS and other.is_reached(trial, phone) else None


def _choose_tasks(random: Random, app: App) -> tuple[Task, ...]:
    """Return up to two tasks with elements that an app has, those on its first page before those on its second."""
    seen, found = set[str](), list[Task]()
    for page, scene in enumerate(app.pages):
        names = [element.name for element in scene.elements if _in_reach(scene, element.name)]
        kinds = [(kind, name) for name in names if name not in seen and (kind := _kind_for(random, name))]
        found += [Task(kind, sample_text(random) if kind == "search" else name, page) for kind, name in kinds]
        seen |= {element.name for element in scene.elements}
    chosen = random.sample(found, min(len(found), random.choices((0, 1, 2), (1, 4, 4))[0]))
    return tuple(sorted(chosen, key=lambda task: task.page))


def _kind_for(random: Random, name: str) -> str:
    """Return what is done with an element; nothing where goals leave it alone."""
    if name.removesuffix(" switch") in ROWS and name.endswith(" switch"):
        return random.choice(("on", "off"))
    named = {"search box": "search", "picture": "like", TRASH: "delete"}
    return named.get(name) or ("press" if name in PRESSED else "")


def _sample_wish(random: Random, language: str, in_settings: bool) -> Goal:
    names = random.sample(list(APPS), random.choices((1, 2), (3, 1))[0])
    if in_settings and SETTINGS not in names:
        names[random.randrange(len(names))] = SETTINGS
    return _write_goal(random, language, tuple((app, _sample_tasks(random, app)) for app in names))


def _write_goal(random: Random, language: str, visits: tuple[tuple[str, tuple[Task, ...]], ...]) -> Goal:
    ends_at_home = random.random() < 0.2
    written = [_write_visit(random, language, app, tasks) for app, tasks in visits]
    if ends_at_home:
        home, part = _wording(random, GO_HOME, language)
        written.append((home, [part]))
    wish = _capitalize(THEN[language].join(text for text, _ in written))
    first, *others = [part for _, parts in written for part in parts]
    return Goal(wish, (_capitalize(first), *others), language, visits, ends_at_home)


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def _sample_tasks(random: Random, app: str) -> tuple[Task, ...]:
    """Return the tasks in an app, those on its first page before those on its second."""
    count = random.choices((0, 1, 2), (1, 6, 2))[0]
    pages = sorted(int(random.random() < SECOND_PAGE) for _ in range(count))
    if app == SETTINGS:
        return tuple(
            Task(random.choice(("on", "off")), f"{row} switch", page)
            for row, page in zip(random.sample(list(ROWS), count), pages, strict=True)
        )
    while True:
        kinds = random.choices(list(KINDS), list(KINDS.values()), k=count)
        tasks = tuple(_sample_task(random, kind, page) for kind, page in zip(kinds, pages, strict=True))
        if len({task.target for task in tasks}) == count:
            return tasks


def _sample_task(random: Random, kind: str, page: int) -> Task:
    names = {"press": random.choice(PRESSED), "like": "picture", "delete": TRASH}
    return Task(kind, names.get(kind) or sample_text(random), page)


def _write_visit(random: Random, language: str, app: str, tasks: tuple[Task, ...]) -> tuple[str, list[str]]:
    """Return what is wished for in an app, and its parts: to open it, and each task."""
    name = name_of(app, language)
    if not tasks:
        opening, part = _wording(random, OPEN, language)
        return opening.format(a=name), [part.format(a=app)]
    joint = random.choice(AND[language])
    done = [_write_task(random, language, task) for task in tasks]
    (opening, comma), (part, _) = _wording(random, VISITS, language)
    text = f"{opening.format(a=name)}{comma}{joint.join(text for text, _ in done)}"
    return text, [part.format(a=app), *(part for _, part in done)]


def _write_task(random: Random, language: str, task: Task) -> tuple[str, str]:
    """Return what is wished for, and the same in English."""
    name = task.name.removesuffix(" switch")
    written = CHINESE.get(name, name) if language == "cn" and task.kind != "search" else name
    text, part = _wording(random, TASKS[task.kind], language)
    return text.format(n=written), part.format(n=name)


def _wording(random: Random, wordings: Mapping[str, tuple[T, ...]], language: str) -> tuple[T, T]:
    """Return one of the wordings in a language, and the same in English."""
    return random.choice([*zip(wordings[language], wordings["en"], strict=True)])


def _build(random: Random, goal: Goal) -> Phone | None:
    """Return a phone whose apps have what the goal's tasks need; None where no page was found that has it all."""
    apps: dict[str, App] = {}
    for app, tasks in goal.visits:
        last = max((task.page for task in tasks), default=0)
        pages = [_sample_page(random, app, tasks, page) for page in range(last + 1)]
        found = [page for page in pages if page]
        if len(found) < len(pages):
            return None
        block = random.choices(list(BLOCKS), list(BLOCKS.values()))[0] if tasks and app != SETTINGS else ""
        apps[app] = App(found, block)
    for app in [app for app in APPS if app not in apps]:
        page = _sample_page(random, app, (), 0)
        assert page is not None  # nothing is asked of it
        apps[app] = App([page])
    home = [_sample_plain(random, "home") for _ in range(2)]
    switches = {f"{row} switch": random.random() < 0.5 for row in ROWS}
    front = random.choice([app for app in APPS if app not in dict(goal.visits)]) if random.random() < 0.2 else ""
    return Phone(home, apps, switches, random.random(), front)


def _sample_page(random: Random, app: str, tasks: tuple[Task, ...], page: int) -> Scene | None:
    """Return a page of an app with the targets that it must have, each in reach, and without those of other pages."""
    here = {task.target for task in tasks if task.page == page}
    elsewhere = {task.target for task in tasks} - here
    for _ in range(TRIES):
        scene = _sample_plain(random, "settings" if app == SETTINGS else "page")
        names = {element.name for element in scene.elements}
        if here <= names and not elsewhere & names and all(_in_reach(scene, name) for name in here):
            return replace(scene, app=app, typed="")
    return None


def _sample_plain(random: Random, kind: str) -> Scene:
    """Return a screen of a kind without a keyboard."""
    while (scene := sample_scene(random, kind=kind)).focused:
        pass
    return scene


def _in_reach(scene: Scene, name: str) -> bool:
    """Return whether nothing covers the middle of an element."""
    element = scene.find(name)
    return element is not None and element_at(scene, to_units(*element.centre)) == element
