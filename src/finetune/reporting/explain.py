"""Grad-CAM: where in an image the answer comes from.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization". The last feature map of a network is weighted by how much each channel's mean raises
the class's logit. Works on any network that speaks timm's classifier interface: the feature map is
the output of ``forward_features``; in a vision transformer, whose class token alone would get a
gradient there, it is the patch tokens that enter the last block. For convolutional networks it is
equal to captum's ``LayerGradCam``, which takes tokens for channels and so knows no transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember, Member
from finetune.data.decoding import MAX_PIXELS, ImageReader
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.transforms import MAX_ASPECT, evaluation_transform
from finetune.errors import NetworkError, UsageError
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.multilabel import offsets
from finetune.tasks.task import Task
from finetune.training.classifier import ImageClassifier
from finetune.training.thresholds import Thresholds

Pixels = dict[int, Tensor]  # one image by its number of channels


@dataclass(frozen=True, eq=False)
class Explanation:
    """What speaks for one class in one image.

    Attributes:
        image: upright pixels ``(H, W, 3)``, at the image's own size.
        heat: ``(H, W)`` in ``[0, 1]``, the strongest place is 1; all 0 if nothing speaks for the
            class, and 0 outside of the part that the network sees.
        seen: that part, ``(top, left, bottom, right)`` in pixels; of several members the smallest.
        class_name, probability: of the explained class; of numbers which way the answer is moved,
            and the number.
        told: the probability or the number, for people.
    """

    path: Path
    image: NDArray[np.uint8]
    heat: NDArray[np.float32]
    seen: tuple[int, int, int, int]
    class_name: str
    probability: float
    told: str


def grad_cam(network: nn.Module, images: Tensor, target: int | Sequence[int]) -> Tensor:
    """Grad-CAM of ``images (B, C, S, S)``, as the network takes them, for one class each.

    Returns:
        ``(B, h, w)``, at least 0, at the resolution of the feature map.

    Raises:
        NetworkError: the network has no feature map.
    """
    return evidence(network, images, target).clamp_min(0)


def evidence(network: nn.Module, images: Tensor, target: int | Sequence[int]) -> Tensor:
    """The same ``(B, h, w)`` with what speaks against: below 0 it lowers the output."""
    was_training = network.training
    network.eval()
    try:
        with torch.enable_grad(), torch.inference_mode(False):
            activations, gradients = _activations_and_gradients(network, images.clone(), target)
    finally:
        network.train(was_training)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1)


def explain(
    model: ImageClassifier | Member,
    image: str | Path | bytes,
    class_names: Iterable[str | None] = (None,),
    *,
    max_pixels: int = MAX_PIXELS,
    max_decoding_mb: int = MAX_DECODING_MB,
) -> list[Explanation]:
    """Explain an answer for an image, once for each class name; None is what was predicted.

    Of several labels an image these are all that were named, or the likeliest where none was. A
    number has two maps on one scale: what raises it, and what lowers it.

    Args:
        model: an :class:`ImageClassifier`, or an ensemble, whose members' maps are averaged
            with the ensemble's coefficients.
        image: its file, or what a file holds.
        class_names: what to explain.
        max_pixels: more is refused as a decompression bomb.
        max_decoding_mb: most memory that decoding may take, in MiB.

    Raises:
        UsageError: an unknown class.
        ImageError: an image that cannot be read.
    """
    members = weighted_classifiers(model)
    if sum(share for _, share in members) < 0.999:
        raise UsageError(
            "Expected a classifier, or an ensemble of classifiers, to explain, found "
            f"{type(model).__name__}; answers from files cannot be explained."
        )
    needed = {3} | {classifier.preprocessing.in_chans for classifier, _ in members}
    path = Path("image") if isinstance(image, bytes) else Path(image)
    readers = {
        chans: ImageReader(chans, max_pixels=max_pixels, max_decoding_mb=max_decoding_mb)
        for chans in needed
    }
    pixels = {
        in_chans: read.decode(image, name=str(path)) if isinstance(image, bytes) else read(path)
        for in_chans, read in readers.items()
    }
    names = tuple(model.class_names)
    answers = []
    for classifier, _ in members:
        order = [classifier.class_names.index(name) for name in names]
        answers.append(_logits(classifier, pixels).cpu()[:, order])
    task = members[0][0].task
    answer = _answer(model, task.mixture(torch.stack(answers), [share for _, share in members]))
    probabilities = task.probabilities(answer.logits)[0]
    wanted: list[str] = []
    for name in class_names:
        if name is not None and name not in names:
            raise UsageError(f"Expected a class among {', '.join(names[:20])}, found {name!r}.")
        wanted += _named(task, answer, names) if name is None else [name]
    explained = []
    for name in dict.fromkeys(wanted):
        value = float(probabilities[names.index(name)])
        told = f"{100 * value:.1f} %" if task.has_choices else f"{value:.6g}"
        both, seen = _joint_heat(members, pixels, name, signed=not task.has_choices)
        maps = (
            {name: both} if task.has_choices else {f"raises {name}": both, f"lowers {name}": -both}
        )
        explained += [
            Explanation(
                path=path,
                image=pixels[3].permute(1, 2, 0).numpy(),
                heat=np.maximum(heat, 0),
                seen=seen,
                class_name=shown,
                probability=value,
                told=told,
            )
            for shown, heat in maps.items()
        ]
    return explained


class _Answered(NamedTuple):
    """Calibrated logits ``(1, C)``, and the thresholds that belong to them."""

    logits: Tensor
    thresholds: Thresholds | None


def _answer(model: ImageClassifier | Member, pooled: Tensor) -> _Answered:
    if isinstance(model, ImageClassifier):
        answer = Ensemble.of(model).answer(pooled.unsqueeze(0))
        return _Answered(answer.logits, answer.thresholds)
    calibrated = model.calibrated(pooled) if isinstance(model, Ensemble) else pooled
    return _Answered(calibrated, model.thresholds)


def _named(task: Task, answer: _Answered, names: Sequence[str]) -> list[str]:
    """What the answer names: a class, or labels; the likeliest label where it names none."""
    margins = answer.logits.double() - offsets(answer.thresholds, len(names))
    (named,) = task.named(margins, names)
    return task.names_in(named) or [names[int(answer.logits[0].topk(1).indices)]]


def weighted_classifiers(model: ImageClassifier | Member) -> list[tuple[ImageClassifier, float]]:
    """The classifiers inside, at any depth, with their shares in the answer.

    The shares add up to 1, unless part of the answer comes from files.
    """
    if isinstance(model, ImageClassifier):
        return [(model, 1.0)]
    if isinstance(model, ClassifierMember):
        return [(model.classifier, 1.0)]
    if not isinstance(model, Ensemble):
        return []
    return [
        (classifier, share * inner)
        for part, share in zip(model.parts, model.coefficients, strict=True)
        for classifier, inner in weighted_classifiers(part)
    ]


def seen_part(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """The part of an image ``(height, width)`` that the evaluation transform keeps.

    Returns:
        ``(top, left, bottom, right)`` in the image's own pixels.
    """
    height, width = size
    longest = max(1, MAX_ASPECT * min(height, width))
    short = min(height, width, longest)
    side = min(short * preprocessing.image_size / preprocessing.resize_size, short)
    top, left = (height - side) / 2, (width - side) / 2
    return round(top), round(left), round(top + side), round(left + side)


def _logits(classifier: ImageClassifier, pixels: Pixels) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = classifier(_view(classifier, pixels))
    return logits


def _view(classifier: ImageClassifier, pixels: Pixels) -> Tensor:
    """The image as this classifier sees it, ``uint8 (1, C, S, S)``."""
    transform = evaluation_transform(classifier.preprocessing)
    view = transform(pixels[classifier.preprocessing.in_chans])
    return view.unsqueeze(0).to(classifier.mean.device)


def _joint_heat(
    members: Sequence[tuple[ImageClassifier, float]],
    pixels: Pixels,
    class_name: str,
    *,
    signed: bool,
) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The members' maps, each with its share, at the image's size; the strongest place is 1 or -1.

    Without a sign what speaks against is nothing.
    """
    height, width = pixels[3].shape[-2:]
    heat = torch.zeros(height, width)
    parts = []
    for classifier, share in members:
        view = classifier.normalised(_view(classifier, pixels))
        target = classifier.class_names.index(class_name)
        cam = (evidence if signed else grad_cam)(classifier.network, view, target)[0].cpu()
        parts.append(seen_part((height, width), classifier.preprocessing))
        top, left, bottom, right = parts[-1]
        size = (max(1, bottom - top), max(1, right - left))
        placed = interpolate(cam[None, None].float(), size, mode="bilinear", align_corners=False)
        strongest = placed.abs().max()
        if strongest > 0:
            window = (slice(top, top + size[0]), slice(left, left + size[1]))
            heat[window] += share * placed[0, 0] / strongest
    strongest = heat.abs().max()
    smallest = min(parts, key=lambda part: part[2] - part[0])
    return (heat / strongest if strongest > 0 else heat).numpy(), smallest


def _activations_and_gradients(
    network: nn.Module, images: Tensor, target: int | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Feature map and gradient of the targets' logits, both ``(B, D, h, w)``."""
    leaf: Tensor
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
    if features.ndim == 4:
        leaf = features.detach().requires_grad_()
        logits = network.forward_head(leaf.clone())  # type: ignore[operator]
        to_map = _channels_first(network, features)
    elif features.ndim == 3 and hasattr(network, "blocks"):
        logits, leaf = _from_last_block(network, images)
        to_map = _tokens_to_map(network, leaf)
    else:
        raise NetworkError(
            f"Expected a network with a feature map to explain, found {type(network).__name__}, "
            f"whose features have the shape {tuple(features.shape)}; take another backbone."
        )
    targets = torch.as_tensor(target).to(logits.device).expand(len(logits))
    score = logits.gather(1, targets.unsqueeze(1)).sum()
    (gradients,) = torch.autograd.grad(score, leaf)
    return to_map(leaf.detach()), to_map(gradients)


def _from_last_block(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    caught: list[Tensor] = []

    def catch(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1].clone()

    norm = getattr(list(network.blocks)[-1], "norm1", None)  # type: ignore[arg-type]
    if not isinstance(norm, nn.Module):
        raise NetworkError(
            f"Expected the last block of {type(network).__name__} to have a norm1 to explain, "
            "found none; take another backbone."
        )
    handle = norm.register_forward_hook(catch)
    try:
        logits: Tensor = network(images)
    finally:
        handle.remove()
    return logits, caught[-1]


def _channels_first(network: nn.Module, features: Tensor) -> Callable[[Tensor], Tensor]:
    channels = network.num_features
    if features.shape[1] != channels and features.shape[-1] == channels:
        return lambda values: values.permute(0, 3, 1, 2)  # Swin and its kin keep channels last
    return lambda values: values


def _tokens_to_map(network: nn.Module, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    count = tokens.shape[1] - prefix
    height = math.isqrt(count)
    if height * height != count:
        raise NetworkError(
            f"Expected patch tokens of a square to explain, found {count}; take another backbone."
        )

    def to_map(values: Tensor) -> Tensor:
        batch, _, width = values.shape
        return values[:, prefix:].transpose(1, 2).reshape(batch, width, height, height)

    return to_map
