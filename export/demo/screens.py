"""Synthetic phone screens: what stands where. `render` draws them, `tasks` asks about them.

Geometry is in model pixels on a canvas of WIDTH x HEIGHT; a box is (x0, y0, x1, y1).
Everything comes from the `random.Random` that is passed in, so a seed is a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from edgeglm.export.demo.words import sample_text

WIDTH, HEIGHT = 168, 336
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class App:
    """An app: its Chinese name, the colour of its tile and its glyph."""

    chinese: str
    colour: tuple[int, int, int]
    glyph: str


APPS = {
    "Maps": App("地图", (52, 168, 83), "pin"),
    "Mail": App("邮件", (219, 68, 55), "envelope"),
    "Music": App("音乐", (250, 45, 110), "note"),
    "Camera": App("相机", (90, 90, 98), "camera"),
    "Phone": App("电话", (40, 190, 80), "handset"),
    "Chat": App("聊天", (10, 132, 255), "bubble"),
    "Clock": App("时钟", (30, 30, 36), "clock"),
    "Notes": App("便签", (240, 190, 10), "lines"),
    "Photos": App("相册", (230, 90, 160), "flower"),
    "Weather": App("天气", (80, 170, 240), "sun"),
    "Store": App("商店", (0, 90, 220), "bag"),
    "Bank": App("银行", (130, 78, 32), "bank"),
    "Games": App("游戏", (130, 60, 220), "pad"),
    "News": App("新闻", (190, 30, 45), "news"),
    "Video": App("视频", (255, 0, 0), "play"),
    "Settings": App("设置", (142, 142, 147), "gear"),
    "Calendar": App("日历", (235, 80, 60), "calendar"),
    "Files": App("文件", (60, 140, 230), "folder"),
    "Contacts": App("联系人", (170, 130, 90), "person"),
    "Calculator": App("计算器", (245, 140, 20), "keys"),
    "Browser": App("浏览器", (0, 150, 190), "compass"),
    "Books": App("图书", (230, 120, 40), "book"),
    "Travel": App("旅行", (20, 170, 160), "plane"),
    "Recorder": App("录音机", (200, 30, 80), "mic"),
}
COLOURS = {
    "red": ("红色", (220, 40, 40)),
    "green": ("绿色", (40, 170, 70)),
    "blue": ("蓝色", (40, 100, 230)),
    "yellow": ("黄色", (245, 205, 40)),
    "purple": ("紫色", (140, 60, 200)),
    "orange": ("橙色", (245, 140, 30)),
}
TOOLS = {
    "heart": "爱心",
    "share": "分享",
    "star": "星标",
    "trash": "删除",
    "pencil": "编辑",
    "download": "下载",
    "refresh": "刷新",
    "plus": "添加",
}
ROWS = {
    "Wi-Fi": ("无线网络", "wifi", (10, 132, 255)),
    "Bluetooth": ("蓝牙", "bluetooth", (60, 80, 230)),
    "Sound": ("声音", "speaker", (240, 60, 90)),
    "Display": ("显示", "screen", (90, 90, 200)),
    "Battery": ("电池", "battery", (50, 190, 80)),
    "Privacy": ("隐私", "shield", (100, 110, 125)),
    "Location": ("定位", "target", (0, 160, 160)),
    "Airplane mode": ("飞行模式", "plane", (245, 150, 20)),
}
FIXED = {
    "OK": "确定",
    "Cancel": "取消",
    "close button": "关闭按钮",
    "search box": "搜索框",
    "back arrow": "返回箭头",
    "picture": "图片",
}

# Every element's name in English (its identity everywhere) -> in Chinese.
CHINESE = {
    **{name: app.chinese for name, app in APPS.items()},
    **{f"{name} button": f"{chinese}按钮" for name, (chinese, _) in COLOURS.items()},
    **{f"{name} button": f"{chinese}按钮" for name, chinese in TOOLS.items()},
    **{name: chinese for name, (chinese, _, _) in ROWS.items()},
    **{f"{name} switch": f"{chinese}开关" for name, (chinese, _, _) in ROWS.items()},
    **FIXED,
}


@dataclass(frozen=True)
class Element:
    """Something to tap: its English name, its box, and for a switch whether it is on."""

    name: str
    box: Box
    on: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box in model pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """A screen. `elements` can be tapped, `behind` is covered by a panel, `look` seeds the drawing."""

    kind: str
    elements: tuple[Element, ...]
    look: float
    app: str = ""
    focused: bool = False
    typed: str = ""
    dock: float = 0.0
    panel: Box | None = None
    behind: tuple[Element, ...] = ()

    def find(self, name: str) -> Element | None:
        """Return the element called `name`, if the screen has it."""
        return next((element for element in self.elements if element.name == name), None)


KINDS = {"home": 36, "page": 30, "settings": 14, "dialog": 7, "popup": 5, "loading": 3, "login": 5}
KEYBOARD_TOP = 232


def sample_scene(random: Random, density: float = 1.0, kind: str = "") -> Scene:
    """Return a random screen, of a kind if given; `density` in (0, 1] thins out its elements, for the curriculum."""
    kind = kind or random.choices(list(KINDS), list(KINDS.values()))[0]
    if kind in ("dialog", "popup"):
        return _covered(random, kind, density)
    if kind in ("loading", "login"):
        return Scene(kind, (), random.random(), app=random.choice(list(APPS)))
    return {"home": _home, "page": _page, "settings": _settings}[kind](random, density)


def _square(x: float, y: float, side: float) -> Box:
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _search_box(random: Random, y: float) -> Element:
    width, height = random.uniform(90, 140), random.uniform(15, 21)
    x = random.uniform(8, WIDTH - 8 - width)
    return Element("search box", (x, y, x + width, y + height))


def _home(random: Random, density: float) -> Scene:
    columns, y0 = random.choice([4, 4, 5]), random.uniform(20, 32)
    elements: list[Element] = []
    if random.random() < 0.5:
        elements.append(_search_box(random, y0))
        y0 += 30
    focused = bool(elements) and random.random() < 0.4
    dock = 308 + random.uniform(-3, 5) if not focused and random.random() < 0.8 else 0.0
    bottom = KEYBOARD_TOP - 6 if focused else 284 if dock else 328
    names = random.sample(list(APPS), len(APPS))
    elements += _app_grid(random, names, columns, (y0, bottom), density)
    if dock:
        pitch = WIDTH / 4
        for slot in random.sample(range(4), random.randint(2, 4)):
            x = (slot + 0.5) * pitch + random.uniform(-3, 3)
            elements.append(Element(names.pop(), _square(x, dock, random.uniform(24, 29))))
    return Scene("home", tuple(elements), random.random(), focused=focused, dock=dock)


def _app_grid(
    random: Random, names: list[str], columns: int, span: tuple[float, float], density: float
) -> list[Element]:
    """Return apps on a jittered grid; take their names off `names`, keeping four for the dock."""
    pitch, row = WIDTH / columns, random.uniform(42, 50)
    cells = [(c, r) for r in range(int((span[1] - span[0]) // row)) for c in range(columns)]
    wanted = max(2, int(random.uniform(3, 21) * density))
    largest = 30 if columns == 4 else 24
    grid = []
    for column, line in random.sample(cells, min(wanted, len(cells), len(names) - 4)):
        x = (column + 0.5) * pitch + random.uniform(-4, 4)
        y = span[0] + (line + 0.4) * row + random.uniform(-3, 3)
        grid.append(Element(names.pop(), _square(x, y, random.uniform(18, largest))))
    return grid


def _page(random: Random, density: float) -> Scene:
    elements: list[Element] = []
    if random.random() < 0.75:
        elements.append(Element("back arrow", (6, 20, 26, 38)))
    y, typed = 48 + random.uniform(0, 10), ""
    if random.random() < 0.6:
        elements.append(_search_box(random, y))
        y += 28
    focused = len(elements) > 0 and elements[-1].name == "search box" and random.random() < 0.45
    if not focused and elements and elements[-1].name == "search box" and random.random() < 0.3:
        typed = sample_text(random)
    bottom = KEYBOARD_TOP - 6 if focused else 328
    blocks = [_tool_row, _buttons, _picture, _buttons]
    random.shuffle(blocks)
    for block in blocks[: max(1, round(random.uniform(1, 4) * density))]:
        placed = block(random, y + random.uniform(2, 20), bottom, density, elements)
        elements += placed
        y = max([y, *(element.box[3] for element in placed)])
    app = random.choice([name for name in APPS if name != "Settings"])
    return Scene("page", tuple(elements), random.random(), app=app, focused=focused, typed=typed)


def _tool_row(random: Random, y: float, bottom: float, density: float, _: Sequence[Element]) -> list[Element]:
    count = max(2, round(random.uniform(3, 7) * density))
    pitch, side = (
        WIDTH / count if random.random() < 0.5 else random.uniform(22, WIDTH / 7),
        random.uniform(13, 17),
    )
    if y + side > bottom:
        return []
    left = random.uniform(2, max(3, WIDTH - count * pitch))
    names = random.sample(list(TOOLS), count)
    return [
        Element(f"{name} button", _square(left + (i + 0.5) * pitch, y + side / 2, side))
        for i, name in enumerate(names)
        if left + (i + 0.5) * pitch + side / 2 < WIDTH
    ]


def _buttons(random: Random, y: float, bottom: float, density: float, taken: Sequence[Element]) -> list[Element]:
    """Return the rows of one to three coloured buttons, no colour twice on a screen."""
    used = {element.name for element in taken}
    free = [f"{name} button" for name in COLOURS if f"{name} button" not in used]
    random.shuffle(free)
    placed: list[Element] = []
    for _ in range(max(1, round(random.uniform(1, 3) * density))):
        height, count = random.uniform(13, 22), random.randint(1, 3)
        if y + height > bottom:
            break
        pitch = (WIDTH - 10) / count
        for slot in range(min(count, len(free))):
            width = random.uniform(24, min(pitch - 6, 80))
            x = 5 + slot * pitch + random.uniform(0, pitch - width - 3)
            placed.append(Element(free.pop(), (x, y, x + width, y + height)))
        y += height + random.uniform(4, 22)
    return placed


def _picture(random: Random, y: float, bottom: float, density: float, _: Sequence[Element]) -> list[Element]:
    width, height = random.uniform(60, 150), random.uniform(40, 80)
    if y + height > bottom:
        return []
    x = random.uniform(6, WIDTH - 6 - width)
    return [Element("picture", (x, y, x + width, y + height))]


def _settings(random: Random, density: float) -> Scene:
    elements = [Element("back arrow", (6, 20, 26, 38))] if random.random() < 0.75 else []
    y, pitch = 50 + random.uniform(0, 14), random.uniform(24, 34)
    count = max(2, round(random.uniform(4, 8) * density))
    for name in random.sample(list(ROWS), count):
        if y + pitch > 332:
            break
        middle, height = y + pitch / 2, random.uniform(11, 14)
        elements.append(Element(name, (8, middle - 9, 110, middle + 9)))
        box = (134.0, middle - height / 2, 158.0, middle + height / 2)
        elements.append(Element(f"{name} switch", box, on=random.random() < 0.5))
        y += pitch
    return Scene("settings", tuple(elements), random.random(), app="Settings")


def _covered(random: Random, kind: str, density: float) -> Scene:
    """Return a dialog with two buttons, or an advertisement with a close button, over another screen."""
    below = _home(random, density) if random.random() < 0.5 else _page(random, density)
    width, height = random.uniform(110, 150), random.uniform(70, 120)
    x, y = random.uniform(6, WIDTH - 6 - width), random.uniform(45, 285 - height)
    panel = (x, y, x + width, y + height)
    if kind == "popup":
        side = random.uniform(13, 17)
        left = x + width - side - 4 if random.random() < 0.75 else x + 4
        elements = [Element("close button", (left, y + 4, left + side, y + 4 + side))]
    else:
        tall, bottom = random.uniform(16, 21), y + height - random.uniform(6, 10)
        names = random.sample(["OK", "Cancel"], 2)
        elements = [
            Element(name, (x + left * width, bottom - tall, x + (left + 0.4) * width, bottom))
            for name, left in zip(names, (0.06, 0.54), strict=True)
        ]
    return Scene(
        kind, tuple(elements), random.random(), app=below.app, dock=below.dock, panel=panel, behind=below.elements
    )
