import io
import pickle
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from finetune import ImageClassifier
from finetune.data.decoding import ImageReader, shrunk_size
from finetune.data.transforms import (
    Augmentation,
    RandomView,
    collate_bytes,
    evaluation_transform,
    training_transform,
)
from finetune.networks.factory import preprocessing_of
from finetune.spec.preprocessing import Preprocessing


def random_pixels(height: int, width: int, channels: int = 3) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.sin(x / 11) + torch.cos(y / 7)
    pixels = torch.stack([waves * (k + 1) * 30 + 128 for k in range(channels)])
    return pixels.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_fraction", [0.875, 0.95, 1.0])
def test_evaluation_agrees_with_timm(interpolation: str, crop_fraction: float) -> None:
    preprocessing = Preprocessing(
        image_size=64, crop_fraction=crop_fraction, interpolation=interpolation
    )
    reference = timm.data.create_transform(
        input_size=(3, 64, 64),
        interpolation=interpolation,
        crop_pct=crop_fraction,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    pixels = random_pixels(120, 200)
    expected = reference(Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)))
    actual = evaluation_transform(preprocessing)(pixels) / 255
    assert actual.shape == (3, 64, 64)
    assert (actual - expected).abs().max() < 2.5 / 255
    assert (actual - expected).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("augmentation", get_args(Augmentation))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_view_is_a_square_of_bytes(augmentation: Augmentation, channels: int) -> None:
    statistics = (0.5,) * channels
    transform = training_transform(
        Preprocessing(image_size=32, mean=statistics, std=statistics), augmentation
    )
    torch.manual_seed(0)
    for height, width in [(50, 70), (20, 20), (33, 400), (3, 300), (1, 1)]:
        for _ in range(10):
            view = transform(random_pixels(height, width, channels))
            assert view.shape == (channels, 32, 32)
            assert view.dtype == torch.uint8


def test_stronger_presets_differ_more_from_the_evaluation_view() -> None:
    preprocessing = Preprocessing(image_size=32, crop_fraction=1.0)
    image = random_pixels(48, 64)
    plain = evaluation_transform(preprocessing)(image).float()
    torch.manual_seed(0)
    distances = []
    for augmentation in get_args(Augmentation):
        transform = training_transform(preprocessing, augmentation)
        views = torch.stack([transform(image) for _ in range(200)])
        distances.append((views - plain).abs().mean().item())
    assert distances[0] == 0
    assert distances == sorted(distances)


def test_an_absurdly_long_strip_is_not_blown_up() -> None:
    strip = random_pixels(2, 50_000)
    view = evaluation_transform(Preprocessing(image_size=64))(strip)
    # Resizing before cutting would have made an image of 73 x 1,825,000 pixels.
    assert view.shape == (3, 64, 64)


def test_transforms_can_be_sent_to_workers() -> None:
    transform = training_transform(Preprocessing(image_size=16), "strong")
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301
    torch.manual_seed(1)
    one = transform(random_pixels(30, 30))
    torch.manual_seed(1)
    assert torch.equal(one, again(random_pixels(30, 30)))


@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_the_fast_random_crop_is_torchvisions(interpolation: InterpolationMode) -> None:
    image = random_pixels(90, 130).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    crops = [
        kind(32, scale=(0.3, 1.0), interpolation=interpolation)
        for kind in (RandomView, v2.RandomResizedCrop)
    ]
    for seed in range(10):
        views = []
        for crop in crops:
            torch.manual_seed(seed)
            views.append(crop(image))
        assert torch.equal(*views)


def test_a_batch_is_the_bytes_of_its_views_channels_last() -> None:
    transform = training_transform(Preprocessing(image_size=24), "medium")
    views = [transform(random_pixels(40, 50)) for _ in range(8)]
    images, labels = collate_bytes([(view, 7 + n) for n, view in enumerate(views)])
    assert torch.equal(images, torch.stack(views))
    assert labels.tolist() == list(range(7, 15))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_classifier_answers_bytes_as_it_answers_floats() -> None:
    classifier = ImageClassifier("ab", "test_resnet", pretrained=False, image_size=32).eval()
    images = torch.stack([random_pixels(32, 32) for _ in range(4)])
    floats = images / 255
    with torch.inference_mode():
        assert torch.equal(classifier(images), classifier(floats))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000), st.sampled_from([32, 224, 235, 256, 292]))
def test_sides_are_those_of_torchvision(height: int, width: int, short_side: int) -> None:
    size = shrunk_size((height, width), short_side)
    expected = functional.resize(torch.empty(1, height, width, device="meta"), [short_side])
    assert size == tuple(expected.shape[-2:])


@pytest.mark.parametrize("size", [(499, 333), (333, 499), (401, 300), (640, 427), (257, 256)])
@pytest.mark.parametrize("name", ["test_resnet", "resnet50", "tf_efficientnet_lite0"])
def test_views_are_those_of_timms_own_transform(size: tuple[int, int], name: str) -> None:
    """As docs/export.md promises: the reader and the transform together, pixel for pixel nearly."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = [127 + 120 * np.sin(x / k) * np.cos(y / (k + 2)) for k in (5, 9, 14)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model(name))
    reference = timm.data.create_transform(**{**config, "mean": (0,) * 3, "std": (1,) * 3})(image)
    preprocessing = preprocessing_of(name)
    reader = ImageReader.of([preprocessing])
    pixels = ImageReader(short_side=reader.short_side).decode(content.getvalue(), name="x")
    ours = evaluation_transform(preprocessing)(pixels) / 255
    assert ours.shape == reference.shape
    assert (ours - reference).abs().mean() < 1 / 255
    assert (ours - reference).abs().max() < 12 / 255


def test_old_checkpoints_keep_their_rule() -> None:
    old = {key: v for key, v in Preprocessing().to_dict().items() if key != "long_side"}
    assert Preprocessing.from_dict(old).long_side == "rounded"
    assert Preprocessing.from_dict(Preprocessing().to_dict()) == Preprocessing()
    assert shrunk_size((499, 333), 256, "rounded") == (384, 256)
    assert shrunk_size((499, 333), 256) == (383, 256)
    assert ImageReader.of([Preprocessing.from_dict(old)]).long_side == "rounded"
