"""The network that a fit began with: what has learnt from none of its images."""

from __future__ import annotations

import torch

from finetune.errors import PretrainedWeightsError
from finetune.networks.final_layer import final_parameters
from finetune.networks.pretrained import needs_no_hub
from finetune.training.classifier import ImageClassifier

SHAPE = ("image_size", "in_chans", "network_options")


def unlearnt(classifier: ImageClassifier) -> tuple[ImageClassifier, bool]:
    """A classifier below whose final layer nothing was learnt, and whether it is the same one.

    Nothing is fetched. Where the published weights are not here to compare with, one that a fit
    of the final layer alone has left is taken for its own beginning.

    Returns:
        In ``eval`` mode, where the given one is; another one's final layer says nothing.

    Raises:
        PretrainedWeightsError: it has learnt, and the published weights are not here.
    """
    if needs_no_hub(classifier.backbone):
        shape = {name: classifier.hparams[name] for name in SHAPE}
        published = ImageClassifier(classifier.class_names, classifier.backbone, **shape).eval()
        if _equal_below(published, classifier):
            return classifier, True
        return published.to(classifier.device), False
    if "probe" in classifier.details.get("fit", {}):
        return classifier, True
    raise PretrainedWeightsError(
        f"Expected a fit of the final layer alone, or the published weights of "
        f"{classifier.backbone} on this machine, found neither: features that have learnt from the "
        "images tell nothing about more of them; fit with --model.strategy head."
    )


def _equal_below(published: ImageClassifier, other: ImageClassifier) -> bool:
    final = final_parameters(published.network)
    theirs = other.network.state_dict()
    return all(
        name in theirs and torch.equal(tensor.cpu(), theirs[name].cpu())
        for name, tensor in published.network.state_dict().items()
        if name not in final
    )
