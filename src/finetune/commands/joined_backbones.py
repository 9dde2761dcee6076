"""``finetune ensemble RUN_A RUN_B --joint``: one final layer on several backbones, if best."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.combining.ensemble import Ensemble
from finetune.combining.holdout_roles import of_role, with_role
from finetune.combining.joint_probe import fit_joint_probe, joint_ensemble
from finetune.combining.members import ClassifierMember
from finetune.commands.config_files import read_settings
from finetune.errors import UsageError
from finetune.spec.choices import Share
from finetune.tasks.held_out_loss import held_out_loss
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.one_class import only_one_class
from finetune.training.checkpoints import read_checkpoint
from finetune.training.features.extract import dataset_for, frozen_features
from finetune.training.features.store import FeatureStore
from finetune.training.held_out_pass import kept_answers
from finetune.training.penalty_search import FOLDS, stratified_parts
from finetune.training.phases.probe import group_numbers
from finetune.training.phases.refit import SIDES

if TYPE_CHECKING:
    from finetune.data.datamodule import ImageFolderDataModule

TOGETHER = "ensemble.ckpt"
READ = ("cache", "cache_dir", "manifest", "allow_outside")  # how a fit's images are read again


def deliver_together(group: Path) -> None:
    """What the fits of a group answer best together, or one of them alone, into a file beside them.

    Of another task than one class an image, which has no joint layer, those that are selected.

    Args:
        group: of fits that differ in their backbone.
    """
    from finetune.commands.ensemble import ensemble
    from finetune.commands.multi_fit import member_files

    first = member_files(group)[0]
    settings = read_settings(str(first.parents[1] / "config.yaml"))
    together: Any = {"joint": True}
    if read_checkpoint(first, mmap=True).task != MULTICLASS:
        together = {"select": "greedy"}
    data = settings["data"]
    held_out: Any = {name: data[name] for name in READ if data.get(name) is not None}
    held_out["accelerator"] = settings["trainer"]["accelerator"]
    print()
    inspect.unwrap(ensemble)(
        group, data["root"], **together, output=group / TOGETHER, overwrite=True, **held_out
    )
    print(f"next: finetune test --ckpt_path {group / TOGETHER} --data.root {data['root']}")


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
    joint = fitted_joint(classifiers, images, members.class_names, store, seed)
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


def fitted_joint(
    classifiers: Sequence[ClassifierMember],
    data: ImageFolderDataModule,
    class_names: Sequence[str],
    store: FeatureStore | None,
    seed: int,
) -> Ensemble:
    """The joint probe, from the images that the final layers of all of the fits have learnt from.

    Where these are the val images too, it answers them out of fold, as the fits do.
    """
    val = {image.id for image in data.images("val")}
    refitted = all(val <= member.out_of_fold.keys() for member in classifiers)
    sides = [side for side in (SIDES if refitted else SIDES[:1]) if data.images(side)]
    images = [image for side in sides for image in data.images(side)]
    features = []
    for member in classifiers:
        parts = []
        for side in sides:
            dataset, workers = dataset_for(member.classifier, data, side)
            found = frozen_features(member.classifier, dataset, store=store, num_workers=workers)
            parts.append(found.tensor().flatten(1))
        features.append(torch.cat(parts))
    labels = classifiers[0].task.collate([image.label for image in images])
    groups = group_numbers(data.together(images))
    fold_of = stratified_parts(labels, groups, FOLDS, seed) if refitted else None
    probes = fit_joint_probe(
        features,
        labels,
        len(class_names),
        groups=groups,
        fold_of=fold_of,
        seed=seed,
        say=print,
    )
    kept, logits = None, probes[0].held_out_logits
    if fold_of is not None and logits is not None:
        rows = (fold_of >= 0).nonzero()[:, 0].tolist()
        answers = logits[rows], labels[rows]
        kept = {**kept_answers(data, sides, answers, rows), "out_of_fold": True}
    split = None if refitted else data.split_record.plain
    return joint_ensemble(classifiers, probes, class_names, kept=kept, split=split)
