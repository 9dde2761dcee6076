"""One batch of images through a network or several, whoever runs it and places it on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor

from finetune.combining.test_time_augmentation import View, mean_over_views
from finetune.errors import CheckpointMismatchError
from finetune.prediction.inputs import Collated
from finetune.prediction.predictions import Predictions
from finetune.prediction.probability_model import ProbabilityModel
from finetune.training.features.recorded import recorded_features


class Answering(LightningModule):
    """Lets Lightning place members and batches on devices, at the precision that is asked for."""

    def __init__(self, model: ProbabilityModel, views: Sequence[View]) -> None:
        super().__init__()
        self.model = model.eval()
        self.views = views

    def forward(self, views: Sequence[Tensor], paths: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Outputs ``(M, B, C)``, and strangeness ``(B,)`` where there is a rule, else empty.

        Args:
            views: a batch ``(B, C, S, S)`` of bytes for each preprocessing of the model.
            paths: of the images, for members that are saved predictions.
        """
        by_preprocessing = dict(zip(self.model.preprocessings, views, strict=True))
        rule = self.model.unknown
        with recorded_features(self.model.first_classifier if rule else None) as features:
            outputs = mean_over_views(
                self.model.task,
                lambda images: self.model.member_logits(images, paths),
                by_preprocessing,
                self.views,
            )
        if rule is None:
            return outputs, torch.empty(0)
        if not features:
            raise CheckpointMismatchError(
                "Expected a classifier with a final layer beside the rule for unknown images, "
                "found none; calibrate without --unknown."
            )
        return outputs, rule.strangeness(features[0])

    def predict_step(self, batch: Collated, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The same for a batch of a Trainer's loader."""
        indexes, views, _ = batch
        if not indexes:
            return torch.empty(0), torch.empty(0)
        paths = [str(self.trainer.predict_dataloaders.dataset.paths[i]) for i in indexes]  # type: ignore[union-attr]
        return self(views, paths)


def answered(
    model: ProbabilityModel, paths: Sequence[Path], outputs: Tensor, strangeness: Tensor
) -> Predictions:
    """What the members' outputs ``(M, N, C)`` say of N images."""
    answer = model.answer(outputs)
    return Predictions(
        task=model.task,
        paths=tuple(paths),
        probabilities=answer.probabilities,
        logits=answer.logits,
        class_names=tuple(model.class_names),
        member_probabilities=answer.member_probabilities,
        disagreement=answer.uncertainty.disagreement,
        rejected=answer.rejected,
        prediction_sets=answer.prediction_sets,
        thresholds=answer.thresholds,
        strangeness=None if model.unknown is None else strangeness,
    )
