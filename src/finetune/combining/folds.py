"""Which members of an ensemble are the folds of one cross-validation, and who held out what.

An image of fold k has trained the members of every fold but k. So it may judge only those of fold
k, one a recipe; the answers that a recipe's folds give to their own held-out images form one
column of answers to all images (out-of-fold predictions; Stone, Cross-validatory choice and
assessment of statistical predictions, 1974).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from finetune.combining.members import Member, TableMember
from finetune.errors import CheckpointMismatchError
from finetune.spec.images import Split
from finetune.spec.protocols import HeldOutData

Column = dict[int, int]  # fold to the index of the member that held it out


def fold_of(member: Member) -> int | None:
    """The fold that held-out images of a member are in; None if it is of no single fold."""
    folds = {record.fold for record in member.fitted_on}
    return next(iter(folds)) if len(folds) == 1 else None


def common_folds(members: Sequence[Member]) -> list[int]:
    """The folds that every recipe among the members has a member for.

    Raises:
        CheckpointMismatchError: there is none, or a member is of no fold: what was held out of one
            has trained another.
    """
    columns = _recipes(members)
    known = {fold for column in columns for fold in column}
    common = sorted(fold for fold in known if all(fold in column for column in columns))
    if not common:
        raise CheckpointMismatchError(
            "Expected recipes with a fold in common, found the folds "
            f"{' and '.join(str(sorted(column)) for column in columns)}; fit the missing ones "
            "with `finetune fit --resume GROUP`."
        )
    return common


def columns_of_folds(members: Sequence[Member], folds: Sequence[int]) -> list[Column]:
    """The members as columns, one a recipe, each with a member for each of these folds.

    Members of one group of runs belong together; elsewhere those of one backbone do, in the order
    given. A table of predictions is a column of its own: it is taken to be out of fold as it is.

    Raises:
        CheckpointMismatchError: a fold is missing in one, or a member is of no fold.
    """
    columns = _recipes(members)
    for column in columns:
        if missing := [fold for fold in folds if fold not in column]:
            raise CheckpointMismatchError(
                f"Expected a member for each of the folds {list(folds)}, found none for {missing} "
                f"beside {members[min(column.values())].name}; fit it, or leave those images out."
            )
    tables = [index for index, each in enumerate(members) if isinstance(each, TableMember)]
    return columns + [dict.fromkeys(folds, index) for index in tables]


def _recipes(members: Sequence[Member]) -> list[Column]:
    columns: list[tuple[Hashable, Column]] = []
    for index, member in enumerate(members):
        if isinstance(member, TableMember):
            continue
        fold = fold_of(member)
        if fold is None:
            raise CheckpointMismatchError(
                f"Expected members of one cross-validation, found {member.name} beside them, which "
                "may have been trained on any of their images; leave it out, or give "
                "--data.manifest with images that none was trained on."
            )
        key = _kin(member)
        home = next((own for known, own in columns if known == key and fold not in own), None)
        if home is None:
            home = {}
            columns.append((key, home))
        home[fold] = index
    return [column for _, column in columns]


def one_test_side(datamodules: Mapping[int, HeldOutData], split: Split) -> HeldOutData:
    """A data module with the test images, which are the same whatever the fold.

    Raises:
        CheckpointMismatchError: they are not.
    """
    sides = {
        frozenset(image.id for image in datamodule.images(split))
        for datamodule in datamodules.values()
    }
    if len(sides) > 1:
        raise CheckpointMismatchError(
            f"Expected one {split} side beside all folds, found {len(sides)}; give fits of one "
            "cross-validation."
        )
    return next(iter(datamodules.values()))


def _kin(member: Member) -> Hashable:
    """The same for members that differ in their fold alone, as far as a name can tell."""
    path = Path(member.name)
    if path.parent.name == "checkpoints" and len(path.parents) > 2:
        return str(path.parents[2]), path.name
    spec = getattr(getattr(member, "classifier", None), "spec", None)
    return ("", spec)
