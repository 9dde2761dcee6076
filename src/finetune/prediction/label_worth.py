"""What more labels would bring: the learning curve of a final layer on the images of a fit.

Measured on features of a network that has learnt from none of the images: the classifier's own
where its final layer alone was fitted, else those of the network as it was published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.data.decoding import MAX_PIXELS
from finetune.data.duplicates import join, near_duplicates
from finetune.data.groups import group_of
from finetune.data.inspection import inspect_files
from finetune.errors import DataError, UsageError
from finetune.evaluation.learning_curve import Gain, LearningCurve
from finetune.prediction.feature_space import features_of
from finetune.prediction.images_of_fits import images_of_fits
from finetune.prediction.predictor import fits_of
from finetune.spec.images import ImageRef
from finetune.tasks.one_class import only_one_class
from finetune.training.classifier import ImageClassifier
from finetune.training.features.store import FeatureStore
from finetune.training.nested_probes import nested_answers
from finetune.training.published import unlearnt

MORE = 50  # labels
PAYS = 0.005  # accuracy for so many labels
POINT = 0.01
FEWEST = 40  # images, and four a class


@dataclass(frozen=True, slots=True)
class LabelWorth:
    """What :data:`MORE` labels more would bring.

    Attributes:
        curve: of a final layer, by the number of images that it learns from.
        images: that the fit learns from now.
        gain: of accuracy.
        for_a_point: how many labels more raise the accuracy by 0.01; None: none ever.
        own_network: whether the features are those of the classifier itself.
    """

    curve: LearningCurve
    images: int
    gain: Gain
    for_a_point: int | None
    own_network: bool

    def sentences(self) -> list[str]:
        """For a person: what is expected, and whether labelling still pays."""
        value, low, high = (100 * each for each in (self.gain.value, self.gain.low, self.gain.high))
        network = (
            "" if self.own_network else ", of a final layer on the network as it was published"
        )
        further = (
            "no number of them is expected to bring a whole point"
            if self.for_a_point is None
            else f"a whole point takes about {self.for_a_point}"
        )
        return [
            f"{MORE} more labels of images at random are expected to raise the accuracy by "
            f"{value:.1f} points [{low:.1f}, {high:.1f}]; {further} (learning curve of "
            f"{self.images} images{network}, 95 % band). Chosen ones tend to bring more.",
            self._verdict(),
        ]

    def _verdict(self) -> str:
        few = f"{100 * PAYS:.1f} points for {MORE} labels"
        if self.gain.high < PAYS:
            return f"Labelling has stopped to pay: less than {few}, also at the band's upper end."
        if self.gain.low >= PAYS:
            return f"Labelling pays: at least {few}."
        return f"Labelling may still pay: the band holds {few}."


def worth_of_labels(
    model: ImageClassifier | Ensemble,
    root: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | PathLike[str] | None = None,
) -> LabelWorth:
    """Measure the learning curve of the images that a model learnt from and picked by.

    Test images are left alone.

    Args:
        model: where it is, it runs; of an ensemble the first classifier counts.
        root: the folder of images that the fit was given.
        max_pixels: most pixels of an image.
        cache_dir: where features are looked up, and kept.

    Raises:
        UsageError: no image of the fit lies there, or several labels an image.
        DataError: too few images to measure by.
        PretrainedWeightsError: a fine-tuned network whose published weights are not here.
    """
    only_one_class(model.task, "a learning curve", instead="leave --data.root out")
    fits = fits_of(model)
    known, _ = images_of_fits(fits, root, "train", "val")
    learning, _ = images_of_fits(fits, root, "train")
    network, is_own = _unlearnt(model)
    store = FeatureStore(cache_dir)
    found = features_of(network, known, max_pixels=max_pixels, store=store)
    same = [row for row, path in enumerate(found.paths) if found.ids[row] == known[path].id]
    paths = [found.paths[row] for row in same]
    labels = torch.tensor([int(str(known[path].label)) for path in paths])
    classes = len(torch.unique(labels))
    if len(paths) < max(FEWEST, 4 * classes) or classes < 2:
        raise DataError(
            f"Expected {max(FEWEST, 4 * classes)} images of the fit or more, of two classes at "
            f"least, to measure a learning curve, found {len(paths)}; label more first."
        )
    groups = _together(paths, known, fits[0].settings.get("group_by"), root, max_pixels, cache_dir)
    answers = nested_answers(torch.from_numpy(found.values[same]), labels, groups)
    curve, images = LearningCurve(*answers), len(learning)
    return LabelWorth(
        curve, images, curve.gain(images, MORE), curve.images_for(images, POINT), is_own
    )


def _unlearnt(model: ImageClassifier | Ensemble) -> tuple[ImageClassifier, bool]:
    """A network that has learnt from none of the images, and whether it is the model's own."""
    classifier = Ensemble.of(model).first_classifier
    if classifier is None:
        raise UsageError(
            "Expected a classifier, or an ensemble with one, found saved predictions alone; give "
            "the checkpoint that made them."
        )
    return unlearnt(classifier)


def _together(
    paths: Sequence[str],
    known: dict[str, ImageRef],
    pattern: object,
    root: Path,
    max_pixels: int,
    cache_dir: str | PathLike[str] | None,
) -> Tensor:
    """Equal numbers for images that no fold may tell apart: of one group, or copies."""
    inspections = inspect_files(
        [Path(path) for path in paths],
        root=root,
        max_pixels=max_pixels,
        perceptual=True,
        cache_dir=cache_dir,
    )
    pairs: list[list[int]] = [list(pair) for pair in near_duplicates(inspections)]
    members: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        members.setdefault(known[path].id, []).append(row)
        named = (
            group_of(re.compile(pattern), known[path].path) if isinstance(pattern, str) else None
        )
        if named:
            members.setdefault(f"group {named}", []).append(row)
    numbers = torch.arange(len(paths))
    for group in join([*pairs, *members.values()]):
        numbers[group] = group[0]
    return numbers
