"""Images that do not look like the others of their folder, or not like images at all."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.findings import Finding
from finetune.data.inspection import Inspection

ABSURD_ASPECT = 8
# A drawing: this few colours cover 95 % of it, this much of it is perfectly flat, and it stands
# among images that need at least this many times as many colours.
DRAWN_COLOURS = 16
DRAWN_FLATNESS = 0.5
DRAWN_RATIO = 10
FEW_BITS_BRIGHTEST = 16  # of 255: what 12 bits of 16 come to, as microscopes and detectors write
PHOTOGRAPHIC_COLOURS = 100  # a median below this: not a set of photographs, anything goes

SUFFIXES_OF = {
    "JPEG": {".jpg", ".jpeg", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jfif"},
    "PNG": {".png"},
    "BMP": {".bmp"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
    "PPM": {".ppm", ".pgm"},
    "AVIF": {".avif"},
    "HEIF": {".heic", ".heif"},
}


def look_findings(inspections: Sequence[Inspection]) -> list[Finding]:
    """Images that do not look like the others, or not like images at all."""
    colours = statistics.median(each.colours for each in inspections) if inspections else 0
    findings = [finding for each in inspections for finding in _own_looks(each, colours)]
    modes = Counter((each.format, each.mode) for each in inspections)
    if len(modes) > 1:
        listed = ", ".join(f"{number} {' '.join(key)}" for key, number in modes.most_common())
        findings.append(Finding(_common(inspections), "mixed_modes", "note", listed))
    dark = [each for each in inspections if _uses_few_bits(each)]
    if dark:
        findings.append(
            Finding(
                _common(inspections),
                "few_bits",
                "warning",
                f"images of 16 bits that use at most a sixteenth of their range: {len(dark)}, "
                f"the first {dark[0].path.name}; the network sees them nearly black",
                "scale them once for all images alike (12 bits: multiply by 16)",
            )
        )
    pages = [each for each in inspections if each.pages]
    if pages:
        findings.append(
            Finding(
                _common(inspections),
                "pages",
                "warning",
                f"TIFF files of several pages, of which the first alone is used: {len(pages)}, the "
                f"first {pages[0].path.name}",
                "write each page, or what all of them show, as an image of its own",
            )
        )
    turned = sum(each.orientation != 1 for each in inspections)
    if turned:
        problem = f"images stored turned, and read upright: {turned}"
        findings.append(Finding(_common(inspections), "turned", "note", problem))
    return findings


def _own_looks(each: Inspection, median_colours: float) -> Iterator[Finding]:
    suffix = each.path.suffix.lower()
    if suffix not in SUFFIXES_OF.get(each.format, {suffix}):
        problem = f"is a {each.format} file, whatever its ending says"
        yield Finding(each.path, "wrong_ending", "note", problem, "it is read all the same")
    if max(each.width, each.height) > ABSURD_ASPECT * min(each.width, each.height):
        yield Finding(
            each.path,
            "aspect",
            "warning",
            f"is {each.width} x {each.height}, a strip of which the network sees the middle",
            "cut it into squares, or remove it",
        )
    if each.flatness == 1:
        yield Finding(each.path, "one_colour", "warning", "has a single colour", "remove it")
    elif _looks_drawn(each, median_colours):
        yield Finding(
            each.path,
            "drawn",
            "warning",
            f"looks drawn, unlike the others: {each.colours} colours cover 95 % of it "
            f"(median {median_colours:.0f}), {each.flatness:.0%} of it is flat",
            "look at it: a placeholder, a logo, an error page?",
        )


def _uses_few_bits(each: Inspection) -> bool:
    return each.mode.startswith("I") and 0 < each.brightest <= FEW_BITS_BRIGHTEST


def _looks_drawn(each: Inspection, median_colours: float) -> bool:
    return (
        median_colours >= PHOTOGRAPHIC_COLOURS
        and each.colours <= min(DRAWN_COLOURS, median_colours / DRAWN_RATIO)
        and each.flatness >= DRAWN_FLATNESS
    )


def _common(inspections: Sequence[Inspection]) -> Path:
    try:
        return Path(os.path.commonpath([each.path for each in inspections]))
    except ValueError:  # a manifest with relative and absolute paths, or several drives
        return inspections[0].path.parent
