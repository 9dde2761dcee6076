"""The images that fits have had, where they lie today."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.data.image_bytes import is_there
from finetune.errors import UsageError
from finetune.spec.images import ImageRef
from finetune.spec.splits import Side, SplitRecord, united


def images_of_fits(
    fits: Sequence[SplitRecord], root: Path, *sides: Side
) -> tuple[dict[str, ImageRef], tuple[str, ...]]:
    """By its path today, each image of some sides; and the class names that the labels index.

    What lies at the place of an image need not be it: compare ids.

    Raises:
        UsageError: none of them lies below the root.
    """
    record = united(fits) if fits else SplitRecord()
    placed = zip(record.images, record.standings, strict=True)
    known = {
        str(root / image.path): image
        for image, standing in placed
        if standing.side in sides and is_there(root / image.path)
    }
    if not known:
        raise UsageError(
            f"Expected the images of the fit in {root}, found none of those that it was "
            "trained on; name the folder that it was given, or leave --data.root out."
        )
    return known, record.class_names
