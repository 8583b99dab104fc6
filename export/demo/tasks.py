"""Tasks on a screen, each with the one right next action in Open-AutoGLM's language.

A step is an instruction (English or Chinese), the actions already done, a short thought and the action.
Multi-step goals (launch, search, switch on, confirm, finish) are sampled at any of their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from edgeglm.export.demo.screens import APPS, ROWS, TOOLS, Scene
from edgeglm.export.demo.single_steps import SingleSteps
from edgeglm.export.demo.steps import Step, Turn, do
from edgeglm.export.demo.words import sample_text

Maker = Callable[["_Sampler"], "Step | None"]

GROUND = 0.5  # the share of plain "tap the …" steps


def sample_step(scene: Scene, random: Random) -> Step:
    """Return a step whose right action can be read off `scene`."""
    sampler = _Sampler(scene, random)
    return replace(sampler.step(), app=sampler.front())


def sample_practice(scene: Scene, random: Random) -> Step:
    """Sample the hardest questions about `scene`, for training: what is not there, a switch's state, a text to copy."""
    sampler = _Sampler(scene, random)
    if scene.focused and random.random() < 0.5:
        step: Step | None = sampler.type_text()
    else:
        step = sampler.tap_missing() or sampler.switch_goal()
    return replace(step, app=sampler.front()) if step else sample_step(scene, random)


def sample_pointing(scene: Scene, random: Random) -> Step:
    """Sample a plain "tap the …" step for training, or one of `sample_practice`; home screens launch nothing."""
    sampler = _Sampler(scene, random)
    if random.random() < 0.7 and (step := sampler.tap_named()):
        return replace(step, app=sampler.front())
    return sample_practice(scene, random)


class _Sampler(SingleSteps):
    """Samples steps of goals too."""

    def step(self) -> Step:
        """Return a step of any kind that the scene can pose."""
        scene, random = self.scene, self.random
        if scene.kind in BLOCKED:
            return BLOCKED[scene.kind](self)
        if random.random() < GROUND and (step := self.tap_named()):
            return step
        if scene.focused and random.random() < 0.4:
            return self.type_text()
        makers = MAKERS[scene.kind]
        while True:
            step = random.choices(list(makers), list(makers.values()))[0](self)
            if step:
                return step

    def _search_wish(self, app: str, text: str) -> str:
        english = ['Open {a} and search for "{n}"', 'Search for "{n}" in {a}']
        return self.say(english, ['打开{a}搜索"{n}"', '在{a}里搜索"{n}"'], a=self.name(app), n=text)

    def search_goal(self) -> Step:
        scene = self.scene
        if scene.kind == "home":
            app = self.random.choice(list(APPS))
            return self._launch(self._search_wish(app, sample_text(self.random)), app)
        if scene.typed:
            wish = self._search_wish(scene.app, scene.typed)
            return self.done(wish, self.launched(scene.app), self.box_tap(scene.typed), self.typed(scene.typed))
        text = sample_text(self.random)
        previous = [self.launched(scene.app)]
        if scene.focused:
            previous.append(self.box_tap(text))
        return self._search(self._search_wish(scene.app, text), text, *previous)

    def _button_wish(self, app: str, name: str) -> str:
        english = ["Open {a} and tap the {n}", "In {a}, press the {n}"]
        return self.say(english, ["打开{a}并点击{n}", "在{a}里按{n}"], a=self.name(app), n=self.name(name))

    def button_goal(self) -> Step | None:
        scene = self.scene
        if scene.kind == "home":
            app = self.random.choice(list(APPS))
            return self._launch(self._button_wish(app, self.random.choice([f"{name} button" for name in TOOLS])), app)
        choices = [element for element in scene.elements if element.name.endswith(" button")]
        if not choices:
            return None
        element = self.random.choice(choices)
        wish = self._button_wish(scene.app, element.name)
        if self.random.random() < 0.6:
            return self.tap(wish, element, self.launched(scene.app))
        return self.done(wish, self.launched(scene.app), self.earlier_tap(element.name, element))

    def switch_goal(self) -> Step | None:
        """Switch something on or off: launch, tap the switch unless it already is, finish."""
        row = self.random.choice(list(ROWS))
        if self.scene.kind == "home":
            wish = self._switch_wish(row, self.random.random() < 0.5, ["In Settings, turn {s} {n}"], ["在设置里{s}{n}"])
            return self._launch(wish, "Settings")
        switches = [element for element in self.scene.elements if element.name.endswith(" switch")]
        if not switches:
            return None
        element, want = self.random.choice(switches), self.random.random() < 0.5
        wish = self._switch_wish(
            element.name.removesuffix(" switch"),
            want,
            ["Turn {s} {n}", "Switch {s} {n}"],
            ["{s}{n}", "把{n}{s}"],
        )
        previous = [self.launched("Settings")] if self.random.random() < 0.5 else []
        if element.on is not want:
            return self.tap(wish, element, *previous)
        if previous and self.random.random() < 0.5:
            previous.append(self.earlier_tap(element.name, element))
        return self.done(wish, *previous)

    def _switch_wish(self, row: str, want: bool, english: list[str], chinese: list[str]) -> str:
        state = ("打开" if want else "关闭") if self.chinese else ("on" if want else "off")
        return self.say(english, chinese, s=state, n=self.name(row))

    def then_home(self) -> Step | None:
        """Tap something, then go to the home screen, then finish."""
        element = self.random.choice(self.scene.elements) if self.scene.elements else None
        if element is None or self.scene.kind not in ("page", "settings"):
            return None
        wish = self.say(["Tap the {n}, then go home"], ["点击{n}，然后回到主屏幕"], n=self.name(element.name))
        if self.random.random() < 0.5:
            return self.tap(wish, element)
        thought = self.say(["Go home."], ["回到主屏幕。"])
        return Step(wish, (self.earlier_tap(element.name, element),), thought, do("Home"))

    def home_done(self) -> Step:
        button = self.random.choice([f"{name} button" for name in TOOLS])
        wish = self.say(["Tap the {n}, then go home"], ["点击{n}，然后回到主屏幕"], n=self.name(button))
        app = self.name(list(APPS)[int(self.scene.look * len(APPS))])  # any: it is no longer in sight
        went = Turn(app, "回到主屏幕。" if self.chinese else "Go home.", do("Home"))
        return self.done(wish, self.earlier_tap(button, app=app), went)

    def any_wish(self) -> str:
        """Return a goal that has nothing to do with what blocks the screen."""
        app = self.scene.app or self.random.choice(list(APPS))
        if self.random.random() < 0.5:
            return self._search_wish(app, sample_text(self.random))
        return self._button_wish(app, self.random.choice([f"{name} button" for name in TOOLS]))

    def loading(self) -> Step:
        thought = self.say(["The page is loading."], ["页面正在加载。"])
        return Step(self.any_wish(), (self.launched(self.scene.app),), thought, do("Wait", duration="2 seconds"))

    def login(self) -> Step:
        thought = self.say(["The user must log in."], ["需要用户登录。"])
        message = ("Please log in", "请先登录")[self.chinese]
        return Step(self.any_wish(), (self.launched(self.scene.app),), thought, do("Take_over", message=message))

    def popup(self) -> Step:
        element = self.scene.elements[0]
        if self.random.random() < 0.3:
            return self.tap(self.say(["Close the ad", "Tap the close button"], ["关闭广告", "点击关闭按钮"]), element)
        wish = self.any_wish()
        return self.tap(wish, element, *([self.launched(self.scene.app)] if self.scene.app else []))

    def dialog(self) -> Step:
        """Confirm or dismiss; or confirm a deletion that was asked for."""
        roll = self.random.random()
        if roll < 0.4:
            step = self.tap_named()
            assert step is not None
            return step
        agree = roll < 0.7
        element = self.scene.find("OK" if agree else "Cancel")
        assert element is not None
        if agree:
            wish = self.say(["Delete this and confirm", "Delete it, then confirm"], ["删除并确认", "删除它并确认"])
            return self.tap(wish, element, self.earlier_tap("trash button"))
        return self.tap(self.say(["Dismiss the dialog", "Do not allow it"], ["关掉对话框", "不要允许"]), element)

    def delete_goal(self) -> Step | None:
        element = self.scene.find("trash button")
        if element is None:
            return None
        wish = self.say(["Delete this and confirm", "Delete it, then confirm"], ["删除并确认", "删除它并确认"])
        if self.random.random() < 0.6:
            return self.tap(wish, element)
        return self.done(wish, self.earlier_tap(element.name, element), self.earlier_tap("OK"))


BLOCKED: dict[str, Callable[[_Sampler], Step]] = {
    "loading": _Sampler.loading,
    "login": _Sampler.login,
    "popup": _Sampler.popup,
    "dialog": _Sampler.dialog,
}
_ANYWHERE: dict[Maker, float] = {
    _Sampler.launch: 5,
    _Sampler.scroll: 6,
    _Sampler.back: 3,
    _Sampler.home: 3,
    _Sampler.wait: 4,
}
MAKERS: dict[str, dict[Maker, float]] = {
    "home": {
        **_ANYWHERE,
        _Sampler.type_text: 22,
        _Sampler.search_goal: 12,
        _Sampler.switch_goal: 6,
        _Sampler.button_goal: 6,
        _Sampler.tap_missing: 14,
        _Sampler.home_done: 6,
    },
    "page": {
        **_ANYWHERE,
        _Sampler.type_text: 18,
        _Sampler.search_goal: 24,
        _Sampler.button_goal: 16,
        _Sampler.tap_missing: 12,
        _Sampler.delete_goal: 16,
        _Sampler.then_home: 8,
    },
    "settings": {**_ANYWHERE, _Sampler.switch_goal: 60, _Sampler.then_home: 10},
}
