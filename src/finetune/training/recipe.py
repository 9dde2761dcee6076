"""Settings from the data, the backbone and the machine, each with the reason for it.

Prior art: BiT's HyperRule (Kolesnikov et al. 2020: a number of steps, not of epochs; no mixup on
little data), linear probing before fine-tuning (Kumar et al. 2022), batch norm in ``eval``. Only
what was not given is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.errors import NetworkError
from finetune.networks.freezing import network_stages, split_at
from finetune.runtime import fast_at_bf16
from finetune.spec.protocols import FitData
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.classifier import ImageClassifier
from finetune.training.strategies import parse_strategy

FEW_IMAGES_A_CLASS = 10
SHORT_SECONDS = 30  # of a time limit; start and probe of a small folder alone take ten
BATCH_SIZE, BATCH_SIZE_AT_LEAST, BATCH_SIZE_OF_MANY = 32, 8, 64
STEPS_A_PASS = 6  # at least, where smaller batches can give them
STEPS = {"cpu": 100, "accelerator": 500}
STEPS_FROM_SCRATCH = 1000
EPOCHS_AT_LEAST, EPOCHS_AT_MOST = 3, 50
PATIENCE_AT_LEAST = 3
MANY_IMAGES = 20_000
SIZE_STEP = 32  # pixels; what networks usually shrink an image by
MOST_REFITTED = 2000  # images; five more fits of the final layer take their time
IMBALANCE = 5  # images of the most frequent class to one of the rarest


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choices depend on.

    Attributes:
        class_counts: training images of each class.
        pretrained: whether the backbone brings pretrained weights.
        stages: names of the network's stages, from the stem to ``"head"``.
        can_keep: whether the network can be cut between its stages, so that the activations of
            frozen ones can be cached.
        on_cpu: whether there is no accelerator.
        fast_at_bf16: name of the accelerator where it is fast at bfloat16; else empty.
        closed_form: whether the final layer alone is fitted in closed form, without epochs.
        balanced: whether every class is drawn equally often.
        seconds: the time limit; None: there is none.
        images: in training, where they may have several labels; None: each is of one class.
        processes: one a device, to which each batch is dealt out.
        held_out: images of val.
        val_is_given: whether somebody has said which these are: they may be of another kind.
        is_fold: whether these are a fold of a cross-validation.
        has_choices: whether names are predicted; numbers need nothing in :data:`OF_NAMES`.
        one_class: whether an image has one class, so that rare ones can be given weight.
    """

    class_counts: Sequence[int]
    pretrained: bool
    stages: Sequence[str]
    can_keep: bool
    on_cpu: bool
    fast_at_bf16: str = ""
    closed_form: bool = True
    balanced: bool = False
    seconds: float | None = None
    images: int | None = None
    processes: int = 1
    held_out: int = 0
    val_is_given: bool = False
    is_fold: bool = False
    has_choices: bool = True
    one_class: bool = True

    @property
    def train_images(self) -> int:
        """Training images in all."""
        return sum(self.class_counts) if self.images is None else self.images


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting, its value and why."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        if isinstance(self.value, bool):
            value = value.lower()  # as it is typed
        return f"{self.name:<18}  {value:<14}  {self.reason}"


def choose_recipe(facts: Facts, given: Mapping[str, Any]) -> tuple[Choice, ...]:
    """A choice for each of the names in :data:`RULES`; :func:`choose_image_size` is its sibling.

    The strategy ``head`` is fitted in closed form and needs those in :data:`OF_CLOSED_FORM` alone.

    Args:
        facts: see :class:`Facts`.
        given: what the user has set; ``None`` and ``"auto"`` mean not set.
    """
    chosen: dict[str, Choice] = {}
    for name, rule in RULES.items():
        in_closed_form = bool(chosen) and chosen["strategy"].value == "head" and facts.closed_form
        if in_closed_form and name not in OF_CLOSED_FORM:
            continue
        if name in OF_NAMES and not facts.has_choices:
            continue
        value = given.get(name)
        if value is None or value == "auto":
            value, reason = rule(facts, {key: choice.value for key, choice in chosen.items()})
            chosen[name] = Choice(name, value, reason)
        else:
            chosen[name] = Choice(name, value, AS_GIVEN)
    return tuple(chosen.values())


def choose_image_size(own: int, *, pretrained: bool, short_side: int | None = None) -> Choice:
    """The side in pixels of what the network sees; needed before the network is built.

    Args:
        own: what the backbone was pretrained on, or made for.
        pretrained: whether it brings pretrained weights.
        short_side: the median of the images', where the network takes any size and has learned
            none; None keeps its own.
    """
    if pretrained:
        return Choice("image_size", own, "what the backbone was pretrained on")
    size = own if short_side is None else max(1, round(short_side / SIZE_STEP)) * SIZE_STEP
    if size >= own:
        return Choice("image_size", own, "what the network is made for")
    reason = f"half of the images are no larger than {short_side}: little is gained by more"
    return Choice("image_size", size, reason)


def _strategy(facts: Facts, earlier: Mapping[str, Any]) -> tuple[str, str]:
    if not facts.pretrained:
        return "all", "nothing pretrained to build upon"
    if facts.seconds is not None and facts.seconds < SHORT_SECONDS:
        return "head", f"{facts.seconds:.0f} s are too short for gradient steps"
    if facts.train_images < FEW_IMAGES_A_CLASS * len(facts.class_counts):
        return "head", f"{facts.train_images} images are too few to move the backbone"
    if not facts.on_cpu:
        return "head-then-all", "linear probing, then fine-tuning; an accelerator is at hand"
    if facts.can_keep and len(facts.stages) > 2:
        number = max(1, round((len(facts.stages) - 1) / 3))
        return f"partial:{number}", "the upper third; on a CPU all below runs once an image"
    return "head-then-all", "linear probing, then fine-tuning"


def _refit(facts: Facts, earlier: Mapping[str, Any]) -> tuple[bool, str]:
    labelled = facts.train_images + facts.held_out
    if earlier["strategy"] == "all" or not facts.closed_form:
        return False, "no closed form is fitted that could be fitted again"
    if facts.is_fold:
        return False, "a fold has to stay held out"
    if not facts.held_out:
        return False, "no image is held out that could learn as well"
    if facts.val_is_given:
        return False, "val images that are given stay held out"
    if labelled > MOST_REFITTED:
        return False, f"of {labelled} images those held out are not missed"
    return True, "a closed form learns from val images too; each is answered out of fold"


def _batch_size(facts: Facts, earlier: Mapping[str, Any]) -> tuple[int, str]:
    many = not facts.on_cpu and facts.train_images >= MANY_IMAGES
    size = BATCH_SIZE_OF_MANY if many else BATCH_SIZE
    while not many and size > BATCH_SIZE_AT_LEAST and _steps_a_pass(facts, size) < STEPS_A_PASS:
        size //= 2
    few = "usual" if size == BATCH_SIZE else f"{facts.train_images} images are few"
    own = math.ceil(size / facts.processes)
    size = own * facts.processes  # the same for each
    steps = _steps_a_pass(facts, size)
    reason = f"{few}; {steps} step{'s' * (steps > 1)} an epoch"
    if many:
        reason = "many images, and an accelerator to run them side by side"
    shared = f"; {own} on each of {facts.processes} devices" if facts.processes > 1 else ""
    return size, reason + shared


def _steps_a_pass(facts: Facts, batch_size: int) -> int:
    return max(1, math.ceil(facts.train_images / batch_size))


def _epochs(facts: Facts, earlier: Mapping[str, Any]) -> tuple[int, str]:
    if earlier["strategy"] == "head" and facts.closed_form:
        return 1, "the final layer is fitted in closed form"
    steps = STEPS["cpu" if facts.on_cpu else "accelerator"]
    if not facts.pretrained:
        steps = STEPS_FROM_SCRATCH
    a_pass = _steps_a_pass(facts, earlier["batch_size"])
    epochs = min(EPOCHS_AT_MOST, max(EPOCHS_AT_LEAST, math.ceil(steps / a_pass)))
    reason = f"about {epochs * a_pass} steps of {earlier['batch_size']} images"
    return epochs, reason if facts.seconds is None else f"{reason}; fewer if time is short"


def _patience(facts: Facts, earlier: Mapping[str, Any]) -> tuple[int, str]:
    if not facts.pretrained:
        return 0, "from scratch the late epochs are the best"
    third = max(PATIENCE_AT_LEAST, math.ceil(earlier["epochs"] / 3))
    return third, "epochs without a better one, a third of all, after which a phase stops"


def _rate(facts: Facts, earlier: Mapping[str, Any]) -> tuple[float, str]:
    if parse_strategy(earlier["strategy"])[0] == "all":
        return 1e-3, "usual for AdamW from an unfitted final layer"
    if parse_strategy(earlier["strategy"])[0] == "partial":
        return 5e-4, "careful: the final layer is fitted already"
    return 3e-4, "careful: the final layer is fitted already"


def _backbone_factor(facts: Facts, earlier: Mapping[str, Any]) -> tuple[float, str]:
    if not facts.pretrained:
        return 1.0, "backbone and final layer are equally new"
    if earlier["strategy"] == "all":
        return 0.1, "the backbone is pretrained, the final layer is not"
    return 1.0, "backbone and final layer are equally far"


def _smoothing(facts: Facts, earlier: Mapping[str, Any]) -> tuple[float, str]:
    if facts.train_images >= MANY_IMAGES:
        return 0.0, "many images"
    return 0.1, "little data; the confidence is put right afterwards"


def _augmentation(facts: Facts, earlier: Mapping[str, Any]) -> tuple[str, str]:
    """Light, also from scratch: in a thousand steps on flowers12 medium stayed behind it."""
    more = "" if facts.pretrained else "; more of it pays in longer fits only"
    return "light", f"crops and mirror images{more}"


def _class_weights(facts: Facts, earlier: Mapping[str, Any]) -> tuple[str, str]:
    """None, whatever the data: what weights gain and what they spoil was measured.

    On two sets made 10 and 30 to 1, weights gained 1 to 5 points of balanced accuracy, but the NLL
    on images as frequent as in the folder rose by 0.01 to 0.05 nats, and by it phases are chosen.
    """
    if not facts.one_class:
        return "none", "thresholds are chosen for each label instead"
    if facts.balanced:
        return "none", "classes are drawn equally often instead"
    ratio = max(facts.class_counts) / max(1, min(facts.class_counts))
    if ratio <= IMBALANCE:
        return "none", "no class is much rarer than the others"
    return "none", (
        f"{ratio:.0f} to 1, but weights spoil the probabilities; give balanced where rare classes "
        "matter as much"
    )


def _precision(facts: Facts, earlier: Mapping[str, Any]) -> tuple[str, str]:
    """Weights, closed forms and all that is compared stay float32 or wider."""
    if facts.on_cpu:
        return "32-true", "the processor is fastest at float32"
    if facts.fast_at_bf16:
        return "bf16-mixed", f"{facts.fast_at_bf16} is fast at bfloat16; weights stay float32"
    return "32-true", "the accelerator is not known to be faster at bfloat16"


AS_GIVEN = "as given"
# In this order: a rule sees what was chosen before it.
RULES: Mapping[str, Callable[[Facts, Mapping[str, Any]], tuple[Any, str]]] = {
    "strategy": _strategy,
    "refit": _refit,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "patience": _patience,
    "lr": _rate,
    "backbone_lr_factor": _backbone_factor,
    "label_smoothing": _smoothing,
    "augmentation": _augmentation,
    "class_weights": _class_weights,
    "precision": _precision,
}
OF_CLOSED_FORM = {"strategy", "refit", "epochs", "augmentation", "class_weights"}
OF_NAMES = {"label_smoothing", "class_weights"}


def facts_about(
    classifier: ImageClassifier,
    datamodule: FitData,
    *,
    pretrained: bool,
    device: torch.device,
    closed_form: bool = True,
    seconds: float | None = None,
    processes: int = 1,
) -> Facts:
    """The facts about a classifier and the images that it is to learn."""
    stages = list(network_stages(classifier.network))
    middle = stages[-2] if len(stages) > 2 else "head"
    try:
        split_at(classifier.network, middle)
        can_keep = True
    except NetworkError:
        can_keep = False
    return Facts(
        class_counts=list(datamodule.class_counts("train").values()),
        pretrained=pretrained,
        stages=stages,
        can_keep=can_keep,
        on_cpu=device.type == "cpu",
        fast_at_bf16=fast_at_bf16(device),
        closed_form=closed_form,
        balanced=datamodule.balanced,
        seconds=seconds,
        images=len(datamodule.images("train")),
        processes=processes,
        held_out=len(datamodule.images("val")),
        val_is_given=datamodule.val_is_given,
        is_fold=datamodule.split_settings.fold is not None,
        has_choices=classifier.task.has_choices,
        one_class=classifier.task == MULTICLASS,
    )
