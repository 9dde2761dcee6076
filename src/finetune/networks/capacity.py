"""Does the data suffice for what is to be learned? A rule of thumb, and where it ends.

The lecture behind this toolkit gives four training images for every weight. It is the old counting
argument of classical statistics, where as many equations as unknowns are the least and a few times
as many give a stable answer; Baum and Haussler 1989 ("What size net gives valid generalization?")
prove a bound of that kind for networks of threshold units.

Its limits: it speaks of weights found from nothing. Weight decay, early stopping, augmentation and
above all weights that already know images make far fewer images do, and networks with more
weights than images generalise all the same (Zhang et al. 2017, arXiv:1611.03530). A convolution's
shared weights are each taught by every place of an image. So the rule warns; it does not forbid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recommendation = Literal["scratch", "all", "partly", "head"]

IMAGES_PER_WEIGHT = 4
# From our own curves over 2 to 60 images a class (notebook 05), not from theory.
FEW_IMAGES_A_CLASS = 10
MANY_IMAGES_A_CLASS = 100

WORDS: dict[Recommendation, str] = {
    "scratch": "train from scratch if no fitting backbone exists",
    "all": "fine-tune the whole network from pretrained weights",
    "partly": "train the final layer first, then the upper stages or all at a low rate",
    "head": "train the final layer alone on a frozen, pretrained backbone",
}


@dataclass(frozen=True, slots=True)
class DataAdvice:
    """How the data compares with what is to be learned.

    Attributes:
        trainable_parameters, images, classes: what was compared; images are those to train on.
        images_wanted: by the rule of thumb, for training all of it from scratch.
        recommendation: what to train.
    """

    trainable_parameters: int
    images: int
    classes: int
    images_wanted: int
    recommendation: Recommendation

    @property
    def images_per_weight(self) -> float:
        """Training images for each trainable parameter."""
        return self.images / max(self.trainable_parameters, 1)

    @property
    def images_per_class(self) -> float:
        """Training images for each class."""
        return self.images / self.classes

    @property
    def comparison(self) -> str:
        """The counts against each other, for people."""
        if self.trainable_parameters > self.images:
            ratio = f"{self.trainable_parameters / max(self.images, 1):,.0f} weights an image"
        else:
            ratio = f"{self.images_per_weight:,.1f} images a weight"
        of_classes = f" of {self.classes} classes" if self.classes > 1 else ""  # numbers have none
        return (
            f"{self.trainable_parameters:,} trainable parameters on {self.images:,} images"
            f"{of_classes}: {ratio}; from nothing, the lecture's rule of thumb "
            f"(4 images a weight, stricter than practice needs) wants {self.images_wanted:,}."
        )

    def __str__(self) -> str:
        """The comparison and the recommendation, for people."""
        return f"{self.comparison} Recommended: {WORDS[self.recommendation]}."


def data_advice(trainable_parameters: int, images: int, classes: int) -> DataAdvice:
    """Compare what is to be learned with what there is to learn from.

    Args:
        trainable_parameters: of the network as it is to be trained, at least 0.
        images: that are trained on, at least 0.
        classes: at least 1.

    Returns:
        ``"scratch"`` where the rule of thumb is met; otherwise, by images a class, the final
        layer alone (below 10), partly (below 100) or everything fine-tuned.

    Raises:
        ValueError: numbers below those bounds.
    """
    if trainable_parameters < 0 or images < 0 or classes < 1:
        raise ValueError(
            "Expected parameters and images of at least 0 and a class, found "
            f"{trainable_parameters}, {images} and {classes}."
        )
    wanted = IMAGES_PER_WEIGHT * trainable_parameters
    recommendation: Recommendation
    if images >= wanted and trainable_parameters:
        recommendation = "scratch"
    elif images < FEW_IMAGES_A_CLASS * classes:
        recommendation = "head"
    elif images < MANY_IMAGES_A_CLASS * classes:
        recommendation = "partly"
    else:
        recommendation = "all"
    return DataAdvice(trainable_parameters, images, classes, wanted, recommendation)
