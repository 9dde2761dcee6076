"""Views that are made for a whole batch on a device, against the reader's own transforms."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from finetune.data import device_choice
from finetune.data.batched_operations import OPERATIONS, applied
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.dataset import Draw
from finetune.data.device_choice import DeviceChoice
from finetune.data.drawn_views import (
    DrawnViews,
    training_views,
    uniforms,
)
from finetune.data.on_device import DeviceBatches, DeviceImages
from finetune.data.transforms import Augmentation, evaluation_transform
from finetune.spec.preprocessing import Interpolation, Preprocessing

SIZES = ((60, 80), (80, 60), (64, 64), (64, 200), (30, 40), (3, 5))
GREY = (0.5, 0.5, 0.5)


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Waves, edges and some noise, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [
        120 + 60 * torch.sin(x / (7 + k)) + 50 * torch.cos(y / (5 + k)) + 40 * (x > width / 2)
        for k in range(channels)
    ]
    noise = torch.randn((channels, height, width), generator=generator) * 6
    return (torch.stack(planes) + noise).clamp(0, 255).to(torch.uint8)


class Drawn(torch.utils.data.Sampler[Draw]):
    def __init__(self, draws: list[Draw]) -> None:
        self.draws = draws

    def __len__(self) -> int:
        return len(self.draws)

    def __iter__(self):
        return iter(self.draws)


def batches(
    images: list[Tensor],
    preprocessing: Preprocessing,
    augmentation: Augmentation = "none",
    draws: list[Draw] | None = None,
    **options: Any,
) -> DeviceBatches:
    device_images = DeviceImages.uploaded(iter(images), range(len(images)), torch.device("cpu"))
    options = {"batch_size": 4, **options}
    sampler = Drawn(draws or [Draw(index, index) for index in range(len(images))])
    return DeviceBatches(device_images, sampler, preprocessing, augmentation, **options)


def drawn_for(
    images: list[Tensor], preprocessing: Preprocessing, augmentation: Augmentation
) -> DrawnViews:
    heights, widths = np.array([image.shape[1:] for image in images]).T
    return training_views(heights, widths, np.arange(len(images)), preprocessing, augmentation)


def by_label(loader: DeviceBatches) -> dict[int, Tensor]:
    return {
        label: image
        for images, labels in loader
        for image, label in zip(images, labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_views_are_the_readers(interpolation: Interpolation, channels: int) -> None:
    statistics = GREY[:channels]
    preprocessing = Preprocessing(
        32, statistics, statistics, crop_fraction=0.8, interpolation=interpolation
    )
    images = [photograph(*size, channels) for size in (*SIZES, (5, 300), (40, 61), (61, 40))]
    found = by_label(batches(images, preprocessing))
    transform = evaluation_transform(preprocessing)
    for index, image in enumerate(images):
        assert found[index].dtype == torch.uint8
        difference = (found[index].float() - transform(image).float()).abs()
        assert difference.mean() < 0.6, f"{image.shape}: {difference.mean()}"
        if interpolation != "nearest":  # which is all or nothing where a centre is between pixels
            assert difference.max() <= 12


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_crops_are_those_of_the_reader_for_the_same_box(
    interpolation: Interpolation,
) -> None:
    preprocessing = Preprocessing(32, GREY, GREY, interpolation=interpolation)
    images = [photograph(*size, seed=index) for index, size in enumerate(SIZES * 8)]
    found = by_label(batches(images, preprocessing, "light", batch_size=5))
    box = drawn_for(images, preprocessing, "light")
    mirrored = 0
    for index, image in enumerate(images):
        place = [int(getattr(box, side)[index]) for side in ("top", "left", "height", "width")]
        expected = functional.resized_crop(
            image, *place, [32, 32], InterpolationMode(interpolation), antialias=True
        )
        if box.column_step[index] < 0:
            expected, mirrored = expected.flip(-1), mirrored + 1
        difference = (found[index].float() - expected.float()).abs()
        assert difference.mean() < 0.6
        assert difference.max() <= 12
    assert 10 < mirrored < 38


def test_boxes_are_distributed_as_torchvisions() -> None:
    count, (height, width) = 4000, (60, 90)
    preprocessing = Preprocessing(32, GREY, GREY)
    sizes = np.full(count, height), np.full(count, width)
    found = training_views(*sizes, np.arange(count) * 7919, preprocessing, "strong")
    crop = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    torch.manual_seed(0)
    boxes = [crop.make_params([torch.empty(3, height, width)]) for _ in range(count)]
    for name in ("top", "left", "height", "width"):
        expected = np.sort([box[name] for box in boxes])
        # Kolmogorov and Smirnov's distance of two samples of this size at 0.1 %: 0.044.
        ours = np.sort(getattr(found, name))
        grid = np.arange(0, 91)
        distance = np.searchsorted(ours, grid, "right") - np.searchsorted(expected, grid, "right")
        assert np.abs(distance).max() / count < 0.044
    assert (found.top + found.height).max() <= height
    assert (found.left + found.width).max() <= width


def test_extremely_long_images_get_the_largest_box_in_the_middle() -> None:
    preprocessing = Preprocessing(32, GREY, GREY)
    sizes = np.array([10, 900]), np.array([900, 10])
    found = training_views(*sizes, np.arange(2), preprocessing, "light")
    assert found.height.tolist() == [10, 13]
    assert found.width.tolist() == [13, 10]
    assert found.left.tolist() == [(900 - 13) // 2, 0]


def test_shares_of_what_is_drawn() -> None:
    count = 4000
    sizes = np.full(count, 64), np.full(count, 64)
    preprocessing = Preprocessing(32, GREY, GREY)
    drawn = {
        name: training_views(*sizes, np.arange(count), preprocessing, name)
        for name in ("light", "medium", "strong")
    }
    changed = {name: (views.operation > 0).mean() for name, views in drawn.items()}
    assert changed["light"] == 0
    assert changed["medium"] == pytest.approx(0.5 * 13 / 14, abs=0.03)
    assert changed["strong"] == pytest.approx(13 / 14, abs=0.03)
    erased = {name: (views.erased_height > 0).mean() for name, views in drawn.items()}
    assert erased["light"] == erased["medium"] == 0
    assert erased["strong"] == pytest.approx(0.25, abs=0.03)
    usual = Counter(drawn["strong"].operation.tolist())
    assert set(usual) == set(range(len(OPERATIONS)))
    assert max(usual.values()) < 1.4 * min(usual.values())
    assert np.unique(np.abs(drawn["strong"].magnitude)).size == 31
    area = drawn["strong"].erased_height * drawn["strong"].erased_width / 32**2
    assert area[area > 0].min() > 0.01
    assert area.max() < 0.35


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.2, 0.9])
@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_operations_are_torchvisions(number: int, strength: float) -> None:
    image = photograph(48, 48)
    colour = [100, 110, 120]
    name, signed = list(v2.TrivialAugmentWide._AUGMENTATION_SPACE.items())[number]
    strengths, has_sign = signed
    magnitude = 0.0
    bins = strengths(31, 48, 48)
    if bins is not None:
        magnitude = float(bins[round(abs(strength) * 30)])
        strength = math.copysign(round(abs(strength) * 30) / 30, strength)
        magnitude = math.copysign(magnitude, strength) if has_sign else magnitude
    own = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=colour)
    expected = own._apply_image_or_video_transform(
        image, name, magnitude, InterpolationMode.BILINEAR, own._fill
    )
    others = torch.stack([image.flip(1), image]).float()
    found = applied(
        others.clone(),
        [0, number],
        torch.tensor([0.3, strength]),
        torch.tensor(colour).float().view(1, 3, 1, 1),
    )
    assert torch.equal(found[0], others[0])
    difference = (found[1].round() - expected.float()).abs()
    assert difference.mean() < 1.0, f"{name}: {difference.mean()}"


def test_what_is_erased_has_the_mean_colour() -> None:
    preprocessing = Preprocessing(32, (0.2, 0.4, 0.6), GREY)
    images = [photograph(40, 40, seed=index) for index in range(64)]
    found = by_label(batches(images, preprocessing, "strong", batch_size=64))
    drawn = drawn_for(images, preprocessing, "strong")
    erased = np.flatnonzero(drawn.erased_height)
    assert len(erased) > 5
    for index in erased.tolist():
        top, left, height, width = (
            int(getattr(drawn, f"erased_{side}")[index])
            for side in ("top", "left", "height", "width")
        )
        part = found[index][:, top : top + height, left : left + width]
        assert part.shape[1:] == (height, width)
        assert (part == torch.tensor([51, 102, 153]).view(3, 1, 1)).all()


@pytest.mark.parametrize("augmentation", get_args(Augmentation))
def test_a_view_depends_on_its_draw_alone(augmentation: Augmentation) -> None:
    """Neither on order and batch size nor on how many processes share the work."""
    preprocessing = Preprocessing(24, GREY, GREY)
    images = [photograph(*size, seed=index) for index, size in enumerate(SIZES * 3)]
    draws = [Draw(index, 31 * index) for index in range(len(images))]

    alone = by_label(batches(images, preprocessing, augmentation, draws, batch_size=7))
    assert len(alone) == len(images)
    backwards = by_label(batches(images, preprocessing, augmentation, draws[::-1], batch_size=3))
    shared = [
        batches(images, preprocessing, augmentation, dealt, batch_size=4)
        for dealt in ((draws + draws[: -len(draws) % 4])[rank::4] for rank in range(4))
    ]
    assert {len(loader) for loader in shared} == {len(list(loader)) for loader in shared} == {2}
    together: dict[int, Tensor] = {}
    for loader in shared:
        together |= by_label(loader)
    for other in (backwards, together):
        assert other.keys() == alone.keys()
        for label, image in alone.items():
            assert (image.int() - other[label].int()).abs().max() <= 1  # sums in another order


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20, unique=True))
def test_numbers_depend_on_their_seed_alone(seeds: list[int]) -> None:
    found = uniforms(np.array(seeds), 8)
    assert found.shape == (len(seeds), 8)
    assert ((found >= 0) & (found < 1)).all()
    assert (uniforms(np.array(seeds[-1:]), 8) == found[-1:]).all()


def test_numbers_are_uniform_and_unrelated() -> None:
    found = uniforms(np.arange(20_000), 4)
    assert np.abs(found.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(found[1:, 0], found[:-1, 0])[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("wish", "device", "memory", "takes"),
    [
        ("auto", None, None, False),
        ("auto", "cpu", None, False),
        ("auto", "cuda", 80 * 2**30, True),
        ("auto", "cuda", 2**30, False),
        ("auto", "xpu", None, False),
        ("on", "cpu", None, True),
        ("off", "cuda", 80 * 2**30, False),
    ],
)
def test_images_live_on_an_accelerator_with_room(
    wish: Any, device: str | None, memory: int | None, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_choice, "device_memory", lambda _: memory)
    choice = DeviceChoice(wish, None if device is None else torch.device(device))
    found, reason = choice.takes(10_000, Preprocessing())
    assert found is takes
    assert reason


def test_a_data_module_uploads_once_and_gives_the_bytes_of_its_images(colour_folder: Path) -> None:
    options = {"num_workers": 0, "cache": "off", "batch_size": 8, "augmentation": "none"}
    preprocessing = Preprocessing(32, GREY, GREY)
    here, there = (
        ImageFolderDataModule(colour_folder, preprocessing=preprocessing, on_device=wish, **options)
        for wish in ("off", "on")
    )
    for side in ("train_dataloader", "val_dataloader"):
        expected = torch.cat([images for images, _ in getattr(here, side)()]).float()
        found = torch.cat([images for images, _ in getattr(there, side)()]).float()
        assert found.shape == expected.shape
        assert (found - expected).abs().mean() < 0.6  # of 255: in the same order, too
    assert there.train_dataloader().dataset.pixels is there.train_dataloader().dataset.pixels
    labels = [label for _, batch in there.val_dataloader() for label in batch.tolist()]
    assert labels == [image.label for image in there.images("val")]
    there.soft_labels = torch.rand(len(there.images("train")), 3)
    loader = there.train_dataloader()
    (_, hard, soft), *_ = loader
    for label, row in zip(hard.tolist(), soft, strict=True):
        rows = [index for index, i in enumerate(there.images("train")) if i.label == label]
        assert any(torch.equal(row, there.soft_labels[index]) for index in rows)
