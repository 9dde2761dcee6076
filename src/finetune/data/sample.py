"""The embedded sample folder: real photographs that scikit-image ships, cut into crops.

Twelve photographs are the classes; the crops are small, greyscale, turned, and of changed light.
Training, validation and test crops come from separate stripes of each photograph with a gap in
between, so no pixel of one is in another.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.folder import SPLITS
from finetune.errors import ImageFolderError
from finetune.extras import remedy
from finetune.files import atomic_folder

# Files of scikit-image's wheel: nothing is ever fetched.
PHOTOGRAPHS = {
    "brick": "brick.png",
    "tissue": "ihc.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "fur": "chelsea.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "stars": "hubble_deep_field.jpg",
}
CROPS = {"train": 20, "val": 10, "test": 20}
STRIPES = {"train": (0.0, 0.4), "val": (0.4, 0.7), "test": (0.7, 1.0)}
GAP = 6  # pixels left out between two stripes
SIDES = (40, 72)  # of the crops, in pixels


def write_sample(root: str | os.PathLike[str]) -> None:
    """Write ``root/train|val|test/<class>/*.png``, the same bytes every time.

    Written beside ``root`` and then renamed, so a half-written folder never stands there. A
    sample folder that is there already stays as it is.

    Raises:
        ImageFolderError: something else is at ``root``, or scikit-image is not installed.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if _is_sample(root):
            return
        raise ImageFolderError(
            f"Expected no folder yet at {root}, or the sample, found other files; "
            "name another folder."
        )
    photographs = _photographs_folder()
    root.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(root, exclusive=True) as beside:
        for class_name, file_name in PHOTOGRAPHS.items():
            _write_class(beside, class_name, photographs / file_name)


def _is_sample(root: Path) -> bool:
    expected = {
        _crop_path(Path(), split, class_name, number)
        for split in SPLITS
        for class_name in PHOTOGRAPHS
        for number in range(CROPS[split])
    }
    return {path.relative_to(root) for path in root.rglob("*.*")} == expected


def _photographs_folder() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImageFolderError(
            "Expected scikit-image, whose photographs the sample is cut from, found it not "
            f"installed; {remedy('demo')}."
        )
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in PHOTOGRAPHS.values() if not (folder / name).is_file()]
    if missing:
        raise ImageFolderError(
            f"Expected the photographs {missing} in {folder}, found them missing; reinstall "
            "with `pip install --force-reinstall scikit-image`."
        )
    return folder


def _crop_path(root: Path, split: str, class_name: str, number: int) -> Path:
    return root / split / class_name / f"{class_name}_{number:02d}.png"


def _write_class(beside: Path, class_name: str, photograph: Path) -> None:
    with Image.open(photograph) as photo:
        image = photo.convert("L")
    if image.height > image.width:
        image = image.transpose(Image.Transpose.ROTATE_90)
    seed = int.from_bytes(hashlib.blake2b(class_name.encode(), digest_size=8).digest(), "big")
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        stripe = image.crop(_stripe(image.size, split))
        (beside / split / class_name).mkdir(parents=True)
        for number in range(CROPS[split]):
            _crop(stripe, rng).save(_crop_path(beside, split, class_name, number))


def _stripe(size: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    """``(left, top, right, bottom)`` of the part of a photograph that one split may use."""
    width, height = size
    begin, end = (round(share * width) for share in STRIPES[split])
    return begin + (GAP if begin else 0), 0, end, height


def _crop(stripe: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of a stripe, turned by any angle, with changed brightness, contrast and gamma."""
    side = int(rng.integers(SIDES[0], SIDES[1] + 1))
    outer = min(int(np.ceil(side * 2**0.5)) + 2, *stripe.size)
    side = min(side, int((outer - 2) / 2**0.5))
    left, top = (int(rng.integers(0, length - outer + 1)) for length in stripe.size)
    square = stripe.crop((left, top, left + outer, top + outer))
    turned = square.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR)
    margin = (outer - side) // 2
    pixels = np.asarray(turned.crop((margin, margin, margin + side, margin + side))) / 255
    gamma, contrast, light = rng.uniform(0.6, 1.6), rng.uniform(0.6, 1.2), rng.uniform(-0.1, 0.1)
    changed = (pixels**gamma - 0.5) * contrast + 0.5 + light
    return Image.fromarray(np.rint(changed.clip(0, 1) * 255).astype(np.uint8))
