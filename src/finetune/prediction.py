"""Pictures in, named classes with probabilities out: for a classifier or an ensemble alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from finetune.answer_files import open_answer_file
from finetune.combining.augmented import View, chosen_views, mean_over_views
from finetune.combining.decisions import Answer, Calibration, decide
from finetune.data.datamodule import choose_num_workers
from finetune.data.folder import readable_suffixes
from finetune.data.images import MAX_PIXELS, ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.errors import DataError, ImageError
from finetune.preprocessing import Preprocessing
from finetune.training.classifier import ImageClassifier

OnBadImage = Literal["error", "skip"]
Picture = str | os.PathLike[str]
Views = Mapping[Preprocessing, Tensor]


class Answerer(Protocol):
    """What answers with probabilities: an ensemble, or a classifier as an ensemble of one."""

    class_names: tuple[str, ...]

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The different views of a picture that the members need, each once."""

    def member_probabilities(self, views: Views, paths: Sequence[str] | None = None) -> Tensor:
        """``(M, B, C)`` from one batch ``(B, C, S, S)`` in ``[0, 1]`` for each view."""

    def answer(self, member_probabilities: Tensor) -> Answer:
        """``(M, B, C)`` into probabilities ``(B, C)``, and how sure they are."""


@dataclass(frozen=True)
class Predictions:
    """The answers for some pictures.

    Attributes:
        paths: one a picture, as given.
        probabilities: ``(N, C)``; rows sum to 1.
        class_names: of the columns.
        member_probabilities: ``(M, N, C)``; a single classifier is one member.
        disagreement: share of the pairs of members that name different classes, ``(N,)``.
        rejected: ``(N,)`` bool, which answers to leave to a human; None without a reject rule.
        prediction_sets: ``(N, C)`` bool, the classes that may be true; None without conformal
            calibration.
        skipped: pictures that could not be read, with the reason; only with
            ``on_bad_image="skip"``.
    """

    paths: tuple[Path, ...]
    probabilities: Tensor
    class_names: tuple[str, ...]
    member_probabilities: Tensor
    disagreement: Tensor | None = None
    rejected: Tensor | None = None
    prediction_sets: Tensor | None = None
    skipped: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.class_names[index] for index in self.probabilities.argmax(dim=-1).tolist()]

    @property
    def confidences(self) -> Tensor:
        """Probability of the most probable class, ``(N,)``."""
        return self.probabilities.amax(dim=-1)

    def rows(self, *, top_k: int = 1) -> Iterator[dict[str, Any]]:
        """One dictionary a picture: :func:`answer_row`, and what ensembles and calibration add.

        ``disagreement`` where there are several members, ``rejected`` (true or false) and
        ``prediction_set`` (names joined by ``|``) where there are such rules.
        """
        for index, path in enumerate(self.paths):
            row = answer_row(path, self.probabilities[index], self.class_names, top_k=top_k)
            if self.disagreement is not None and len(self.member_probabilities) > 1:
                row["disagreement"] = float(self.disagreement[index])
            if self.rejected is not None:
                row["rejected"] = str(bool(self.rejected[index])).lower()
            if self.prediction_sets is not None:
                members = self.prediction_sets[index].nonzero().flatten().tolist()
                row["prediction_set"] = "|".join(self.class_names[label] for label in members)
            yield row

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as CSV; the file appears when it is complete."""
        self._write(Path(path).with_suffix(".csv"))

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows as Parquet; the file appears when it is complete."""
        self._write(Path(path).with_suffix(".parquet"))

    def _write(self, path: Path) -> None:
        with open_answer_file(path) as write:
            for row in self.rows():
                write(row)


def answer_row(
    path: Path, probabilities: Tensor, class_names: Sequence[str], *, top_k: int = 1
) -> dict[str, Any]:
    """``path, label`` (empty), ``prediction, confidence``, further ranks, then ``p:<class>``.

    Args:
        path: of the picture.
        probabilities: ``(C,)``.
        class_names: of the ``C`` classes.
        top_k: how many of the most probable classes to name; at most ``C``.
    """
    row: dict[str, Any] = {"path": str(path), "label": ""}
    ranked = probabilities.topk(min(top_k, len(class_names)))
    for rank, (value, index) in enumerate(
        zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True), start=1
    ):
        suffix = "" if rank == 1 else f"_{rank}"
        row[f"prediction{suffix}"] = class_names[index]
        row[f"confidence{suffix}"] = value
    values = zip(class_names, probabilities.tolist(), strict=True)
    return row | {f"p:{name}": value for name, value in values}


def find_pictures(pictures: Picture | Iterable[Picture]) -> list[Path]:
    """Files from pictures, folders (all pictures below) and glob patterns, in the order given.

    Raises:
        DataError: something does not exist, or there is no picture in the whole.
    """
    given = [pictures] if isinstance(pictures, str | os.PathLike) else list(pictures)
    found = [file for item in given for file in _expand(os.fspath(item))]
    if not found:
        raise DataError(
            f"Expected pictures, found none in {', '.join(map(str, given)) or 'an empty list'}."
        )
    return list(dict.fromkeys(found))


def _expand(item: str) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        return list(_pictures_below(path))
    if path.is_file():
        return [path]
    if has_magic(item):
        return [file for match in sorted(glob(item, recursive=True)) for file in _expand(match)]
    raise DataError(f"Expected a picture or a folder, found nothing at {item}; check the path.")


def _pictures_below(folder: Path) -> Iterator[Path]:
    suffixes = readable_suffixes()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__MACOSX"
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(parent, name)


def predict(
    classifier: ImageClassifier | Answerer,
    pictures: Picture | Iterable[Picture],
    *,
    batch_size: int = 32,
    test_time_augmentation: int | Sequence[str] = 1,
    num_workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    max_pixels: int = MAX_PIXELS,
    trainer: Trainer | None = None,
    on_answer: Callable[[Path, Predictions], None] | None = None,
) -> Predictions:
    """Answer for pictures, folders or glob patterns.

    Each picture is decoded once and transformed once for each preprocessing that a member needs.

    Args:
        classifier: a fine-tuned classifier, or an ensemble.
        pictures: one or several of files, folders (all pictures below) and glob patterns.
        batch_size: pictures a batch; the answers do not depend on it beyond rounding.
        test_time_augmentation: views of each picture whose probabilities are averaged: how many,
            or their names (:data:`finetune.combining.augmented.VIEWS`).
        num_workers: processes that decode; by default chosen from cores and data size.
        on_bad_image: "error" refuses a picture that cannot be read, "skip" leaves it out and lists
            it in ``skipped``.
        max_pixels: most pixels of a picture; more is refused as a decompression bomb.
        trainer: a Lightning trainer with devices and precision of your own.
        on_answer: called with its path and its answer alone as each picture is answered.

    Raises:
        DataError: no pictures. ImageError: one that cannot be read, with ``on_bad_image="error"``.
    """
    answerer = (
        SingleClassifier(classifier) if isinstance(classifier, ImageClassifier) else classifier
    )
    views = chosen_views(test_time_augmentation)
    paths = find_pictures(pictures)
    workers = choose_num_workers(paths) if num_workers is None else num_workers
    loader = DataLoader(
        PictureViews(paths, answerer.preprocessings, max_pixels),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
    )
    collected = _Collector(paths, answerer, on_answer, on_bad_image)
    trainer = trainer or _quiet_trainer()
    trainer.callbacks.append(collected)  # type: ignore[attr-defined]
    try:
        trainer.predict(_Answering(answerer, views), loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(collected)  # type: ignore[attr-defined]
    return collected.predictions()


class SingleClassifier(torch.nn.Module):
    """A classifier as an ensemble of one."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.class_names = classifier.class_names

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The classifier's own."""
        return (self.classifier.preprocessing,)

    def member_probabilities(self, views: Views, paths: Sequence[str] | None = None) -> Tensor:
        """``(1, B, C)``."""
        logits: Tensor = self.classifier(views[self.classifier.preprocessing])
        return logits.float().softmax(dim=-1).unsqueeze(0)

    def answer(self, member_probabilities: Tensor) -> Answer:
        """The one member's answer, calibrated if its checkpoint is."""
        kept = self.classifier.details.get("calibration")
        calibration = Calibration.from_dict(kept) if kept else None
        return decide(member_probabilities[0], member_probabilities, calibration)


class PictureViews(Dataset[tuple[int, list[Tensor] | str]]):
    """Index of a picture, and its view for each preprocessing, or why it could not be read."""

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessings: Sequence[Preprocessing],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.paths = paths
        self.views = [
            (
                preprocessing,
                evaluation_transform(preprocessing),
            )
            for preprocessing in preprocessings
        ]
        # Decoded once a channel count, at the largest size that any member asks for.
        self.readers = {
            chans: ImageReader(
                in_chans=chans,
                short_side=max(p.resize_size for p in preprocessings if p.in_chans == chans),
                max_pixels=max_pixels,
            )
            for chans in {p.in_chans for p in preprocessings}
        }

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, list[Tensor] | str]:
        """The picture's index with its views ``(C, S, S)``, or with the reader's message."""
        try:
            decoded = {chans: read(self.paths[index]) for chans, read in self.readers.items()}
        except ImageError as error:
            # Not raised here: from another process it would arrive with that one's traceback.
            return index, str(error)
        return index, [transform(decoded[p.in_chans]) for p, transform in self.views]


Collated = tuple[list[int], list[Tensor], list[tuple[int, str]]]


def _collate(items: Sequence[tuple[int, list[Tensor] | str]]) -> Collated:
    good = [(index, views) for index, views in items if not isinstance(views, str)]
    bad = [(index, reason) for index, reason in items if isinstance(reason, str)]
    return [index for index, _ in good], default_collate([v for _, v in good]) if good else [], bad


class _Answering(LightningModule):
    """Lets Lightning's trainer place members and batches on devices."""

    def __init__(self, answerer: Any, views: Sequence[View]) -> None:
        super().__init__()
        self.answerer = answerer.eval()
        self.views = views

    def predict_step(self, batch: Collated, batch_idx: int) -> Tensor:
        indexes, views, _ = batch
        if not indexes:
            return torch.empty(0)  # Lightning warns of None
        paths = [str(self.trainer.predict_dataloaders.dataset.paths[i]) for i in indexes]  # type: ignore[union-attr]
        by_preprocessing = dict(zip(self.answerer.preprocessings, views, strict=True))
        return mean_over_views(
            lambda images: self.answerer.member_probabilities(images, paths),
            by_preprocessing,
            self.views,
        )


class _Collector(Callback):
    """Keeps the members' answers by the picture's index, whichever process gave them."""

    def __init__(
        self,
        paths: Sequence[Path],
        answerer: Answerer,
        on_answer: Callable[[Path, Predictions], None] | None,
        on_bad_image: OnBadImage,
    ) -> None:
        self.paths = paths
        self.answerer = answerer
        self.on_answer = on_answer
        self.on_bad_image = on_bad_image
        self.answers: dict[int, Tensor] = {}
        self.bad: dict[int, str] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Collated,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        indexes, _, bad = batch
        if bad and self.on_bad_image == "error":
            raise ImageError(bad[0][1])
        self.bad.update(bad)
        if not indexes:
            return
        members = outputs.cpu()
        for position, index in enumerate(indexes):
            self.answers[index] = members[:, position]
            if self.on_answer is not None:
                alone = self._answered([index], members[:, position : position + 1])
                self.on_answer(self.paths[index], alone)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, (self.answers, self.bad))
        for answers, bad in gathered:
            self.answers.update(answers)
            self.bad.update(bad)

    def predictions(self) -> Predictions:
        order = sorted(self.answers)
        if not order:
            raise ImageError(
                f"Expected at least one readable picture, found none of {len(self.paths)}: "
                f"{next(iter(self.bad.values()))}"
            )
        members = torch.stack([self.answers[index] for index in order], dim=1)
        skipped = tuple((self.paths[index], self.bad[index]) for index in sorted(self.bad))
        return replace(self._answered(order, members), skipped=skipped)

    def _answered(self, indexes: Sequence[int], members: Tensor) -> Predictions:
        answer = self.answerer.answer(members)
        return Predictions(
            paths=tuple(self.paths[index] for index in indexes),
            probabilities=answer.probabilities,
            class_names=tuple(self.answerer.class_names),
            member_probabilities=members,
            disagreement=answer.uncertainty.disagreement,
            rejected=answer.rejected,
            prediction_sets=answer.prediction_sets,
        )


def _quiet_trainer() -> Trainer:
    return Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
