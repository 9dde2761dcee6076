import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember, TableMember
from finetune.combining.pooling import mean_probabilities
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import CalibrationError, CheckpointError, CheckpointMismatchError, DataError
from finetune.prediction import ImageViews, predict
from finetune.prediction.inputs import named_images
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.held_out_loss import held_out_loss, held_out_losses
from finetune.training.checkpoints import ENTRY
from finetune.training.checksums import CHECKSUMS
from finetune.training.classifier import ImageClassifier

MakeCheckpoint = Callable[..., Path]


def views_of(ensemble: Ensemble, seed: int = 0, count: int = 6) -> dict[Preprocessing, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        each: torch.rand(
            count, each.in_chans, each.image_size, each.image_size, generator=generator
        )
        for each in ensemble.preprocessings
    }


def test_an_ensemble_of_one_equals_its_member_bit_for_bit(make_checkpoint: MakeCheckpoint) -> None:
    path = make_checkpoint()
    ensemble = Ensemble.from_checkpoints([path])
    views = views_of(ensemble)
    classifier = ImageClassifier.from_checkpoint(path)
    with torch.no_grad():
        alone = classifier(views[classifier.preprocessing]).softmax(-1)
    assert torch.equal(ensemble.combine(ensemble.member_probabilities(views)), alone)


def test_members_of_any_backbone_size_and_channels(
    make_checkpoint: MakeCheckpoint, image_folder: Path
) -> None:
    paths = [
        make_checkpoint(),
        make_checkpoint(backbone="test_efficientnet", size=48),
        make_checkpoint(backbone="test_vit", size=160),
        make_checkpoint(in_chans=1),
    ]
    ensemble = Ensemble.from_checkpoints(paths)
    assert [(each.image_size, each.in_chans) for each in ensemble.preprocessings] == [
        (32, 3),
        (48, 3),
        (160, 3),
        (32, 1),
    ]
    files = sorted((image_folder / "test").rglob("*.png"))[:5]
    together = predict(ensemble, files)
    assert together.member_probabilities.shape == (4, 5, 3)
    # Each member sees its own view of the one decoded image.
    dataset = ImageViews(named_images(files), ensemble.preprocessings)
    views = [dataset[index][1] for index in range(5)]
    for member, path in enumerate(paths):
        classifier = ImageClassifier.from_checkpoint(path)
        images = torch.stack([image[member] for image in views])
        with torch.no_grad():
            alone = classifier(images).softmax(-1)
        torch.testing.assert_close(together.member_probabilities[member], alone)
    torch.testing.assert_close(
        together.probabilities, mean_probabilities(together.member_probabilities)
    )


def test_order_of_members_does_not_matter(make_checkpoint: MakeCheckpoint) -> None:
    paths = [make_checkpoint(noise=0.3, noise_seed=seed) for seed in range(3)]
    forward, backward = Ensemble.from_checkpoints(paths), Ensemble.from_checkpoints(paths[::-1])
    views = views_of(forward)
    torch.testing.assert_close(
        forward.combine(forward.member_logits(views)),
        backward.combine(backward.member_logits(views)),
    )


def test_classes_are_aligned_by_name(make_checkpoint: MakeCheckpoint) -> None:
    straight, turned = make_checkpoint(), make_checkpoint(order=(2, 0, 1))
    ensemble = Ensemble.from_checkpoints([straight, turned])
    assert ensemble.class_names == ("dots", "plain", "stripes")
    members = ensemble.member_probabilities(views_of(ensemble))
    torch.testing.assert_close(members[0], members[1])
    other = make_checkpoint(class_names=("dots", "plain", "waves"))
    with pytest.raises(CheckpointMismatchError, match=r"missing \['stripes'\] and extra"):
        Ensemble.from_checkpoints([straight, other])


def test_heads_on_one_backbone_share_it_in_memory_in_time_and_on_disk(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    paths = [make_checkpoint(head_noise=0.2, noise_seed=seed) for seed in range(5)]
    ensemble = Ensemble.from_checkpoints(paths)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for member in ensemble.parts:
        assert isinstance(member, ClassifierMember)
        member.classifier.network.conv1.register_forward_hook(count)
    views = views_of(ensemble)
    members = ensemble.member_probabilities(views)
    assert runs == 1
    alone = [Ensemble.from_file(path).member_probabilities(views)[0] for path in paths]
    assert torch.equal(members, torch.stack(alone))
    ensemble.save(tmp_path / "heads.ckpt")
    assert (tmp_path / "heads.ckpt").stat().st_size < 1.2 * paths[0].stat().st_size
    again = Ensemble.from_file(tmp_path / "heads.ckpt")
    assert torch.equal(again.member_probabilities(views), members)


def test_a_saved_ensemble_is_one_safe_file_that_answers_alike(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule, tmp_path: Path
) -> None:
    inner = Ensemble.from_checkpoints([make_checkpoint(), make_checkpoint(noise=0.3)])
    inner.save(tmp_path / "inner.ckpt")
    paths = [tmp_path / "inner.ckpt", make_checkpoint(backbone="test_efficientnet", size=48)]
    ensemble = Ensemble.from_checkpoints(paths, coefficients=[1, 3], pooling="geometric")
    with pytest.warns(UserWarning, match="hold out"):
        ensemble = ensemble.calibrate(datamodule, reject_risk=0.2, conformal=0.1)
    ensemble.save(tmp_path / "outer.ckpt")
    content = torch.load(tmp_path / "outer.ckpt", weights_only=True)
    assert content["finetune"]["kind"] == "ensemble"
    for path in paths:
        path.unlink()  # it needs nothing else
    again = Ensemble.from_file(tmp_path / "outer.ckpt")
    views = views_of(ensemble)
    members = ensemble.member_logits(views)
    assert torch.equal(again.member_logits(views), members)
    assert torch.equal(again.combine(members), ensemble.combine(members))
    assert again.describe() == ensemble.describe()
    torch.testing.assert_close(again(*views.values()).exp(), again.probabilities(views))


def test_saved_predictions_are_members_for_their_own_images(
    make_checkpoint: MakeCheckpoint,
    datamodule: ImageFolderDataModule,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    path = make_checkpoint(noise=0.3)
    saved = predict(Ensemble.from_file(path), image_folder / "val")
    saved.to_csv(tmp_path / "answers.csv")
    both = Ensemble.from_checkpoints([make_checkpoint(), tmp_path / "answers.csv"])
    held_out = both.held_out(datamodule)
    live = Ensemble.from_checkpoints([path]).held_out(datamodule)
    found, expected = held_out.member_logits[1], live.member_logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected)
    both.save(tmp_path / "both.ckpt")
    reloaded = Ensemble.from_file(tmp_path / "both.ckpt").held_out(datamodule)
    assert torch.equal(reloaded.member_logits, held_out.member_logits)
    with pytest.raises(CheckpointMismatchError, match=r"in .*answers\.csv by their path"):
        predict(both, image_folder / "test")
    with pytest.raises(CheckpointMismatchError, match="paths"):
        both.member_probabilities(views_of(both))


@pytest.mark.parametrize(("task", "names"), [("multilabel", ("a", "b")), ("regression", ("age",))])
def test_saved_predictions_of_any_task_are_members(
    image_folder: Path, tmp_path: Path, task: str, names: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    live = ClassifierMember(
        ImageClassifier(names, "test_resnet", pretrained=False, image_size=32, task=task), "live"
    )
    saved = predict(Ensemble([live]), image_folder / "val")
    saved.to_csv(tmp_path / "answers.csv")
    table = TableMember.from_file(tmp_path / "answers.csv")
    both = Ensemble([table, live])
    assert (both.task.name, both.class_names) == (task, names)
    answers = predict(both, image_folder / "val")
    torch.testing.assert_close(answers.member_probabilities[0], saved.probabilities)
    torch.testing.assert_close(answers.probabilities, saved.probabilities)
    both.save(tmp_path / "both.ckpt")
    again = Ensemble.from_file(tmp_path / "both.ckpt")
    assert again.describe() == both.describe()
    assert torch.equal(predict(again, image_folder / "val").logits, answers.logits)
    torch.testing.assert_close(
        predict(Ensemble([table]), image_folder / "val").probabilities, saved.probabilities
    )


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (["file", "p:a", "p:b"], ["x.png", "0.5", "0.5"], "expected columns"),
        (["path", "p:a"], ["x.png", "1"], "expected columns"),
        (["path", "p:a", "p:b"], ["x.png", "0.5", "much"], "line 2: expected a probability"),
        (["path", "p:a", "p:b"], ["x.png", "0.9", "0.9"], "line 2: .* sum to 1, found 1.8"),
    ],
)
def test_tables_that_are_no_predictions_are_refused(
    tmp_path: Path, header: list[str], row: list[str], message: str
) -> None:
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, row])
    with pytest.raises(DataError, match=message):
        Ensemble.from_checkpoints([tmp_path / "table.csv"])


def test_selection_drops_a_ruined_member_and_is_not_below_the_best(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    paths = [
        make_checkpoint(noise=3.0, noise_seed=1),
        make_checkpoint(),
        make_checkpoint(backbone="test_efficientnet", size=48),
    ]
    ensemble = Ensemble.from_checkpoints(paths)
    before = ensemble.held_out(datamodule)
    selected = ensemble.select(datamodule, method="greedy")
    assert str(paths[0]) not in selected.member_names
    assert sum(selected.coefficients) == pytest.approx(1)
    picked = [index for index, each in enumerate(before.ids) if each in selected.roles["pick"]]
    assert len(picked) == 30
    labels = before.labels[picked]
    member_nll = held_out_losses(before.member_logits[:, picked], labels, "nll")
    after = selected.held_out(datamodule).member_logits[:, picked]
    nll = held_out_loss(selected.pool(after), labels, "nll")
    assert nll <= member_nll.min() + 1e-6
    assert ensemble.select(datamodule, method="all") is ensemble
    learned = ensemble.select(datamodule, method="learned")
    assert learned.coefficients[learned.member_names.index(str(paths[0]))] < 0.2
    fewer = ensemble.select(datamodule, max_members=1)
    assert len(fewer.parts) == 1


def test_selecting_again_costs_no_forward_pass(
    make_checkpoint: MakeCheckpoint,
    datamodule: ImageFolderDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [make_checkpoint(noise=0.4, noise_seed=seed) for seed in range(3)]
    ensemble = Ensemble.from_checkpoints(paths)
    ensemble.held_out(datamodule)
    monkeypatch.setattr(ImageClassifier, "forward", lambda *_: pytest.fail("a forward pass"))
    selected = ensemble.select(datamodule, metric="accuracy")
    selected = selected.select(datamodule, method="learned")
    with pytest.warns(UserWarning, match="hold out"):
        assert selected.calibrate(datamodule).calibration is not None


def test_calibration_keeps_labels_lowers_the_nll_and_fits_on_the_other_half(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    def sharpen(state_dict: dict[str, Tensor]) -> None:
        state_dict["network.fc.weight"] *= 8
        state_dict["network.fc.bias"] *= 8

    paths = [make_checkpoint(change=sharpen, noise=0.5, noise_seed=seed) for seed in range(2)]
    selected = Ensemble.from_checkpoints(paths).select(datamodule)
    with pytest.warns(UserWarning, match="30 images"):
        calibrated = selected.calibrate(datamodule, conformal=0.2, reject_risk=0.1)
    assert calibrated.calibration is not None
    fit = calibrated.calibration.fit
    assert fit.temperature > 1
    assert fit.nll_after < fit.nll_before
    assert not set(calibrated.roles["pick"]) & set(calibrated.roles["calibrate"])
    members = calibrated.held_out(datamodule, "test").member_logits
    answer = calibrated.answer(members)
    assert torch.equal(answer.probabilities.argmax(-1), selected.pool(members).argmax(-1))
    assert answer.rejected is not None
    assert answer.prediction_sets is not None
    assert answer.rejected.shape == (30,)
    assert answer.prediction_sets.shape == (30, 3)


def test_images_that_picked_do_not_calibrate_unless_allowed(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    paths = [make_checkpoint(noise=0.4, noise_seed=seed) for seed in range(2)]
    selected = Ensemble.from_checkpoints(paths).select(datamodule, share="all")
    with pytest.raises(CalibrationError, match="30 of 30 that helped to pick"):
        selected.calibrate(datamodule)
    with pytest.warns(UserWarning, match="hold out"), pytest.warns(UserWarning, match="flatter"):
        reused = selected.calibrate(datamodule, allow_reuse=True)
    assert reused.calibration is not None
    assert reused.calibration.reused


def test_a_class_that_the_members_do_not_know_is_named(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    for name in ("dots", "waves"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for split in ("train", "val"):
            pixels = np.zeros((8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    module = ImageFolderDataModule(tmp_path, num_workers=0, cache="off", test_fraction=0.0)
    with pytest.raises(CheckpointMismatchError, match="waves"):
        Ensemble.from_checkpoints([make_checkpoint()]).held_out(module)


def test_damaged_files_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    Ensemble.from_checkpoints([make_checkpoint()]).save(tmp_path / "good.ckpt")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    del content["finetune"]["members"][0]["hyper_parameters"]
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        Ensemble.from_file(tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="no file"):
        Ensemble.from_checkpoints([tmp_path / "absent.ckpt"])


def test_an_ensemble_stays_in_eval_mode(make_checkpoint: MakeCheckpoint) -> None:
    ensemble = Ensemble.from_checkpoints([make_checkpoint(batchnorm="train")])
    ensemble.train()
    assert not any(module.training for module in ensemble.modules())


def test_moved_images_are_found_in_a_table_by_names_that_are_unique(tmp_path: Path) -> None:
    def member(paths: list[str]) -> TableMember:
        logits = torch.arange(2.0 * len(paths)).view(-1, 2)
        return TableMember("answers.csv", ["a", "b"], paths, logits)

    moved = member(["/gone/x/1.jpg", "/gone/y/1.jpg", "/gone/x/2.jpg"])
    assert moved.logits({}, ["/new/x/2.jpg"]).tolist() == [[4, 5]]
    with pytest.raises(CheckpointMismatchError, match=r"found /new/x/1\.jpg"):
        moved.logits({}, ["/new/x/1.jpg"])  # two rows have that name
    with pytest.raises(CheckpointMismatchError, match=r"found /new/y/2\.jpg"):
        moved.logits({}, ["/new/y/2.jpg"])  # the row is that of another image
    (tmp_path / "2.jpg").touch()
    still = member([str(tmp_path / "2.jpg")])
    with pytest.raises(CheckpointMismatchError, match=r"found /new/x/2\.jpg"):
        still.logits({}, ["/new/x/2.jpg"])  # the image of the table is where it was
    assert still.logits({}, [str(tmp_path / "2.jpg")]).tolist() == [[0, 1]]


def test_a_table_in_an_ensemble_of_the_first_format_answers_alike(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    table = TableMember(
        "answers.csv", ["dots", "plain", "stripes"], ["/x/1.jpg"], torch.zeros(1, 3)
    )
    Ensemble([table]).save(tmp_path / "e.ckpt")
    content = torch.load(tmp_path / "e.ckpt", weights_only=True)
    del content["state_dict"]["members.0.log_probabilities"]
    del content[ENTRY][CHECKSUMS]  # which that format had none of
    content["state_dict"]["members.0.table"] = torch.tensor([[0.5, 0.5, 0.0]])
    torch.save(content, tmp_path / "e.ckpt")
    found = Ensemble.from_file(tmp_path / "e.ckpt").member_probabilities({}, ["/x/1.jpg"])
    torch.testing.assert_close(found, torch.tensor([[[0.5, 0.5, 0.0]]]))
