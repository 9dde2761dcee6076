"""A folder whose images stand where an earlier fit had them: what has trained is never tested."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from finetune.data.assignment import names_below
from finetune.data.folder import ImageFolder, LabelledImage, Split
from finetune.data.image_bytes import is_there
from finetune.spec.images import ImageRef
from finetune.spec.labels import Label, indexes, moved
from finetune.spec.splits import SplitRecord, Standing


@dataclass(frozen=True, slots=True)
class Differences:
    """How a folder differs from what was fitted, in numbers of images.

    Attributes:
        known: of a content that the fit had, wherever it lies now.
        new: neither of a known content nor at a known path.
        changed: at a known path, of another content.
        gone: in the fit, and now neither there nor elsewhere.
        relabelled: of a known content, with another label than the fit knew.
        added_names, lost_names: classes or labels that the fit did not have, and that only it had.
    """

    known: int
    new: int
    changed: int
    gone: int
    relabelled: int = 0
    added_names: tuple[str, ...] = ()
    lost_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line or a few; empty where nothing differs."""
        counts = {
            "new": self.new,
            "changed": self.changed,
            "gone": self.gone,
            "relabelled": self.relabelled,
        }
        if not any(counts.values()):
            return ""
        told = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
        as_they_were = self.known - self.relabelled
        line = f"images that differ from those of the fit: {told}; {as_they_were} are as they were"
        for what, names in (("new", self.added_names), ("no longer there", self.lost_names)):
            line += f"\n{what}: {', '.join(names)}" if names else ""
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
    had = {name for image in folder.images for name in _names(image.label, folder.class_names)}
    return Differences(
        known,
        len(unknown) - changed,
        changed,
        gone,
        len(relabelled(folder, record)),
        tuple(sorted(had - set(record.class_names))) if known else (),
        tuple(sorted(set(record.class_names) - set(folder.class_names))) if known else (),
    )


def relabelled(folder: ImageFolder, record: SplitRecord) -> list[LabelledImage]:
    """The images of a known content whose label is another than the fit knew."""
    known: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for ref in record.images:
        known[ref.id].add(_names(ref.label, record.class_names))
    return [
        image
        for image in folder.images
        if image.id in known and _names(image.label, folder.class_names) not in known[image.id]
    ]


def _names(label: Label, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[index] for index in indexes(label))


def listed_folder(root: Path, record: SplitRecord) -> ImageFolder | None:
    """The images that a fit by manifest had and that lie below the root; None if none does."""
    spelled = [(ref, (root / ref.path, root / normalize("NFD", ref.path))) for ref in record.images]
    there = [
        LabelledImage(path, ref.label, id=ref.id)
        for ref, paths in spelled
        if (path := next((each for each in paths if is_there(each)), None)) is not None
    ]
    if not there:
        return None
    return ImageFolder(root, record.class_names, tuple(there), by_rows=True)


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
