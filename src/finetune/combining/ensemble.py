"""Ensemble: members of any architecture behind one call, calibrated, in one file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, assert_never

import torch
from torch import Tensor, nn

from finetune.combining import ensemble_file
from finetune.combining.averaging import normalised_coefficients
from finetune.combining.conformal import Score
from finetune.combining.decisions import Answer, Calibration, decide, fit_calibration
from finetune.combining.held_out import HeldOut, held_out_pictures
from finetune.combining.members import (
    ClassifierMember,
    Member,
    Paths,
    Views,
    align_classes,
)
from finetune.combining.pooling import Pooling, fit_coefficients, pool
from finetune.combining.roles import Roles, Share, of_role, refuse_reuse, with_role
from finetune.combining.selection import Metric, select_members
from finetune.combining.sharing import group_by_backbone, grouped_probabilities
from finetune.errors import UsageError
from finetune.preprocessing import Preprocessing

Selecting = Literal["all", "greedy", "learned"]
# Images' worth of belief in equal coefficients, against overfitting a small held-out set.
LEARNED_PRIOR = 10.0


class Ensemble(nn.Module):
    """Fine-tuned classifiers that answer together.

    Members may differ in backbone, image size, channels and source; each gets pictures
    preprocessed as it was trained, and members whose backbones are equal share one computation of
    it. Members run one after another, so beside their weights only one's activations take memory.
    (Stacking equal architectures with ``torch.func.vmap`` was measured: faster for ResNet-18,
    slower for MobileNet and ViT on a processor; so there is one plain loop.)

    Args:
        members: at least one; all must know the same class names, in any order.
        coefficients: one a member, at least 0; equal ones for None.
        pooling: ``mean`` of probabilities; ``geometric`` mean, which is the mean of logits; or
            ``vote``, where ties go to the larger mean probability.
        class_names: their order in the answers; the first member's for None.
        calibration: what :meth:`calibrate` fitted.
        roles: which pictures picked and calibrated.
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
    ) -> None:
        super().__init__()
        self.coefficients = tuple(normalised_coefficients(coefficients, len(members)))
        self.pooling: Pooling = pooling
        self.class_names = tuple(class_names or members[0].class_names)
        self.calibration = calibration
        self.roles: Roles = dict(roles or {})
        self.name = "ensemble"
        self._orders = [
            align_classes(member.class_names, self.class_names, source=member.name)
            for member in members
        ]
        self._groups = group_by_backbone(members)
        self.members = nn.ModuleList(members)  # type: ignore[arg-type]
        self._held_out: dict[str, HeldOut] = {}
        self.eval()

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

    def save(self, path: str | Path) -> None:
        """Write one self-contained file that loads without running code; shared tensors once."""
        ensemble_file.save_ensemble(self, path)

    def train(self, mode: bool = True) -> Self:
        """Stay in ``eval``: an ensemble is not trained."""
        return super().train(False)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct views of a picture that the members need, in the members' order."""
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
    def fitted_on(self) -> tuple[dict[str, Any], ...]:
        """How each classifier among the members, at any depth, had its pictures split."""
        found: list[dict[str, Any]] = []
        for member in self.parts:
            if isinstance(member, Ensemble):
                found.extend(member.fitted_on)
            elif isinstance(member, ClassifierMember) and member.classifier.details.get("data"):
                found.append(member.classifier.details["data"])
        return tuple(found)

    @torch.inference_mode()
    def member_probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Every member's answer to one batch, ``(M, N, C)``.

        Args:
            views: images ``(N, C_i, S_i, S_i)`` in ``[0, 1]`` for each of :attr:`preprocessings`.
            paths: of the pictures; only members made of saved predictions need them.
        """
        return torch.stack([answer for answer, _ in self._timed(views, paths)])

    def pool(self, member_probabilities: Tensor) -> Tensor:
        """``(M, N, C)`` into ``(N, C)``, before calibration."""
        return pool(member_probabilities, self.coefficients, method=self.pooling)

    def combine(self, member_probabilities: Tensor) -> Tensor:
        """``(M, N, C)`` into ``(N, C)``, pooled and calibrated."""
        pooled = self.pool(member_probabilities)
        return pooled if self.calibration is None else self.calibration.probabilities(pooled)

    def answer(self, member_probabilities: Tensor) -> Answer:
        """Pool ``(M, N, C)``, calibrate, and say how sure."""
        pooled = self.pool(member_probabilities)
        return decide(pooled, member_probabilities, self.calibration, self.coefficients)

    def forward(self, *views: Tensor) -> Tensor:
        """Log probabilities ``(N, C)``, which any loss or metric takes for logits.

        Args:
            views: images ``(N, C_i, S_i, S_i)``, one for each of :attr:`preprocessings`.
        """
        by_preprocessing = dict(zip(self.preprocessings, views, strict=True))
        probabilities = self.probabilities(by_preprocessing)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    def probabilities(self, views: Views, paths: Paths = None) -> Tensor:
        """Calibrated probabilities ``(N, C)``: an ensemble is a member of another one this way."""
        # Not by member_probabilities: inference mode would keep gradients and exports out.
        answers = [answer for answer, _ in self._timed(views, paths)]
        return self.combine(torch.stack(answers))

    def describe(self) -> dict[str, Any]:
        """Plain values from which, together with its tensors, it can be built again."""
        return {
            "kind": "ensemble",
            "name": self.name,
            "class_names": list(self.class_names),
            "members": [member.describe() for member in self.parts],
            "coefficients": list(self.coefficients),
            "pooling": self.pooling,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "roles": {role: list(ids) for role, ids in self.roles.items()},
        }

    def held_out(self, datamodule: Any, split: str = "val") -> HeldOut:
        """The members' answers to a split's pictures; computed once, then remembered."""
        pictures = held_out_pictures(datamodule, split, self.class_names)
        if pictures.key not in self._held_out:
            loader = datamodule.evaluation_dataloader(split, preprocessings=self.preprocessings)
            answers, seconds, start = [], [0.0] * len(self.parts), 0
            with torch.inference_mode():
                for batches, labels in loader:
                    paths = pictures.paths[start : start + len(labels)]
                    views = dict(zip(self.preprocessings, batches, strict=True))
                    timed = self._timed(views, paths)
                    answers.append(torch.stack([answer for answer, _ in timed]).cpu())
                    seconds = [a + b for a, (_, b) in zip(seconds, timed, strict=True)]
                    start += len(labels)
            # Clones: tensors of inference mode could not be used in autograd or be changed.
            found = pictures.with_answers(torch.cat(answers, dim=1).clone(), seconds)
            self._held_out[pictures.key] = found
        return self._held_out[pictures.key]

    def select(
        self,
        datamodule: Any,
        *,
        method: Selecting = "greedy",
        metric: Metric = "nll",
        max_members: int | None = None,
        min_gain: float = 0.0,
        share: Share = "half",
        split: str = "val",
        seed: int = 0,
    ) -> Self:
        """A new ensemble of the members that help, with their coefficients.

        Args:
            datamodule: whose held-out pictures pick.
            method: ``greedy`` with replacement; ``learned`` coefficients on the simplex; ``all``
                keeps every member at its present coefficient.
            metric: what ``greedy`` lowers.
            max_members: most members of ``greedy``.
            min_gain: least gain for which ``greedy`` keeps a member of average time.
            share: the picking ``half`` of the split, or ``all`` of it: then it cannot calibrate.
            split: ``val``, unless there is reason for another.
            seed: of the guards against overfitting.
        """
        if method == "all":
            return self
        held_out = self.held_out(datamodule, split)
        rows = of_role(held_out.ids, held_out.labels.tolist(), "pick", share)
        ids = [held_out.ids[row] for row in rows]
        refuse_reuse(self.roles, ids, "pick")
        members, labels = held_out.member_probabilities[:, rows], held_out.labels[rows]
        match method:
            case "greedy":
                coefficients: Sequence[float] = select_members(
                    members,
                    labels,
                    metric=metric,
                    max_members=max_members,
                    costs=[max(value, 1e-9) for value in held_out.seconds],
                    min_gain=min_gain,
                    seed=seed,
                ).coefficients
            case "learned":
                if max_members is not None:
                    raise UsageError(
                        "Expected max_members with method greedy only, found it with learned; "
                        "leave it out."
                    )
                coefficients = fit_coefficients(members, labels, prior=LEARNED_PRIOR).tolist()
            case _:
                assert_never(method)
        return self._with_coefficients(coefficients, with_role(self.roles, "pick", ids))

    def calibrate(
        self,
        datamodule: Any,
        *,
        reject_risk: float | None = None,
        conformal: float | None = None,
        score: Score = "thr",
        share: Share = "half",
        split: str = "val",
        allow_reuse: bool = False,
    ) -> Self:
        """A new ensemble with one temperature for its pooled answer, and rules on request.

        Args:
            datamodule: whose held-out pictures calibrate.
            reject_risk: wanted share of wrong answers among the accepted.
            conformal: accepted share of prediction sets without the true class.
            score: how sets are built: ``thr``, ``aps`` or ``raps``.
            share: the calibrating ``half`` of the split, or ``all`` of it.
            split: ``val``, unless there is reason for another.
            allow_reuse: accept pictures that have picked members, with a warning.

        Raises:
            CalibrationError: pictures that have picked, or none at all.
        """
        held_out = self.held_out(datamodule, split)
        rows = of_role(held_out.ids, held_out.labels.tolist(), "calibrate", share)
        ids = [held_out.ids[row] for row in rows]
        reused = refuse_reuse(self.roles, ids, "calibrate", allow_reuse=allow_reuse)
        calibration = fit_calibration(
            self.pool(held_out.member_probabilities[:, rows]),
            held_out.labels[rows],
            reject_risk=reject_risk,
            conformal_alpha=conformal,
            score=score,
            reused=reused,
        )
        roles = with_role(self.roles, "calibrate", ids)
        return self._copy(calibration=calibration, roles=roles)

    def _with_coefficients(self, coefficients: Sequence[float], roles: Roles) -> Self:
        kept = [index for index, value in enumerate(coefficients) if value > 0]
        smaller = self._copy(
            members=[self.parts[index] for index in kept],
            coefficients=[coefficients[index] for index in kept],
            calibration=None,  # it belonged to another answer
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
            "members": self.parts,
            **changes,
        }
        copy = type(self)(settings.pop("members"), **settings)
        copy._held_out = dict(self._held_out)
        return copy

    def _timed(self, views: Views, paths: Paths) -> list[tuple[Tensor, float]]:
        """Each member's probabilities in the ensemble's class order, and the seconds they took."""
        found: dict[int, tuple[Tensor, float]] = {}
        for group in self._groups:
            start = time.perf_counter()
            members = [self.parts[index] for index in group]
            if isinstance(members[0], ClassifierMember):
                answers = grouped_probabilities(members, views)  # type: ignore[arg-type]
            else:
                answers = [members[0].probabilities(views, paths)]
            seconds = (time.perf_counter() - start) / len(group)
            for index, answer in zip(group, answers, strict=True):
                order = self._orders[index]
                found[index] = (answer if order is None else answer[:, order], seconds)
        return [found[index] for index in range(len(self.parts))]
