"""A folder whose images stand where an earlier fit had them: what has trained is never tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from finetune.data.assignment import names_below
from finetune.data.folder import ImageFolder, LabelledImage, Split
from finetune.spec.images import ImageRef
from finetune.spec.labels import moved
from finetune.spec.splits import SplitRecord, Standing


@dataclass(frozen=True, slots=True)
class Differences:
    """How a folder differs from what was fitted, in numbers of images.

    Attributes:
        known: of a content that the fit had, wherever it lies now.
        new: neither of a known content nor at a known path.
        changed: at a known path, of another content.
        gone: in the fit, and now neither there nor elsewhere.
    """

    known: int
    new: int
    changed: int
    gone: int

    def __str__(self) -> str:
        """One line; empty where nothing differs."""
        counts = {"new": self.new, "changed": self.changed, "gone": self.gone}
        if not any(counts.values()):
            return ""
        told = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
        line = f"images that differ from those of the fit: {told}; {self.known} are as they were"
        if self.changed and not self.known:
            line += (
                "\nno content is known, so sides are the fit's by path; is it another folder? "
                "Then put its images into test/<class>/."
            )
        return line


def follow(folder: ImageFolder, record: SplitRecord) -> ImageFolder:
    """The folder with the side and fold that the fit gave each image; new ones stay as they are."""
    return replace(
        folder,
        images=tuple(
            image if at is None else replace(image, split=at.side, fold=at.fold)
            for image, at in zip(folder.images, standings(folder, record), strict=True)
        ),
    )


def standings(folder: ImageFolder, record: SplitRecord) -> list[Standing | None]:
    """Where each image stood in the fit; None for new ones."""
    keys = names_below(folder.root, folder.images)
    return [record.standing(i.id, key) for i, key in zip(folder.images, keys, strict=True)]


def differences(folder: ImageFolder, record: SplitRecord) -> Differences:
    """What has come, changed and gone since the fit."""
    keys = names_below(folder.root, folder.images)
    pairs = [(image.id, key) for image, key in zip(folder.images, keys, strict=True)]
    known = sum(record.knows_id(image_id) for image_id, _ in pairs)
    unknown = [key for image_id, key in pairs if not record.knows_id(image_id)]
    changed = sum(record.knows_path(key) for key in unknown)
    ids, paths = {image_id for image_id, _ in pairs}, set(keys)
    gone = sum(ref.id not in ids and ref.path not in paths for ref in record.images)
    return Differences(known, len(unknown) - changed, changed, gone)


def listed_folder(root: Path, record: SplitRecord) -> ImageFolder | None:
    """The images that a fit by manifest had and that lie below the root; None if none does."""
    spelled = [(ref, (root / ref.path, root / normalize("NFD", ref.path))) for ref in record.images]
    there = [
        LabelledImage(path, ref.label, id=ref.id)
        for ref, paths in spelled
        if (path := next((each for each in paths if each.is_file()), None)) is not None
    ]
    if not there:
        return None
    return ImageFolder(root, record.class_names, tuple(there))


def record_of(
    folder: ImageFolder, settings: dict[str, object], *, listed: bool, earlier: SplitRecord | None
) -> SplitRecord:
    """What a fit notes of its split.

    Args:
        folder: every image with its id and its side.
        settings: of the data.
        listed: the images came from a manifest.
        earlier: of the fit that this one goes on from; what trained there and is gone now is noted
            as well, for the weights have seen it.
    """
    keys = names_below(folder.root, folder.images)
    images = [ImageRef(i.id, key, i.label) for i, key in zip(folder.images, keys, strict=True)]
    at = [Standing(image.split or "train", image.fold) for image in folder.images]
    if earlier is not None:
        gone = _gone(earlier, images, folder.class_names)
        images, at = [*images, *gone], [*at, *[Standing("train")] * len(gone)]
    return SplitRecord(settings, folder.class_names, tuple(images), tuple(at), listed)


def _gone(
    earlier: SplitRecord, images: Sequence[ImageRef], class_names: Sequence[str]
) -> list[ImageRef]:
    ids = {image.id for image in images}
    label_of = {name: label for label, name in enumerate(class_names)}
    positions = [label_of.get(name, -1) for name in earlier.class_names]
    return [
        replace(ref, label=moved(ref.label, positions, len(class_names)))
        for ref, at in zip(earlier.images, earlier.standings, strict=True)
        if at.side == "train" and ref.id not in ids
    ]


def trained(folder: ImageFolder, record: SplitRecord, side: Split) -> list[LabelledImage]:
    """The images of a side on which the fit trained."""
    pairs = zip(folder.images, standings(folder, record), strict=True)
    return [i for i, at in pairs if i.split == side and at is not None and at.side == "train"]
