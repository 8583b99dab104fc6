"""Draws a `Scene` with Pillow, at SCALE canvas pixels per model pixel."""

from __future__ import annotations

from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from edgeglm.export.demo.glyphs import Colour, draw_glyph
from edgeglm.export.demo.screens import APPS, COLOURS, HEIGHT, KEYBOARD_TOP, ROWS, WIDTH, Box, Element, Scene

SCALE = 2
WHITE: Colour = (255, 255, 255)
BUTTON_LABELS = ("Send", "Buy", "Next", "Go", "Add", "Open", "Play", "Join", "Save")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _tone(random: Random, low: int = 20, high: int = 235) -> Colour:
    return random.randint(low, high), random.randint(low, high), random.randint(low, high)


def _blend(a: Colour, b: Colour) -> Colour:
    return (a[0] + b[0]) // 2, (a[1] + b[1]) // 2, (a[2] + b[2]) // 2


def render(scene: Scene) -> Image.Image:
    """Return the screenshot: RGB, SCALE * WIDTH x SCALE * HEIGHT pixels, the same for the same scene."""
    return _Painter(scene).paint()


class _Painter:
    """A canvas and the look (theme, tile style) that all its elements share."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = Random(scene.look)
        self.wallpaper = not scene.app
        first, second = self._theme()
        self.accent = second
        self.canvas = self._background(first, second)
        self.draw = ImageDraw.Draw(self.canvas)
        self.dark = sum(first) < 380
        self.ink: Colour = (245, 245, 245) if self.dark else (30, 30, 34)
        self.tile = self.random.choice(["filled", "filled", "white", "dark"])
        self.corner = self.random.choice([0.08, 0.24, 0.24, 0.5])
        self.labels = self.random.random() < 0.75

    def paint(self) -> Image.Image:
        self._status_bar()
        scene = self.scene
        if scene.dock:
            colour = _blend(self.accent, (200, 200, 200))
            self.rounded((4, scene.dock - 18, WIDTH - 4, scene.dock + 18), 9, colour)
        if not self.wallpaper:
            self._page_chrome()
        if scene.panel:
            for element in scene.behind:
                self.element(element)
            self._panel(scene.panel)
        for element in scene.elements:
            self.element(element)
        if scene.focused:
            self._keyboard()
        return self.canvas

    # -- helpers in model pixels -------------------------------------------------

    def rounded(
        self, box: Box, radius: float, fill: Colour | None, outline: Colour | None = None, width: int = 1
    ) -> None:
        xy = [value * SCALE for value in box]
        self.draw.rounded_rectangle(xy, radius=radius * SCALE, fill=fill, outline=outline, width=width)

    def text(self, xy: tuple[float, float], text: str, size: float, fill: Colour, anchor: str = "la") -> None:
        at = (xy[0] * SCALE, xy[1] * SCALE)
        self.draw.text(at, text, fill=fill, font=_font(max(4, round(size * SCALE))), anchor=anchor)

    def glyph(self, name: str, box: Box, ink: Colour, tile: Colour, inset: float = 0.0) -> None:
        side = box[3] - box[1] - 2 * inset
        origin = ((box[0] + inset) * SCALE, (box[1] + inset) * SCALE)
        draw_glyph(self.draw, name, origin, side * SCALE, ink, tile)

    # -- the screen ----------------------------------------------------------------

    def _theme(self) -> tuple[Colour, Colour]:
        if self.wallpaper:
            return _tone(self.random), _tone(self.random)
        dark = self.random.random() < 0.3
        level = self.random.randint(16, 45) if dark else self.random.randint(228, 255)
        return (level, level, level), (level, level, level)

    def _background(self, first: Colour, second: Colour) -> Image.Image:
        corners = Image.new("RGB", (2, 2))
        right = first if self.random.random() < 0.5 else second
        corners.putdata([first, right, second if self.random.random() < 0.7 else first, second])
        canvas = corners.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BILINEAR)
        if self.wallpaper:
            draw = ImageDraw.Draw(canvas)
            for _ in range(self.random.randint(0, 5)):
                self._wallpaper_shape(draw)
        return canvas

    def _wallpaper_shape(self, draw: ImageDraw.ImageDraw) -> None:
        x, y = self.random.uniform(0, WIDTH) * SCALE, self.random.uniform(0, HEIGHT) * SCALE
        size, colour = self.random.uniform(8, 60) * SCALE, _tone(self.random)
        kind = self.random.random()
        if kind < 0.5:
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        elif kind < 0.75:
            corners = [(x + self.random.uniform(-size, size), y + self.random.uniform(-size, size)) for _ in range(3)]
            draw.polygon(corners, fill=colour)
        else:
            draw.line((x - size, y, x + size, y + self.random.uniform(-size, size)), fill=colour, width=8)

    def _status_bar(self) -> None:
        clock = f"{self.random.randint(0, 23)}:{self.random.randint(0, 59):02d}"
        self.text((6, 3), clock, 8, self.ink)
        self.rounded((148, 5, 161, 12), 1, None, self.ink)
        self.rounded((149.5, 6.5, 150 + self.random.uniform(1, 9), 10.5), 0, self.ink)
        for bar in range(4):
            self.rounded((132 + bar * 3, 11 - bar * 1.7, 133.5 + bar * 3, 12), 0, self.ink)

    def _page_chrome(self) -> None:
        scene = self.scene
        self.text((34, 22), scene.app, 11, self.ink)
        if scene.kind == "loading":
            return self._spinner()
        if scene.kind == "login":
            return self._login()
        if scene.kind == "page":
            for _ in range(self.random.randint(0, 5)):
                y, width = self.random.uniform(46, 322), self.random.uniform(20, 140)
                self.rounded((8, y, 8 + width, y + 2.5), 0, (150, 150, 155))
        return None

    def _spinner(self) -> None:
        x, y, r = WIDTH / 2, self.random.uniform(110, 220), self.random.uniform(10, 22)
        start, colour = (
            self.random.randint(0, 360),
            self.random.choice([self.ink, (10, 132, 255), (150, 150, 155)]),
        )
        xy = [value * SCALE for value in (x - r, y - r, x + r, y + r)]
        self.draw.arc(xy, start, start + self.random.randint(200, 300), fill=colour, width=3 * SCALE)
        if self.random.random() < 0.6:
            self.text((x, y + r + 12), "Loading…", 8, self.ink, "mm")

    def _login(self) -> None:
        y = self.random.uniform(60, 120)
        self.glyph("lock", (72, y, 96, y + 24), self.ink, WHITE if not self.dark else (30, 30, 30))
        for label in ("Account", "Password"):
            y += 34
            self.rounded((18, y, 150, y + 20), 4, (250, 250, 250), (150, 150, 155), SCALE)
            self.text((24, y + 10), label, 8, (140, 140, 145), "lm")
        self.rounded((18, y + 36, 150, y + 56), 5, _tone(self.random, 20, 160))
        self.text((84, y + 46), "Log in", 9, WHITE, "mm")

    def _panel(self, panel: Box) -> None:
        self.canvas = self.canvas.point([value // 2 for value in range(256)] * 3)
        self.draw = ImageDraw.Draw(self.canvas)
        advert = self.scene.kind == "popup"
        self.rounded(panel, 8, _tone(self.random, 90) if advert else (250, 250, 250))
        x0, y0, x1, y1 = panel
        if advert:
            self.text(
                ((x0 + x1) / 2, (y0 + y1) / 2),
                self.random.choice(["SALE", "50% OFF", "Free gift", "VIP"]),
                18,
                WHITE,
                "mm",
            )
            return
        for line in range(self.random.randint(1, 3)):
            y, width = y0 + 12 + line * 11, self.random.uniform(0.4, 0.85) * (x1 - x0 - 20)
            self.rounded((x0 + 10, y, x0 + 10 + width, y + 4), 0, (120, 120, 125))

    def _keyboard(self) -> None:
        self.rounded((0, KEYBOARD_TOP, WIDTH, HEIGHT), 0, (54, 54, 58) if self.dark else (208, 210, 216))
        key: Colour = (110, 110, 116) if self.dark else (250, 250, 250)
        for row, keys in enumerate((10, 9, 7, 3)):
            width = WIDTH / (10 if row < 3 else 3.2)
            left = (WIDTH - keys * width) / 2
            y = KEYBOARD_TOP + 6 + row * 24
            for slot in range(keys):
                self.rounded((left + slot * width + 1, y, left + (slot + 1) * width - 1, y + 19), 3, key)

    # -- elements --------------------------------------------------------------------

    def element(self, element: Element) -> None:
        name, box = element.name, element.box
        first = name.split()[0]
        if name in APPS:
            self._app(name, box)
        elif first in COLOURS:
            self.rounded(box, 4, COLOURS[first][1])
            self.text(element.centre, self.random.choice(BUTTON_LABELS), 8, WHITE, "mm")
        elif name in ROWS:
            self._row(name, box)
        elif name.endswith(" switch"):
            self._switch(element)
        elif name in ("OK", "Cancel"):
            self._dialog_button(element)
        elif name == "search box":
            self._search_box(box)
        elif name == "picture":
            self._picture(box)
        elif name == "back arrow":
            self.glyph("arrow", (7, 21, 23, 37), self.ink, WHITE)
        elif name == "close button":
            self.rounded(box, (box[2] - box[0]) / 2, (60, 60, 64))
            self.glyph("cross", box, WHITE, WHITE, inset=3)
        else:
            self.glyph(first, box, self.ink, (20, 20, 20) if self.dark else WHITE, inset=1)

    def _app(self, name: str, box: Box) -> None:
        app = APPS[name]
        tile: Colour = {"filled": app.colour, "white": WHITE, "dark": (28, 28, 32)}[self.tile]
        ink = WHITE if self.tile == "filled" else app.colour
        if self.tile == "dark" and sum(ink) < 300:
            ink = _blend(ink, WHITE)
        self.rounded(box, (box[2] - box[0]) * self.corner, tile)
        self.glyph(app.glyph, box, ink, tile, inset=(box[2] - box[0]) * 0.14)
        if self.labels:
            self.text(((box[0] + box[2]) / 2, box[3] + 4), name, 5.5, self.ink, "mm")

    def _row(self, name: str, box: Box) -> None:
        _, glyph, colour = ROWS[name]
        middle = (box[1] + box[3]) / 2
        tile = (box[0] + 2, middle - 7, box[0] + 16, middle + 7)
        self.rounded(tile, 14 * min(self.corner, 0.3), colour)
        self.glyph(glyph, tile, WHITE, colour, inset=1.5)
        self.text((box[0] + 22, middle), name, 8, self.ink, "lm")
        self.rounded((box[0] + 22, box[3] + 2, WIDTH - 8, box[3] + 2.5), 0, (150, 150, 155))

    def _switch(self, element: Element) -> None:
        x0, y0, x1, y1 = element.box
        radius = (y1 - y0) / 2
        self.rounded(element.box, radius, (50, 200, 90) if element.on else (165, 165, 170))
        knob = x1 - radius if element.on else x0 + radius
        self.rounded((knob - radius + 1, y0 + 1, knob + radius - 1, y1 - 1), radius - 1, WHITE)

    def _dialog_button(self, element: Element) -> None:
        primary = element.name == "OK"
        self.rounded(element.box, 4, (0, 122, 255) if primary else (205, 205, 210))
        self.text(element.centre, element.name, 9, WHITE if primary else (40, 40, 40), "mm")

    def _search_box(self, box: Box) -> None:
        x0, y0, _, y1 = box
        outline: Colour = (0, 120, 255) if self.scene.focused else (150, 150, 155)
        self.rounded(box, (y1 - y0) * 0.4, (250, 250, 250), outline, SCALE + self.scene.focused)
        middle = (y0 + y1) / 2
        self.glyph("lens", (x0 + 5, middle - 5, x0 + 15, middle + 5), (110, 110, 115), WHITE)
        if self.scene.typed:
            self.text((x0 + 20, middle), self.scene.typed, 8, (30, 30, 34), "lm")

    def _picture(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        sky, ground = _tone(self.random, 120), _tone(self.random, 40, 160)
        self.rounded(box, 3, sky)
        peak = x0 + self.random.uniform(0.25, 0.75) * (x1 - x0)
        hill = [(x0 + 2, y1 - 2), (peak, y0 + self.random.uniform(0.3, 0.6) * (y1 - y0)), (x1 - 2, y1 - 2)]
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in hill], fill=ground)
        sun = self.random.uniform(0.1, 0.8) * (x1 - x0) + x0
        self.rounded((sun, y0 + 5, sun + 9, y0 + 14), 4.5, (255, 235, 120))
