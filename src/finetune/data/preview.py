"""A batch as the network sees it, as one image with labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from finetune.files import atomic_write

MOST = 32  # images shown
COLUMNS = 8
TILE = 160  # side of one in pixels
CAPTION = 20  # height of the line below it


def batch_image(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> Image.Image:
    """Tiles with captions, at most 32 of them.

    Args:
        images: ``uint8 (B, C, S, S)``, RGB or grey, as batches hold them.
        labels: ``(B,)`` class indexes, ``(B, K)`` probabilities where images were mixed, or
            ``(B, 1)`` numbers.
        class_names: ``K`` names.
    """
    shown = min(len(images), MOST)
    columns = max(1, min(COLUMNS, shown))
    rows = -(-shown // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=CAPTION * 0.6)
    for index in range(shown):
        left, top = index % columns * TILE, index // columns * (TILE + CAPTION)
        sheet.paste(_tile(images[index]), (left + 1, top + 1))
        caption = _fitting(_caption(labels[index], class_names), font, TILE - 4)
        draw.text((left + 2, top + TILE + 1), caption, fill="black", font=font)
    return sheet


def write_batch_image(
    images: Tensor, labels: Tensor, class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Save :func:`batch_image` as ``batch.png``, or in whatever format the ending says."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as beside:
        batch_image(images, labels, class_names).save(beside)


def _tile(image: Tensor) -> Image.Image:
    planes = image.cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()
    tile = Image.fromarray(np.ascontiguousarray(planes))
    return tile.resize((TILE - 2, TILE - 2), Image.Resampling.BICUBIC)


def _caption(label: Tensor, class_names: Sequence[str]) -> str:
    if label.ndim == 0:
        return class_names[int(label)]
    if len(class_names) == 1:
        return f"{float(label):.6g}"
    label = label.nan_to_num()  # of several labels an image some may not be known
    order = label.argsort(descending=True)[:2].tolist()
    parts = [f"{class_names[k]} {float(label[k]):.0%}" for k in order if label[k] > 0]
    return " + ".join(parts)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
