"""All labelled images learn: the final layer fitted once more, on train and val images together.

Whoever delivers a closed form needs no image held out: the penalty is chosen by cross-validation
over all of them, and each image's out-of-fold answer, of a layer fitted without its fold, is what
picks, calibrates and is reported, as the answers of the members of ``--folds`` are. Test images
never learn.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor

from finetune.runtime import Runtime
from finetune.spec.images import Split
from finetune.training.checkpoints import ENTRY
from finetune.training.features.activations import CachedActivations
from finetune.training.held_out_pass import kept_answers
from finetune.training.linear_probe import out_of_fold
from finetune.training.model_selection import Candidate
from finetune.training.penalty_search import FOLDS, all_dealt, stratified_parts
from finetune.training.phases.probe import (
    FittedLayer,
    Rows,
    fit_in_place,
    rows_of,
    solver_of,
    targets_of,
)

SIDES: tuple[Split, ...] = ("train", "val")


def refit_on_all(kept: CachedActivations, found: Candidate) -> tuple[Candidate, FittedLayer] | None:
    """Fit the final layer to all labelled images, in place.

    Args:
        kept: activations of the classifier that the candidate is, and its images.
        found: delivered so far, whose final layer learnt from the training images alone.

    Returns:
        What takes its place: its ``val`` are the images' out-of-fold answers, and all of them stand
        on the training side. The only image of its class is never held out, and has none. None:
        no image can be held out.
    """
    started = time.monotonic()
    classifier, datamodule = kept.classifier, kept.datamodule
    rows = rows_of(kept, SIDES)
    fold_of = _folds(kept, rows)
    answered = (fold_of >= 0).nonzero()[:, 0]
    if not len(answered):
        return None
    probe, _ = fit_in_place(kept, rows)
    # Fitted alike in each process, but for rounding.
    Runtime().equalise(classifier.network, parameters=True)
    solver = solver_of(classifier.task)
    if probe.l2_of_labels is not None:
        solver = partial(solver, l2_of_labels=probe.l2_of_labels)
    logits = out_of_fold(
        solver,
        rows.features,
        rows.targets,
        len(classifier.class_names),
        fold_of=fold_of.repeat(rows.views),
        l2=probe.l2,
        sample_weights=rows.weights,
    )
    images = [image for side in SIDES for image in datamodule.images(side)]
    truth = targets_of(classifier, images)
    answers = classifier.unit(logits[answered]).float(), truth[answered]
    figures = classifier.task.figures(*answers)
    layer = FittedLayer(probe, rows.images, rows.views, figures, time.monotonic() - started)
    entry = {
        **found.entry,
        "fit": {**found.facts, "refitted": layer.details},
        "split": datamodule.split_record.with_val_trained().plain,
        "val": {
            **kept_answers(datamodule, SIDES, answers, answered.tolist()),
            "out_of_fold": True,
        },
    }
    state = {"state_dict": classifier.state_dict(), ENTRY: entry}
    return Candidate.of({**state, "hyper_parameters": found.hyper_parameters}), layer


def _folds(kept: CachedActivations, rows: Rows) -> Tensor:
    """The fold of each plain image ``(N,)``, those by which the penalty is chosen; -1: none."""
    task, targets = kept.classifier.task, rows.targets[: rows.images]
    groups = rows.groups[: rows.images]
    strata = torch.tensor(task.strata(targets))
    fold_of = stratified_parts(strata, groups, FOLDS, kept.datamodule.seed)
    # Sets of labels, and numbers, are often one image's alone.
    return all_dealt(fold_of, groups) if task.closed_form != "multinomial" else fold_of
