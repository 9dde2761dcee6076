"""In which range each setting of a classifier and of its images may be: the one table of them.

Constructors refuse what is not in it, and so does the schema of checkpoints. Whether text names
something (a backbone, an optimizer, a strategy), building it tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from finetune.errors import UsageError
from finetune.spec.schema import (
    Check,
    UnexpectedValue,
    number,
    one_of,
    optional,
    several,
    text,
    truth,
    whole,
)

Augmentation = Literal["none", "light", "medium", "strong"]

SHARE = number(0, 1)
OPEN_SHARE = number(math.ulp(0.0), math.nextafter(1, 0))
BELOW_ONE = number(0, math.nextafter(1, 0))
POSITIVE = number(math.ulp(0.0))
SIDE = whole(1, 8192)  # pixels
SEED = whole(0, 2**32 - 1)  # what numpy takes
# Far above all that is useful, and far below what single precision holds.
_STRENGTH = number(0, 1e6)
_FACTOR = number(math.ulp(0.0), 1e6)

MODEL: Mapping[str, Check] = {
    "image_size": optional(SIDE),
    "in_chans": whole(1, 1024),
    "drop_rate": BELOW_ONE,
    "drop_path_rate": BELOW_ONE,
    "batchnorm": one_of("auto", "eval", "train", "frozen"),
    "lr": optional(_FACTOR),
    "backbone_lr_factor": optional(_FACTOR),
    "layer_decay": number(math.ulp(0.0), 1),
    "weight_decay": _STRENGTH,
    "warmup_fraction": BELOW_ONE,
    "snapshots": whole(1, 10**6),
    "label_smoothing": optional(BELOW_ONE),
    "class_weights": one_of("auto", "none", "balanced", "effective"),
    "focal_gamma": _STRENGTH,
    "negative_gamma": _STRENGTH,
    "mixup_alpha": _STRENGTH,
    "cutmix_alpha": _STRENGTH,
    "l2_sp": _STRENGTH,
    "refit": optional(truth),
    "stages": one_of("auto", "none"),
    "views": whole(1, 10**6),
    "teacher_share": SHARE,
    "teacher_temperature": _FACTOR,
}

# What counts where nothing is given and no recipe has chosen: fitting from Python without phases.
_WITHOUT_A_RECIPE: Mapping[str, Any] = {
    "lr": 1e-3,
    "backbone_lr_factor": 0.1,
    "label_smoothing": 0.1,
    "refit": False,
}

DATA: Mapping[str, Check] = {
    "balanced": truth,
    "batch_size": optional(whole(1)),
    "num_workers": optional(whole(0, 4096)),
    "val_fraction": BELOW_ONE,
    "test_fraction": BELOW_ONE,
    "seed": SEED,
    "training_seed": optional(SEED),
    "cache": one_of("off", "memory", "disk", "auto"),
    "on_device": one_of("auto", "on", "off"),
    "on_bad_image": one_of("error", "skip"),
    "folds": optional(whole(2, 10**6)),
    "fold": optional(whole(0, 10**6)),
    "max_pixels": whole(1),
    "max_decoding_mb": whole(1),
    "allow_outside": truth,
    "label_columns": optional(several(text(), 1, 10**5)),
}


def or_default(name: str, value: Any) -> Any:
    """A classifier's setting, or what counts in its place where nobody has chosen one."""
    return _WITHOUT_A_RECIPE.get(name) if value is None else value


def check_settings(
    values: Mapping[str, Any], ranges: Mapping[str, Check], *, option: str = ""
) -> None:
    """Refuse the first setting that is out of its range.

    Args:
        values: by name; those without a range are left to others.
        ranges: of this module, or alike.
        option: what stands before a name on the command line, for the message.

    Raises:
        UsageError: it names the setting, its range and what was found.
    """
    for name, value in values.items():
        if name in ranges:
            try:
                ranges[name](value)
            except UnexpectedValue as error:
                raise UsageError(f"{error.within(option + name).sentence}.") from None
