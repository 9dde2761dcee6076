"""The final layer fitted to all labelled images, its answers to them out of fold."""

from pathlib import Path

import pytest
import torch

import finetune.training.phases.phased_fit as phased_fit
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import TrainingError
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.features.activations import CachedActivations
from finetune.training.linear_probe import fit_probe
from finetune.training.phases import refit as module
from finetune.training.phases.probe import group_numbers, rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SPLIT = {"val_fraction": 0.25, "test_fraction": 0.25, "augmentation": "none"}


def kept_of(datamodule: ImageFolderDataModule, classifier: ImageClassifier) -> CachedActivations:
    return CachedActivations(classifier, datamodule, None, lambda line: None)


def sides_of(path: Path) -> dict[str, str]:
    record = SplitRecord.from_entry(read_checkpoint(path).details)
    return {image.path: at.side for image, at in zip(record.images, record.standings, strict=True)}


def same(one: object, other: object) -> bool:
    """Whether two values of checkpoints are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_all_but_test_images_learn_and_each_is_answered_without_its_fold(
    run, colour_folder, tmp_path, monkeypatch
):
    seen = []

    def rows_seen(kept, sides):
        seen.append(rows_of(kept, sides))
        return seen[-1]

    monkeypatch.setattr(module, "rows_of", rows_seen)
    run(colour_folder, tmp_path / "held", "head", data=SPLIT)
    fit, _, said = run(colour_folder, tmp_path / "all", "head", data=SPLIT, refit=True)
    (rows,), data = seen, fit.datamodule
    labelled = [*data.images("train"), *data.images("val")]
    assert rows.images == len(labelled) == 27
    best = read_checkpoint(tmp_path / "all" / "best.ckpt")
    before, after = sides_of(tmp_path / "held" / "best.ckpt"), sides_of(best.path)
    moved = {path for path in before if before[path] != after[path]}
    assert moved == {path for path, side in before.items() if side == "val"}
    assert {after[path] for path in moved} == {"train"}
    val = best.details["val"]
    assert val["out_of_fold"]
    assert val["ids"] == [image.id for image in labelled]
    whole = fit_probe(rows.features, rows.targets, 3, groups=rows.groups, seed=data.seed)
    torch.testing.assert_close(best.state_dict["network.fc.weight"], whole.weight.float())
    kept = kept_of(data, fit.classifier)
    fold_of = module._folds(kept, rows)
    for fold in range(5):
        out = fold_of == fold
        assert out.any()
        without = fit_probe(rows.features[~out], rows.targets[~out], 3, l2=whole.l2)
        expected = without.logits(rows.features[out]).float()
        torch.testing.assert_close(val["logits"][out], expected)
    assert any("27 images" in line and "out of fold" in line for line in said)


def test_images_of_one_group_and_equal_ones_are_held_out_together(
    classifier_of, colour_folder, tmp_path
):
    root = tmp_path / "copies"
    for path in colour_folder.rglob("*.png"):
        for copy in ("a", "b"):
            target = root / path.parent.name / f"{copy}{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    data = ImageFolderDataModule(
        root,
        num_workers=0,
        cache="off",
        test_fraction=0.0,
        augmentation="none",
        group_by=r"[012]\.",
    )
    data.setup("fit")
    images = [*data.images("train"), *data.images("val")]
    kept = kept_of(data, classifier_of(data))
    fold_of = module._folds(kept, rows_of(kept, module.SIDES)).tolist()
    numbers = group_numbers(data.together(images)).tolist()
    assert len(set(numbers)) < len(images) / 2
    for names in (numbers, [image.id for image in images]):
        folds = {name: set() for name in names}
        for name, fold in zip(names, fold_of, strict=True):
            folds[name].add(fold)
        assert all(len(found) == 1 for found in folds.values())


def test_a_fit_that_was_killed_before_it_ends_bit_for_bit_the_same(
    run, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(phased_fit, "clearly_better", lambda *_: False)
    options = {"data": SPLIT, "refit": True, "epochs": 1}

    def fit(folder, resume=None):
        run(colour_folder, tmp_path / folder, "partial:1", resume=resume, **options)
        return read_checkpoint(tmp_path / folder / "best.ckpt")

    whole = fit("whole")
    details = whole.details
    assert details["fit"]["phase"] == 0
    assert "refitted" in details["fit"]
    with monkeypatch.context() as patched:
        patched.setattr(phased_fit, "refit_on_all", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            fit("killed")
    assert "refitted" not in read_checkpoint(tmp_path / "killed" / "best.ckpt").details["fit"]
    last = tmp_path / "killed" / "last.ckpt"
    for found in (fit("killed", resume=last), fit("killed", resume=last)):
        assert same(found.details, details)
        assert same(found.state_dict, whole.state_dict)


def test_no_later_phase_is_compared_with_what_has_learnt_from_the_val_images(
    run, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(phased_fit, "clearly_better", lambda *_: False)
    options = {"data": SPLIT, "refit": True}
    run(colour_folder, tmp_path, "partial:1", epochs=1, **options)
    (tmp_path / "phase2.ckpt").unlink()
    last = tmp_path / "last.ckpt"
    with pytest.raises(TrainingError, match="val images that would compare"):
        run(colour_folder, tmp_path, "partial:1", epochs=2, resume=last, **options)


def test_what_cannot_be_held_out_stays_as_it_was(run, colour_folder, tmp_path):
    one_group = {**SPLIT, "val_fraction": 0.0, "test_fraction": 0.0, "group_by": "red|green|blue"}
    run(colour_folder, tmp_path, "head", data=one_group, refit=True)
    assert "refitted" not in read_checkpoint(tmp_path / "best.ckpt").details["fit"]
