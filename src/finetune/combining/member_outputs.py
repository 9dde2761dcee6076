"""Members side by side: what each of them answers to the same images, in one class order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.combining.folds import columns_of_folds, one_test_side
from finetune.combining.held_out import HeldOut, held_out_images, out_of_fold
from finetune.combining.members import (
    ClassifierMember,
    Member,
    Paths,
    Views,
    align_classes,
    common_task,
)
from finetune.combining.shared_backbone import group_by_backbone, grouped_logits
from finetune.long_steps import told
from finetune.runtime import device_of
from finetune.spec.images import Split
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.protocols import HeldOutData
from finetune.spec.splits import SplitRecord
from finetune.tables.reading import UNNAMED
from finetune.training.classifier import ImageClassifier

DataModules = HeldOutData | Mapping[int, HeldOutData]


class MemberOutputs(nn.Module):
    """Classifiers, tables and ensembles that see the same images, each as it was trained.

    Members whose backbones are equal share one computation of it. They run one after another, so
    beside their weights only one's activations take memory. (Stacking equal architectures with
    ``torch.func.vmap`` was measured: faster for ResNet-18, slower for MobileNet and ViT on a
    processor; so there is one plain loop.) They answer on the device where they are; what they
    answered is on the CPU.

    Args:
        members: at least one; all must know the same class names, in any order.
        class_names: their order in the answers; for None that of the first member that names them.
    """

    def __init__(
        self, members: Sequence[Member], *, class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        named = [member.class_names for member in members if member.class_names != UNNAMED]
        self.class_names = tuple(class_names or [*named, members[0].class_names][0])
        self._orders = [
            align_classes(member.class_names, self.class_names, source=member.name)
            for member in members
        ]
        self.task = common_task(members)
        self._groups = group_by_backbone(members)
        self.members = nn.ModuleList(members)  # type: ignore[arg-type]
        self._held_out: dict[str, HeldOut] = {}
        self.eval()

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct views of an image that the members need, in the members' order."""
        needed = (each for member in self.parts for each in member.preprocessings)
        return tuple(dict.fromkeys(needed))

    @property
    def parts(self) -> tuple[Member, ...]:
        """The members, typed."""
        return tuple(self.members)  # type: ignore[arg-type]

    @property
    def member_names(self) -> tuple[str, ...]:
        """Where each member came from."""
        return tuple(member.name for member in self.parts)

    @property
    def fitted_on(self) -> tuple[SplitRecord, ...]:
        """How each classifier among the members, at any depth, had its images split."""
        return tuple(record for member in self.parts for record in member.fitted_on)

    @property
    def judged_on(self) -> tuple[SplitRecord, ...]:
        """The same for whoever judges by :meth:`held_out`: what is answered out of fold is val."""
        return tuple(record for member in self.parts for record in member.judged_on)

    @property
    def out_of_fold(self) -> Set[str]:
        """The images that some of the classifiers, at any depth, answer out of fold."""
        return {image for member in self.parts for image in member.out_of_fold}

    @property
    def first_classifier(self) -> ImageClassifier | None:
        """The first classifier among the members, at any depth: its features know strangers."""
        for part in self.parts:
            if isinstance(part, ClassifierMember):
                return part.classifier
            if isinstance(part, MemberOutputs) and part.first_classifier is not None:
                return part.first_classifier
        return None

    def chosen_by(self, ids: Sequence[str], split: str) -> bool:
        """Whether a fit among the members chose its epoch, phase or confidence by these images."""
        return any(member.chosen_by(ids, split) for member in self.parts)

    @torch.inference_mode()
    def member_logits(self, views: Views, paths: Paths = None) -> Tensor:
        """Every member's logits for one batch, ``(M, N, C)``, on the CPU.

        Args:
            views: images ``(N, C_i, S_i, S_i)``, bytes or floats in ``[0, 1]``, for each of
                :attr:`preprocessings`, where the members are.
            paths: of the images; only members made of saved predictions need them.
        """
        return torch.stack([answer for answer, _ in self._timed(views, paths)])

    def answers_to(self, views: Views, paths: Paths, ids: Sequence[str] | None) -> Tensor:
        """What they answer together, ``(N, C)``; an ensemble says how."""
        raise NotImplementedError

    def member_probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Every member's answer to one batch, ``(M, N, C)``; see :meth:`member_logits`."""
        return self.task.probabilities(self.member_logits(views, paths))

    def held_out(self, datamodule: DataModules, split: Split = "val") -> HeldOut:
        """The members' answers to a split's images; computed once, then remembered.

        A final layer that was fitted to all labelled images gives its out-of-fold answers.

        Args:
            datamodule: whose images; or of a cross-validation one a fold, ``{fold: datamodule}``:
                then each val image is answered by the members that held it out, and there is a
                row of answers for each recipe instead of each member.
            split: ``val`` or ``test``.

        Raises:
            CheckpointMismatchError: a cross-validation, but members that are not of its folds.
        """
        if isinstance(datamodule, Mapping):
            if split == "val":
                return self._out_of_fold(datamodule)
            datamodule = one_test_side(datamodule, split)
        images = held_out_images(self.task, datamodule, split, self.class_names)
        if images.key not in self._held_out:
            self._held_out[images.key] = self._answered(images, datamodule, split)
        return self._held_out[images.key]

    def _answered(self, images: HeldOut, datamodule: HeldOutData, split: Split) -> HeldOut:
        loader = datamodule.evaluation_dataloader(split, preprocessings=self.preprocessings)
        answers, seconds, start = [], [0.0] * len(self.parts), 0
        device = device_of(self)
        with torch.inference_mode():
            for batches, labels in told(loader, "Asking the members", len(loader)):
                paths = images.paths[start : start + len(labels)]
                ids = images.ids[start : start + len(labels)]
                placed = [batch.to(device, non_blocking=device.type == "cuda") for batch in batches]
                views = dict(zip(self.preprocessings, placed, strict=True))
                timed = self._timed(views, paths, ids)
                answers.append(torch.stack([answer for answer, _ in timed]))
                seconds = [a + b for a, (_, b) in zip(seconds, timed, strict=True)]
                start += len(labels)
        # Clones: tensors of inference mode could not be used in autograd or be changed.
        found = images.with_answers(torch.cat(answers, dim=1).clone(), seconds)
        return replace(found, refitted=not self.out_of_fold.isdisjoint(images.ids))

    def _out_of_fold(self, datamodules: Mapping[int, HeldOutData]) -> HeldOut:
        """Each fold's val images, answered by the members that were trained on the others."""
        folds = dict(sorted(datamodules.items()))
        sides = [
            held_out_images(self.task, each, "val", self.class_names) for each in folds.values()
        ]
        key = " ".join(side.key for side in sides)
        if key not in self._held_out:
            columns = columns_of_folds(self.parts, list(folds))
            answered = []
            for side, (fold, datamodule) in zip(sides, folds.items(), strict=True):
                own = [self.parts[column[fold]] for column in columns]
                beside = MemberOutputs(own, class_names=self.class_names)
                answered.append(beside._answered(side, datamodule, "val"))
            members = [sorted({*column.values()}) for column in columns]
            self._held_out[key] = out_of_fold(answered, columns=members)
        return self._held_out[key]

    def _timed(
        self, views: Views, paths: Paths, ids: Sequence[str] | None = None
    ) -> list[tuple[Tensor, float]]:
        """Each member's logits in the common class order, on the CPU, and the seconds they took.

        With the images' ids, what has trained a member is answered out of fold where it can.
        """
        found: dict[int, tuple[Tensor, float]] = {}
        for group in self._groups:
            start = time.perf_counter()
            members = [self.parts[index] for index in group]
            if isinstance(members[0], ClassifierMember):
                answers = grouped_logits(members, views)  # type: ignore[arg-type]
            elif isinstance(members[0], MemberOutputs):
                answers = [members[0].answers_to(views, paths, ids)]
            else:
                answers = [members[0].logits(views, paths)]
            # Within the time: a device has not answered before its answer is here.
            answers = [answer if answer.is_cpu else answer.cpu() for answer in answers]
            seconds = (time.perf_counter() - start) / len(group)
            for index, answer in zip(group, answers, strict=True):
                member, order = self.parts[index], self._orders[index]
                if ids is not None and isinstance(member, ClassifierMember):
                    answer = member.honest(answer, ids)
                found[index] = (answer if order is None else answer[:, order], seconds)
        return [found[index] for index in range(len(self.parts))]
