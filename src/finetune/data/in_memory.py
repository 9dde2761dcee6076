"""Images that a program holds already, as a file's bytes, so that all rules for files hold."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from finetune.errors import ImageError

Held = bytes | Image.Image | np.ndarray | Tensor


def each_image(images: Held) -> list[Held]:
    """The one image, or those of a batch: an array ``(B, H, W, C)``, a tensor ``(B, C, H, W)``."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return [images[index] for index in range(len(images))]
    return [images]


def content_of(image: Held, *, name: str) -> bytes:
    """What a lossless file of the image would hold.

    Args:
        image: a file's bytes; an image of Pillow; an array ``(H, W)`` or ``(H, W, C)``, C 1, 3 or 4
            (transparent), ``uint8``, or grey in any type that Pillow knows; a tensor
            ``(C, H, W)``, ``uint8`` or floating point in [0, 1].
        name: for the error message.

    Raises:
        ImageError: any other shape or type.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Tensor):
        image = _as_array(image)
    try:
        if isinstance(image, np.ndarray):
            flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            image = Image.fromarray(np.ascontiguousarray(flat))
        upright = ImageOps.exif_transpose(image)
        if "transparency" in upright.info or upright.mode in ("PA", "La", "RGBa"):
            upright = upright.convert("RGBA")
        content = BytesIO()
        upright.save(content, "TIFF")  # uncompressed, and for more modes than any other
    except (TypeError, ValueError, OSError) as error:
        raise ImageError(
            f"Expected an image as bytes, from Pillow, an array (H, W, C) or a tensor (C, H, W), "
            f"found {_described(image)} at {name} ({error})."
        ) from error
    return content.getvalue()


def _as_array(image: Tensor) -> np.ndarray:
    """``(H, W, C)`` of ``(C, H, W)``."""
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float().clamp(0, 1) * 255).round().byte()
    array: np.ndarray = (pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels).numpy()
    return array


def _described(image: object) -> str:
    if isinstance(image, np.ndarray):
        return f"an array of {image.dtype} and shape {image.shape}"
    return str(getattr(image, "mode", type(image).__name__))
