"""Ensemble: members of any architecture behind one call, calibrated, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from finetune.combining import ensemble_file
from finetune.combining.averaging import normalised_coefficients
from finetune.combining.calibrated_answer import Answer, Calibration, decide, fit_calibration
from finetune.combining.held_out import HeldOut
from finetune.combining.holdout_roles import Roles, in_whole_ids, of_role, refuse_reuse, with_role
from finetune.combining.member_outputs import DataModules, MemberOutputs
from finetune.combining.members import ClassifierMember, Member, Paths, Views
from finetune.combining.pooling import pool
from finetune.combining.selection import choose_coefficients
from finetune.combining.unknown import UnknownRule
from finetune.combining.unknown_images import rule_for
from finetune.networks.splitting import evaluating
from finetune.spec.choices import Metric, Pooling, Scaling, Selecting, Share
from finetune.spec.choices import SetScore as Score
from finetune.spec.images import Split
from finetune.training.classifier import ImageClassifier
from finetune.training.features.store import FeatureStore
from finetune.training.thresholds import Thresholds, in_order, mean_thresholds


class Ensemble(MemberOutputs):
    """Fine-tuned classifiers that answer together.

    Members may differ in backbone, image size, channels and source; each gets images
    preprocessed as it was trained, see :class:`finetune.combining.member_outputs.MemberOutputs`.

    Args:
        members: at least one; all must know the same class names, in any order.
        coefficients: one a member, at least 0; equal ones for None.
        pooling: ``mean`` of probabilities; ``geometric`` mean, which is the mean of logits; or
            ``vote``, where ties go to the larger mean probability.
        class_names: their order in the answers; the first member's for None.
        calibration: what :meth:`calibrate` fitted.
        roles: which images picked and calibrated.
        unknown: which images to call unknown, by the features of the first classifier.

    Examples:
        >>> pair = finetune.Ensemble.from_checkpoints(["runs/pets-1", "runs/pets-2"])
        >>> finetune.predict(pair, "new").member_probabilities.shape  # members, images, classes
        torch.Size([2, 3, 2])
        >>> pair.save("pair.ckpt")
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        coefficients: Sequence[float] | None = None,
        pooling: Pooling = "mean",
        class_names: Sequence[str] | None = None,
        calibration: Calibration | None = None,
        roles: Roles | None = None,
        unknown: UnknownRule | None = None,
    ) -> None:
        super().__init__(members, class_names=class_names)
        self.coefficients = tuple(normalised_coefficients(coefficients, len(members)))
        self.pooling: Pooling = pooling
        self.calibration = calibration
        self.roles: Roles = dict(roles or {})
        self.unknown = unknown
        self.name = "ensemble"

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        *,
        coefficients: Sequence[float] | None = None,
        pooling: Pooling = "mean",
    ) -> Self:
        """Combine files: checkpoints of fits and averages, other ensembles, predictions CSVs.

        Args:
            paths: files, or run folders, whose best checkpoint is taken.
            coefficients, pooling: as for the class.

        Raises:
            CheckpointError: a file that is none of these.
            CheckpointMismatchError: members with different classes.
        """
        members = [ensemble_file.load_member(path, cls) for path in paths]
        return cls(members, coefficients=coefficients, pooling=pooling)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; a classifier's checkpoint becomes an ensemble of one.

        Raises:
            CheckpointError: any other file.
        """
        return ensemble_file.load_ensemble(path, cls)

    @classmethod
    def of(cls, model: ImageClassifier | Ensemble) -> Ensemble:
        """An ensemble as it is; a classifier, with the rules of its checkpoint, as one of one.

        The classifier keeps its modes: whoever has it answer puts it into ``eval``.
        """
        if isinstance(model, Ensemble):
            return model
        with evaluating(model):
            return ensemble_file.ensemble_of_one(ClassifierMember(model, "classifier"), cls)

    def save(self, path: str | Path) -> None:
        """Write one self-contained file that loads without running code; shared tensors once."""
        ensemble_file.save_ensemble(self, path)

    def train(self, mode: bool = True) -> Self:
        """Stay in ``eval``: an ensemble is not trained."""
        return super().train(False)

    def pool(self, member_logits: Tensor) -> Tensor:
        """Logits ``(M, N, C)`` into logits ``(N, C)``, before calibration."""
        return pool(self.task, member_logits, self.coefficients, method=self.pooling)

    def pool_held_out(self, held_out: HeldOut, rows: Sequence[int] | None = None) -> Tensor:
        """The pooled logits ``(N, C)`` of held-out images, or to some, before calibration.

        Of a cross-validation each image is answered by one member a recipe, the one that was not
        trained on it: the whole ensemble, with all folds of a recipe, is usually a little better.
        """
        members = held_out.member_logits
        members = members if rows is None else members[:, list(rows)]
        return pool(self.task, members, held_out.of_rows(self.coefficients), method=self.pooling)

    def calibrated(self, pooled: Tensor) -> Tensor:
        """Pooled logits ``(N, C)`` over the temperature, where there is one."""
        return pooled if self.calibration is None else self.calibration.logits(pooled)

    def combine(self, member_logits: Tensor) -> Tensor:
        """Logits ``(M, N, C)`` into logits ``(N, C)``, pooled and calibrated."""
        return self.calibrated(self.pool(member_logits))

    def answer(self, member_logits: Tensor) -> Answer:
        """Pool logits ``(M, N, C)``, calibrate, and say how sure."""
        pooled = self.pool(member_logits)
        return decide(
            self.task,
            pooled,
            member_logits,
            self.calibration,
            self.coefficients,
            thresholds=self.thresholds,
        )

    @property
    def thresholds(self) -> Thresholds | None:
        """The calibration's, or those of the members together, in the order of the class names."""
        if self.calibration is not None:
            return self.calibration.thresholds
        names = self.class_names
        each = [in_order(part.thresholds, part.class_names, names) for part in self.parts]
        return mean_thresholds(each, self.coefficients)

    def forward(self, *views: Tensor) -> Tensor:
        """Log probabilities ``(N, C)``, which any loss or metric takes for logits.

        Args:
            views: images ``(N, C_i, S_i, S_i)``, one for each of :attr:`preprocessings`.
        """
        by_preprocessing = dict(zip(self.preprocessings, views, strict=True))
        return self.task.log_probabilities(self.logits(by_preprocessing))

    def logits(self, views: Views, paths: Paths = None) -> Tensor:
        """Calibrated logits ``(N, C)``: an ensemble is a member of another one this way."""
        return self._combined(views, paths).float()

    def answers_to(self, views: Views, paths: Paths, ids: Sequence[str] | None) -> Tensor:
        """The same, out of fold where images of these ids have trained a member."""
        return self._combined(views, paths, ids).float()

    def probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Calibrated probabilities ``(N, C)``."""
        return self.task.probabilities(self._combined(views, paths))

    def _combined(self, views: Views, paths: Paths, ids: Sequence[str] | None = None) -> Tensor:
        # Not by member_logits: inference mode would keep gradients and exports out.
        answers = [answer for answer, _ in self._timed(views, paths, ids)]
        return self.combine(torch.stack(answers))

    def describe(self) -> dict[str, Any]:
        """Plain values from which, together with its tensors, it can be built again."""
        return {
            "kind": "ensemble",
            "name": self.name,
            "task": self.task.name,
            "class_names": list(self.class_names),
            "members": [member.describe() for member in self.parts],
            "coefficients": list(self.coefficients),
            "pooling": self.pooling,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "roles": {role: list(ids) for role, ids in self.roles.items()},
        }

    def select(
        self,
        datamodule: DataModules,
        *,
        method: Selecting = "greedy",
        metric: Metric = "nll",
        max_members: int | None = None,
        min_gain: float = 0.0,
        share: Share = "half",
        split: Split = "val",
        seed: int = 0,
    ) -> Self:
        """A new ensemble of the members that help, with their coefficients.

        Args:
            datamodule: whose held-out images pick; of a cross-validation one a fold,
                ``{fold: datamodule}``: then recipes are picked, by their out-of-fold answers, and
                the folds of one share its coefficient.
            method: ``greedy`` with replacement; ``learned`` coefficients on the simplex; ``all``
                keeps every member at its present coefficient.
            metric: what ``greedy`` lowers, by the answers as this ensemble pools them; of a
                ``vote`` it must be the accuracy.
            max_members: most members of ``greedy``; the folds of a recipe count as one.
            min_gain: least gain for which ``greedy`` keeps a member of average time.
            share: the picking ``half`` of the split, or ``all`` of it: then it cannot calibrate.
            split: ``val``, unless there is reason for another.
            seed: of the guards against overfitting.
        """
        if method == "all":
            return self
        held_out = self.held_out(datamodule, split)
        rows = of_role(held_out.ids, self.task.strata(held_out.labels), "pick", share)
        ids = [held_out.ids[row] for row in rows]
        roles = in_whole_ids(self.roles, held_out.paths, held_out.ids)
        refuse_reuse(roles, ids, "pick")
        coefficients = choose_coefficients(
            *self.task.rows(held_out.member_logits[:, rows], held_out.labels[rows]),
            method=method,
            metric=self.task.measure(metric),
            pooling=self.pooling,
            max_members=max_members,
            costs=[max(value, 1e-9) for value in held_out.seconds],
            min_gain=min_gain,
            seed=seed,
        )
        roles = with_role(roles, "pick", ids)
        return self._with_coefficients(held_out.of_members(coefficients), roles)

    def calibrate(
        self,
        datamodule: DataModules,
        *,
        reject_risk: float | None = None,
        conformal: float | None = None,
        unknown: float | None = None,
        score: Score = "thr",
        scaling: Scaling = "common",
        wanted_precision: float | None = None,
        share: Share = "half",
        split: Split = "val",
        allow_reuse: bool = False,
        store: FeatureStore | None = None,
    ) -> Self:
        """A new ensemble with one temperature for its pooled answer, and rules on request.

        Args:
            datamodule: whose held-out images calibrate, or one a fold as for :meth:`select`.
            reject_risk: wanted share of wrong answers among the accepted.
            conformal: accepted share of prediction sets without the true class; of several labels
                an image, of true labels that a set lacks.
            unknown: accepted share of known images that are called unknown; see
                :mod:`finetune.combining.unknown`.
            score: how sets are built: ``thr``, ``aps`` or ``raps``.
            scaling: of several labels an image, one temperature for all, or for each ``label`` a
                factor and a shift.
            wanted_precision: of several labels an image, that thresholds are chosen for.
            share: the calibrating ``half`` of the split, or ``all`` of it.
            split: ``val``, unless there is reason for another.
            allow_reuse: accept images that have picked members, with a warning.
            store: where features are looked up and kept that ``unknown`` needs.

        Raises:
            CalibrationError: images that have picked, or too few.
        """
        held_out = self.held_out(datamodule, split)
        rows = of_role(held_out.ids, self.task.strata(held_out.labels), "calibrate", share)
        ids = [held_out.ids[row] for row in rows]
        roles = in_whole_ids(self.roles, held_out.paths, held_out.ids)
        reused = refuse_reuse(roles, ids, "calibrate", allow_reuse=allow_reuse)
        calibration = fit_calibration(
            self.task,
            self.pool_held_out(held_out, rows),
            held_out.labels[rows],
            reject_risk=reject_risk,
            conformal_alpha=conformal,
            score=score,
            scaling=scaling,
            wanted_precision=wanted_precision,
        )
        calibration = replace(
            calibration,
            reused=reused,
            out_of_fold=held_out.is_out_of_fold,
            chosen_by=self.chosen_by(ids, split),
        )
        rule = None
        if unknown is not None:
            rule = rule_for(self, datamodule, split, rows, alpha=unknown, store=store)
        roles = with_role(roles, "calibrate", ids)
        return self._copy(calibration=calibration, roles=roles, unknown=rule)

    def _with_coefficients(self, coefficients: Sequence[float], roles: Roles) -> Self:
        kept = [index for index, value in enumerate(coefficients) if value > 0]
        smaller = self._copy(
            members=[self.parts[index] for index in kept],
            coefficients=[coefficients[index] for index in kept],
            calibration=None,  # it belonged to another answer
            unknown=None,
            roles=roles,
        )
        smaller._held_out = {key: found.of(kept) for key, found in self._held_out.items()}
        return smaller

    def _copy(self, **changes: Any) -> Self:
        settings = {
            "coefficients": self.coefficients,
            "pooling": self.pooling,
            "class_names": self.class_names,
            "calibration": self.calibration,
            "roles": self.roles,
            "unknown": self.unknown,
            "members": self.parts,
            **changes,
        }
        copy = type(self)(settings.pop("members"), **settings)
        copy._held_out = dict(self._held_out)
        return copy
