"""How does a page hold a figure? As a picture of few bytes that needs no file beside it.

Drawings of few colours: reduced to a palette and kept as lossless WebP they take a fifth of a plain PNG's bytes, look
the same and are sharp. Without WebP in this Pillow they are PNGs of the same palette. Drawn twice, a picture is the
same bytes.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import NamedTuple

from PIL import Image, features

from analysis.figures import draw
from analysis.load import Library
from analysis.style import Drawing, Settings, close, encode

PIXELS = 130  # CSS pixels per inch of figure
DPI = 160  # what is drawn for them: a little sharper than the page shows it at full width
_MOVING = 2_000  # the palette is settled once fewer pixels change colour: to the last one takes five times as long
_COLOURS = 128  # the largest difference to the full palette is a tenth of the scale, in single pixels of an edge


class Picture(NamedTuple):
    """A figure as the page holds it."""

    name: str
    source: str
    caption: str
    alt: str
    width: int
    height: int
    records: tuple[str, ...] = ()


def picture(name: str, records: Library, settings: Settings) -> Picture:
    """One figure by name as a data URI; an InputError when the records hold nothing for it."""
    drawing = draw(name, records, settings)
    try:
        wide, high = (round(PIXELS * float(inches)) for inches in drawing.figure.get_size_inches())
        kind, data = reduced(drawing)
    finally:
        close(drawing)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(name, source, drawing.caption, drawing.alt, wide, high)


def reduced(drawing: Drawing) -> tuple[str, bytes]:
    """The drawing in few bytes: its format's name and the file."""
    full = Image.open(BytesIO(encode(drawing, "png", DPI))).convert("RGB")
    few = full.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=_MOVING, dither=Image.Dither.NONE)
    buffer = BytesIO()
    if features.check("webp"):
        few.convert("RGB").save(
            buffer, "WEBP", lossless=True, quality=75, method=4
        )  # more takes 60 times as long for 3 %
        return "webp", buffer.getvalue()
    few.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()
