"""The phase without a learning rate: the final layer fitted in closed form on cached features."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from finetune.errors import NetworkError
from finetune.networks.freezing import split_at
from finetune.networks.image_network import ImageNetwork
from finetune.networks.steps import stage_widths
from finetune.runtime import Runtime
from finetune.spec.images import LabelledImage, Split
from finetune.spec.protocols import FitData
from finetune.tasks.losses import ClassWeights
from finetune.tasks.task import Task
from finetune.training.classifier import ImageClassifier
from finetune.training.features.activations import CachedActivations
from finetune.training.label_probe import fit_label_probe
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.phases.stage_choice import (
    answers_better,
    fitted_reading,
    is_affordable,
    let_read,
)
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


@dataclass(frozen=True, slots=True)
class Rows:
    """What a final layer is fitted to: N images in V views, one view after the other.

    Attributes:
        features: ``(V * N, D)``, the plain images first.
        further: ``(V * N, S)``, what of stages the final layer could read beside them; S may be 0.
        targets, groups, weights: of each row; weights None: all count alike.
        images: N.
        views: V.
    """

    features: Tensor
    further: Tensor
    targets: Tensor
    groups: Tensor
    weights: Tensor | None
    images: int
    views: int


def fit_final_layer(kept: CachedActivations) -> FittedLayer:
    """Fit the classifier's final layer to the training images, in place.

    The classifier's held-out answers are those of the fitted layer afterwards.
    """
    started = time.monotonic()
    rows = rows_of(kept, ("train",))
    classes = len(kept.classifier.class_names)
    chooses = is_affordable(rows.features, rows.further, classes)
    if chooses:
        probe = _reading_stages(kept, rows, solved(kept, rows, held_out=True))
    else:
        probe = solved(kept, rows)
    layer = put_in_place(kept.classifier, probe)
    figures = _judge(kept, layer)
    return FittedLayer(probe, rows.images, rows.views, figures, time.monotonic() - started)


def rows_of(kept: CachedActivations, sides: Sequence[Split]) -> Rows:
    """The rows of some sides' images, in random views too where these are few."""
    classifier, datamodule = kept.classifier, kept.datamodule
    sides = [side for side in sides if datamodule.images(side)]
    images = [image for side in sides for image in datamodule.images(side)]
    views = views_of_few(len(images) / len(classifier.class_names), classifier.hparams["views"])
    seen = (None, *kept.views(views))
    entering = [kept.entering(side, view) for view in seen for side in sides]
    features, further = (torch.cat(each) for each in zip(*entering, strict=True))
    targets, count = classifier.unit.standardised(targets_of(classifier, images)), len(seen)
    weights = sample_weights(classifier, datamodule, targets, sides)
    return Rows(
        features,
        further,
        torch.cat([targets] * count),
        group_numbers(datamodule.together(images)).repeat(count),
        None if weights is None else weights.repeat(count),
        len(images),
        count,
    )


def fit_in_place(kept: CachedActivations, rows: Rows) -> Probe:
    """The fit to these rows; the classifier's final layer has its weights then."""
    probe = solved(kept, rows)
    put_in_place(kept.classifier, probe)
    return probe


def solved(kept: CachedActivations, rows: Rows, **options: Any) -> Probe:
    """The fit to these rows."""
    classifier = kept.classifier
    return solver_of(classifier.task)(
        rows.features,
        rows.targets,
        len(classifier.class_names),
        sample_weights=rows.weights,
        groups=rows.groups,
        seed=kept.datamodule.seed,
        say=kept.say,
        **options,
    )


def put_in_place(classifier: ImageClassifier, probe: Probe) -> nn.Linear:
    """The classifier's final layer, which has the weights of the fit now."""
    layer = linear_head(classifier.network)
    assert layer is not None
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
    return layer


def _reading_stages(kept: CachedActivations, rows: Rows, plain: Probe) -> Probe:
    """The fit of a final layer that reads stages as well, where that is better; else the plain."""
    classifier, stages = kept.classifier, kept.stages()
    widths = stage_widths(classifier.network)
    other, scales = fitted_reading(
        lambda features: solved(kept, replace(rows, features=features), held_out=True),
        rows.features,
        rows.further,
        [widths[stage] for stage in stages],
    )

    def is_better() -> bool:
        better = answers_better(other, plain, classifier.task, rows.targets, rows.groups)
        return better and _val_agrees(kept, plain, other, scales)

    if not Runtime().agree(is_better):
        return plain
    let_read(classifier, stages, scales)
    before, after = (each.held_out_nll[each.l2] for each in (plain, other))
    loss = "NLL" if classifier.task.has_choices else "squared error"
    kept.say(
        f"the final layer reads {', '.join(stages)} as well: cross-validated {loss} {after:.3f} "
        f"instead of {before:.3f}"
    )
    return other


def _val_agrees(kept: CachedActivations, plain: Probe, other: Probe, scales: Tensor) -> bool:
    """Whether val images do not speak against the one that reads stages.

    Where training images resemble each other, as crops and bursts do, cross-validation alone is too
    sure of what tells single photographs apart.
    """
    images = kept.datamodule.images("val")
    if not images:
        return True
    task, unit = kept.classifier.task, kept.classifier.unit
    targets = unit.standardised(targets_of(kept.classifier, images))
    features, further = kept.entering("val")
    wide = torch.cat([features, further * scales], dim=1)
    before = task.held_out_loss(plain.logits(features), targets, "nll")
    return task.held_out_loss(other.logits(wide), targets, "nll") <= before


def solver_of(task: Task) -> Callable[..., Probe]:
    """How a final layer is solved for."""
    match task.closed_form:
        case "multinomial":
            return fit_probe
        case "binary":
            return fit_label_probe
        case "ridge":
            return fit_ridge_probe
        case _:
            assert_never(task.closed_form)


def sample_weights(
    classifier: ImageClassifier,
    datamodule: FitData,
    targets: Tensor,
    sides: Sequence[Split] = ("train",),
) -> Tensor | None:
    """The weight of each of these sides' images ``(N,)``; None: all count alike.

    Where classes are drawn equally often, they weigh alike.
    """
    given: ClassWeights = classifier.hparams["class_weights"]
    each = [datamodule.class_counts(side).values() for side in sides]
    counts = [sum(numbers) for numbers in zip(*each, strict=True)]
    by_class = classifier.task.class_weights("balanced" if datamodule.balanced else given, counts)
    return None if by_class is None else by_class[targets]


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
    features, _ = kept.entering("val")
    with torch.no_grad():
        logits = kept.classifier.unit(layer(features.to(layer.weight.device))).float().cpu()
    labels = targets_of(kept.classifier, images)
    kept.classifier.answers["val"] = logits, labels
    return kept.classifier.task.figures(logits, labels)


def targets_of(classifier: ImageClassifier, images: Sequence[LabelledImage]) -> Tensor:
    """What the images' labels are to the task, ``(N,)`` or ``(N, C)``."""
    return classifier.task.collate([image.label for image in images])


def group_numbers(together: Sequence[Hashable | None]) -> Tensor:
    """One number a group; an image without one is a group of its own."""
    names = [(number,) if name is None else name for number, name in enumerate(together)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
