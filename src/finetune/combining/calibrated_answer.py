"""What calibration leaves behind: how a pooled answer becomes probabilities, refusals and sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from finetune.combining.calibration import (
    USUAL_PRIOR,
    RejectRule,
    TemperatureFit,
    apply_temperature,
    fit_reject_rule,
    fit_temperature,
)
from finetune.combining.conformal import ConformalRule, fit_conformal, fit_label_sets
from finetune.combining.label_scaling import LabelScaling, fit_label_scaling
from finetune.combining.number_intervals import IntervalRule, fit_intervals
from finetune.combining.pooling import Coefficients
from finetune.combining.uncertainty import Uncertainty, uncertainty
from finetune.errors import UsageError
from finetune.spec.choices import Scaling
from finetune.spec.choices import SetScore as Score
from finetune.tasks import categorical
from finetune.tasks.multilabel import MULTILABEL, offsets
from finetune.tasks.one_class import only_one_class
from finetune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Calibration:
    """One temperature, and where asked for a reject rule and prediction sets.

    Sets are built from the probabilities before the temperature: their scores then depend on no
    calibration image, and their coverage is exact although all images serve both.

    Attributes:
        fit: the temperature, and the NLL before and after; None of numbers, which have none.
        reject: when to abstain, or None.
        conformal: how to build sets, or None.
        thresholds: of several labels an image, from which calibrated probability on each is named.
        interval: of numbers, how wide an interval about each is; or None.
        scaling: of several labels an image, a factor and a shift for each in the temperature's
            place, or None.
        precision: that the thresholds were chosen for; None: for F1.
        reused: whether images were used that had picked members: figures flatter then.
        out_of_fold: whether each image was answered by a fold that was not trained on it: the
            whole ensemble is usually better than that, so its figures are on the safe side.
        chosen_by: whether the fit itself chose its epoch, phase or confidence by these images:
            the answers suit them a little better than others, and sets may cover a little less.
    """

    fit: TemperatureFit | None
    reject: RejectRule | None = None
    conformal: ConformalRule | None = None
    thresholds: tuple[float, ...] | None = None
    interval: IntervalRule | None = None
    scaling: LabelScaling | None = None
    precision: float | None = None
    reused: bool = False
    out_of_fold: bool = False
    chosen_by: bool = False

    @property
    def temperature(self) -> float:
        """T; above 1 the uncalibrated answers were too sure."""
        return 1.0 if self.fit is None else self.fit.temperature

    @property
    def half_width(self) -> float | None:
        """Of the interval about each number, in its unit; None without a rule."""
        return None if self.interval is None else self.interval.half_width

    def logits(self, pooled: Tensor) -> Tensor:
        """Calibrated logits ``(N, C)`` of pooled ones; the order of the classes stays.

        Where each label is scaled by itself, the order of the images of each.
        """
        if self.scaling is not None:
            return self.scaling.apply(pooled)
        return pooled if self.fit is None else apply_temperature(pooled, self.temperature)

    def uncalibrated(self, logits: Tensor) -> Tensor:
        """The pooled logits that :meth:`logits` made these of."""
        if self.scaling is not None:
            return self.scaling.undo(logits)
        return logits if self.fit is None else logits * self.temperature

    def rejected(self, task: Task, pooled: Tensor) -> Tensor | None:
        """Which of the images ``(N, C)`` to leave to a human, ``(N,)`` bool; None: no rule."""
        if self.reject is None:
            return None
        sure = task.confidence(self.logits(pooled.double()), self.thresholds)
        return sure < self.reject.threshold

    def prediction_sets(self, task: Task, pooled: Tensor) -> Tensor | None:
        """Membership ``(N, C)`` bool of the classes in each image's set; None: no rule."""
        return None if self.conformal is None else self.conformal.sets(task.probabilities(pooled))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`."""
        fit, interval = values["fit"], values.get("interval")
        reject, conformal = values.get("reject"), values.get("conformal")
        thresholds, scaling = values.get("thresholds"), values.get("scaling")
        return cls(
            fit=None if fit is None else TemperatureFit(**fit),
            reject=None if reject is None else RejectRule(**reject),
            conformal=None if conformal is None else ConformalRule(**conformal),
            thresholds=None if thresholds is None else tuple(thresholds),
            interval=None if interval is None else IntervalRule(**interval),
            scaling=None if scaling is None else LabelScaling.from_dict(scaling),
            precision=values.get("precision"),
            reused=bool(values.get("reused", False)),
            out_of_fold=bool(values.get("out_of_fold", False)),
            chosen_by=bool(values.get("chosen_by", False)),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a classifier or an ensemble says about N images.

    Attributes:
        logits: ``(N, C)``, pooled and calibrated; of a classifier alone its own.
        probabilities: ``(N, C)``, what they say.
        member_probabilities: ``(M, N, C)``, not calibrated.
        uncertainty: entropies, disagreement, variation ratio, each ``(N,)``; None of numbers.
        rejected: ``(N,)`` bool, or None without a reject rule.
        prediction_sets: ``(N, C)`` bool, or None without a conformal rule.
        thresholds: of several labels an image, from which probability on each is named.
        half_width: of the interval about each number, in its unit; None without a rule.
    """

    logits: Tensor
    probabilities: Tensor
    member_probabilities: Tensor
    uncertainty: Uncertainty | None
    rejected: Tensor | None
    prediction_sets: Tensor | None
    thresholds: tuple[float, ...] | None = None
    half_width: float | None = None

    @property
    def disagreement(self) -> Tensor:
        """Of the members, ``(N,)``: pairs that name different things, or numbers' deviation."""
        if self.uncertainty is not None:
            return self.uncertainty.disagreement
        return self.member_probabilities.double().std(dim=0, correction=0).mean(dim=-1)


def decide(
    task: Task,
    pooled: Tensor,
    member_logits: Tensor,
    calibration: Calibration | None,
    coefficients: Coefficients = None,
    thresholds: tuple[float, ...] | None = None,
) -> Answer:
    """Apply a calibration to pooled logits ``(N, C)`` and say how sure the members are.

    ``thresholds`` are those before calibration, which brings its own.
    """
    logits = pooled if calibration is None else calibration.logits(pooled)
    member_probabilities = task.probabilities(member_logits)
    return Answer(
        logits=logits,
        probabilities=task.probabilities(logits),
        member_probabilities=member_probabilities,
        uncertainty=uncertainty(
            categorical.probabilities(task.choices(member_logits)), coefficients
        )
        if task.has_choices
        else None,
        rejected=None if calibration is None else calibration.rejected(task, pooled),
        prediction_sets=None if calibration is None else calibration.prediction_sets(task, pooled),
        thresholds=thresholds if calibration is None else calibration.thresholds,
        half_width=None if calibration is None else calibration.half_width,
    )


def fit_calibration(
    task: Task,
    pooled: Tensor,
    labels: Tensor,
    *,
    reject_risk: float | None = None,
    conformal_alpha: float | None = None,
    score: Score = "thr",
    scaling: Scaling = "common",
    wanted_precision: float | None = None,
) -> Calibration:
    """Calibrate pooled logits ``(N, C)`` of held-out images with labels ``(N,)`` or ``(N, C)``.

    Raises:
        CalibrationError: nothing to calibrate on, or a risk that no threshold reaches.
        UsageError: a rule that the task does not have.
    """
    if not task.has_choices:
        if reject_risk is not None:
            raise UsageError(
                "Expected no --reject-risk for numbers, found one: their intervals are all of one "
                "width, so no image is surer than another; leave it out."
            )
        others = scaling != "common" or wanted_precision is not None
        if others or conformal_alpha is None:
            raise UsageError(
                f"Expected --conformal A alone for the task {task.name}, whose intervals are all "
                "there is to calibrate; give --conformal 0.1."
            )
        rule = fit_intervals(task.losses(pooled, labels), alpha=conformal_alpha)
        return Calibration(None, interval=rule)
    rows = task.rows(pooled, labels)
    fit = fit_temperature(*rows, prior=USUAL_PRIOR, images=len(labels))
    if task == MULTILABEL:
        found = _of_labels(pooled, labels, fit, conformal_alpha, scaling, wanted_precision)
        return replace(found, reject=_reject_rule(found, task, pooled, labels, reject_risk))
    if scaling != "common" or wanted_precision is not None:
        raise UsageError(
            "Expected several labels an image for --scaling label and --wanted-precision, found "
            f"the task {task.name}; leave them out."
        )
    chosen = task.thresholds(apply_temperature(pooled, fit.temperature), labels)
    reject = _reject_rule(Calibration(fit), task, pooled, labels, reject_risk)
    conformal = None
    if conformal_alpha is not None:
        only_one_class(task, "prediction sets", instead="leave --conformal out")
        probabilities = task.probabilities(pooled)
        conformal = fit_conformal(probabilities, labels, alpha=conformal_alpha, score=score)
    return Calibration(fit, reject, conformal, None if chosen is None else tuple(chosen))


def _reject_rule(
    calibration: Calibration, task: Task, pooled: Tensor, targets: Tensor, risk: float | None
) -> RejectRule | None:
    """An image is wrong where anything known of it is: of several labels one is enough."""
    if risk is None:
        return None
    given = calibration.logits(pooled.detach().double())
    truth = targets.reshape(len(targets), -1)
    shift = 0 if calibration.thresholds is None else offsets(calibration.thresholds, given.shape[1])
    named = task.decide(given - shift).reshape(truth.shape)
    wrong = ((named != truth) & ~truth.isnan()).any(dim=1)
    return fit_reject_rule(task.confidence(given, calibration.thresholds), wrong, risk=risk)


def _of_labels(
    pooled: Tensor,
    targets: Tensor,
    fit: TemperatureFit,
    alpha: float | None,
    scaling: Scaling,
    precision: float | None,
) -> Calibration:
    """Of several labels an image: thresholds of the scaled answer, sets of the answer before."""
    each = None
    if scaling == "label":
        each = fit_label_scaling(pooled, targets, temperature=fit.temperature)
    scaled = Calibration(fit, scaling=each).logits(pooled)
    sets = None
    if alpha is not None:
        sets = fit_label_sets(MULTILABEL.probabilities(pooled), targets, alpha=alpha)
    thresholds = MULTILABEL.thresholds(scaled, targets, precision=precision)
    chosen = tuple(thresholds)
    return Calibration(fit, None, sets, chosen, scaling=each, precision=precision)
