"""``finetune ensemble RUN_A RUN_B --joint``: one final layer on several backbones, if best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.combining.ensemble import Ensemble
from finetune.combining.holdout_roles import of_role, with_role
from finetune.combining.joint_probe import fit_joint_probe, joint_ensemble
from finetune.combining.members import ClassifierMember
from finetune.errors import UsageError
from finetune.spec.choices import Share
from finetune.tasks.held_out_loss import held_out_loss
from finetune.tasks.one_class import only_one_class
from finetune.training.features.extract import dataset_for, frozen_features
from finetune.training.features.store import FeatureStore
from finetune.training.linear_probe import Probe
from finetune.training.phases.probe import group_numbers

if TYPE_CHECKING:
    from finetune.data.datamodule import ImageFolderDataModule


def joined_or_better(
    members: Ensemble,
    images: ImageFolderDataModule | dict[int, ImageFolderDataModule],
    store: FeatureStore | None,
    *,
    share: Share,
    seed: int,
) -> Ensemble:
    """The joint probe, or what answers the picking images better: prints what each does.

    It is compared with all members by equal shares, and with those that are selected greedily on
    the very images that compare: which flatters these, and is never worse than the best alone.

    Args:
        members: fits of one split, with linear final layers.
        images: that they were fitted on.
        store: of the features.
        share: of the val images that pick.
        seed: of the folds and of the selection.

    Raises:
        UsageError: members or images of which there can be no joint probe.
    """
    classifiers = [part for part in members.parts if isinstance(part, ClassifierMember)]
    if len(classifiers) < max(2, len(members.parts)) or isinstance(images, dict):
        raise UsageError(
            "Expected two fits or more of one split beside --joint, found other members or folds; "
            "give RUN_A RUN_B --joint --data.root DIR."
        )
    only_one_class(members.task, "--joint", instead="take --select greedy")
    probes = _fitted(classifiers, images, members.class_names, store, seed)
    joint = joint_ensemble(classifiers, probes, members.class_names)
    answers = members.held_out(images)
    rows = of_role(answers.ids, members.task.strata(answers.labels), "pick", share)
    labels = answers.labels[rows]
    greedy = members.select(images, share=share, seed=seed)
    offered = {
        "one final layer on all features": joint,
        "selected members": greedy,
        "all members, equal shares": members,
    }
    losses = {
        name: held_out_loss(each.pool_held_out(each.held_out(images), rows), labels, "nll")
        for name, each in offered.items()
    }
    taken = min(losses, key=lambda name: losses[name])
    best = min(held_out_loss(each[rows], labels, "nll") for each in answers.member_logits)
    print(f"NLL on the {len(rows)} val images that pick:")
    for name, loss in losses.items():
        print(f"  {name:<31} {loss:.4f}{'  <- taken' * (name == taken)}")
    print(f"  {'the best member alone':<31} {best:.4f}")
    found = offered[taken]
    found.roles = with_role(found.roles, "pick", [answers.ids[row] for row in rows])
    return found


def _fitted(
    classifiers: Sequence[ClassifierMember],
    images: ImageFolderDataModule,
    class_names: Sequence[str],
    store: FeatureStore | None,
    seed: int,
) -> list[Probe]:
    """The joint probe's parts, from the training images of the fits."""
    train = images.images("train")
    features = []
    for member in classifiers:
        dataset, workers = dataset_for(member.classifier, images, "train")
        found = frozen_features(member.classifier, dataset, store=store, num_workers=workers)
        features.append(found.tensor().flatten(1))
    return fit_joint_probe(
        features,
        classifiers[0].task.collate([image.label for image in train]),
        len(class_names),
        groups=group_numbers([image.group for image in train]),
        seed=seed,
        say=print,
    )
