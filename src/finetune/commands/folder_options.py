"""Options on how images are read that several verbs take, each in both spellings: ``fit``'s too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from finetune.commands.guest import Where
from finetune.commands.verb import Typed
from finetune.spec.choices import OnBadImage, TaskOfData
from finetune.spec.schema import whole
from finetune.spec.settings import DATA

# As in finetune.data.decoding, which loads torch.
MAX_PIXELS = 178_956_970
MAX_DECODING_MB = 1024


def in_both(setting: str) -> Typed:
    """``--max-pixels``, and ``--data.max_pixels`` as for ``fit``."""
    return Typed((f"--{setting.replace('_', '-')}", f"--data.{setting}"))


Accelerator = Annotated[str, Typed(("--accelerator", "--trainer.accelerator"))]
AllowOutside = Annotated[bool, in_both("allow_outside")]
BadImages = Annotated[OnBadImage, in_both("on_bad_image")]
BatchSize = Annotated[int, whole(1), in_both("batch_size")]
CacheDir = Annotated[Where | None, in_both("cache_dir")]
Folds = Annotated[int | None, DATA["folds"], in_both("folds")]
GroupBy = Annotated[str | None, in_both("group_by")]
LabelColumns = Annotated[Sequence[str] | None, in_both("label_columns")]
Manifest = Annotated[Where | None, in_both("manifest")]
MaxDecodingMb = Annotated[int, whole(1), in_both("max_decoding_mb")]
MaxPixels = Annotated[int, whole(1), in_both("max_pixels")]
Root = Annotated[Where | None, in_both("root")]
Seed = Annotated[int, DATA["seed"], in_both("seed")]
ValFraction = Annotated[float, in_both("val_fraction")]
Task = Annotated[TaskOfData, in_both("task")]
TestFraction = Annotated[float, in_both("test_fraction")]
