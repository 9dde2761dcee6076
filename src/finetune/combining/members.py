"""Members of an ensemble: classifiers from checkpoints, and tables of saved predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError, CheckpointMismatchError
from finetune.preprocessing import Preprocessing
from finetune.training.checkpoints import Checkpoint, describe
from finetune.training.classifier import ImageClassifier

Views = Mapping[Preprocessing, Tensor]
Paths = Sequence[str] | None


class Member(Protocol):
    """Anything that answers with probabilities for its own class names."""

    name: str
    class_names: tuple[str, ...]

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The views of a picture that it needs."""

    @property
    def fitted_on(self) -> tuple[dict[str, Any], ...]:
        """How the pictures of each fit in it were split; empty where that is not known."""

    def probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Probabilities ``(N, C)`` for one batch, given as images in ``[0, 1]``, view by view."""

    def describe(self) -> dict[str, Any]:
        """Plain values from which, together with its tensors, it can be built again."""


class ClassifierMember(nn.Module):
    """One fine-tuned classifier, always in ``eval`` mode."""

    def __init__(self, classifier: ImageClassifier, name: str) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.name = name
        self.class_names = classifier.class_names

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, name: str) -> ClassifierMember:
        """Build the network of a checkpoint and load its weights strictly."""
        return cls(ImageClassifier.rebuilt(checkpoint), name)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The one that the classifier was trained with."""
        return (self.classifier.preprocessing,)

    @property
    def fitted_on(self) -> tuple[dict[str, Any], ...]:
        """The split of its own fit, and for an average those of its members that differ."""
        details = self.classifier.details
        own = [details["data"]] if details.get("data") else []
        return (*own, *details.get("further_data", ()))

    def probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Probabilities ``(N, C)`` float32, those of the classifier alone bit for bit."""
        images = views[self.classifier.preprocessing]
        return self.classifier(images).float().softmax(dim=-1)

    def describe(self) -> dict[str, Any]:
        """The ``finetune`` entry of its checkpoint, with what else builds the network."""
        classifier = self.classifier
        entry = describe(
            classifier.class_names,
            classifier.backbone,
            classifier.preprocessing,
            network=classifier.spec,
        )
        hyper_parameters = {
            key: value for key, value in classifier.hparams.items() if not key.startswith("_")
        }
        for key in ("data", "further_data"):  # so that a later test splits alike
            if key in classifier.details:
                entry[key] = classifier.details[key]
        return {**entry, "name": self.name, "hyper_parameters": hyper_parameters}


class TableMember(nn.Module):
    """Saved predictions: answers for the pictures in its table and for no others.

    Pictures are found by their full path, or by their name where that is unique.
    """

    table: Tensor

    def __init__(
        self, name: str, class_names: Sequence[str], paths: Sequence[str], table: Tensor
    ) -> None:
        super().__init__()
        self.name = name
        self.class_names = tuple(class_names)
        self.paths = tuple(paths)
        self.register_buffer("table", table)
        self._rows = {str(Path(path).absolute()): row for row, path in enumerate(self.paths)}

    @classmethod
    def from_csv(cls, path: str | Path) -> TableMember:
        """Read what ``finetune predict`` wrote: a row a picture, a column ``p:<class>`` a class.

        Raises:
            CheckpointError: no ``path`` column, no class columns, or rows that are no
                probabilities.
        """
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = _class_columns(list(reader.fieldnames or []))
        if not rows or "path" not in rows[0] or len(columns) < 2:
            raise CheckpointError(
                f"Expected a row a picture with a path and a column p:CLASS a class in {path}, "
                f"found {list(rows[0])[:6] if rows else 'no rows'}; "
                "write it with `finetune predict`."
            )
        try:
            table = torch.tensor([[float(row[column]) for column in columns] for row in rows])
        except ValueError as error:
            raise CheckpointError(
                f"Expected numbers in the class columns of {path}, found text ({error}); "
                "write it with `finetune predict`."
            ) from error
        if bool((table < 0).any()) or not torch.allclose(
            table.sum(-1), torch.ones(len(table)), atol=1e-2
        ):
            raise CheckpointError(
                f"Expected rows of probabilities that sum to 1 in {path}, found others; "
                "write it with `finetune predict`."
            )
        return cls(str(path), list(columns.values()), [row["path"] for row in rows], table)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """None: it looks at no picture."""
        return ()

    @property
    def fitted_on(self) -> tuple[dict[str, Any], ...]:
        """Empty: a table does not say."""
        return ()

    def probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """The rows ``(N, C)`` of these pictures.

        Raises:
            CheckpointMismatchError: pictures without paths, or that are not in the table.
        """
        if paths is None:
            raise CheckpointMismatchError(
                f"Expected the paths of the pictures, since {self.name} is a table of predictions, "
                "found none; predict files, or leave that member out."
            )
        absolute = [str(Path(path).absolute()) for path in paths]
        missing = [path for path in absolute if path not in self._rows]
        if missing:
            raise CheckpointMismatchError(
                f"Expected only pictures that are in {self.name}, found {missing[0]}; "
                "give a checkpoint instead of saved predictions."
            )
        return self.table[[self._rows[path] for path in absolute]]

    def describe(self) -> dict[str, Any]:
        """Names and paths; the table itself is a tensor of the state dict."""
        return {
            "kind": "predictions",
            "name": self.name,
            "class_names": list(self.class_names),
            "paths": list(self.paths),
        }


def _class_columns(columns: Sequence[str]) -> dict[str, str]:
    """Column to class name."""
    return {name: name.removeprefix("p:") for name in columns if name.startswith("p:")}


def align_classes(own: Sequence[str], wanted: Sequence[str], *, source: str) -> list[int] | None:
    """Where each wanted class stands in a member's own order; None if the orders are equal.

    Raises:
        CheckpointMismatchError: a class is missing or one too many; they are named.
    """
    if tuple(own) == tuple(wanted):
        return None
    missing = [name for name in wanted if name not in own]
    extra = [name for name in own if name not in wanted]
    if missing or extra:
        raise CheckpointMismatchError(
            f"Expected the classes {list(wanted)[:8]} in {source}, found "
            f"missing {missing[:8]} and extra {extra[:8]}; combine members with the same classes."
        )
    position = {name: index for index, name in enumerate(own)}
    return [position[name] for name in wanted]
