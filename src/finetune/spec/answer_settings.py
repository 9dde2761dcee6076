"""How images are answered, as one value that other processes can be sent."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.spec.choices import OnBadImage, Precision


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """The options of ``finetune predict`` that say how; see :func:`finetune.predict`.

    Attributes:
        top_k: how many of the most probable classes are named.
        batch_size: images a batch.
        test_time_augmentation: views averaged.
        on_bad_image: refuse images that cannot be read, or leave them out.
        max_pixels, max_decoding_mb: limits of an image.
        precision, accelerator, devices: as Lightning names them.
    """

    top_k: int
    batch_size: int
    test_time_augmentation: int
    on_bad_image: OnBadImage
    max_pixels: int
    max_decoding_mb: int
    precision: Precision
    accelerator: str
    devices: str
