"""A simulated phone: screens with states, and actions that change them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from edgeglm.actions import TAPS, Action
from edgeglm.export.demo.screens import APPS, CHINESE, HEIGHT, KEYBOARD_TOP, WIDTH, Element, Scene, sample_scene

# What happened: a kind such as "pressed", the app in front, and a name or a text.
Effect = tuple[str, str, str]
CHINESE_APPS = {app.chinese: name for name, app in APPS.items()}
SETTINGS = "Settings"
TRASH = "trash button"


@dataclass
class App:
    """An app: its pages from top to bottom, what stands before them, and what was done in it.

    Args:
        pages: One is in view; a swipe goes to the next.
        block: What the app opens with, until it is dealt with: "loading", "login", "popup" or nothing.
    """

    pages: list[Scene]
    block: str = ""
    page: int = 0
    is_focused: bool = False
    typed: str = ""
    dialog: str = ""  # the button that opened it


@dataclass
class Phone:
    """A phone with its apps; `scene` is what its screen shows, and `perform` does an action.

    Args:
        home: Home screens from left to right.
        apps: By their English names.
        switches: Of the settings, and whether they are on.
        look: Seeds what dialogs and advertisements look like.
    """

    home: list[Scene]
    apps: dict[str, App]
    switches: dict[str, bool]
    look: float
    front: str = ""  # the app in front; none on the home screen
    home_page: int = 0
    effects: list[Effect] = field(default_factory=list)

    @property
    def app(self) -> App | None:
        """The app in front."""
        return self.apps.get(self.front)

    @property
    def scene(self) -> Scene:
        """The screen as it is."""
        app = self.app
        if app is None:
            return self.home[self.home_page]
        page = self._page(app)
        if app.block in ("loading", "login"):
            return Scene(app.block, (), page.look, app=self.front)
        if app.block or app.dialog:
            return self._covered(page, app.block or "dialog")
        return page

    def copy(self) -> Phone:
        """Return a phone in the same state."""
        apps = {name: replace(app) for name, app in self.apps.items()}
        return replace(self, apps=apps, switches=dict(self.switches), effects=[*self.effects])

    def _page(self, app: App) -> Scene:
        page = app.pages[app.page]
        elements = tuple(self._as_is(element) for element in page.elements)
        if app.is_focused:
            elements = tuple(element for element in elements if element.box[3] < KEYBOARD_TOP)
        return replace(page, app=self.front, elements=elements, focused=app.is_focused, typed=app.typed)

    def _as_is(self, element: Element) -> Element:
        return replace(element, on=self.switches[element.name]) if element.name in self.switches else element

    def _covered(self, page: Scene, kind: str) -> Scene:
        random = Random(f"{self.look}/{self.front}/{kind}")
        cover = sample_scene(random, kind=kind)
        return replace(cover, app=self.front, look=page.look, dock=0.0, behind=page.elements)

    def perform(self, action: Action) -> None:
        """Do an action as a phone does; what makes no sense on this screen changes nothing."""
        arguments = action.arguments
        match action.type:
            case "Launch":
                self._open(str(arguments.get("app")))
            case "Home":
                self._go_home()
            case "Back":
                self._go_back()
            case "Swipe":
                self._swipe(arguments.get("start"), arguments.get("end"))
            case "Type" | "Type_Name":
                self._type(str(arguments.get("text")))
            case "Wait":
                self._unblock("loading")
            case "Take_over":
                self._unblock("login")
            case kind if kind in TAPS and action.point:
                self._touch(kind, action.point)

    def _open(self, name: str) -> None:
        name = CHINESE_APPS.get(name, name)
        if name in self.apps:
            self._go_home()
            self.front = name
            self._note("opened", "")

    def _go_home(self) -> None:
        if self.app:
            self.app.is_focused, self.app.dialog, self.app.page = False, "", 0
        self.front, self.home_page = "", 0

    def _go_back(self) -> None:
        app = self.app
        if app is None:
            self.home_page = 0
        elif app.is_focused or app.dialog or app.block == "popup":
            app.is_focused, app.dialog = False, ""
            self._unblock("popup")
        else:
            self._go_home()

    def _unblock(self, kind: str) -> None:
        if self.app and self.app.block == kind:
            self.app.block = ""

    def _swipe(self, start: object, end: object) -> None:
        if not (isinstance(start, tuple) and isinstance(end, tuple)):
            return
        across, down = end[0] - start[0], end[1] - start[1]
        app = self.app
        if app is None and abs(across) > abs(down):
            self.home_page = _turned(self.home_page, across, len(self.home))
        elif app and not (app.block or app.dialog or app.is_focused) and abs(down) > abs(across):
            app.page = _turned(app.page, down, len(app.pages))

    def _type(self, text: str) -> None:
        if self.app and self.app.is_focused:
            self.app.is_focused, self.app.typed = False, text
            self._note("typed", text)

    def _touch(self, kind: str, point: tuple[int, int]) -> None:
        element = element_at(self.scene, point)
        if element is None:
            return
        if kind != "Tap":
            self._note(kind, element.name)
        elif element.name in APPS:
            self._open(element.name)
        elif self.app:
            self._tap(self.app, element.name)

    def _tap(self, app: App, name: str) -> None:
        if name == "search box":
            app.is_focused = True
        elif name == "back arrow":
            self._go_back()
        elif name in self.switches:
            self.switches[name] = not self.switches[name]
        elif name == "close button":
            self._unblock("popup")
        elif name in ("OK", "Cancel"):
            if name == "OK":
                self._note("confirmed", app.dialog)
            app.dialog = ""
        elif name == TRASH:
            app.dialog = name
        else:
            self._note("pressed", name)

    def _note(self, kind: str, name: str) -> None:
        self.effects.append((kind, self.front, name))


def _turned(page: int, finger: int, count: int) -> int:
    """Return the page after the finger went forwards (back to the page before) or backwards."""
    return min(count - 1, max(0, page + (1 if finger < 0 else -1)))


def element_at(scene: Scene, point: tuple[int, int]) -> Element | None:
    """Return the element under a point in thousandths of the screen, the last drawn one if there are several."""
    x, y = point[0] / 1000 * WIDTH, point[1] / 1000 * HEIGHT
    for element in reversed(scene.elements):
        x0, y0, x1, y1 = element.box
        if x0 <= x <= x1 and y0 <= y <= y1:
            return element
    return None


def name_of(app: str, language: str) -> str:
    """Return an app's name as the client tells it in a language; none on the home screen."""
    return CHINESE[app] if app and language == "cn" else app
