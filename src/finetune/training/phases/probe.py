"""The phase without a learning rate: the final layer fitted in closed form on cached features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.networks.freezing import split_at
from finetune.networks.image_network import ImageNetwork
from finetune.spec.images import LabelledImage
from finetune.spec.protocols import FitData
from finetune.training.classifier import ImageClassifier
from finetune.training.features.activations import CachedActivations
from finetune.training.label_probe import fit_label_probe
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.ridge_probe import fit_ridge_probe

FEW_A_CLASS = 20  # images; below, the final layer is fitted on random views as well
# So many images and views of them a class are enough, and more views of one image too many.
VIEWED_A_CLASS = 60
MOST_VIEWS = 8


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """What came of it.

    Attributes:
        probe: the fit.
        images: that were fitted, each in ``views`` views.
        figures: of the held-out images; None where there are none.
        seconds: that it took.
    """

    probe: Probe
    images: int
    views: int
    figures: dict[str, float] | None
    seconds: float

    @property
    def details(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        nll = {f"{l2:.4g}": value for l2, value in self.probe.held_out_nll.items()}
        own = self.probe.l2_of_labels
        each = {} if own is None else {"l2_of_labels": list(own)}
        return {"l2": self.probe.l2, "held_out_nll": nll, **each}

    def __str__(self) -> str:
        seen = f" in {self.views} views" if self.views > 1 else ""
        text = f"final layer fitted on {self.images} images{seen} in {self.seconds:.1f} s"
        own = self.probe.l2_of_labels
        each = "" if own is None else f", for each label {min(own):.3g} to {max(own):.3g}"
        text += f" (penalty {self.probe.l2:.3g}{each})"
        if self.figures is not None:
            text += "".join(
                f", val {name} {self.figures[name]:.3f}"
                for name in ("accuracy", "map", "nll", "mae", "r2")
                if name in self.figures
            )
        return text


def linear_head(network: ImageNetwork) -> nn.Linear | None:
    """The final layer, where it is a linear layer with a bias at which the network can be cut."""
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    try:
        split_at(network, "head")
    except NetworkError:
        return None
    return layer


def fit_final_layer(kept: CachedActivations) -> FittedLayer:
    """Fit the classifier's final layer to the training images, in place.

    The classifier's held-out answers are those of the fitted layer afterwards.
    """
    started = time.monotonic()
    classifier, datamodule = kept.classifier, kept.datamodule
    layer = linear_head(classifier.network)
    assert layer is not None
    images_a_class = len(datamodule.images("train")) / len(classifier.class_names)
    views = (None, *kept.views(views_of_few(images_a_class, classifier.hparams["views"])))
    features = [kept.at("head", "train", view).tensor() for view in views]
    images = datamodule.images("train")
    labels, count = classifier.unit.standardised(_targets(classifier, images)), len(views)
    weights = sample_weights(classifier, datamodule, labels)
    probe = _solver(classifier.task.closed_form)(
        torch.cat(features),
        torch.cat([labels] * count),
        len(classifier.class_names),
        sample_weights=None if weights is None else weights.repeat(count),
        groups=_group_numbers(images).repeat(count),
        seed=datamodule.seed,
        say=kept.say,
    )
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
    figures = _judge(kept, layer)
    return FittedLayer(probe, len(labels), count, figures, time.monotonic() - started)


def _solver(closed_form: Literal["multinomial", "binary", "ridge"]) -> Callable[..., Probe]:
    match closed_form:
        case "multinomial":
            return fit_probe
        case "binary":
            return fit_label_probe
        case "ridge":
            return fit_ridge_probe
        case _:
            assert_never(closed_form)


def sample_weights(
    classifier: ImageClassifier, datamodule: FitData, labels: Tensor
) -> Tensor | None:
    """The weight of each training image ``(N,)``, by draws or class; None: all count alike."""
    drawn = datamodule.draw_weights
    if drawn is not None:
        return drawn * len(drawn) / drawn.sum()
    counts = list(datamodule.class_counts("train").values())
    by_class = classifier.task.class_weights(classifier.hparams["class_weights"], counts)
    return None if by_class is None else by_class[labels]


def views_of_few(images_a_class: float, views: int) -> int:
    """Random views for the final layer: where images are few, they show what does not matter.

    On flowers12 with 2, 5 and 10 images a class they gained 15, 3 and 2 points. The more images
    the less, and each view costs as much as the whole probe: none from 20 a class on.

    Args:
        images_a_class: in training, on average.
        views: that were asked for, at least; 0 switches them off.
    """
    if images_a_class >= FEW_A_CLASS or views == 0:
        return 0
    enough = VIEWED_A_CLASS / max(images_a_class, 1)
    return max(views, min(MOST_VIEWS, round(enough)))


def _judge(kept: CachedActivations, layer: nn.Linear) -> dict[str, float] | None:
    images = kept.datamodule.images("val")
    if not images:
        return None
    features = kept.at("head", "val").tensor()
    with torch.no_grad():
        logits = kept.classifier.unit(layer(features.to(layer.weight.device))).float().cpu()
    labels = _targets(kept.classifier, images)
    kept.classifier.answers["val"] = logits, labels
    return kept.classifier.task.figures(logits, labels)


def _targets(classifier: ImageClassifier, images: Sequence[LabelledImage]) -> Tensor:
    return classifier.task.collate([image.label for image in images])


def _group_numbers(images: Sequence[LabelledImage]) -> Tensor:
    """One number a group; an image without one is a group of its own."""
    names = [image.group or f"\0{number}" for number, image in enumerate(images)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
