"""Members of an ensemble: classifiers from checkpoints, and tables of saved predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.errors import CheckpointMismatchError
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.splits import SplitRecord
from finetune.tables.reading import UNNAMED, read_table
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task
from finetune.training.checkpoints import Checkpoint, describe
from finetune.training.classifier import ImageClassifier
from finetune.training.fitted_splits import SPLIT_ENTRIES, out_of_fold_answers, split_records
from finetune.training.phases.probe import linear_head
from finetune.training.thresholds import Thresholds, thresholds_of

Views = Mapping[Preprocessing, Tensor]
Paths = Sequence[str] | None


class Member(Protocol):
    """Anything that answers with logits for its own class names."""

    name: str
    class_names: tuple[str, ...]

    @property
    def task(self) -> Task:
        """What it predicts."""

    @property
    def thresholds(self) -> Thresholds | None:
        """Of several labels an image, from which probability on each is named; None: not known."""

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The views of an image that it needs."""

    @property
    def fitted_on(self) -> tuple[SplitRecord, ...]:
        """How the images of each fit in it were split; empty where that is not known."""

    @property
    def judged_on(self) -> tuple[SplitRecord, ...]:
        """The same where images that it has out-of-fold answers to are val."""

    @property
    def out_of_fold(self) -> Set[str] | Mapping[str, Tensor]:
        """Ids of images that have trained it, and that it answers as fits without them do."""

    def chosen_by(self, ids: Sequence[str], split: str) -> bool:
        """Whether its fit chose its epoch, phase or confidence by some of these images."""

    def logits(self, views: Views, paths: Paths = None) -> Tensor:
        """Outputs ``(N, K)`` float32 for one batch, given as images, view by view.

        Of a classifier they are logits; log probabilities are logits too.
        """

    def describe(self) -> dict[str, Any]:
        """Plain values from which, together with its tensors, it can be built again."""


class ClassifierMember(nn.Module):
    """One fine-tuned classifier, always in ``eval`` mode."""

    def __init__(self, classifier: ImageClassifier, name: str) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        self.name = name
        self.class_names = classifier.class_names
        self.task = classifier.task

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, name: str) -> ClassifierMember:
        """Build the network of a checkpoint and load its weights strictly."""
        return cls(ImageClassifier.rebuilt(checkpoint).requires_grad_(False), name)

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """Those of its checkpoint."""
        return thresholds_of(self.classifier.task, self.classifier.details)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The one that the classifier was trained with."""
        return (self.classifier.preprocessing,)

    @cached_property
    def fitted_on(self) -> tuple[SplitRecord, ...]:
        """The split of its own fit, and for an average those of its members that differ."""
        return split_records(self.classifier.details)

    @cached_property
    def out_of_fold(self) -> Mapping[str, Tensor]:
        """Logits ``(C,)`` by the ids of images that have trained it, of fits without them."""
        return out_of_fold_answers(self.classifier.details)

    @cached_property
    def judged_on(self) -> tuple[SplitRecord, ...]:
        """As :attr:`fitted_on`, but images that it has out-of-fold answers to are val."""
        return tuple(record.with_val(self.out_of_fold) for record in self.fitted_on)

    def chosen_by(self, ids: Sequence[str], split: str) -> bool:
        """Whether the val images of its fit are among these; a closed form needs none of them."""
        closed_form = linear_head(self.classifier.network) is not None
        if self.classifier.hparams["strategy"] == "head" and closed_form:
            return False
        for record in self.judged_on:
            sides = {at.side for each in ids if (at := record.standing(each, "")) is not None}
            if "val" in sides or (not record.images and split == "val"):
                return True
        return False

    def honest(self, logits: Tensor, ids: Sequence[str]) -> Tensor:
        """Its logits ``(N, C)`` of these images, with out-of-fold ones for what has trained it."""
        answers = [self.out_of_fold.get(image) for image in ids]
        if not any(answer is not None for answer in answers):
            return logits
        pairs = zip(answers, logits, strict=True)
        return torch.stack([own if kept is None else kept.to(own) for kept, own in pairs])

    def logits(self, views: Views, paths: Paths = None) -> Tensor:
        """Logits ``(N, C)`` float32, those of the classifier alone bit for bit."""
        logits: Tensor = self.classifier(views[self.classifier.preprocessing]).float()
        return logits

    def describe(self) -> dict[str, Any]:
        """The ``finetune`` entry of its checkpoint, with what else builds the network."""
        classifier = self.classifier
        entry = describe(
            classifier.class_names,
            classifier.backbone,
            classifier.preprocessing,
            network=classifier.spec,
            task=classifier.task,
        )
        hyper_parameters = {
            key: value for key, value in classifier.hparams.items() if not key.startswith("_")
        }
        for key in (*SPLIT_ENTRIES, "licence"):  # so that a later test splits alike
            if key in classifier.details:
                entry[key] = classifier.details[key]
        if self.out_of_fold:
            logits = [answer.tolist() for answer in self.out_of_fold.values()]
            entry["out_of_fold"] = {"ids": list(self.out_of_fold), "logits": logits}
        if self.thresholds is not None:
            entry["thresholds"] = list(self.thresholds)
        return {**entry, "name": self.name, "hyper_parameters": hyper_parameters}


class TableMember(nn.Module):
    """Saved predictions: answers for the images in its table and for no others.

    Images are found by their full path, or, where they have moved, by a file name that is unique.

    Args:
        name: the file's.
        class_names: of the K columns.
        paths: of the N images.
        logits: ``(N, K)``, outputs of the task.
        task: what is answered.
        thresholds: of several labels an image, from which probability on each is named.
    """

    log_probabilities: Tensor
    preprocessings: tuple[Preprocessing, ...] = ()  # it looks at no image
    # A table does not say.
    fitted_on: tuple[SplitRecord, ...] = ()
    judged_on: tuple[SplitRecord, ...] = ()
    out_of_fold: Set[str] = frozenset()

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        paths: Sequence[str],
        logits: Tensor,
        *,
        task: Task = MULTICLASS,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.task = name, task
        self.thresholds = None if thresholds is None else tuple(thresholds)
        self.class_names = tuple(class_names)
        self.paths = tuple(paths)
        self.register_buffer("log_probabilities", logits.float())
        self._rows = {str(Path(path).absolute()): row for row, path in enumerate(self.paths)}
        self._by_name: dict[str, list[int]] = {}
        for row, path in enumerate(self.paths):
            self._by_name.setdefault(Path(path).name, []).append(row)
        self._taken: dict[int, str] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> TableMember:
        """Read what ``finetune predict`` wrote: a row an image, a column ``p:<class>`` a class.

        Relative paths in it start at the table's folder, or at the working folder.

        Raises:
            DataError: a table that is not as it should be; see :func:`read_table`.
        """
        table = read_table(path)
        logits = torch.from_numpy(table.logits)
        return cls(
            str(path),
            table.class_names,
            table.resolved_paths(),
            logits,
            task=table.task,
            thresholds=table.thresholds,
        )

    def chosen_by(self, ids: Sequence[str], split: str) -> bool:
        """False: a table does not say."""
        return False

    def logits(self, views: Views, paths: Paths = None) -> Tensor:
        """The rows ``(N, K)`` of these images.

        Raises:
            CheckpointMismatchError: images without paths, or that are not in the table.
        """
        if paths is None:
            raise CheckpointMismatchError(
                f"Expected the paths of the images, since {self.name} is a table of predictions, "
                "found none; predict files, or leave that member out."
            )
        return self.log_probabilities[[self._row(str(Path(path).absolute())) for path in paths]]

    def _row(self, path: str) -> int:
        row = self._rows.get(path)
        if row is not None:
            return row
        # Elsewhere than the table says: the image has moved, unless that one is still there.
        alike = [row for row in self._by_name.get(Path(path).name, []) if not self._lies(row)]
        if len(alike) != 1 or self._taken.setdefault(alike[0], path) != path:
            raise CheckpointMismatchError(
                f"Expected only images that are in {self.name} by their path, or, where they have "
                f"moved, by a file name that is unique, found {path}; give a checkpoint instead of "
                "saved predictions."
            )
        return alike[0]

    def _lies(self, row: int) -> bool:
        """Whether there is an image where the table has seen one."""
        return Path(self.paths[row]).exists()

    def describe(self) -> dict[str, Any]:
        """Names and paths; the table itself is a tensor of the state dict."""
        thresholds = {} if self.thresholds is None else {"thresholds": list(self.thresholds)}
        return {
            "kind": "predictions",
            "task": self.task.name,
            **thresholds,
            "name": self.name,
            "class_names": list(self.class_names),
            "paths": list(self.paths),
        }


def align_classes(own: Sequence[str], wanted: Sequence[str], *, source: str) -> list[int] | None:
    """Where each wanted class stands in a member's own order; None if the orders are equal.

    A table of numbers does not name its column: it stands for any.

    Raises:
        CheckpointMismatchError: a class is missing or one too many; they are named.
    """
    if tuple(own) == tuple(wanted) or (tuple(own) == UNNAMED and len(wanted) == 1):
        return None
    missing = [name for name in wanted if name not in own]
    extra = [name for name in own if name not in wanted]
    if missing or extra:
        raise CheckpointMismatchError(
            f"Expected the classes {list(wanted)[:8]} in {source}, found "
            f"missing {missing[:8]} and extra {extra[:8]}; take checkpoints of the same classes."
        )
    position = {name: index for index, name in enumerate(own)}
    return [position[name] for name in wanted]


def common_task(members: Sequence[Member]) -> Task:
    """What all of the members predict.

    Raises:
        CheckpointMismatchError: they predict different kinds of things; the first one is named.
    """
    task = members[0].task
    for member in members[1:]:
        if member.task != task:
            raise CheckpointMismatchError(
                f"Expected the task {task.name} in {member.name}, found {member.task.name}; "
                "combine members of one task."
            )
    return task
