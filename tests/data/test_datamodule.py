import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.workers import choose_num_workers
from finetune.errors import ImageError, ImageFolderError, UsageError
from finetune.spec.preprocessing import Preprocessing

Painter = Callable[..., Path]
SMALL = Preprocessing(image_size=16, crop_fraction=1.0)


@pytest.fixture
def unsplit(paint: Painter, tmp_path: Path) -> Path:
    for number in range(10):
        for name in ("ant", "bee", "wasp"):
            paint(f"r/{name}/{number}.png")
    return tmp_path / "r"


def data(root: Path, **options: object) -> ImageFolderDataModule:
    options = {"preprocessing": SMALL, "batch_size": 4, "cache": "off", **options}
    return ImageFolderDataModule(root, **options)  # type: ignore[arg-type]


def all_batches(module: ImageFolderDataModule) -> tuple[Tensor, Tensor]:
    images, labels = zip(*module.train_dataloader(), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_balanced_epochs_draw_every_class_equally_often(paint: Painter, tmp_path: Path) -> None:
    for name, count in {"rare": 4, "usual": 40}.items():
        for number in range(count):
            paint(f"r/{name}/{number}.png")
    settings = {"val_fraction": 0.0, "test_fraction": 0.0, "seed": 3}
    module = data(tmp_path / "r", balanced=True, **settings)
    loader = module.train_dataloader()
    epochs = []
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epochs.append([draw.index for draw in loader.sampler])
    assert all(len(epoch) == 44 for epoch in epochs)
    assert epochs[0] != epochs[1]
    labels = [image.label for image in module.images("train")]
    share = sum(labels[index] == 0 for epoch in epochs for index in epoch) / (20 * 44)
    assert share == pytest.approx(0.5, abs=4 * 0.5 / (20 * 44) ** 0.5)  # four standard errors
    again = data(tmp_path / "r", balanced=True, **settings).train_dataloader().sampler
    assert [draw.index for draw in again] == epochs[0]
    plain = data(tmp_path / "r", **settings).train_dataloader().sampler
    assert sorted(draw.index for draw in plain) == list(range(44))


def test_an_unsplit_folder_is_held_out_by_class(unsplit: Path) -> None:
    module = data(unsplit)
    assert module.class_names == ("ant", "bee", "wasp")
    assert module.num_classes == 3
    for split, count in {"train": 6, "val": 2, "test": 2}.items():
        assert module.class_counts(split) == {"ant": count, "bee": count, "wasp": count}
    sides = [set(module.images(split)) for split in ("train", "val", "test")]
    assert len(set.union(*sides)) == 30 == sum(map(len, sides))


def test_batches_are_bytes_with_their_labels(unsplit: Path) -> None:
    module = data(unsplit)
    images, labels = all_batches(module)
    assert images.shape == (18, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.min() < images.max()
    assert Counter(labels.tolist()) == {0: 6, 1: 6, 2: 6}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_evaluation_loader_follows_the_order_of_images(unsplit: Path, split: str) -> None:
    module = data(unsplit, augmentation="strong")
    loader = module.evaluation_dataloader(split)
    labels = torch.cat([labels for _, labels in loader])
    assert labels.tolist() == [image.label for image in module.images(split)]
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.cat([images for images, _ in loader]))


def test_one_seed_gives_one_order_and_the_same_views_whatever_the_workers(unsplit: Path) -> None:
    state = torch.random.get_rng_state()
    alone = data(unsplit, augmentation="medium", num_workers=0, seed=3)
    first = all_batches(alone)
    assert torch.equal(torch.random.get_rng_state(), state), "the global state was used"
    with_workers = all_batches(data(unsplit, augmentation="medium", num_workers=2, seed=3))
    assert torch.equal(first[0], with_workers[0])
    assert torch.equal(first[1], with_workers[1])
    other_seed = all_batches(data(unsplit, augmentation="medium", num_workers=0, seed=4))
    assert not torch.equal(first[0], other_seed[0])


def test_every_pass_is_another_epoch(unsplit: Path) -> None:
    loader = data(unsplit, num_workers=0).train_dataloader()
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0][0], second[0][0])
    loader.sampler.set_epoch(0)  # type: ignore[attr-defined]
    assert torch.equal(first[0][0], next(iter(loader))[0])


def test_a_test_folder_is_never_used_as_val(paint: Painter, tmp_path: Path) -> None:
    for number in range(10):
        paint(f"r/train/a/{number}.png")
        paint(f"r/train/b/{number}.png")
        paint(f"r/test/a/t{number}.png")
    module = data(tmp_path / "r")
    assert module.class_counts("train") == {"a": 8, "b": 8}
    assert module.class_counts("val") == {"a": 2, "b": 2}
    assert module.class_counts("test") == {"a": 10, "b": 0}
    assert {image.path.parts[-3] for image in module.images("val")} == {"train"}


def test_a_val_folder_stays_whole_and_test_comes_from_train(paint: Painter, tmp_path: Path) -> None:
    for number in range(10):
        paint(f"r/train/a/{number}.png")
        paint(f"r/train/b/{number}.png")
        paint(f"r/val/a/v{number}.png")
    module = data(tmp_path / "r")
    assert module.class_counts("val") == {"a": 10, "b": 0}
    assert module.class_counts("test") == {"a": 2, "b": 2}
    without = data(tmp_path / "r", test_fraction=0)
    assert without.class_counts("train") == {"a": 10, "b": 10}
    with pytest.raises(ImageFolderError, match="Expected test images"):
        without.setup("test")


def test_folds_hold_every_image_out_once_and_leave_test_alone(unsplit: Path) -> None:
    modules = [data(unsplit, folds=4, fold=fold) for fold in range(4)]
    tests = {module.images("test") for module in modules}
    assert len(tests) == 1 or len({tuple(i.path for i in t) for t in tests}) == 1
    held_out = [image.path for module in modules for image in module.images("val")]
    assert len(held_out) == len(set(held_out)) == 24
    for module in modules:
        assert all(count >= 1 for count in module.class_counts("train").values())
    with pytest.raises(UsageError, match=r"0 \.\.\. 3"):
        data(unsplit, folds=4, fold=4)


def test_the_records_of_a_run_are_written(unsplit: Path, tmp_path: Path, paint: Painter) -> None:
    healthy = data(unsplit)
    healthy.setup("fit")
    run = tmp_path / "run"
    healthy.write_records(run)
    assert sorted(path.name for path in run.iterdir()) == ["batch.png", "split.csv"]
    assert healthy.summary() == "18 train, 6 val, 6 test images of 3 classes"
    (unsplit / "ant/bad.jpg").write_text("<html>")
    with pytest.raises(ImageError, match=r"--data\.on_bad_image skip"):
        data(unsplit).setup("fit")
    skipping = data(unsplit, on_bad_image="skip")
    skipping.setup("fit")
    skipping.write_records(run)
    assert "ant/bad.jpg" in (run / "bad_images.csv").read_text()
    assert "1 unreadable files left out" in skipping.summary()
    assert {i.path for i in skipping.folder.images} == {i.path for i in healthy.folder.images}


def test_an_extra_class_in_val_is_an_error_naming_it(paint: Painter, tmp_path: Path) -> None:
    for name in ["train/a/1.png", "train/b/1.png", "val/a/2.png", "val/zebra/1.png"]:
        paint(f"r/{name}")
    with pytest.raises(ImageFolderError, match="'zebra' only in val"):
        _ = data(tmp_path / "r").class_names  # before any network is made


def test_one_class_is_refused_with_a_hint(paint: Painter, tmp_path: Path) -> None:
    paint("r/inner/train/a/1.png")
    paint("r/inner/train/b/1.png")
    with pytest.raises(ImageFolderError, match="did you mean"):
        data(tmp_path / "r").setup("fit")


def test_the_manifest_reproduces_a_split(unsplit: Path, tmp_path: Path) -> None:
    original = data(unsplit, seed=7, val_fraction=0.3)
    original.write_manifest(tmp_path / "run/split.csv")
    again = data(unsplit, manifest=tmp_path / "run/split.csv", seed=1)
    for split in ("train", "val", "test"):
        assert again.images(split) == original.images(split)
    no_test = data(unsplit, test_fraction=0)
    no_test.write_manifest(tmp_path / "run/split.csv")
    assert data(unsplit, manifest=tmp_path / "run/split.csv").images("test") == ()


def test_a_folds_manifest_gives_each_member_its_fold(unsplit: Path, tmp_path: Path) -> None:
    original = data(unsplit, folds=3, fold=0)
    original.write_manifest(tmp_path / "split.csv")
    for fold in range(3):
        expected = data(unsplit, folds=3, fold=fold).images("val")
        assert data(unsplit, manifest=tmp_path / "split.csv", fold=fold).images("val") == expected


def test_a_class_of_one_image_trains_and_is_not_evaluated(unsplit: Path, paint: Painter) -> None:
    paint("r/one/only.png")
    module = data(unsplit)
    assert module.class_counts("train")["one"] == 1
    assert module.class_counts("val")["one"] == module.class_counts("test")["one"] == 0


def test_the_attached_classifier_decides_what_was_not_given(unsplit: Path) -> None:
    vocabulary = ("wasp", "hornet", "bee", "ant")
    module = ImageFolderDataModule(unsplit, cache="off")
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0,
        world_size=1,
        lightning_module=SimpleNamespace(
            class_names=vocabulary, preprocessing=Preprocessing(image_size=8, mean=(0.5,), std=(1,))
        ),
    )
    module.setup("test")
    assert module.class_names == vocabulary
    assert {(i.path.parent.name, i.label) for i in module.images("test")} == {
        ("ant", 3),
        ("bee", 2),
        ("wasp", 0),
    }
    images, _ = next(iter(module.test_dataloader()))
    assert images.shape[1:] == (1, 8, 8)


def test_a_last_batch_of_one_is_dropped_in_training_only(paint: Painter, tmp_path: Path) -> None:
    for number in range(9):
        paint(f"r/{'ab'[number % 2]}/{number}.png")
    module = data(tmp_path / "r", val_fraction=0, test_fraction=0)
    assert [len(labels) for _, labels in module.train_dataloader()] == [4, 4]
    assert [len(labels) for _, labels in module.evaluation_dataloader("train")] == [4, 4, 1]
    assert module.val_dataloader() == []


class Constant(LightningModule):
    """Learns one number: enough to run a fit."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))
        self.class_names = None
        self.seen: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        self.seen += batch[1].tolist()
        return (self.value - batch[0].float().mean()) ** 2

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_runs_without_a_word_about_workers(
    unsplit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch.trainer.connectors.data_connector as connector

    monkeypatch.setattr(connector, "suggested_max_num_workers", lambda devices: 16)
    network = Constant()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(network, datamodule=data(unsplit))
    assert not [str(w.message) for w in caught if "workers" in str(w.message)]
    assert len(network.seen) == 36
    assert network.seen[:18] != network.seen[18:]


def test_hyperparameters_are_plain(unsplit: Path) -> None:
    module = data(unsplit, manifest=None, cache_dir=unsplit.parent)
    assert all(
        value is None or isinstance(value, str | int | float) for value in module.hparams.values()
    )


def test_workers_are_for_data_that_takes_long(paint: Painter) -> None:
    small = paint("a.png")
    assert choose_num_workers([small] * 1000, cores=8) == 0
    assert choose_num_workers([small] * 100_000, cores=8) in (4, 8)
    assert choose_num_workers([small] * 100_000, cores=1) == 0
    assert choose_num_workers([], cores=8) == 0


@pytest.mark.parametrize(
    "options",
    [{"augmentation": "wild"}, {"cache": "yes"}, {"on_bad_image": "x"}, {"batch_size": 0}],
)
def test_wrong_settings_are_refused_at_once(unsplit: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        data(unsplit, **options)
