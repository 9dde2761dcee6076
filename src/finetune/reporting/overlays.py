"""Explanations as images: heat over the photograph, with a line of text above."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import matplotlib
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finetune.reporting.explain import Explanation

COLORMAP = "inferno"  # even in lightness, so it reads without colour too
STRONGEST = 0.65  # opacity of the heat where it is strongest
CAPTION = 26  # pixels
GAP = 6
NARROWEST = 220  # pixels of a panel: room for its caption


def overlay(explanation: Explanation) -> NDArray[np.uint8]:
    """The heat over the image, ``(H, W, 3)``, with a frame around the part that was seen."""
    heat = explanation.heat[..., None]
    colours = matplotlib.colormaps[COLORMAP](explanation.heat)[..., :3] * 255
    opacity = STRONGEST * heat
    blended = explanation.image * (1 - opacity) + colours * opacity
    image = Image.fromarray(blended.round().astype(np.uint8))
    top, left, bottom, right = explanation.seen
    if (bottom - top, right - left) != explanation.image.shape[:2]:
        thick = max(1, min(image.size) // 150)
        for inset, colour in ((0, "black"), (thick, "white")):  # seen on any ground
            frame = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
            if frame[0] <= frame[2] and frame[1] <= frame[3]:
                ImageDraw.Draw(image).rectangle(frame, outline=colour, width=thick)
    return np.asarray(image)


def panels(rows: Sequence[Sequence[Explanation]]) -> Image.Image:
    """One row an image: the image itself, then the heat for each explained class.

    Every panel keeps its image's own size.
    """
    drawn = [_row(explanations) for explanations in rows if explanations]
    height = sum(row.height for row in drawn) + GAP * (len(drawn) - 1)
    sheet = Image.new("RGB", (max(row.width for row in drawn), height), "white")
    top = 0
    for row in drawn:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet


def _row(explanations: Sequence[Explanation]) -> Image.Image:
    first = explanations[0]
    images = [(first.path.name, "", first.image)]
    for e in explanations:
        nothing = "" if e.heat.any() else ", no evidence"
        images.append((e.class_name, f" {e.told}{nothing}", overlay(e)))
    height, width = first.image.shape[:2]
    step = max(width, NARROWEST) + GAP
    row = Image.new("RGB", (step * len(images) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(row)
    for column, (name, figure, pixels) in enumerate(images):
        left = column * step
        row.paste(Image.fromarray(pixels), (left, CAPTION))
        room = step - GAP - 4 - _font().getlength(figure)
        draw.text((left + 2, 4), _shortened(name, room) + figure, fill="black", font=_font())
    return row


def _shortened(text: str, width: float) -> str:
    text = " ".join(text.split())
    while len(text) > 1 and _font().getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)
