"""The final layer fitted properly for several labels an image: a binary problem for each label.

As in :mod:`finetune.training.linear_probe`, whose preparation of the features and whose solver it
shares: a yes and a no are two classes. Labels have one penalty in common, chosen by
cross-validation of all of them together: a label's own, on the few images that have it, is often
chance. Where penalties of their own are better than that, they are taken: each fold is judged by
what the other folds choose, so that choosing more does not look better by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.tasks import categorical
from finetune.tasks.multilabel import MULTILABEL
from finetune.training.linear_probe import Probe
from finetune.training.logistic_regression import logistic_problem, solve_logistic
from finetune.training.penalty_search import (
    FOLDS,
    L2_GRID,
    PenaltyCurve,
    all_dealt,
    stratified_parts,
)
from finetune.training.probe_rows import ProbeRows, patient

# A yes and a no share the weight of a binary problem between them, half each with its own sign:
# the sum of their squares is half of its square.
TWO_CLASSES = 2.0


@dataclass(frozen=True, slots=True)
class _Problems:
    """The same rows for all labels.

    Attributes:
        rows: ``(N, r)``, in their principal axes.
        targets: ``(N, K)``, NaN for not known.
        weights: ``(N,)``.
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor

    def solved(
        self, label: int, l2: float, used: Tensor, *, tolerance: float, start: Tensor | None = None
    ) -> Tensor | None:
        """Coefficients ``(2, r + 1)`` of one label from the used rows; None: they all say one."""
        used = used & ~self.targets[:, label].isnan() & (self.weights > 0)
        answers = self.targets[used, label].long()
        if len(torch.unique(answers)) < 2:
            return None
        problem = logistic_problem(self.rows[used], answers, self.weights[used], 2)
        return solve_logistic(problem, TWO_CLASSES * l2, tolerance=tolerance, start=start)


def fit_label_probe(
    features: Tensor,
    targets: Tensor,
    num_labels: int,
    *,
    sample_weights: Tensor | None = None,
    groups: Tensor | None = None,
    l2: float | Sequence[float] | None = None,
    l2_of_labels: tuple[float, ...] | None = None,
    seed: int = 0,
    held_out: bool = False,
    say: Callable[[str], None] | None = None,
) -> Probe:
    """Fit K binary problems on ``features (N, D)`` and ``targets (N, K)``.

    Args:
        features: any floating dtype; the optimum is found in float64.
        targets: 1, 0 or NaN (not known, no row of that label's problem).
        num_labels: K; a label whose known images all say the same gets a constant probability, of
            one image more that says the other.
        sample_weights, groups, seed, held_out, say: as for
            :func:`finetune.training.linear_probe.fit_probe`.
        l2: one penalty on the sum of the losses (scikit-learn's ``1 / C``), or several to choose
            from; by default from a grid. The strongest within one standard error of the best.
        l2_of_labels: beside one penalty, those of the labels that an earlier fit has chosen.

    Raises:
        TrainingError: features that are not finite.
    """
    tell = patient(say)
    prepared = ProbeRows.of(features, sample_weights, groups)
    truth = targets.detach().cpu().double()
    problems = _Problems(prepared.rows, truth, prepared.weights)
    scores: dict[float, float] = {}
    of_label, answers = l2_of_labels, None
    if isinstance(l2, int | float):
        chosen = float(l2)
    else:
        own = prepared.groups
        fold_of = stratified_parts(torch.tensor(MULTILABEL.strata(truth)), own, FOLDS, seed)
        search = _Search(problems, all_dealt(fold_of, own), own, tell)
        search.search(L2_GRID if l2 is None else l2, refine=l2 is None)
        scores, chosen = search.scores, search.strongest_within_one_standard_error()
        of_label = search.of_labels()
        answers = search.held_out_logits(of_label or (chosen,) * num_labels) if held_out else None
    coefficients = torch.zeros(num_labels, prepared.rows.shape[1] + 1, dtype=torch.float64)
    everything = torch.ones(len(truth), dtype=torch.bool)
    for label in range(num_labels):
        penalty = chosen if of_label is None else of_label[label]
        found = problems.solved(label, penalty, everything, tolerance=1e-8)
        if found is None:
            coefficients[label, -1] = _constant(truth[:, label])
        else:
            coefficients[label] = found[1] - found[0]
    weight, bias = prepared.for_raw(coefficients[:, :-1], coefficients[:, -1])
    return Probe(weight, bias, chosen, scores, of_label, answers)


class _Search(PenaltyCurve):
    """Held-out NLL over all known answers, as a function of the penalty."""

    def __init__(
        self, problems: _Problems, fold_of: Tensor, groups: Tensor, tell: Callable[[str], None]
    ) -> None:
        super().__init__(tell)
        self.problems, self.fold_of = problems, fold_of
        self.group_of = torch.unique(groups, return_inverse=True)[1]
        self.losses: dict[float, Tensor] = {}  # held out, (N, K); NaN where nothing is known
        self.answers: dict[float, Tensor] = {}  # likewise; 0 where the fold's images all say one
        self.starts: dict[tuple[int, int], Tensor | None] = {}

    def of_labels(self) -> tuple[float, ...] | None:
        """A penalty for each label, if they are better than a common one; None if not.

        Better: by more than one standard error of the difference, over groups.
        """
        penalties = sorted(self.losses, reverse=True)
        losses = torch.stack([self.losses[l2] for l2 in penalties])
        known = losses[0].isfinite()
        losses = losses.nan_to_num() * self.problems.weights[:, None]
        gain = torch.zeros(len(known), dtype=torch.float64)
        for fold in torch.unique(self.fold_of).tolist():
            out = self.fold_of == fold
            common = _strongest(losses[:, ~out].sum(dim=2), known[~out].any(dim=1))
            for label, own in enumerate(_own(losses[:, ~out], known[~out])):
                gain[out] += losses[common, out, label] - losses[own, out, label]
        gain = torch.zeros_like(gain).index_add_(0, self.group_of, gain)
        gain = gain[: int(self.group_of.max()) + 1]
        if not float(gain.sum()) > float((gain - gain.mean()).norm()):
            return None
        return tuple(penalties[own] for own in _own(losses, known))

    def held_out_logits(self, penalties: Sequence[float]) -> Tensor:
        """Logits ``(N, K)`` of a penalty a label, of each row by the fold that left it out."""
        each = [self.answers[l2][:, label] for label, l2 in enumerate(penalties)]
        return torch.stack(each, dim=1)

    def judged(self, l2: float) -> tuple[float, float]:
        """Fit all labels of all folds."""
        rows, targets = self.problems.rows, self.problems.targets
        outputs = torch.zeros_like(targets)
        judged = torch.zeros_like(targets, dtype=torch.bool)
        for fold in torch.unique(self.fold_of).tolist():
            out = self.fold_of == fold
            for label in range(targets.shape[1]):
                start = self.starts.get((fold, label))
                found = self.problems.solved(label, l2, ~out, tolerance=3e-3, start=start)
                if found is not None:
                    self.starts[fold, label] = found
                    coefficients = found[1] - found[0]
                    outputs[out, label] = rows[out] @ coefficients[:-1] + coefficients[-1]
                    judged[out, label] = True
        self.answers[l2] = outputs
        known = torch.where(judged, targets, torch.nan)
        losses = categorical.losses(*MULTILABEL.rows(outputs, known))
        self.losses[l2] = torch.full_like(known, torch.nan)
        self.losses[l2][known.isfinite()] = losses
        image = known.isfinite().nonzero()[:, 0]
        weights = self.problems.weights[image]
        weights = weights / weights.sum().clamp_min(1e-12)
        mean = float(weights @ losses)
        # Answers to one image are not independent: their sums are.
        excess = torch.zeros(len(rows), dtype=torch.float64)
        excess.index_add_(0, image, weights * (losses - mean))
        return mean, float(excess.norm())


def _own(losses: Tensor, known: Tensor) -> list[int]:
    """The penalty of each label, by losses ``(L, n, K)`` where they are known ``(n, K)``."""
    return [_strongest(losses[..., label], known[:, label]) for label in range(known.shape[1])]


def _strongest(losses: Tensor, known: Tensor) -> int:
    """The first of L penalties within one standard error of the best, by losses ``(L, n)``."""
    judged = losses[:, known]
    if not judged.shape[1]:
        return 0
    means = judged.mean(dim=1)
    best = int(means.argsort()[0])
    error = (judged[best] - means[best]).norm() / judged.shape[1]
    return int((means <= means[best] + error).nonzero()[0, 0])


def _constant(targets: Tensor) -> float:
    yes, no = float((targets == 1).sum()), float((targets == 0).sum())
    return math.log((yes + 1) / (no + 1))
