"""Members of a cross-validation that know their training images by heart must not profit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.combining.ensemble import Ensemble
from finetune.combining.folds import common_folds
from finetune.combining.members import TableMember
from finetune.errors import CheckpointMismatchError
from finetune.spec.images import content_id
from finetune.spec.splits import SplitRecord
from finetune.tasks.multiclass import MULTICLASS

FOLDS, IMAGES = 3, 20  # a fold
NAMES = ("no", "yes")


@dataclass(frozen=True)
class Image:
    path: Path
    label: int

    @property
    def id(self) -> str:
        return content_id(str(self.path).encode())


def images_of(fold: int) -> list[Image]:
    return [Image(Path(f"/nowhere/{fold}/{number}.png"), 1) for number in range(IMAGES)]


class Module:
    """The images of one fold as the val side."""

    class_names = NAMES

    def __init__(self, fold: int) -> None:
        self.fold = fold

    def images(self, split: str) -> list[Image]:
        return images_of(self.fold) if split == "val" else images_of(99)

    def evaluation_dataloader(self, split: str, preprocessings: object) -> list[Any]:
        return [([], torch.ones(IMAGES, dtype=torch.long))]


class Member(nn.Module):
    """Answers ``seen`` for images of other folds and ``unseen`` for those of its own.

    ``unseen`` holds one probability of the truth an image.
    """

    class_names = NAMES
    preprocessings = ()
    task = MULTICLASS
    out_of_fold: frozenset[str] = frozenset()

    def __init__(
        self, fold: int | None, *, seen: float, unseen: Sequence[float], name: str = "x"
    ) -> None:
        super().__init__()
        self.fold, self.seen, self.unseen = fold, seen, unseen
        self.name = f"runs/{name}/fold-{fold}-1/checkpoints/best.ckpt"

    @property
    def fitted_on(self) -> tuple[SplitRecord, ...]:
        return (SplitRecord({"folds": FOLDS, "fold": self.fold}),)

    @property
    def judged_on(self) -> tuple[SplitRecord, ...]:
        return self.fitted_on

    def chosen_by(self, ids: Sequence[str], split: str) -> bool:
        return True

    def logits(self, views: Mapping[Any, Tensor], paths: Sequence[str] | None = None) -> Tensor:
        assert paths is not None
        truth = [
            self.unseen[int(Path(path).stem)]
            if Path(path).parent.name == str(self.fold)
            else self.seen
            for path in paths
        ]
        right = torch.tensor(truth)
        return torch.stack([1 - right, right], dim=-1).log()

    def describe(self) -> dict[str, Any]:
        return {}


def recipe(name: str, *, seen: float, unseen: Sequence[float]) -> list[Member]:
    return [Member(fold, seen=seen, unseen=unseen, name=name) for fold in range(FOLDS)]


MODULES = {fold: Module(fold) for fold in range(FOLDS)}
BY_HEART = {"seen": 0.99, "unseen": [0.4] * IMAGES}
HONEST = {"seen": 0.7, "unseen": [0.7] * IMAGES}


def test_a_row_a_recipe_holds_what_each_fold_says_of_its_own_images() -> None:
    varied = [0.3 + number / 40 for number in range(IMAGES)]
    ensemble = Ensemble([*recipe("a", seen=0.99, unseen=varied), *recipe("b", **HONEST)])
    held_out = ensemble.held_out(MODULES)
    assert held_out.is_out_of_fold
    assert held_out.columns == ((0, 1, 2), (3, 4, 5))
    assert len(held_out.ids) == len(set(held_out.ids)) == FOLDS * IMAGES
    truth = held_out.member_logits.exp()[:, :, 1]
    torch.testing.assert_close(truth[0], torch.tensor(varied * FOLDS))
    torch.testing.assert_close(truth[1], torch.full((FOLDS * IMAGES,), 0.7))
    pooled = MULTICLASS.probabilities(ensemble.pool_held_out(held_out))
    expected = torch.tensor([value / 2 + 0.35 for value in varied] * FOLDS)
    torch.testing.assert_close(pooled[:, 1], expected)


@pytest.mark.parametrize("method", ["greedy", "learned"])
def test_what_is_known_by_heart_picks_no_one(method: Any) -> None:
    ensemble = Ensemble([*recipe("heart", **BY_HEART), *recipe("honest", **HONEST)])
    chosen = ensemble.select(MODULES, method=method)
    if method == "greedy":
        assert chosen.coefficients == pytest.approx((1 / 3,) * 3)
        assert all("honest" in name for name in chosen.member_names)
    else:
        honest = [n for n, name in enumerate(chosen.member_names) if "honest" in name]
        assert sum(chosen.coefficients[n] for n in honest) > 0.7
    # Two folds' images have trained any one member, so by all of them it would have won.
    fooled = Ensemble([ensemble.parts[0], ensemble.parts[3]])
    by_training = [
        float(-member[:, 1].mean()) for member in fooled.held_out(MODULES[1]).member_logits
    ]
    assert by_training[0] < by_training[1]


def test_the_temperature_is_that_of_the_answers_to_unseen_images() -> None:
    """Right for 14 of 20 with a probability of 0.7 each: nothing to correct, so T = 1."""
    unseen = [0.7] * 14 + [0.3] * 6
    ensemble = Ensemble(recipe("a", seen=0.999, unseen=unseen))
    calibrated = ensemble.calibrate(MODULES, share="all", conformal=0.3)
    assert calibrated.calibration is not None
    assert calibrated.calibration.out_of_fold
    assert calibrated.calibration.fit.images == FOLDS * IMAGES
    assert calibrated.calibration.temperature == pytest.approx(1, abs=1e-3)
    surer = Ensemble(recipe("a", seen=0.7, unseen=[0.99] * 14 + [0.01] * 6))
    found = surer.calibrate(MODULES, share="all").calibration
    assert found is not None
    assert found.temperature > 2


def test_roles_hold_across_the_folds() -> None:
    ensemble = Ensemble([*recipe("a", **HONEST), *recipe("b", **HONEST)])
    with pytest.warns(UserWarning, match="30 images"):
        done = ensemble.select(MODULES).calibrate(MODULES)
    pick, calibrate = set(done.roles["pick"]), set(done.roles["calibrate"])
    assert not pick & calibrate
    assert pick | calibrate == set(ensemble.held_out(MODULES).ids)


def test_dropped_recipes_leave_the_answers_of_the_others_in_place() -> None:
    recipes = [recipe("bad", **BY_HEART), recipe("a", **HONEST), recipe("b", **HONEST)]
    mixed = [member for fold in zip(*recipes, strict=True) for member in fold]  # fold by fold
    whole = Ensemble(mixed)
    chosen = whole.select(MODULES, max_members=1)
    held_out = chosen.held_out(MODULES)
    assert held_out.columns == ((0, 1, 2),)
    assert len({Path(name).parents[2] for name in chosen.member_names}) == 1
    pooled = MULTICLASS.probabilities(chosen.pool_held_out(held_out))
    torch.testing.assert_close(pooled[:, 1], torch.full((60,), 0.7))


def test_all_folds_answer_new_images_together() -> None:
    ensemble = Ensemble(recipe("a", **HONEST))
    test = ensemble.held_out(MODULES, "test")
    assert test.member_logits.shape == (3, IMAGES, 2)
    assert not test.is_out_of_fold


def test_only_folds_that_every_recipe_has_are_asked() -> None:
    some = [*recipe("a", **HONEST), *recipe("b", **HONEST)[1:]]
    assert common_folds(some) == [1, 2]
    held_out = Ensemble(some).held_out({fold: MODULES[fold] for fold in (1, 2)})
    assert held_out.member_logits.shape == (2, 2 * IMAGES, 2)
    with pytest.raises(CheckpointMismatchError, match=r"none for \[0\] beside runs/b/fold-1"):
        Ensemble(some).held_out(MODULES)
    with pytest.raises(CheckpointMismatchError, match=r"\[0\] and \[1\]"):
        common_folds([recipe("a", **HONEST)[0], recipe("b", **HONEST)[1]])


def test_members_that_have_seen_every_fold_are_refused() -> None:
    other = Member(None, seen=0.7, unseen=[0.7] * IMAGES)
    with pytest.raises(CheckpointMismatchError, match="trained on any of their images"):
        Ensemble([*recipe("a", **HONEST), other]).select(MODULES)
    nested = Ensemble(recipe("a", **HONEST))
    nested.name = "nested.ckpt"
    with pytest.raises(CheckpointMismatchError, match=r"found nested\.ckpt beside"):
        Ensemble([*recipe("b", **HONEST), nested]).select(MODULES)


def test_a_table_of_predictions_is_a_recipe_of_its_own() -> None:
    paths = [str(image.path) for fold in range(FOLDS) for image in images_of(fold)]
    table = TableMember("table.csv", NAMES, paths, torch.tensor([[0.2, 0.8]] * len(paths)).log())
    ensemble = Ensemble([table, *recipe("a", **HONEST)])
    held_out = ensemble.held_out(MODULES)
    assert held_out.columns == ((1, 2, 3), (0,))
    chosen = ensemble.select(MODULES)
    assert chosen.member_names == ("table.csv",)
