"""Images that belong together: by a pattern in their paths, or because they are copies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from finetune.data.assignment import image_keys
from finetune.data.duplicates import join
from finetune.data.folder import ImageFolder, LabelledImage
from finetune.errors import UsageError


def groups_by_pattern(folder: ImageFolder, pattern: str) -> ImageFolder:
    r"""The folder with the group of each image from its path below the root.

    What the expression matches is the group, or, where it has brackets, what they match:
    ``patient_\d+`` and ``(\d+)_frame`` are usual ones. Where nothing matches, the image stands
    for itself.

    Raises:
        UsageError: no regular expression, or it matches no image at all.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"Expected a regular expression to group by, found {pattern!r}: {error}."
        ) from error
    images = []
    for image, key in zip(folder.images, image_keys(folder.root, folder.images), strict=True):
        match = expression.search(key)
        groups = [part for part in match.groups() if part is not None] if match else []
        group = "|".join(groups) if groups else match.group() if match else None
        images.append(replace(image, group=group or image.group))
    if not any(image.group for image in images):
        example = image_keys(folder.root, folder.images[:1])[0]
        raise UsageError(
            f"Expected {pattern!r} to match the images' paths below {folder.root}, found no "
            f"match; one of them is {example!r}."
        )
    return replace(folder, images=tuple(images))


def groups_with_duplicates(images: Sequence[LabelledImage]) -> list[Hashable | None]:
    """What keeps each image with others on one side: its group, and equal contents."""
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.group is not None:
            members["group", image.group].append(index)
        if image.id:
            members["content", image.id].append(index)
    together: list[Hashable | None] = [None] * len(images)
    for connected in join(group for group in members.values() if len(group) > 1):
        for index in connected:
            together[index] = connected[0]
    return together
