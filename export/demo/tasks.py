"""Tasks on a screen, each with the one right next action in Open-AutoGLM's language.

A step is an instruction (English or Chinese), the actions already done, a short thought and the action.
Multi-step goals (launch, search, switch on, confirm, finish) are sampled at any of their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from edgeglm.export.demo.screens import APPS, CHINESE, ROWS, TOOLS, Element, Scene
from edgeglm.export.demo.steps import SWIPES, Step, Turn, do, finish, to_units
from edgeglm.export.demo.words import sample_text

Maker = Callable[["_Sampler"], "Step | None"]


BOX_THOUGHTS = ['Tap the search box to type "{n}".'], ['点击搜索框，输入"{n}"。']
TYPE_THOUGHTS = ['The keyboard is open, type "{n}".'], ['键盘已打开，输入"{n}"。']
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


class _Sampler:
    """Samples a kind of step in each method, which gives None where the scene cannot pose it."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self.scene = scene
        self.random = random
        self.chinese = random.random() < 0.4

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

    def front(self) -> str:
        """Return the app in front in the sampled language."""
        return self.name(self.scene.app) if self.scene.app else ""

    # -- language --------------------------------------------------------------------

    def say(self, english: list[str], chinese: list[str], **names: str) -> str:
        """Return a random wording of the sampled language, with its names filled in."""
        return self.random.choice(chinese if self.chinese else english).format(**names)

    def name(self, element: str) -> str:
        return CHINESE[element] if self.chinese else element

    def done(self, wish: str, *previous: Turn, message: tuple[str, str] = ("Done", "已完成")) -> Step:
        thought = self.say(["Nothing is left to do."], ["没有剩余步骤了。"])
        return Step(wish, previous, thought, finish(message[self.chinese]))

    def tap(self, wish: str, element: Element, *previous: Turn, action: str = "Tap") -> Step:
        verb = {"Tap": "点击", "Double Tap": "双击", "Long Press": "长按"}[action]
        name = self.name(element.name)
        thought = f"{verb}{name}。" if self.chinese else f"{action} {name}."
        code = do(action, element=to_units(*element.centre))
        return Step(wish, previous, thought, code, element.box)

    def earlier_tap(self, name: str, element: Element | None = None, app: str = "") -> Turn:
        """Return a tap that was done before, on `element` or on something no longer in sight."""
        x, y = element.centre if element else (self.random.uniform(10, 158), self.random.uniform(30, 320))
        thought = f"点击{self.name(name)}。" if self.chinese else f"Tap {name}."
        return Turn(app or self.front(), thought, do("Tap", element=to_units(x, y)))

    def launched(self, app: str) -> Turn:
        name = self.name(app)
        return Turn("", f"打开{name}。" if self.chinese else f"Open {name}.", do("Launch", app=name))

    # -- single steps ------------------------------------------------------------------

    def tap_named(self) -> Step | None:
        if not self.scene.elements:
            return None
        element = self.random.choice(self.scene.elements)
        name = self.name(element.name)
        roll = self.random.random()
        if element.name in APPS and roll < 0.15:
            wish = self.say(["Long press the {n} icon", "Hold the {n} icon"], ["长按{n}图标", "按住{n}"], n=name)
            return self.tap(wish, element, action="Long Press")
        if element.name == "picture" and roll < 0.6:
            wish = self.say(["Double tap the {n}", "Like the {n}"], ["双击{n}", "给{n}点赞"], n=name)
            return self.tap(wish, element, action="Double Tap")
        if element.name in APPS:
            wish = self.say(
                ["Tap the {n} icon", "Tap {n}", "Press the {n} icon"],
                ["点击{n}图标", "点击{n}", "点一下{n}"],
                n=name,
            )
        elif element.name in ROWS or element.name in ("OK", "Cancel"):
            wish = self.say(["Tap {n}", "Press {n}", "Select {n}"], ["点击{n}", "选择{n}", "点一下{n}"], n=name)
        else:
            wish = self.say(
                ["Tap the {n}", "Press the {n}", "Click the {n}"], ["点击{n}", "按{n}", "点一下{n}"], n=name
            )
        return self.tap(wish, element)

    def tap_missing(self) -> Step | None:
        home = self.scene.kind == "home"
        pool = list(APPS) if home else [f"{name} button" for name in TOOLS]
        missing = [name for name in pool if not self.scene.find(name)]
        if not missing or (not home and self.scene.kind != "page"):
            return None
        name = self.name(self.random.choice(missing))
        wish = self.say(
            ["Tap the {n} icon", "Tap {n}"] if home else ["Tap the {n}", "Press the {n}"],
            ["点击{n}", "点一下{n}"],
            n=name,
        )
        thought = self.say(["{n} is not here."], ["这里没有{n}。"], n=name)
        return self._swipe(wish, "right" if home else "down", thought)

    def _swipe(self, wish: str, direction: str, thought: str) -> Step:
        _, start, end = SWIPES[direction]
        return Step(wish, (), thought, do("Swipe", start=start, end=end))

    def scroll(self) -> Step:
        direction = self.random.choice(list(SWIPES))
        name = SWIPES[direction][0] if self.chinese else direction
        wish = self.say(["Scroll {n}", "Scroll {n} a bit"], ["向{n}滚动", "往{n}翻"], n=name)
        return self._swipe(wish, direction, self.say(["Scroll {n}."], ["向{n}滚动。"], n=name))

    def launch(self) -> Step:
        app = self.random.choice(list(APPS))
        wish = self.say(["Open {n}", "Launch {n}", "Start {n}"], ["打开{n}", "启动{n}", "运行{n}"], n=self.name(app))
        return self._launch(wish, app)

    def _launch(self, wish: str, app: str) -> Step:
        thought = self.say(["Open {n}."], ["打开{n}。"], n=self.name(app))
        return Step(wish, (), thought, self.launched(app).action)

    def back(self) -> Step:
        wish = self.say(["Go back", "Back", "Return to the last page"], ["返回", "返回上一页", "后退"])
        return Step(wish, (), self.say(["Go back."], ["返回。"]), do("Back"))

    def home(self) -> Step:
        wish = self.say(["Go home", "Go to the home screen"], ["回到主屏幕", "回桌面"])
        return Step(wish, (), self.say(["Go home."], ["回到主屏幕。"]), do("Home"))

    def wait(self) -> Step:
        seconds = str(self.random.randint(1, 30))
        wish = self.say(["Wait {n} seconds", "Wait for {n} seconds"], ["等待{n}秒", "等{n}秒"], n=seconds)
        return Step(
            wish,
            (),
            self.say(["Wait {n} seconds."], ["等待{n}秒。"], n=seconds),
            do("Wait", duration=f"{seconds} seconds"),
        )

    def type_text(self) -> Step:
        text = sample_text(self.random)
        wish = self.say(
            ['Type "{n}"', 'Search for "{n}"', 'Enter "{n}" in the search box'],
            ['输入"{n}"', '搜索"{n}"', '在搜索框输入"{n}"'],
            n=text,
        )
        return self._search(wish, text)

    def _search(self, wish: str, text: str, *previous: Turn) -> Step:
        """Return the next step of typing `text`: finish without a search box, type into a focused one, else tap it."""
        box = self.scene.find("search box")
        if box is None:
            thought = self.say(["The search box is not here."], ["这里没有搜索框。"])
            return Step(wish, previous, thought, finish(("No search box", "没有搜索框")[self.chinese]))
        if self.scene.focused:
            thought = self.say(*TYPE_THOUGHTS, n=text)
            return Step(wish, previous, thought, do("Type", text=text))
        thought = self.say(*BOX_THOUGHTS, n=text)
        return replace(self.tap(wish, box, *previous), thought=thought)

    def typed(self, text: str) -> Turn:
        """Return the step that typed a text."""
        return Turn(self.front(), TYPE_THOUGHTS[self.chinese][0].format(n=text), do("Type", text=text))

    def box_tap(self, text: str) -> Turn:
        """Return the tap on the search box that was done before a text is typed."""
        turn = self.earlier_tap("search box", self.scene.find("search box"))
        return replace(turn, thought=BOX_THOUGHTS[self.chinese][0].format(n=text))

    # -- goals of several steps ----------------------------------------------------------

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
