"""Single steps on a screen, and the wordings of all steps, in English or Chinese."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from edgeglm.export.demo.screens import APPS, CHINESE, ROWS, TOOLS, Element, Scene
from edgeglm.export.demo.steps import SWIPES, Step, Turn, do, finish, to_units
from edgeglm.export.demo.words import sample_text

BOX_THOUGHTS = ['Tap the search box to type "{n}".'], ['点击搜索框，输入"{n}"。']
TYPE_THOUGHTS = ['The keyboard is open, type "{n}".'], ['键盘已打开，输入"{n}"。']


class SingleSteps:
    """Samples a kind of step in each method, which gives None where the scene cannot pose it."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self.scene = scene
        self.random = random
        self.chinese = random.random() < 0.4

    def front(self) -> str:
        """Return the app in front in the sampled language."""
        return self.name(self.scene.app) if self.scene.app else ""

    # -- language --------------------------------------------------------------------

    def say(self, english: list[str], chinese: list[str], **names: str) -> str:
        """Return a random wording of the sampled language, with its names filled in."""
        return self.random.choice(chinese if self.chinese else english).format(**names)

    def name(self, element: str) -> str:
        """Return an element's name in the sampled language."""
        return CHINESE[element] if self.chinese else element

    def done(self, wish: str, *previous: Turn, message: tuple[str, str] = ("Done", "已完成")) -> Step:
        """Return the step that ends a goal, after the `previous` ones."""
        thought = self.say(["Nothing is left to do."], ["没有剩余步骤了。"])
        return Step(wish, previous, thought, finish(message[self.chinese]))

    def tap(self, wish: str, element: Element, *previous: Turn, action: str = "Tap") -> Step:
        """Return a tap, or a longer or double one, on an element."""
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
        """Return the launch that was done before."""
        name = self.name(app)
        return Turn("", f"打开{name}。" if self.chinese else f"Open {name}.", do("Launch", app=name))

    # -- steps -----------------------------------------------------------------------

    def tap_named(self) -> Step | None:
        """Return a step on an element that the instruction names."""
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
        """Return the swipe towards an element that is not in sight."""
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
        """Return a swipe that the instruction asks for."""
        direction = self.random.choice(list(SWIPES))
        name = SWIPES[direction][0] if self.chinese else direction
        wish = self.say(["Scroll {n}", "Scroll {n} a bit"], ["向{n}滚动", "往{n}翻"], n=name)
        return self._swipe(wish, direction, self.say(["Scroll {n}."], ["向{n}滚动。"], n=name))

    def launch(self) -> Step:
        """Return the launch of an app."""
        app = self.random.choice(list(APPS))
        wish = self.say(["Open {n}", "Launch {n}", "Start {n}"], ["打开{n}", "启动{n}", "运行{n}"], n=self.name(app))
        return self._launch(wish, app)

    def _launch(self, wish: str, app: str) -> Step:
        thought = self.say(["Open {n}."], ["打开{n}。"], n=self.name(app))
        return Step(wish, (), thought, self.launched(app).action)

    def back(self) -> Step:
        """Return the step back."""
        wish = self.say(["Go back", "Back", "Return to the last page"], ["返回", "返回上一页", "后退"])
        return Step(wish, (), self.say(["Go back."], ["返回。"]), do("Back"))

    def home(self) -> Step:
        """Return the step to the home screen."""
        wish = self.say(["Go home", "Go to the home screen"], ["回到主屏幕", "回桌面"])
        return Step(wish, (), self.say(["Go home."], ["回到主屏幕。"]), do("Home"))

    def wait(self) -> Step:
        """Return a wait of some seconds."""
        seconds = str(self.random.randint(1, 30))
        wish = self.say(["Wait {n} seconds", "Wait for {n} seconds"], ["等待{n}秒", "等{n}秒"], n=seconds)
        return Step(
            wish,
            (),
            self.say(["Wait {n} seconds."], ["等待{n}秒。"], n=seconds),
            do("Wait", duration=f"{seconds} seconds"),
        )

    def type_text(self) -> Step:
        """Return the next step of typing a text into the search box."""
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
