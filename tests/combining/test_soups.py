import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.combining.averaging import average_state_dicts
from finetune.combining.ensemble import Ensemble
from finetune.combining.holdout_roles import Share
from finetune.combining.soup_evaluation import WeightsEvaluator
from finetune.combining.soups import average_checkpoints
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import CheckpointError, CheckpointMismatchError, UsageError
from finetune.spec.preprocessing import Preprocessing
from finetune.tasks.held_out_loss import Metric
from finetune.training.checkpoints import ENTRY, read_checkpoint, read_content, save_atomically
from finetune.training.classifier import ImageClassifier

MakeCheckpoint = Callable[..., Path]


def weights(path: Path) -> dict[str, Tensor]:
    return read_checkpoint(path).state_dict


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_uniform_average_of_files_is_that_of_their_weights_and_loads_as_a_fit_does(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    paths = [make_checkpoint(noise=0.1, noise_seed=seed) for seed in range(3)]
    soup = average_checkpoints(paths)
    assert_equal(soup.state_dict, average_state_dicts([weights(path) for path in paths]))
    soup.save(tmp_path / "soup.ckpt")
    loaded = ImageClassifier.from_checkpoint(tmp_path / "soup.ckpt")
    assert_equal(dict(loaded.state_dict()), soup.state_dict)
    assert loaded.class_names == ("dots", "plain", "stripes")
    provenance = read_checkpoint(tmp_path / "soup.ckpt").details["provenance"]
    assert [member["path"] for member in provenance["members"]] == [str(p) for p in paths]
    assert [member["coefficient"] for member in provenance["members"]] == [1 / 3] * 3


def test_an_average_sees_images_as_its_members_do_whatever_timm_says_today(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule, tmp_path: Path
) -> None:
    then = {"image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "crop_fraction": 0.7}
    then = Preprocessing.from_dict({**then, "interpolation": "bilinear"})
    paths = []
    for seed in range(2):
        content = read_content(make_checkpoint(noise=0.1, noise_seed=seed))
        content[ENTRY]["preprocessing"] = then.to_dict()
        paths.append(tmp_path / f"{seed}.ckpt")
        save_atomically(content, paths[-1])
    soup = average_checkpoints(paths, method="greedy", datamodule=datamodule)
    assert soup.classifier().preprocessing == then
    soup.save(tmp_path / "soup.ckpt")
    classifier = ImageClassifier.from_checkpoint(tmp_path / "soup.ckpt")
    assert classifier.preprocessing == then
    loader = datamodule.evaluation_dataloader("val", preprocessings=(then,))
    with torch.inference_mode():
        logits = torch.cat([classifier(views[0]) for views, _ in loader])
    torch.testing.assert_close(soup.entry["val"]["logits"], logits)
    ensemble = Ensemble.from_file(tmp_path / "soup.ckpt")
    assert ensemble.preprocessings == (then,)


def test_weighted_and_one_checkpoint(make_checkpoint: MakeCheckpoint) -> None:
    paths = [make_checkpoint(noise=0.1, noise_seed=seed) for seed in range(2)]
    soup = average_checkpoints(paths, method="weighted", coefficients=[3, 1])
    assert soup.coefficients == (0.75, 0.25)
    assert_equal(soup.state_dict, average_state_dicts([weights(p) for p in paths], [0.75, 0.25]))
    assert_equal(average_checkpoints(paths[:1]).state_dict, weights(paths[0]))


def test_final_layers_are_aligned_by_class_name(make_checkpoint: MakeCheckpoint) -> None:
    straight = make_checkpoint(noise=0.1, noise_seed=1)
    other = make_checkpoint(noise=0.1, noise_seed=2)
    turned = make_checkpoint(noise=0.1, noise_seed=2, order=(2, 0, 1))
    assert_equal(
        average_checkpoints([straight, turned]).state_dict,
        average_checkpoints([straight, other]).state_dict,
    )


def test_greedy_finds_the_known_right_answer(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    """Opposite errors cancel, a ruined member does not belong: the right answer is {0, 1}."""

    def shifted(sign: float) -> Callable[[dict[str, Tensor]], None]:
        def change(state_dict: dict[str, Tensor]) -> None:
            state_dict["network.fc.bias"] += sign * torch.tensor([4.0, -4.0, 0.0])

        return change

    paths = [
        make_checkpoint(noise=3.0, noise_seed=5),
        make_checkpoint(change=shifted(+1.0)),
        make_checkpoint(change=shifted(-1.0)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the two good ones share a basin
        soup = average_checkpoints(paths, method="greedy", datamodule=datamodule, share="all")
    assert soup.coefficients == (0.0, 0.5, 0.5)
    assert soup.score is not None
    assert soup.score.nll < min(score.nll for score in soup.member_scores)
    assert_equal(soup.state_dict, average_checkpoints(paths[1:]).state_dict)


@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_is_never_below_the_best_member(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule, metric: str, seed: int
) -> None:
    paths = [make_checkpoint(noise=0.6, noise_seed=10 * seed + each) for each in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whether they share a basin is chance
        soup = average_checkpoints(paths, method="greedy", datamodule=datamodule, metric=metric)  # type: ignore[arg-type]
    assert soup.score is not None
    assert soup.score.loss <= min(score.loss for score in soup.member_scores)
    best = min(range(3), key=lambda index: soup.member_scores[index].sort_key)
    assert soup.coefficients[best] > 0


def test_equal_members_are_ties_and_ties_are_accepted(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    path = make_checkpoint()
    soup = average_checkpoints([path, path, path], method="greedy", datamodule=datamodule)
    assert soup.coefficients == pytest.approx((1 / 3,) * 3)
    assert_equal(soup.state_dict, weights(path))


def test_interpolation_keeps_its_ends_and_draws_a_curve(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    paths = [make_checkpoint(noise=0.5, noise_seed=1), make_checkpoint()]
    for coefficient, path in ((0.0, paths[0]), (1.0, paths[1])):
        fixed = average_checkpoints(paths, method="interpolate", coefficients=[coefficient])
        assert_equal(fixed.state_dict, weights(path))
    soup = average_checkpoints(paths, method="interpolate", datamodule=datamodule)
    assert [point for point, _ in soup.curve] == pytest.approx([step / 10 for step in range(11)])
    assert soup.score is not None
    assert soup.score.loss == min(score.loss for _, score in soup.curve)


def test_members_from_different_starts_are_warned_about(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    paths = [make_checkpoint(seed=seed) for seed in range(2)]
    with pytest.warns(UserWarning, match="do not share a basin"):
        average_checkpoints(paths, datamodule=datamodule)


def test_auto_keeps_the_better_batch_norm_statistics(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    """Members whose running means are wrong by far: only a new estimate can answer."""

    def spoil(state_dict: dict[str, Tensor]) -> None:
        for name, tensor in state_dict.items():
            if name.endswith("running_mean"):
                tensor += 3.0

    spoilt = [make_checkpoint(change=spoil, batchnorm="train") for _ in range(2)]
    averaged = average_checkpoints(spoilt, datamodule=datamodule, batchnorm="average")
    best = average_checkpoints(spoilt, datamodule=datamodule)
    assert (averaged.batchnorm, best.batchnorm) == ("average", "update")
    assert averaged.score is not None
    assert best.score is not None
    assert best.score.nll < averaged.score.nll
    assert "pick" in best.entry["roles"]

    good = [make_checkpoint(batchnorm="train") for _ in range(2)]
    kept = average_checkpoints(good, datamodule=datamodule)
    assert kept.score is not None
    updated = average_checkpoints(good, datamodule=datamodule, batchnorm="update")
    assert updated.score is not None
    assert updated.batchnorm == "update"
    assert kept.score.loss <= updated.score.loss


def test_statistics_of_members_tuned_in_eval_mode_stay(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    paths = [make_checkpoint(noise=0.05, noise_seed=seed) for seed in range(2)]
    soup = average_checkpoints(paths, datamodule=datamodule)
    assert soup.batchnorm == "average"
    for name, tensor in weights(paths[0]).items():
        if "running" in name:
            assert torch.equal(soup.state_dict[name], tensor)
    with pytest.raises(UsageError, match="eval mode"):
        average_checkpoints(paths, datamodule=datamodule, batchnorm="update")


def test_the_file_notes_which_images_picked_and_what_it_answered(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule, tmp_path: Path
) -> None:
    paths = [make_checkpoint(noise=0.1, noise_seed=seed) for seed in range(2)]
    assert "roles" not in average_checkpoints(paths, datamodule=datamodule).entry
    soup = average_checkpoints(paths, method="greedy", datamodule=datamodule)
    soup.save(tmp_path / "soup.ckpt")
    details = read_checkpoint(tmp_path / "soup.ckpt").details
    assert len(details["roles"]["pick"]) == 30  # half of 60 val images
    assert details["val"]["logits"].shape == (60, 3)
    loaded = ImageClassifier.from_checkpoint(tmp_path / "soup.ckpt")
    loader = datamodule.evaluation_dataloader("val", preprocessings=(loaded.preprocessing,))
    with torch.no_grad():
        live = torch.cat([loaded(views[0]) for views, _ in loader])
    torch.testing.assert_close(details["val"]["logits"], live)


@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
@pytest.mark.parametrize("share", ["half", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_a_greedy_soup_is_never_below_its_best_member(
    make_checkpoint: MakeCheckpoint,
    datamodule: ImageFolderDataModule,
    metric: Metric,
    share: Share,
    seed: int,
) -> None:
    noises = [[0.02, 0.3, 0.02], [0.4, 0.5, 0.6, 0.4], [0.1, 0.1, 2.0]][seed]
    paths = [
        make_checkpoint(noise=noise, noise_seed=10 * seed + number)
        for number, noise in enumerate(noises)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some of them share no basin
        soup = average_checkpoints(
            paths, method="greedy", datamodule=datamodule, metric=metric, share=share
        )
    assert soup.score is not None
    assert soup.score.loss <= min(score.loss for score in soup.member_scores)
    assert sum(soup.coefficients) == pytest.approx(1)


def test_equal_members_all_stay_and_change_nothing(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    path = make_checkpoint(noise=0.1)
    one = average_checkpoints([path], method="greedy", datamodule=datamodule)
    assert_equal(one.state_dict, weights(path))
    four = average_checkpoints([path] * 4, method="greedy", datamodule=datamodule)
    assert four.coefficients == (0.25,) * 4
    assert_equal(four.state_dict, weights(path))


def test_statistics_that_would_ruin_a_greedy_soup_are_not_taken(
    make_checkpoint: MakeCheckpoint,
    datamodule: ImageFolderDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [make_checkpoint(noise=0.02, noise_seed=seed, batchnorm="train") for seed in range(2)]

    def ruined(self: WeightsEvaluator, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor + 5 if name.endswith("running_mean") else tensor.clone()
            for name, tensor in state_dict.items()
        }

    monkeypatch.setattr(WeightsEvaluator, "reestimated", ruined)
    settings: dict[str, Any] = {"method": "greedy", "datamodule": datamodule}
    with pytest.warns(UserWarning, match="below its best member"):
        soup = average_checkpoints(paths * 2, batchnorm="update", **settings)
    assert soup.batchnorm == "average"
    assert soup.score is not None
    assert soup.score.loss <= min(score.loss for score in soup.member_scores)


def test_an_average_remembers_every_split_that_its_members_had(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    def fitted(seed: int, **data: object) -> Path:
        return make_checkpoint(noise=0.1, noise_seed=seed, data={"folds": 3, **data})

    alike = average_checkpoints([fitted(0, fold=1), fitted(1, fold=1, training_seed=7)])
    assert "further_data" not in alike.entry
    mixed = average_checkpoints([fitted(0, fold=1), fitted(1, fold=2)])
    mixed.save(tmp_path / "mixed.ckpt")
    again = average_checkpoints([fitted(2, fold=1), tmp_path / "mixed.ckpt"])
    again.save(tmp_path / "again.ckpt")
    for name in ("mixed.ckpt", "again.ckpt"):
        ensemble = Ensemble.from_checkpoints([tmp_path / name])
        assert {record.fold for record in ensemble.fitted_on} == {1, 2}
        ensemble.save(tmp_path / "ensemble.ckpt")
        assert Ensemble.from_file(tmp_path / "ensemble.ckpt").fitted_on == ensemble.fitted_on


def other_classes(make: MakeCheckpoint) -> Path:
    return make(class_names=("dots", "plain", "waves"))


def not_finite(make: MakeCheckpoint) -> Path:
    return make(change=lambda state_dict: state_dict["network.fc.bias"].fill_(float("nan")))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda make: make(backbone="test_efficientnet"), "network test_resnet.*test_eff"),
        (lambda make: make(size=40), "preprocessing"),
        (other_classes, r"missing \['stripes'\] and extra \['waves'\]"),
        (not_finite, r"NaN or infinity in network\.fc\.bias"),
        (lambda make: make(change=lambda state_dict: state_dict.clear()), "weights.*none"),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_the_reason(
    make_checkpoint: MakeCheckpoint, other: Callable[[MakeCheckpoint], Path], message: str
) -> None:
    path = other(make_checkpoint)
    with pytest.raises(CheckpointMismatchError, match=message) as refusal:
        average_checkpoints([make_checkpoint(), path])
    assert str(path) in str(refusal.value)


def test_strange_files_and_contradicting_settings_are_refused(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule, tmp_path: Path
) -> None:
    path = make_checkpoint()
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        average_checkpoints([path, tmp_path / "text.ckpt"])
    with pytest.raises(CheckpointError, match="run folder"):
        average_checkpoints([tmp_path])
    with pytest.raises(CheckpointMismatchError, match="none"):
        average_checkpoints([])
    for settings, message in [
        ({"method": "weighted"}, "coefficients"),
        ({"coefficients": [1, 1]}, "weighted"),
        ({"method": "greedy"}, "held-out"),
        ({"method": "interpolate"}, "coefficient or held-out"),
        ({"batchnorm": "update"}, "training images"),
    ]:
        with pytest.raises(UsageError, match=message):
            average_checkpoints([path, path], **settings)
    with pytest.raises(UsageError, match="two checkpoints"):
        average_checkpoints([path], method="interpolate", coefficients=[0.5])


def test_run_folders_stand_for_their_best_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    path = make_checkpoint()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(path.read_bytes())
    assert_equal(average_checkpoints([tmp_path / "run"]).state_dict, weights(path))
