"""Resident memory over time with the phases of a run, as a picture that needs no plotting library on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeglm.errors import UsageError
from edgeglm.memory import Phase
from edgeglm.units import format_size

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 40, 110
COLOURS = ("#dbe9f6", "#fdebd0", "#e3f1e1", "#f5dfe3", "#e9e4f2", "#f6f0d8", "#dff1f0")
INK, CURVE = "#333333", "#1f5fa8"

Point = tuple[float, float]


def check_format(path: Path) -> None:
    """Refuse a plot's name before anything is run. Raises UsageError."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(path, "is neither a .png nor a .svg file", "name the plot with one of these endings")
    if not path.absolute().parent.is_dir():
        raise UsageError(path, "its folder does not exist", "make the folder first")


def draw_memory(path: Path, points: Sequence[tuple[float, int]], phases: Sequence[Phase]) -> None:
    """Write the plot as the file's ending says.

    Args:
        path: A ``.png`` or ``.svg`` file.
        points: Milliseconds and bytes, in order.
        phases: On the same clock.

    Raises:
        UsageError: The file cannot be written.
    """
    canvas = _Svg() if path.suffix.lower() == ".svg" else _Png()
    end = max(points[-1][0], 1.0)
    top = 1.15 * max(size for _, size in points)

    def place(ms: float, size: float) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * ms / end
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size / top

    for index, phase in enumerate(phases):
        corner, opposite = place(phase.start_ms, top), place(phase.start_ms + phase.ms, 0)
        canvas.box(corner, opposite, COLOURS[index % len(COLOURS)])
    for index, phase in enumerate(phases):  # names in three rows, so that short phases stay readable
        canvas.text((place(phase.start_ms, 0)[0], HEIGHT - BOTTOM + 24 + 18 * (index % 4)), phase.name)
    for share in (0.25, 0.5, 0.75, 1.0):
        size = int(share * top / 1.15)
        canvas.line([place(0, size), place(end, size)], "#bbbbbb", 1)
        canvas.text((4, place(0, size)[1] - 6), format_size(size))
    canvas.line([place(ms, size) for ms, size in points], CURVE, 2)
    canvas.line([place(0, top), place(0, 0), place(end, 0)], INK, 1)
    peak = max(size for _, size in points)
    canvas.text((LEFT, 12), f"resident memory, peak {format_size(peak)}, {end:.0f} ms")
    try:
        canvas.save(path)
    except OSError as error:
        raise UsageError(path, f"cannot be written: {error.strerror}", "give another file") from error


class _Svg:
    def __init__(self) -> None:
        self.parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']

    def box(self, corner: Point, opposite: Point, colour: str) -> None:
        (left, top), (right, bottom) = corner, opposite
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        self.parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}"/>')

    def line(self, points: Sequence[Point], colour: str, width: int) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def text(self, place: Point, text: str) -> None:
        from html import escape  # noqa: PLC0415 (a run without a plot need not wait for it)

        x, y = place
        self.parts.append(f'<text x="{x:.1f}" y="{y + 10:.1f}" fill="{INK}">{escape(text)}</text>')

    def save(self, path: Path) -> None:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        path.write_text("\n".join([f'{head} font-size="12">', *self.parts, "</svg>", ""]), encoding="utf-8")


class _Png:
    def __init__(self) -> None:
        from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 (a run without a plot need not wait for them)

        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(12)

    def box(self, corner: Point, opposite: Point, colour: str) -> None:
        self.draw.rectangle((*corner, *opposite), fill=colour)

    def line(self, points: Sequence[Point], colour: str, width: int) -> None:
        self.draw.line(list(points), fill=colour, width=width)

    def text(self, place: Point, text: str) -> None:
        self.draw.text(place, text, fill=INK, font=self.font)

    def save(self, path: Path) -> None:
        self.image.save(path)
