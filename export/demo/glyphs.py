"""Vector glyphs for apps and buttons, drawn with Pillow.

A glyph is a string of shapes in a unit square, one per ``;``: a letter, then coordinates.
``E`` ellipse and ``R`` rectangle (x0 y0 x1 y1), ``P`` polygon and ``L`` line (x y x y …),
``A`` arc (x0 y0 x1 y1 start end, in degrees). A ``-`` after the letter cuts out (tile colour).
"""

from __future__ import annotations

from functools import cache

from PIL import ImageDraw

Colour = tuple[int, int, int]
Shape = tuple[str, bool, tuple[float, ...]]

STROKE = 0.1  # line width as a fraction of the glyph's side

GLYPHS = {
    # apps
    "pin": "E .28 .1 .72 .54; P .31 .42 .69 .42 .5 .9; E- .41 .23 .59 .41",
    "envelope": "R .12 .26 .88 .76; L- .12 .28 .5 .56 .88 .28",
    "note": "E .2 .6 .48 .84; R .4 .16 .49 .74; R .4 .16 .76 .3",
    "camera": "R .12 .32 .88 .78; R .36 .2 .64 .34; E- .34 .38 .66 .7; E .43 .47 .57 .61",
    "handset": "A .18 .18 .82 .82 60 215; E .1 .42 .34 .66; E .54 .72 .78 .96",
    "bubble": "E .12 .16 .88 .7; P .24 .58 .52 .66 .2 .9; E- .28 .38 .38 .48; E- .45 .38 .55 .48; E- .62 .38 .72 .48",
    "clock": "E .12 .12 .88 .88; L- .5 .26 .5 .52 .68 .62",
    "lines": "R .2 .2 .8 .29; R .2 .38 .8 .47; R .2 .56 .8 .65; R .2 .74 .55 .83",
    "flower": "E .36 .08 .64 .42; E .36 .58 .64 .92; E .08 .36 .42 .64; E .58 .36 .92 .64; E- .4 .4 .6 .6",
    "sun": "E .3 .3 .7 .7; L .5 .06 .5 .2; L .5 .8 .5 .94; L .06 .5 .2 .5; L .8 .5 .94 .5; "
    "L .19 .19 .28 .28; L .72 .72 .81 .81; L .81 .19 .72 .28; L .28 .72 .19 .81",
    "bag": "R .2 .36 .8 .86; A .34 .14 .66 .58 180 360; E- .3 .44 .38 .52; E- .62 .44 .7 .52",
    "bank": "P .1 .4 .5 .12 .9 .4; R .14 .76 .86 .87; R .2 .45 .31 .72; R .445 .45 .555 .72; R .69 .45 .8 .72",
    "pad": "R .1 .34 .9 .72; E .02 .4 .3 .8; E .7 .4 .98 .8; R- .2 .49 .42 .56; R- .275 .42 .345 .63; "
    "E- .64 .46 .78 .6",
    "news": "R .14 .16 .86 .34; R .14 .44 .46 .84; R .56 .44 .86 .53; R .56 .6 .86 .69; R .56 .76 .86 .84",
    "play": "P .3 .16 .3 .84 .86 .5",
    "gear": "L .5 .06 .5 .94; L .06 .5 .94 .5; L .19 .19 .81 .81; L .81 .19 .19 .81; E .2 .2 .8 .8; E- .37 .37 .63 .63",
    "calendar": "R .14 .2 .86 .86; R- .2 .38 .8 .8; R .28 .46 .42 .58; R .56 .46 .7 .58; R .28 .65 .42 .76; "
    "L .32 .1 .32 .26; L .68 .1 .68 .26",
    "folder": "R .1 .3 .9 .8; P .1 .3 .1 .2 .4 .2 .5 .3; R- .1 .38 .9 .42",
    "person": "E .33 .12 .67 .46; P .14 .88 .22 .62 .38 .53 .62 .53 .78 .62 .86 .88",
    "keys": "R .18 .1 .82 .9; R- .26 .18 .74 .34; R- .26 .44 .38 .54; R- .44 .44 .56 .54; R- .62 .44 .74 .54; "
    "R- .26 .64 .38 .74; R- .44 .64 .56 .74; R- .62 .64 .74 .82",
    "compass": "E .1 .1 .9 .9; P- .7 .28 .56 .58 .3 .72 .44 .42",
    "book": "P .08 .24 .46 .34 .46 .84 .08 .74; P .92 .24 .54 .34 .54 .84 .92 .74",
    "plane": "P .5 .06 .57 .2 .57 .38 .94 .6 .94 .68 .57 .57 .56 .78 .68 .9 .32 .9 .44 .78 .43 .57 "
    ".06 .68 .06 .6 .43 .38 .43 .2",
    "mic": "E .36 .08 .64 .34; R .36 .2 .64 .46; E .36 .34 .64 .6; A .24 .26 .76 .74 0 180; "
    "R .46 .72 .54 .88; R .32 .84 .68 .91",
    # buttons
    "heart": "E .1 .16 .54 .58; E .46 .16 .9 .58; P .14 .46 .86 .46 .5 .9",
    "share": "L .26 .5 .74 .22; L .26 .5 .74 .78; E .12 .36 .4 .64; E .6 .08 .88 .36; E .6 .64 .88 .92",
    "star": "P .5 .06 .62 .38 .95 .38 .68 .58 .79 .92 .5 .72 .21 .92 .32 .58 .05 .38 .38 .38",
    "trash": "R .24 .32 .76 .92; R .14 .16 .86 .26; R .4 .07 .6 .17; R- .38 .42 .44 .82; R- .56 .42 .62 .82",
    "pencil": "P .7 .08 .92 .3 .36 .86 .08 .92 .14 .64",
    "download": "R .43 .08 .57 .5; P .2 .44 .8 .44 .5 .74; R .12 .82 .88 .93",
    "refresh": "A .14 .14 .86 .86 0 280; P .98 .48 .66 .48 .82 .74",
    "plus": "R .42 .1 .58 .9; R .1 .42 .9 .58",
    "cross": "L .16 .16 .84 .84; L .84 .16 .16 .84",
    "arrow": "L .68 .14 .3 .5 .68 .86",
    "lens": "A .1 .1 .68 .68 0 360; L .62 .62 .92 .92",
    "lock": "R .18 .44 .82 .92; A .28 .1 .72 .74 180 360; E- .42 .58 .58 .74",
    # settings rows
    "wifi": "A .0 .14 1 1.14 222 318; A .18 .34 .82 .98 222 318; E .4 .66 .6 .86",
    "bluetooth": "L .26 .28 .74 .68 .5 .92 .5 .08 .74 .32 .26 .72",
    "speaker": "P .08 .36 .28 .36 .54 .12 .54 .88 .28 .64 .08 .64; A .36 .26 .78 .74 300 60; A .36 .08 .96 .92 300 60",
    "screen": "R .08 .14 .92 .7; R- .16 .22 .84 .62; R .42 .7 .58 .84; R .26 .82 .74 .9",
    "battery": "R .06 .28 .84 .72; R- .14 .36 .76 .64; R .2 .42 .5 .58; R .86 .42 .95 .58",
    "shield": "P .5 .05 .9 .2 .86 .56 .5 .95 .14 .56 .1 .2",
    "target": "A .16 .16 .84 .84 0 360; E .38 .38 .62 .62; L .5 .02 .5 .22; L .5 .78 .5 .98; "
    "L .02 .5 .22 .5; L .78 .5 .98 .5",
}


@cache
def _shapes(name: str) -> tuple[Shape, ...]:
    parts = (part.split() for part in GLYPHS[name].split(";"))
    return tuple((head[0], head.endswith("-"), tuple(map(float, rest))) for head, *rest in parts)


def draw_glyph(
    draw: ImageDraw.ImageDraw, name: str, origin: tuple[float, float], side: float, ink: Colour, tile: Colour
) -> None:
    """Draw glyph `name` into the square at `origin` with `side`, all in pixels of the canvas."""
    stroke = max(1, round(side * STROKE))
    for kind, cut, numbers in _shapes(name):
        points = numbers[:4] if kind == "A" else numbers
        xy = [origin[i % 2] + value * side for i, value in enumerate(points)]
        colour = tile if cut else ink
        if kind == "E":
            draw.ellipse(xy, fill=colour)
        elif kind == "R":
            draw.rectangle(xy, fill=colour)
        elif kind == "P":
            draw.polygon(xy, fill=colour)
        elif kind == "L":
            draw.line(xy, fill=colour, width=stroke, joint="curve")
        else:
            draw.arc(xy, numbers[4], numbers[5], fill=colour, width=stroke)
