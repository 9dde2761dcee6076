"""Settings from the data, the backbone and the machine, each with the reason for it.

Prior art: BiT's HyperRule (Kolesnikov et al. 2020: a number of steps, not of epochs; no mixup on
little data), linear probing before fine-tuning (Kumar et al. 2022), batch norm in ``eval``. Only
what was not given is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import NetworkError
from finetune.networks.freezing import network_stages, split_at
from finetune.training.strategies import parse_strategy

FEW_PICTURES_A_CLASS = 10
STEPS = {"cpu": 100, "accelerator": 500}
STEPS_FROM_SCRATCH = 1000
EPOCHS_AT_LEAST, EPOCHS_AT_MOST = 3, 50
PATIENCE_AT_LEAST = 3
MANY_PICTURES = 20_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choices depend on.

    Attributes:
        class_counts: training pictures of each class.
        pretrained: whether the backbone brings pretrained weights.
        stages: names of the network's stages, from the stem to ``"head"``.
        can_keep: whether the network can be cut between its stages, so that the activations of
            frozen ones can be kept.
        on_cpu: whether there is no accelerator.
        batch_size: pictures a step.
        closed_form: whether the final layer alone is fitted in closed form, without epochs.
    """

    class_counts: Sequence[int]
    pretrained: bool
    stages: Sequence[str]
    can_keep: bool
    on_cpu: bool
    batch_size: int
    closed_form: bool = True

    @property
    def train_images(self) -> int:
        """Training pictures in all."""
        return sum(self.class_counts)


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting, its value and why."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name:<18}  {value:<14}  {self.reason}"


def choose_recipe(facts: Facts, given: Mapping[str, Any]) -> tuple[Choice, ...]:
    """A choice for each of strategy, epochs, patience, lr, backbone_lr_factor, label_smoothing.

    The strategy ``head`` is fitted in closed form and needs none of the last four.

    Args:
        facts: see :class:`Facts`.
        given: what the user has set; ``None`` and the strategy ``"auto"`` mean not set.
    """
    chosen: dict[str, Choice] = {}
    rules = {
        "strategy": _strategy,
        "epochs": _epochs,
        "patience": _patience,
        "lr": _rate,
        "backbone_lr_factor": _backbone_factor,
        "label_smoothing": _smoothing,
    }
    for name, rule in rules.items():
        value = given.get(name)
        if value is None or (name == "strategy" and value == "auto"):
            settled, reason = rule(facts, {key: choice.value for key, choice in chosen.items()})
            chosen[name] = Choice(name, settled, reason)
        else:
            chosen[name] = Choice(name, value, "as given")
        if chosen["strategy"].value == "head" and facts.closed_form and name == "epochs":
            break  # nothing else matters for a fit in closed form
    return tuple(chosen.values())


def _strategy(facts: Facts, settled: Mapping[str, Any]) -> tuple[str, str]:
    if not facts.pretrained:
        return "all", "nothing pretrained to build upon"
    if facts.train_images < FEW_PICTURES_A_CLASS * len(facts.class_counts):
        return "head", f"{facts.train_images} pictures are too few to move the backbone"
    if not facts.on_cpu:
        return "head-then-all", "linear probing, then fine-tuning; an accelerator is at hand"
    if facts.can_keep and len(facts.stages) > 2:
        number = max(1, round((len(facts.stages) - 1) / 3))
        return f"partial:{number}", "the upper third; on a CPU all below runs once a picture"
    return "head-then-all", "linear probing, then fine-tuning"


def _epochs(facts: Facts, settled: Mapping[str, Any]) -> tuple[int, str]:
    if settled["strategy"] == "head" and facts.closed_form:
        return 1, "the final layer is fitted in closed form"
    steps = STEPS["cpu" if facts.on_cpu else "accelerator"]
    if not facts.pretrained:
        steps = STEPS_FROM_SCRATCH
    a_pass = max(1, math.ceil(facts.train_images / facts.batch_size))
    epochs = min(EPOCHS_AT_MOST, max(EPOCHS_AT_LEAST, math.ceil(steps / a_pass)))
    return epochs, f"about {epochs * a_pass} steps of {facts.batch_size} pictures"


def _patience(facts: Facts, settled: Mapping[str, Any]) -> tuple[int, str]:
    if not facts.pretrained:
        return 0, "from scratch the late epochs are the best"
    third = max(PATIENCE_AT_LEAST, math.ceil(settled["epochs"] / 3))
    return third, "epochs without a better one, a third of all, after which a phase stops"


def _rate(facts: Facts, settled: Mapping[str, Any]) -> tuple[float, str]:
    if parse_strategy(settled["strategy"])[0] == "all":
        return 1e-3, "usual for AdamW from an unfitted final layer"
    if parse_strategy(settled["strategy"])[0] == "partial":
        return 5e-4, "careful: the final layer is fitted already"
    return 3e-4, "careful: the final layer is fitted already"


def _backbone_factor(facts: Facts, settled: Mapping[str, Any]) -> tuple[float, str]:
    if not facts.pretrained:
        return 1.0, "backbone and final layer are equally new"
    if settled["strategy"] == "all":
        return 0.1, "the backbone is pretrained, the final layer is not"
    return 1.0, "backbone and final layer are equally far"


def _smoothing(facts: Facts, settled: Mapping[str, Any]) -> tuple[float, str]:
    if facts.train_images >= MANY_PICTURES:
        return 0.0, "many pictures"
    return 0.1, "little data; the confidence is put right afterwards"


def facts_about(
    classifier: Any,
    datamodule: Any,
    *,
    pretrained: bool,
    on_cpu: bool,
    closed_form: bool = True,
) -> Facts:
    """The facts about an ``ImageClassifier`` and an ``ImageFolderDataModule``."""
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
        on_cpu=on_cpu,
        batch_size=datamodule.batch_size,
        closed_form=closed_form,
    )
